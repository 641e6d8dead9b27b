"""Single frames from all over the data, that labels are read from; and the phase of them alone."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass
from itertools import count

import numpy as np
import torch
from torch import Tensor, nn

from wm_node.model.world import WorldModelNet
from wm_node.training import ranks
from wm_node.training.augment import augment, shake
from wm_node.training.data import TrainingData, read_ahead
from wm_node.training.head_losses import head_losses
from wm_node.training.loop import Phase
from wm_node.training.recipe import Recipe
from wm_node.training.sigreg import sigreg

SCATTERED = 0.75
"""Share of the stills that come from a dataset of their own, where there is one."""


@dataclass(frozen=True)
class Drawn:
    """Stills of a step. ``ticks`` (S,) count on from the episodes into the stills' own dataset."""

    ticks: Tensor
    frames: Tensor  # (S, cameras, H, W, 3) uint8
    mask: Tensor  # (S, cameras)
    labels: Tensor  # (S, labels), NaN where unknown


class Stills:
    """Where single frames are drawn from.

    Args:
        data: the episodes; those left out of training are left out here.
        scattered: of a dataset that is there for stills alone, if there is one.

    Attributes:
        sources: both, in the order in which :attr:`Drawn.ticks` count.
    """

    def __init__(self, data: TrainingData, scattered: TrainingData | None = None) -> None:
        self.sources = [data] if scattered is None else [data, scattered]
        self._starts = [source.split(1).train for source in self.sources]

    @property
    def in_memory(self) -> bool:
        """Whether no frame need be read from disk."""
        return all(source.in_memory for source in self.sources)

    def draw(self, size: int, seed: int, step: int) -> Drawn:
        """Return this rank's share of the ``size`` stills of a step."""
        # Of a stream of its own: what else is drawn for a step is each rank's own matter.
        random = np.random.default_rng([seed, step, 2])
        counts = [size]
        if len(self.sources) == 2:
            counts = [size - round(SCATTERED * size), round(SCATTERED * size)]
        drawn = map(random.choice, self._starts, counts)
        starts = ranks.share(np.concatenate(list(drawn)))
        number = ranks.share(np.repeat(np.arange(len(counts)), counts))
        parts, before = [], 0
        for k, source in enumerate(self.sources):
            at = source.frame_ticks(torch.from_numpy(starts[number == k]), 1).flatten()
            parts.append((before + at, source.frames(at), source.mask[at], source.labels[at]))
            before += source.joints.shape[0]
        return Drawn(*(torch.cat(values) for values in zip(*parts, strict=True)))


def still_batches(stills: Stills, recipe: Recipe, seed: int) -> Callable[[int], Iterator[Drawn]]:
    """Return what makes the endless batches of a phase of stills, from a step on."""

    def make_batches(first_step: int) -> Iterator[Drawn]:
        drawn = (stills.draw(recipe.stills_batch, seed, step) for step in count(first_step))
        return read_ahead(drawn, stills.in_memory)

    return make_batches


def read_stills(
    net: WorldModelNet, batch: Drawn, recipe: Recipe
) -> tuple[Tensor, dict[str, Tensor]]:
    """Return latents (S, latent) of stills seen at random, and the losses of their labels."""
    seen = augment(shake(batch.frames, recipe.shake), recipe.augmentation)
    latents = net.encoder(seen, batch.mask)
    read = head_losses(net, latents, batch.labels, None)
    return latents, {name: recipe.label_weight * value for name, value in read.items()}


def stills_phase(
    module: nn.Module, net: WorldModelNet, stills: Stills, recipe: Recipe, seed: int
) -> Phase:
    """Build the phase that teaches the encoder to read labels from single frames.

    It comes first: a step sees as many scenes as frames, where one of sequences shows the same few
    scenes again and again, and what follows starts from an encoder that knows where things are.
    SIGReg spreads the latents over what the labels do not tell.
    """

    def losses(batch: Drawn, step: int) -> Mapping[str, Tensor]:
        latents, labels = read_stills(net, batch, recipe)
        return {"sigreg": recipe.sigreg_weight * sigreg(latents.unsqueeze(0)), **labels}

    return Phase(
        "stills",
        recipe.stills_steps,
        module,
        recipe.stills_rate,
        still_batches(stills, recipe, seed),
        losses,
    )
