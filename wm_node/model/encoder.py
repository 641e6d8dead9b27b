"""Frames of one instant, from one or several cameras, to a latent of one or more tokens."""

from __future__ import annotations

from math import isqrt

import torch
from torch import Tensor, nn

from wm_node.errors import WmError
from wm_node.model.config import Dims, ModelConfig


def _normed(conv: nn.Conv2d) -> nn.Sequential:
    return nn.Sequential(conv, nn.BatchNorm2d(conv.out_channels))


class Residual(nn.Module):
    """Two convolutions beside the identity (He et al., arXiv 1512.03385)."""

    def __init__(self, channels: int) -> None:
        super().__init__()
        self.first = _normed(nn.Conv2d(channels, channels, 3, padding=1, bias=False))
        self.second = _normed(nn.Conv2d(channels, channels, 3, padding=1, bias=False))

    def forward(self, features: Tensor) -> Tensor:
        """(B, C, h, w) -> the same shape."""
        return torch.relu(features + self.second(torch.relu(self.first(features))))


class KeypointFeatures(nn.Module):
    """Residual convolutions, the places of keypoints on the frame, and a coarse map.

    A keypoint is the mean place under a softmax over a map of its own (Finn et al., Deep spatial
    autoencoders, arXiv 1509.06113). The weights that find a thing are the same everywhere, so it
    is found on surfaces that were seen elsewhere: docs/decisions.md, "Keypoints".
    """

    def __init__(self, dims: Dims, config: ModelConfig) -> None:
        super().__init__()
        fine, middle, coarse = config.encoder_channels
        rows, columns = dims.height // 4, dims.frame_width // 4
        self.fine = nn.Sequential(
            nn.PixelUnshuffle(2),
            _normed(nn.Conv2d(3 * 4, fine, 4, stride=2, padding=1, bias=False)),
            nn.ReLU(),
            Residual(fine),
        )
        self.middle = nn.Sequential(
            _normed(nn.Conv2d(fine, middle, 4, stride=2, padding=1, bias=False)),
            nn.ReLU(),
            *(Residual(middle) for _ in range(config.encoder_blocks)),
        )
        # Of each keypoint a map at a quarter of the frame's size, of what both scales see.
        self.fine_maps = nn.Conv2d(fine, config.keypoints, 1)
        self.middle_maps = nn.Sequential(
            nn.Conv2d(middle, 4 * config.keypoints, 1), nn.PixelShuffle(2)
        )
        self.coarse = nn.Sequential(nn.Conv2d(middle, coarse, 4, stride=2, padding=1), nn.ReLU())
        # The coarse map comes last; see CellTokens.
        self.size = 2 * config.keypoints + coarse * (rows // 4) * (columns // 4)
        self.register_buffer("down", torch.linspace(-1.0, 1.0, rows), persistent=False)
        self.register_buffer("across", torch.linspace(-1.0, 1.0, columns), persistent=False)
        self.down: Tensor
        self.across: Tensor

    def forward(self, pixels: Tensor) -> Tensor:
        """(B, 3, H, W) in -1..1 -> (B, size)."""
        fine = self.fine(pixels)
        middle = self.middle(fine)
        maps = (self.fine_maps(fine) + self.middle_maps(middle)).float()
        share = torch.softmax(maps.flatten(2), dim=-1).view_as(maps)
        y = (share.sum(3) * self.down).sum(-1)
        x = (share.sum(2) * self.across).sum(-1)
        # Twice, so that a place weighs as much as a feature of the map when training begins.
        return torch.cat([2.0 * x, 2.0 * y, self.coarse(middle).flatten(1).float()], dim=1)


class CellTokens(nn.Module):
    """What the cells of a square grid on the frame add to the tokens of the same places."""

    def __init__(self, dims: Dims, config: ModelConfig) -> None:
        super().__init__()
        self.channels = config.encoder_channels[-1]
        self.rows, self.columns = dims.height // 16, dims.frame_width // 16
        self.side = isqrt(config.tokens)
        if self.rows % self.side or self.columns % self.side:
            raise WmError(
                f"'tokens' {config.tokens} do not fit: a frame of {dims.height} x "
                f"{dims.frame_width} has {self.rows} x {self.columns} cells of 16 pixels, which "
                f"{self.side} must divide."
            )
        area = (self.rows // self.side) * (self.columns // self.side)
        self.project = nn.Linear(self.channels * area, config.latent // config.tokens)

    def forward(self, features: Tensor) -> Tensor:
        """(B, F) features, of which the last are the coarse map -> (B, latent), token by token."""
        side, high, wide = self.side, self.rows // self.side, self.columns // self.side
        coarse = features[:, -self.channels * self.rows * self.columns :]
        cells = coarse.reshape(-1, self.channels, side, high, side, wide)
        cells = cells.permute(0, 2, 4, 1, 3, 5).flatten(3).flatten(1, 2)  # (B, tokens, C * area)
        tokens: Tensor = self.project(cells)
        return tokens.flatten(1)


class FrameEncoder(nn.Module):
    """Features per camera, masked mean over cameras, projection with BatchNorm.

    With more than one token, each is the projection of the whole frame's features and that of the
    token's own cell of a square grid.

    The features are three convolutions after space-to-depth, flattened, or where the configuration
    has keypoints :class:`KeypointFeatures`.

    The final BatchNorm without affine parameters keeps the latent at zero mean and unit variance
    per dimension, which SIGReg (see ``training/sigreg.py``) needs against collapse.
    """

    def __init__(self, dims: Dims, config: ModelConfig) -> None:
        super().__init__()
        self.keypoints: KeypointFeatures | None = None
        if config.keypoints:
            self.keypoints = KeypointFeatures(dims, config)
            size = self.keypoints.size
        else:
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
            size = third * (dims.height // 16) * (dims.frame_width // 16)
        self.hidden = nn.Linear(size, config.encoder_hidden)
        self.camera = nn.Parameter(torch.zeros(dims.cameras, config.encoder_hidden))
        self.norm = nn.BatchNorm1d(config.encoder_hidden)
        self.project = nn.Linear(config.encoder_hidden, config.latent)
        self.cells = CellTokens(dims, config) if config.tokens > 1 else None
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
        pixels = pixels / 127.5 - 1.0
        if self.keypoints is None:
            features = self.conv(self.unshuffle(pixels)).flatten(1)
        else:
            features = self.keypoints(pixels).to(pixels.dtype)
        weight = mask.unsqueeze(-1)

        def fuse(values: Tensor) -> Tensor:
            """(B, cameras, n) -> (B, n): the mean over cameras whose frames are present."""
            return (values * weight).sum(1) / weight.sum(1).clamp_min(1.0)

        fused = fuse(self.hidden(features).view(batch, cameras, -1) + self.camera)
        projected = self.project(torch.relu(self.norm(fused)))
        if self.cells is not None:
            projected = projected + fuse(self.cells(features).view(batch, cameras, -1))
        latent: Tensor = self.whiten(projected)
        return latent
