"""Random colours of frames, for encoders that must not mind them."""

from __future__ import annotations

import torch
from torch import Tensor


def augment(frames: Tensor, strength: float) -> Tensor:
    """Change the colours of every frame at random, each on its own.

    Colour, paint and light stay constant within an episode: they are the easiest thing to predict,
    and without this the latents fill up with them instead of with what moves (measured: see
    docs/decisions.md). Frames that each have their own colours share only their geometry.

    Args:
        frames: (M, cameras, H, W, 3) uint8.
        strength: 0 returns the frames as they are; 1 mixes channels strongly.

    Returns:
        Float frames of the same shape in 0..255.
    """
    if strength <= 0.0:
        return frames
    count, device = frames.shape[0], frames.device
    identity = torch.eye(3, device=device)
    mixing = identity + strength * 0.35 * torch.randn(count, 3, 3, device=device)
    mixing = mixing / mixing.sum(-1, keepdim=True).abs().clamp_min(0.4)
    mixing = mixing * torch.exp(strength * 0.25 * torch.randn(count, 1, 1, device=device))
    offset = strength * 0.12 * 255.0 * torch.randn(count, 3, 1, device=device)
    # Contrast changes about mid-grey, so that strong mixing does not only brighten or darken.
    offset = offset + 127.5 * (1.0 - mixing.sum(-1, keepdim=True))
    # Some frames stay as they are: the encoder must also know the true colours.
    keep = torch.rand(count, 1, 1, device=device) < 0.2
    mixing = torch.where(keep, identity, mixing)
    offset = torch.where(keep, torch.zeros_like(offset), offset)
    # Colours first in memory: one small product a frame over all its pixels.
    planes = frames.flatten(1, 3).transpose(1, 2).float()  # (M, 3, cameras * H * W)
    mixed = torch.baddbmm(offset, mixing, planes).clamp_(0.0, 255.0)
    return mixed.transpose(1, 2).view(frames.shape)
