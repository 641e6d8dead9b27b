"""How surprised and how unsure a model is on recordings of ordinary work: what limits follow from.

What the nodes compute live is computed from a recording: the surprise of each frame, given what the
robot did before it, and the uncertainty of going on as the robot went on. A planner's own plans may
lead further from what is known, so bags that the planner itself recorded calibrate it best.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wm_node.bundle import load_bundle
from wm_node.data.dataset import Dataset, Episode
from wm_node.data.ingest import temporary_dataset
from wm_node.data.overlay import DoubtCalibration
from wm_node.engine import load_engine
from wm_node.errors import WmError
from wm_node.planning.world_model import WorldModel, continued
from wm_node.safety.conformal import CONFIDENCE, limit_threshold
from wm_node.statistics import quantiles
from wm_node.training.recorded import RecordedContexts

STRETCH_S = 60.0  # a recording is cut into stretches of at most this
WINDOW_S = 5.0  # whose mean surprise the drift monitor compares
KEPT_WINDOWS = 400  # in the overlay

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Stretch:
    """Signals of a stretch of recorded work, one a tick.

    Attributes:
        surprise: (T,) of the frame at each tick.
        uncertainty: (U,) the largest over the horizon, from each tick whose future is recorded.
    """

    surprise: Doubles
    uncertainty: Doubles

    def lasting_surprise(self, cycles: int) -> float:
        """Return the highest surprise that lasts for so many ticks in a row."""
        runs = np.lib.stride_tricks.sliding_window_view(self.surprise, cycles)
        return float(runs.min(axis=1).max())


def stretches_of_bags(
    bundle_path: Path,
    bags: Sequence[Path],
    backend: str = "openvino",
    namespace: str = "",
    advance: Callable[[int, int], None] | None = None,
) -> list[Stretch]:
    """Compute the signals of recordings.

    Args:
        bundle_path: of the model; bags that it was trained on flatter it.
        bags: bags or folders of them.
        backend: of the engine.
        namespace: where the profile's topics lie in the bags.
        advance: told (episodes done, episodes in all).

    Raises:
        WmError: no usable bag, or none is long enough.
    """
    bundle = load_bundle(bundle_path)
    model = WorldModel(bundle, load_engine(bundle, backend, 1))
    stretches: list[Stretch] = []
    with temporary_dataset(bags, bundle.profile, namespace) as (dataset, _):
        for number, episode in enumerate(dataset.episodes):
            stretches += _cut(*_signals(model, dataset, episode), bundle.profile.model.tick_s)
            if advance is not None:
                advance(number + 1, len(dataset.episodes))
    if not stretches:
        raise WmError("no recording is long enough for the model's context and horizon.")
    return stretches


def _signals(model: WorldModel, dataset: Dataset, episode: Episode) -> tuple[Doubles, Doubles]:
    """Return the surprise of an episode's ticks (T,), and the uncertainty of what followed (U,)."""
    rates = dataset.profile.model
    span, ahead = rates.ticks_per_step, rates.horizon_ticks
    contexts = RecordedContexts(model, dataset)
    begin = episode.start + rates.context_steps * span
    end = episode.start + episode.length
    surprise, uncertainty = [], []
    expected: dict[int, NDArray[np.float32]] = {}
    for tick in range(begin, end):
        context = contexts.at(tick)
        if tick in expected:
            surprise.append(model.surprise(expected.pop(tick), context.latents[-1], 1))
        actions = np.asarray(dataset.actions[tick : min(tick + ahead, end)], np.float32)
        whole = len(actions) == ahead
        outcomes = model.rollout(context, continued(actions, ahead)[None])
        if whole:
            uncertainty.append(float(outcomes.uncertainty[0].max()))
        expected[tick + span] = outcomes.latents[0, 0]
    return np.array(surprise), np.array(uncertainty)


def _cut(surprise: Doubles, uncertainty: Doubles, tick_s: float) -> list[Stretch]:
    """Cut an episode's signals into stretches of equal length."""
    longest, least = round(STRETCH_S / tick_s), round(1.0 / tick_s)
    if min(len(surprise), len(uncertainty)) < least:
        return []
    count = -(-len(surprise) // longest)
    return [
        Stretch(a, b)
        for a, b in zip(
            np.array_split(surprise, count), np.array_split(uncertainty, count), strict=True
        )
    ]


def calibrate_doubt(
    stretches: Sequence[Stretch],
    bundle_sha256: str,
    tick_s: float,
    false_alarms_per_hour: float,
    cycles: int = 3,
    confidence: float = CONFIDENCE,
) -> DoubtCalibration:
    """Choose limits that ordinary work passes at most so often, half for each signal.

    Args:
        stretches: of ordinary work.
        bundle_sha256: of the model.
        tick_s: of its signals.
        false_alarms_per_hour: of both signals together.
        cycles: in a row that surprise must last, as mpc_planner's ``surprise_cycles``.
        confidence: that the rate is kept.

    Raises:
        WmError: too little work for that rate, or none that lasts for a window.
    """
    hours = sum(len(stretch.surprise) for stretch in stretches) * tick_s / 3600.0
    rate = 0.5 * false_alarms_per_hour * hours / len(stretches)
    if not 0.0 < rate < 1.0:
        raise WmError(
            f"{false_alarms_per_hour:g} false alarms an hour are more than one in each stretch of "
            "recorded work; ask for fewer."
        )
    needed = -np.log(1.0 - confidence) / (0.5 * false_alarms_per_hour)
    if hours < needed:
        raise WmError(
            f"{60 * hours:.1f} minutes of ordinary work do not suffice for "
            f"{false_alarms_per_hour:g} false alarms an hour: record {60 * needed:.0f} minutes, or "
            "allow more."
        )
    window = max(1, round(WINDOW_S / tick_s))
    means = [
        float(part.mean())
        for stretch in stretches
        for part in np.split(stretch.surprise, range(window, len(stretch.surprise), window))
        if len(part) == window
    ]
    if not means:
        raise WmError(f"no stretch of recorded work lasts for {WINDOW_S:g} s.")
    lasting = [stretch.lasting_surprise(cycles) for stretch in stretches]
    worst = [float(stretch.uncertainty.max()) for stretch in stretches]
    picked = np.unique(np.linspace(0, len(means) - 1, KEPT_WINDOWS).round().astype(int))
    return DoubtCalibration(
        bundle=bundle_sha256,
        surprise_limit=limit_threshold(lasting, rate, confidence),
        uncertainty_limit=limit_threshold(worst, rate, confidence),
        false_alarms_per_hour=false_alarms_per_hour,
        confidence=confidence,
        window_s=window * tick_s,
        windows=[round(means[k], 4) for k in picked],
        measured={
            "hours": round(hours, 4),
            "stretches": len(stretches),
            "surprise_cycles": cycles,
            "surprise": quantiles(np.concatenate([s.surprise for s in stretches])),
            "uncertainty": quantiles(np.concatenate([s.uncertainty for s in stretches])),
        },
    )
