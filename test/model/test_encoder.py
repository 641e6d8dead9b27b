"""The frame encoder: keypoints are places on the frame, and absent cameras do not count."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from torch import Tensor

from wm_node.errors import WmError
from wm_node.model.config import Dims, ModelConfig
from wm_node.model.encoder import CellTokens, FrameEncoder, KeypointFeatures
from wm_node.profile import load_profile

CONFIG = ModelConfig(encoder_channels=(16, 16, 8), keypoints=12, encoder_blocks=1)


@pytest.fixture
def dims() -> Dims:
    return Dims.of(load_profile("tabletop"))


def pixels(dims: Dims, left: int) -> Tensor:
    """A bright square of 12 x 12 pixels on grey, (1, 3, H, W) in -1..1."""
    frame = torch.zeros(1, 3, dims.height, dims.frame_width)
    frame[..., 24:36, left : left + 12] = 0.9
    return frame


@torch.no_grad()
def test_keypoints_move_with_what_they_are_on(dims: Dims) -> None:
    torch.manual_seed(0)
    features = KeypointFeatures(dims, CONFIG).eval()
    for maps in (features.fine_maps, features.middle_maps[0]):
        maps.weight.mul_(1e4)  # so sharp that each stands on its map's highest place
    before, after = features(pixels(dims, 16)), features(pixels(dims, 24))
    moved = (after - before)[0, : 2 * CONFIG.keypoints].view(2, -1).T  # (K, 2) of x, y
    # Twice a cell, which is 4 pixels, in coordinates that run from -2 to 2.
    wanted = torch.tensor([2 * 4.0 / (dims.frame_width // 4 - 1), 0.0])
    on_square = (moved - wanted).abs().amax(1) < 1e-3
    elsewhere = moved.abs().amax(1) < 1e-3
    assert (on_square | elsewhere).all(), moved
    assert on_square.sum() >= CONFIG.keypoints // 2


TOKENS = replace(CONFIG, tokens=16, latent=16 * 24, transition_blocks=1)


@pytest.mark.parametrize(
    "config", [ModelConfig(), CONFIG, TOKENS], ids=["plain", "keypoints", "tokens"]
)
def test_an_absent_camera_counts_for_nothing(dims: Dims, config: ModelConfig) -> None:
    torch.manual_seed(0)
    both = replace(dims, cameras=2)
    encoder = FrameEncoder(both, config).eval()
    frames = torch.randint(0, 256, (3, 2, dims.height, dims.frame_width, 3), dtype=torch.uint8)
    mask = torch.tensor([[1.0, 0.0]]).repeat(3, 1)
    with torch.no_grad():
        seen = encoder(frames, mask)
        frames[:, 1] = 0
        assert torch.equal(encoder(frames, mask), seen)
        assert seen.shape == (3, config.latent)
        assert not torch.equal(encoder(frames, torch.ones(3, 2)), seen)


@torch.no_grad()
def test_tokens_tell_of_their_own_cells(dims: Dims) -> None:
    torch.manual_seed(0)
    cells = CellTokens(dims, TOKENS)
    coarse = torch.zeros(1, TOKENS.encoder_channels[-1], 4, 4)
    coarse[..., 1, 2] = 1.0
    features = torch.cat([torch.randn(1, 2 * TOKENS.keypoints), coarse.flatten(1)], dim=1)
    change = cells(features) - cells(torch.zeros_like(features))
    per_token = change.view(16, -1).abs().amax(1)
    assert per_token.nonzero().flatten().tolist() == [1 * 4 + 2]


def test_tokens_that_do_not_fit_the_frame_are_refused(dims: Dims) -> None:
    config = replace(TOKENS, tokens=9, latent=9 * 24)
    with pytest.raises(WmError, match="64 x 64 has 4 x 4 cells of 16 pixels, which 3 must divide"):
        FrameEncoder(dims, config)
