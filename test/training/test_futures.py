"""A world in which one of two things happens: both are recovered, and how likely each is."""

from __future__ import annotations

from types import SimpleNamespace

import numpy as np
import pytest
import torch
from torch import Tensor

from wm_node.model.config import Dims, ModelConfig
from wm_node.model.world import WorldModelNet
from wm_node.training.dynamics_phase import Windows, dynamics_phase
from wm_node.training.recipe import Recipe

DIMS = Dims(
    cameras=1,
    height=32,
    frame_width=32,
    joints=1,
    action=1,
    ticks=1,
    context=2,
    horizon=4,
    labels=1,
    events=1,
)
SMALL = ModelConfig(
    latent=8,
    encoder_channels=(8, 8, 8),
    encoder_hidden=16,
    width=48,
    heads=2,
    transition_blocks=1,
    transition_hidden=96,
    futures=4,
    head_hidden=32,
    value_hidden=16,
    decoder_channels=(8, 8, 8, 8),
)
SIDE = 1.5  # where the cup goes to; it starts at 0
TO_THE_LEFT = 0.7  # how often it falls to the left


class Toy(Windows):
    """Pushed in its second step, a cup topples in the third: to the left, or to the right.

    What decides is not to be seen. Latents hold the cup's place and six numbers that never change.
    """

    def __init__(self, net: WorldModelNet) -> None:
        self.net, self.views = net, None
        self.context, self.horizon = DIMS.context, DIMS.horizon
        self.data = SimpleNamespace(device=torch.device("cpu"))  # type: ignore[assignment]
        self.split = SimpleNamespace(train=np.arange(100_000))  # type: ignore[assignment]

    def gather(self, at: Tensor) -> dict[str, Tensor]:
        steps, count = DIMS.context + DIMS.horizon, len(at)
        random = torch.Generator().manual_seed(int(at[0]))
        pushed = torch.rand(count, generator=random) < 0.5
        left = torch.rand(count, generator=random) < TO_THE_LEFT
        place = torch.zeros(count, steps)
        place[:, DIMS.context + 2 :] = (SIDE * torch.where(left, -1.0, 1.0) * pushed).unsqueeze(-1)
        latents = torch.zeros(count, steps, SMALL.latent)
        latents[..., 0], latents[..., 1] = place, place.abs()
        latents[..., 2:] = torch.randn(count, 1, SMALL.latent - 2, generator=random)
        actions = torch.zeros(count, steps, 1, 1)
        actions[:, DIMS.context + 1] = pushed.float().view(-1, 1, 1)
        ahead = slice(DIMS.context, None)
        return {
            "latents": latents,
            "joints": torch.zeros(count, steps, 1),
            "actions": actions,
            "labels": place[:, ahead].unsqueeze(-1),
            "events": (place[:, ahead] < -0.5).float().unsqueeze(-1),  # it fell to the left
        }


@pytest.fixture(scope="module")
def trained() -> WorldModelNet:
    torch.manual_seed(0)
    net = WorldModelNet(DIMS, SMALL)
    recipe = Recipe(
        dynamics_batch=512,
        latent_noise=0.0,
        label_gradient=1.0,
        rollout_label_weight=1.0,
        model=SMALL,
    )
    phase = dynamics_phase(Toy(net), recipe, 0, None)
    net.train()
    optimiser = torch.optim.Adam(phase.module.parameters(), 3e-3)
    for step, batch in zip(range(350), phase.batches(0), strict=False):
        optimiser.zero_grad()
        sum(phase.losses(batch, step).values()).backward()  # type: ignore[union-attr]
        optimiser.step()
    return net.eval()


def futures(net: WorldModelNet, push: float) -> dict[str, np.ndarray]:
    actions = torch.zeros(1, DIMS.horizon, 1)
    actions[:, 1] = push
    past = torch.zeros(1, DIMS.context, 1, 1)
    with torch.no_grad():
        given = torch.zeros(1, DIMS.context, SMALL.latent), torch.zeros(1, DIMS.context, 1), past
        out = net.futures(*given, actions)
        out["mean"] = net.outcome(*given, actions, torch.zeros(1, SMALL.latent))["future_latents"]
    return {name: value.numpy() for name, value in out.items()}


def test_both_outcomes_are_among_the_futures_as_often_as_they_happen(trained):
    out = futures(trained, push=1.0)
    place, likely = out["state"][:, -1, 0], out["likelihood"]
    assert likely.sum() == pytest.approx(1.0)
    likely_places = place[likely > 0.02]
    assert np.abs(np.abs(likely_places) - SIDE).max() < 0.3  # none in between
    assert likely[place < 0].sum() == pytest.approx(TO_THE_LEFT, abs=0.1)
    assert likely[place > 0].sum() == pytest.approx(1 - TO_THE_LEFT, abs=0.1)
    # One prediction is their mean, which never happens.
    assert abs(out["mean"][0, -1, 0]) < 0.75 * SIDE


def test_risk_over_futures_is_how_often_it_happens(trained):
    out = futures(trained, push=1.0)
    risk, likely = out["risk"][:, -1, 0], out["likelihood"]
    assert likely @ risk == pytest.approx(TO_THE_LEFT, abs=0.1)
    falls = out["state"][:, -1, 0] < 0
    assert (np.abs(risk - falls)[likely > 0.02] < 0.2).all()  # and each future knows for itself


def test_what_is_certain_is_the_same_in_all_futures(trained):
    out = futures(trained, push=0.0)
    place = out["state"][:, -1, 0][out["likelihood"] > 0.02]
    assert np.abs(place).max() < 0.25
    before = futures(trained, push=1.0)["state"][:, 1, 0]
    assert np.abs(before).max() < 0.25  # it topples in the third step
