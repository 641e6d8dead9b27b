"""Draws future frames for people: moves and repaints the present frame.

The present frame enters a U-Net through skip connections; what the latents and the joints say about
the change enters its bottleneck as a map and every level as a scale and shift (FiLM, Perez et al.,
2018). The output moves the pixels of the present frame along a flow and blends in newly drawn ones,
so that the unchanged background stays sharp. All convolutions work at half the frame's size or
less. The gradient into the latents is stopped by the caller unless training asks for it.
"""

from __future__ import annotations

from math import isqrt

import torch
from torch import Tensor, nn

from wm_node.model.config import Dims, ModelConfig

MAP_CHANNELS = 32
CONDITION = 256
GROUPS = 8


def _conv(inputs: int, outputs: int, stride: int = 1) -> nn.Sequential:
    kernel = 4 if stride == 2 else 3
    return nn.Sequential(
        nn.Conv2d(inputs, outputs, kernel, stride=stride, padding=1),
        nn.GroupNorm(GROUPS, outputs),
        nn.SiLU(),
    )


class _Film(nn.Module):
    """Scales and shifts channels by the condition; does nothing before training."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.project = nn.Linear(CONDITION, 2 * channels)
        nn.init.zeros_(self.project.weight)
        nn.init.zeros_(self.project.bias)

    def forward(self, x: Tensor, condition: Tensor) -> Tensor:
        scale, shift = self.project(condition)[:, :, None, None].chunk(2, dim=1)
        edited: Tensor = x * (1.0 + scale) + shift
        return edited


class FrameDecoder(nn.Module):
    """U-Net over the present frame, edited by the change of latent and joints."""

    def __init__(self, dims: Dims, config: ModelConfig) -> None:
        super().__init__()
        first, second, third, fourth = channels = config.decoder_channels
        self.rows, self.columns = dims.height // 16, dims.frame_width // 16
        self.cameras = dims.cameras
        self.down = nn.ModuleList(
            [
                _conv(12, first),
                _conv(first, second, stride=2),
                _conv(second, third, stride=2),
                _conv(third, fourth, stride=2),
            ]
        )
        self.condition = nn.Sequential(
            nn.Linear(2 * config.latent + 2 * dims.joints, CONDITION),
            nn.SiLU(),
            nn.Linear(CONDITION, CONDITION),
            nn.SiLU(),
        )
        self.map = nn.Linear(CONDITION, MAP_CHANNELS * self.rows * self.columns * dims.cameras)
        # Tokens are drawn where they stand on the frame.
        self.side, size = isqrt(config.tokens), config.latent // config.tokens
        self.places = (
            nn.Linear(2 * size, MAP_CHANNELS * dims.cameras) if config.tokens > 1 else None
        )
        self.merge = nn.Sequential(_conv(fourth + MAP_CHANNELS, fourth), _conv(fourth, fourth))
        self.up = nn.ModuleList(
            [
                _conv(fourth + third, third),
                _conv(third + second, second),
                _conv(second + first, first),
            ]
        )
        self.film = nn.ModuleList(_Film(count) for count in reversed(channels))
        # Flow, and for each of the four pixels behind a cell: blend and colour.
        self.draw = nn.Conv2d(first, 2 + 4 * 4, 3, padding=1)
        nn.init.normal_(self.draw.weight, std=1e-3)
        nn.init.zeros_(self.draw.bias)  # type: ignore[arg-type]
        rows, columns = torch.linspace(-1, 1, dims.height), torch.linspace(-1, 1, dims.frame_width)
        grid = torch.stack(torch.meshgrid(columns, rows, indexing="xy"), dim=-1)
        self.register_buffer("grid", grid.unsqueeze(0), persistent=False)
        self.grid: Tensor

    def forward(
        self,
        latents: Tensor,
        joints: Tensor,
        latent_now: Tensor,
        joints_now: Tensor,
        frames_now: Tensor,
    ) -> Tensor:
        """Decode M latents against one or M present instants.

        Args:
            latents: (M, latent) predicted or observed.
            joints: (M, J), normalised, at the same instants.
            latent_now: (1 or M, latent) of the present frames.
            joints_now: (1 or M, J), normalised.
            frames_now: (1 or M, cameras, H, W, 3) in 0..255.

        Returns:
            (M, cameras, H, W, 3) float in 0..255.
        """
        count, cameras = latents.shape[0], self.cameras
        height, width = frames_now.shape[2], frames_now.shape[3]
        pixels = frames_now.flatten(0, 1).permute(0, 3, 1, 2).to(latents.dtype) / 127.5 - 1.0
        skips = [self.down[0](nn.functional.pixel_unshuffle(pixels, 2))]
        for layer in list(self.down)[1:]:
            skips.append(layer(skips[-1]))

        def spread(x: Tensor) -> Tensor:
            """Repeat the present's features for every latent."""
            grouped = x.view(-1, cameras, *x.shape[1:])
            return grouped.expand(count, *grouped.shape[1:]).flatten(0, 1)

        condition = self.condition(
            torch.cat([latents, latents - latent_now, joints, joints - joints_now], dim=-1)
        )
        edit = self.map(condition).view(count * cameras, MAP_CHANNELS, self.rows, self.columns)
        if self.places is not None:
            edit = edit + self._placed(latents, latents - latent_now)
        condition = condition.repeat_interleave(cameras, 0) if cameras > 1 else condition
        x = self.film[0](self.merge(torch.cat([spread(skips[3]), edit], dim=1)), condition)
        for layer, film, skip in zip(self.up, list(self.film)[1:], skips[2::-1], strict=True):
            x = nn.functional.interpolate(x, size=skip.shape[-2:], mode="nearest")
            x = film(layer(torch.cat([x, spread(skip)], dim=1)), condition)
        drawn = self.draw(x)
        flow = nn.functional.interpolate(
            drawn[:, :2], size=(height, width), mode="bilinear", align_corners=False
        )
        present = spread(pixels)
        moved = nn.functional.grid_sample(
            present,
            self.grid.to(flow.dtype) + flow.permute(0, 2, 3, 1),
            mode="bilinear",
            padding_mode="border",
            align_corners=True,
        )
        paint = nn.functional.pixel_shuffle(drawn[:, 2:], 2)
        blend = torch.sigmoid(paint[:, :1] - 2.0)
        result = (1.0 - blend) * moved + blend * (present + 2.0 * paint[:, 1:])
        result = ((result + 1.0) * 127.5).permute(0, 2, 3, 1)
        return result.view(count, cameras, height, width, 3)

    def _placed(self, latents: Tensor, change: Tensor) -> Tensor:
        """(M, latent) of several tokens, twice -> (M * cameras, MAP_CHANNELS, rows, columns)."""
        assert self.places is not None
        count, side = latents.shape[0], self.side
        tokens = torch.cat([one.view(count, side**2, -1) for one in (latents, change)], dim=-1)
        cells = self.places(tokens).view(count, side, side, self.cameras, MAP_CHANNELS)
        cells = cells.permute(0, 3, 4, 1, 2).flatten(0, 1)
        return nn.functional.interpolate(cells, size=(self.rows, self.columns), mode="nearest")
