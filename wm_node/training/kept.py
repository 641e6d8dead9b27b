"""More reading for an encoder whose latents are in use already: their meaning stays what it is.

Dynamics, heads, value and decoder know latents. To train them anew for an encoder that reads
better takes every episode again and most of a run's time. Here the encoder learns from single
frames alone, while the label heads stand still and the latents of frames that it already reads well
stay where they are, as in learning without forgetting (Li and Hoiem, arXiv 1606.09282): all that
was trained on them holds.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from wm_node.model.encoder import FrameEncoder
from wm_node.model.world import WorldModelNet
from wm_node.training.data import TrainingData
from wm_node.training.encoder_phase import encode_all
from wm_node.training.loop import Phase
from wm_node.training.recipe import Recipe
from wm_node.training.stills import Drawn, Stills, read_stills, still_batches

READ_WELL = 0.15
"""Error of every known label, in its deviations, up to which a frame is read well."""


@dataclass(frozen=True)
class Latents:
    """Those of a bundle, of every tick that stills are drawn from."""

    values: Tensor
    """(T, latent), by :attr:`Drawn.ticks`."""
    read_well: Tensor
    """(T,) 1 where every known label is read from them within :data:`READ_WELL`, else 0."""


@torch.no_grad()
def latents_of(net: WorldModelNet, sources: Sequence[TrainingData]) -> Latents:
    """Encode every frame of the sources, as they are, and compare its labels with what is read."""
    values = torch.cat([encode_all(net, source) for source in sources])
    labels = torch.cat([source.labels for source in sources])
    off = (net.heads.state(values).float() - net.normalise("labels", labels)).abs()
    return Latents(values, (torch.nan_to_num(off) <= READ_WELL).all(-1).float())


class _Reader(nn.Module):
    """The encoder with the statistics of its normalisations as they are, in training too."""

    def __init__(self, encoder: FrameEncoder) -> None:
        super().__init__()
        self.encoder = encoder

    def train(self, mode: bool = True) -> _Reader:
        """Keep evaluating: other frames than those of the episodes must not shift the latents."""
        super().train(False)
        return self


def kept_stills_phase(
    net: WorldModelNet, stills: Stills, before: Latents, recipe: Recipe, seed: int
) -> Phase:
    """Build the phase of stills in which the encoder alone learns and latents stay.

    Args:
        net: with the weights that ``before`` was encoded with.
        stills: where frames are drawn from.
        before: what the latents of these frames were.
        recipe: its ``keep_latents`` weighs the squared distance to them, where they read well.
        seed: of batches and colours.
    """

    def losses(batch: Drawn, step: int) -> Mapping[str, Tensor]:
        latents, labels = read_stills(net, batch, recipe)
        away = ((latents - before.values[batch.ticks]) ** 2).mean(-1)
        held = before.read_well[batch.ticks]
        kept = recipe.keep_latents * (away * held).sum() / held.sum().clamp_min(1.0)
        return {"kept": kept, **labels}

    return Phase(
        "stills",
        recipe.stills_steps,
        _Reader(net.encoder),
        recipe.stills_rate,
        still_batches(stills, recipe, seed),
        losses,
    )
