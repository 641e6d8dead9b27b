"""The sketch draws what moved where the latent says, on the scene that the reference shows."""

from __future__ import annotations

import torch
from torch import Tensor

from wm_node.model.config import ModelConfig
from wm_node.model.world import Dims
from wm_node.profile import load_profile, parse_profile
from wm_node.training.sketch import FrameSketch, half_size, sketch_loss

SIZE = 32


def _dims() -> Dims:
    data = load_profile("tabletop").dump()
    data["cameras"][0] |= {"model_width": SIZE, "model_height": SIZE}
    return Dims.of(parse_profile(data, "test"))


def _scenes(count: int) -> tuple[Tensor, Tensor, Tensor]:
    """Frames with a white square on a random colour, the same scene elsewhere, and the places."""
    colour = torch.randint(0, 160, (count, 1, 1, 1, 3)).float()
    pair = []
    for _ in range(2):
        frames = colour.expand(count, 1, SIZE, SIZE, 3).clone()
        places = torch.randint(0, SIZE - 8, (count, 2))
        for frame, (row, column) in zip(frames, places.tolist(), strict=True):
            frame[:, row : row + 8, column : column + 8] = 255.0
        pair.append((frames, places))
    (frames, places), (reference, _) = pair
    return frames, reference, places / SIZE * 2.0 - 0.75


def _trained_error(informed: bool) -> float:
    """Error after a short training, over that of repeating the reference."""
    torch.manual_seed(0)
    config = ModelConfig(latent=8)
    sketch = FrameSketch(_dims(), config)
    optimiser = torch.optim.AdamW(sketch.parameters(), 3e-3)
    mask = torch.ones(32, 1)
    ratio = 1.0
    for _ in range(150):
        frames, reference, places = _scenes(32)
        latents = torch.zeros(32, config.latent)
        if informed:
            latents[:, :2] = places
        seen, wanted = half_size(reference), half_size(frames)
        error = sketch_loss(sketch(latents, torch.zeros(32, 4), seen), wanted, seen, mask)
        optimiser.zero_grad()
        error.backward()
        optimiser.step()
        now = float(error.detach() / sketch_loss(seen, wanted, seen, mask))
        ratio = 0.9 * ratio + 0.1 * now
    return ratio


def test_the_sketch_needs_the_latent_to_know_where_things_went() -> None:
    informed, blind = _trained_error(informed=True), _trained_error(informed=False)
    assert informed < 0.6 * blind


def test_missing_frames_do_not_count() -> None:
    drawn, wanted = torch.rand(2, 3, 4, 4), torch.rand(2, 3, 4, 4)
    mask = torch.tensor([[1.0], [0.0]])
    other = wanted.clone()
    other[1] += 5.0
    loss = sketch_loss(drawn, wanted, wanted, mask)
    assert torch.equal(loss, sketch_loss(drawn, other, other, mask))
    assert float(loss) > 0.0
