"""What tells that the model does not know the present frame: surprise, and how strange it is."""

from __future__ import annotations

import math
from collections import deque

from wm_node.bundle import Bundle
from wm_node.data.resample import to_ns
from wm_node.planning.context import NotReady, ObservationBuffer
from wm_node.planning.world_model import Context, Floats, WorldModel, continued
from wm_node.safety.familiarity import FILE, FrameDensity, load_densities

SURPRISE_CYCLES = 3
"""In a row: one surprised frame may be a glint."""


def surprise_at_present(
    model: WorldModel, buffer: ObservationBuffer, context: Context | NotReady, latent: Floats
) -> float:
    """Compare a latent with what was to be expected one step before, as the robot then acted.

    Args:
        model: what expected.
        buffer: holds the context before this one.
        context: ends at the present.
        latent: (latent,) of the present frame.

    Returns:
        1 is usual on left-out data; NaN where nothing was expected.
    """
    if isinstance(context, NotReady):
        return math.nan
    rates = model.profile.model
    past = buffer.context(context.stamp_ns - to_ns(rates.step_s))
    if isinstance(past, NotReady):
        return math.nan
    applied = context.actions[-1]  # (ticks, A): acted in the step that ends now
    actions = continued(applied, rates.horizon_ticks)
    predicted = model.rollout(past, actions[None]).latents[0, 0]
    return model.surprise(predicted, latent, 1)


def lasting_surprise(recent: deque[float]) -> float:
    """Return the surprise that all of the recent cycles reached; NaN before there are so many.

    Args:
        recent: of the newest cycles, ``maxlen`` of them once it is full.
    """
    return min(recent) if len(recent) == recent.maxlen else math.nan


def densities_of(bundle: Bundle) -> dict[str, FrameDensity]:
    """Return the densities of the cameras' frames; none in bundles from before they were kept."""
    file = bundle.optional_file(FILE)
    cameras = tuple(camera.name for camera in bundle.profile.cameras)
    return {} if file is None else load_densities(file, cameras)
