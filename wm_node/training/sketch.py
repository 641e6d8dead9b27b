"""Redraws a frame at half its size from its latent and another frame of the same episode.

What does not change within an episode (colour, paint, light, the place of the camera) the
reference frame shows; what the robot does its joints tell. Left for the latent is what else has
moved, and where to: this is what makes the latents hold objects precisely without labels. Only the
first phase of training uses it; the decoder of the bundle is another one.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wm_node.model.config import Dims, ModelConfig

MAP_CHANNELS = 48
CHANNELS = 64
CHANGE_WEIGHT = 16.0
"""How much more a pixel counts that differs from the reference by half the range."""


class FrameSketch(nn.Module):
    """Small decoder without skip connections from the frame that is drawn."""

    def __init__(self, dims: Dims, config: ModelConfig) -> None:
        super().__init__()
        self.cameras, self.rows, self.columns = (
            dims.cameras,
            dims.height // 8,
            dims.frame_width // 8,
        )
        self.map = nn.Sequential(
            nn.Linear(config.latent + dims.joints, 256),
            nn.SiLU(),
            nn.Linear(256, dims.cameras * MAP_CHANNELS * self.rows * self.columns),
            nn.SiLU(),
        )
        self.up = nn.ConvTranspose2d(MAP_CHANNELS, MAP_CHANNELS, 4, stride=2, padding=1)
        self.merge = nn.Sequential(
            nn.SiLU(),
            nn.Conv2d(MAP_CHANNELS + 12, CHANNELS, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(CHANNELS, CHANNELS, 3, padding=1),
            nn.SiLU(),
            nn.Conv2d(CHANNELS, 12, 1),
        )

    def forward(self, latents: Tensor, joints: Tensor, reference: Tensor) -> Tensor:
        """Draw.

        Args:
            latents: (M, latent); joints: (M, J), normalised.
            reference: (M * cameras, 3, H / 2, W / 2) of :func:`half_size`.

        Returns:
            (M * cameras, 3, H / 2, W / 2), about -1..1.
        """
        places = self.map(torch.cat([latents, joints], dim=-1))
        places = self.up(places.view(-1, MAP_CHANNELS, self.rows, self.columns))
        seen = nn.functional.pixel_unshuffle(reference, 2)
        change = self.merge(torch.cat([places, seen], dim=1))
        return reference + nn.functional.pixel_shuffle(change, 2)


def half_size(frames: Tensor) -> Tensor:
    """(M, cameras, H, W, 3) in 0..255 -> (M * cameras, 3, H / 2, W / 2) in -1..1."""
    planes = frames.flatten(0, 1).permute(0, 3, 1, 2).float() / 127.5 - 1.0
    return nn.functional.avg_pool2d(planes, 2)


def sketch_loss(drawn: Tensor, wanted: Tensor, reference: Tensor, mask: Tensor) -> Tensor:
    """Mean square error in which what differs from the reference counts more.

    Args:
        drawn, wanted, reference: (M * cameras, 3, H / 2, W / 2).
        mask: (M, cameras), 0 where a frame or its reference is missing.
    """
    changed = (wanted - reference).abs().amax(1, keepdim=True).clamp_max(1.0)
    weight = (1.0 + CHANGE_WEIGHT * changed) * mask.flatten()[:, None, None, None]
    error: Tensor = ((drawn - wanted) ** 2 * weight).mean()
    return error
