"""Random colours and moves of frames, for encoders that must not mind them."""

from __future__ import annotations

from math import radians

import torch
from torch import Tensor
from torch.nn import functional

PLAIN = 0.2
"""Share of the frames that stay as they are: the encoder must know those, too."""
SHIFT = 0.08
TURN_RAD = radians(3.0)
SCALE = 0.03
"""Greatest moves of :func:`shake` at strength 1; the shift in shares of the picture's side. The
demo's picture moves by 0.084 at most where its camera is pushed by 2 cm and turned by 2 degrees."""


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
    keep = torch.rand(count, 1, 1, device=device) < PLAIN
    mixing = torch.where(keep, identity, mixing)
    offset = torch.where(keep, torch.zeros_like(offset), offset)
    # Colours first in memory: one small product a frame over all its pixels.
    planes = frames.flatten(1, 3).transpose(1, 2).float()  # (M, 3, cameras * H * W)
    mixed = torch.baddbmm(offset, mixing, planes).clamp_(0.0, 255.0)
    return mixed.transpose(1, 2).view(frames.shape)


def shake(frames: Tensor, strength: float) -> Tensor:
    """Shift, turn and scale every frame at random, as if its camera had been knocked.

    Labels are places on the table, and stay: an encoder must then tell them by what it sees of the
    table and the robot, not by where they are in the picture.

    Args:
        frames: (M, cameras, H, W, 3), 0..255.
        strength: 0 returns the frames as they are; 1 moves them by :data:`SHIFT` and so on.

    Returns:
        Float frames of the same shape; what comes into view repeats the picture's border.
    """
    if strength <= 0.0:
        return frames
    count, device = frames.shape[0] * frames.shape[1], frames.device
    moved = (torch.rand(count, device=device) >= PLAIN).float() * strength

    def drawn(greatest: float) -> Tensor:
        return moved * greatest * (2.0 * torch.rand(count, device=device) - 1.0)

    turn, scale = drawn(TURN_RAD), 1.0 + drawn(SCALE)
    across, along = scale * torch.cos(turn), scale * torch.sin(turn)
    # The grid's side is 2.
    rows = torch.stack([across, -along, drawn(2 * SHIFT), along, across, drawn(2 * SHIFT)], dim=-1)
    planes = frames.flatten(0, 1).permute(0, 3, 1, 2).float()
    grid = functional.affine_grid(rows.view(count, 2, 3), list(planes.shape), align_corners=False)
    out = functional.grid_sample(planes, grid, padding_mode="border", align_corners=False)
    return out.permute(0, 2, 3, 1).view(frames.shape)
