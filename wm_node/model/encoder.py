"""Frames of one instant, from one or several cameras, to one latent token."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wm_node.model.config import Dims, ModelConfig


class FrameEncoder(nn.Module):
    """Space-to-depth convolutions per camera, masked mean over cameras, projection with BatchNorm.

    The final BatchNorm without affine parameters keeps the latent at zero mean and unit variance
    per dimension, which SIGReg (see ``sigreg.py``) needs against collapse.
    """

    def __init__(self, dims: Dims, config: ModelConfig) -> None:
        super().__init__()
        first, second, third = config.encoder_channels
        self.unshuffle = nn.PixelUnshuffle(4)
        self.conv = nn.Sequential(
            nn.Conv2d(3 * 16, first, 1),
            nn.ReLU(),
            nn.Conv2d(first, second, 4, stride=2, padding=1),
            nn.ReLU(),
            nn.Conv2d(second, third, 4, stride=2, padding=1),
            nn.ReLU(),
        )
        rows, columns = dims.height // 4 // 2 // 2, dims.frame_width // 4 // 2 // 2
        self.hidden = nn.Linear(third * rows * columns, config.encoder_hidden)
        self.camera = nn.Parameter(torch.zeros(dims.cameras, config.encoder_hidden))
        self.norm = nn.BatchNorm1d(config.encoder_hidden)
        self.project = nn.Linear(config.encoder_hidden, config.latent)
        self.whiten = nn.BatchNorm1d(config.latent, affine=False)

    def forward(self, frames: Tensor, mask: Tensor) -> Tensor:
        """Encode frames.

        Args:
            frames: (B, cameras, H, W, 3) uint8 RGB, or float with the same 0..255 range.
            mask: (B, cameras) float, 1 where the camera's frame is present.

        Returns:
            (B, latent) float.
        """
        batch, cameras = frames.shape[0], frames.shape[1]
        pixels = frames.flatten(0, 1).permute(0, 3, 1, 2).to(self.project.weight.dtype)
        features = self.conv(self.unshuffle(pixels / 127.5 - 1.0)).flatten(1)
        features = self.hidden(features).view(batch, cameras, -1) + self.camera
        weight = mask.unsqueeze(-1)
        fused = (features * weight).sum(1) / weight.sum(1).clamp_min(1.0)
        latent: Tensor = self.whiten(self.project(torch.relu(self.norm(fused))))
        return latent
