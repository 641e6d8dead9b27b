"""Draws future frames for people: edits the present frame by what the latents say has changed.

The present frame enters through skip connections, and the output blends it with newly drawn
pixels, so that the unchanged background stays sharp and only what moves has to be drawn. The
gradient into the latents is stopped by the caller unless training asks for it.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wm_node.model.config import Dims, ModelConfig


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    kernel, padding = (4, 1) if stride == 2 else (3, 1)
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=padding), nn.SiLU()
    )


class FrameDecoder(nn.Module):
    """U-Net over the present frame whose bottleneck is edited by the change of the latent."""

    def __init__(self, dims: Dims, config: ModelConfig) -> None:
        super().__init__()
        low, mid, high = config.decoder_channels
        self.rows, self.columns = dims.height // 8, dims.frame_width // 8
        self.cameras = dims.cameras
        self.stem = _conv(3, low)
        self.down = nn.ModuleList(
            [_conv(low, mid, stride=2), _conv(mid, high, stride=2), _conv(high, high, stride=2)]
        )
        self.latent_map = nn.Linear(2 * config.latent, 32 * self.rows * self.columns * dims.cameras)
        self.merge = nn.Sequential(_conv(high + 32, high), _conv(high, high))
        self.up = nn.ModuleList(
            [_conv(2 * high, high), _conv(high + mid, mid), _conv(mid + low, low)]
        )
        self.draw = nn.Conv2d(low, 4, 3, padding=1)

    def forward(self, latents: Tensor, latent_now: Tensor, frames_now: Tensor) -> Tensor:
        """Decode M latents against one or M present instants.

        Args:
            latents: (M, latent) predicted or observed.
            latent_now: (1 or M, latent) of the present frames.
            frames_now: (1 or M, cameras, H, W, 3) in 0..255.

        Returns:
            (M, cameras, H, W, 3) float in 0..255.
        """
        count, cameras = latents.shape[0], self.cameras
        height, width = frames_now.shape[2], frames_now.shape[3]
        pixels = frames_now.flatten(0, 1).permute(0, 3, 1, 2).to(latents.dtype) / 127.5 - 1.0
        skips = [self.stem(pixels)]
        for layer in self.down:
            skips.append(layer(skips[-1]))

        def spread(x: Tensor) -> Tensor:
            """Repeat the present's features for every latent."""
            grouped = x.view(-1, cameras, *x.shape[1:])
            return grouped.expand(count, *grouped.shape[1:]).flatten(0, 1)

        change = torch.cat([latents, latents - latent_now], dim=-1)
        edit = self.latent_map(change).view(count * cameras, 32, self.rows, self.columns)
        x = self.merge(torch.cat([spread(skips[3]), edit], dim=1))
        for layer, skip in zip(self.up, (skips[2], skips[1], skips[0]), strict=True):
            x = nn.functional.interpolate(x, size=skip.shape[-2:], mode="nearest")
            x = layer(torch.cat([x, spread(skip)], dim=1))
        drawn = self.draw(x)
        blend = torch.sigmoid(drawn[:, 3:4] - 2.0)
        result = (1.0 - blend) * spread(pixels) + blend * torch.tanh(drawn[:, :3])
        result = ((result + 1.0) * 127.5).permute(0, 2, 3, 1)
        return result.view(count, cameras, height, width, 3)
