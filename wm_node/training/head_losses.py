"""Losses of the heads that read labels and events from latents; what is unknown does not count."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wm_node.model.world import WorldModelNet

LABEL_OUTLIER = 0.3
"""Error of a label, in its deviations, from which it counts linearly: falls must not dominate."""


def label_errors(net: WorldModelNet, latents: Tensor, labels: Tensor) -> tuple[Tensor, Tensor]:
    """Return errors of the labels read from latents, 0 where unknown, and which are known.

    Args:
        net: with labels.
        latents: (..., latent).
        labels: of a shape that broadcasts to (..., S).
    """
    known = torch.isfinite(labels)
    wanted = net.normalise("labels", torch.nan_to_num(labels))
    read = net.heads.state(latents).float()
    error = nn.functional.smooth_l1_loss(
        read, wanted.expand_as(read), beta=LABEL_OUTLIER, reduction="none"
    )
    return error * known, known


def head_losses(
    net: WorldModelNet, latents: Tensor, labels: Tensor, events: Tensor | None
) -> dict[str, Tensor]:
    """Losses of the label heads on latents (..., latent); unknown labels do not count."""
    result = {}
    if net.dims.labels:
        error, known = label_errors(net, latents, labels)
        result["state"] = error.sum() / known.sum().clamp_min(1)
    if events is not None:
        known = torch.isfinite(events)
        logits = net.heads.risk(latents)
        error = nn.functional.binary_cross_entropy_with_logits(
            logits, torch.nan_to_num(events), reduction="none"
        )
        result["risk"] = (error * known).sum() / known.sum().clamp_min(1)
    return result
