"""The network: shapes, causality, masks, anti-collapse."""

from __future__ import annotations

import pytest
import torch

from wm_node.model.config import Dims, ModelConfig
from wm_node.model.world import WorldModelNet, running_max
from wm_node.profile import RobotProfile, load_profile, parse_profile
from wm_node.training.sigreg import sigreg


@pytest.fixture(scope="module")
def profile() -> RobotProfile:
    return load_profile("tabletop")


MODELS = {
    "transformer": ModelConfig(),
    "recurrent": ModelConfig(transition_blocks=2),
    "tokens": ModelConfig(transition_blocks=2, tokens=4),
}


@pytest.fixture(scope="module", params=MODELS.values(), ids=MODELS)
def net(profile: RobotProfile, request: pytest.FixtureRequest) -> WorldModelNet:
    torch.manual_seed(0)
    net = WorldModelNet(Dims.of(profile), request.param).eval()
    # The output layers start at zero; give them weights, so that everything can be seen.
    torch.nn.init.normal_(net.dynamics.latent_out.weight, std=0.1)
    return net


def rollout_inputs(net: WorldModelNet, candidates: int) -> tuple[torch.Tensor, ...]:
    dims, random = net.dims, torch.Generator().manual_seed(1)
    ticks = dims.horizon * dims.ticks
    return (
        torch.randn(1, dims.context, net.config.latent, generator=random),
        torch.randn(1, dims.context, dims.joints, generator=random),
        torch.randn(1, dims.context, dims.ticks, dims.action, generator=random),
        torch.randn(candidates, ticks, dims.action, generator=random),
        torch.randn(1, net.config.latent, generator=random),
    )


def test_an_action_changes_only_the_steps_after_it(net: WorldModelNet) -> None:
    inputs = list(rollout_inputs(net, 3))
    with torch.no_grad():
        before = net.outcome(*inputs)["future_latents"]
        changed = inputs[3].clone()
        step = 4
        changed[:, step * net.dims.ticks] += 1.0
        inputs[3] = changed
        after = net.outcome(*inputs)["future_latents"]
    moved = (after - before).abs().amax((0, 2))
    assert torch.equal(moved[:step], torch.zeros(step))
    assert (moved[step:] > 0).all()


def test_candidates_do_not_see_each_other(net: WorldModelNet) -> None:
    inputs = rollout_inputs(net, 5)
    with torch.no_grad():
        together = net.outcome(*inputs)["future_latents"]
        alone = net.outcome(*inputs[:3], inputs[3][2:3], inputs[4])["future_latents"]
    torch.testing.assert_close(together[2:3], alone, atol=1e-5, rtol=1e-5)


def test_outcomes_have_the_documented_shapes(net: WorldModelNet) -> None:
    dims = net.dims
    with torch.no_grad():
        out = net.outcome(*rollout_inputs(net, 5))
    assert out["future_latents"].shape == (5, dims.horizon, net.config.latent)
    assert out["future_joints"].shape == (5, dims.horizon, dims.joints)
    assert out["state"].shape == (5, dims.horizon, dims.labels)
    assert out["risk"].shape == (5, dims.horizon, dims.events)
    assert out["uncertainty"].shape == out["time_to_goal"].shape == (5, dims.horizon)
    assert (out["risk"].diff(dim=1) >= 0).all(), "a risk once run stays run"
    assert (out["uncertainty"] > 0).all()


def test_gradient_flows_from_every_outcome_to_the_actions(net: WorldModelNet) -> None:
    inputs = list(rollout_inputs(net, 2))
    inputs[3] = inputs[3].requires_grad_(True)
    for name, value in net.outcome(*inputs).items():
        (gradient,) = torch.autograd.grad(value.sum(), inputs[3], retain_graph=True)
        if name != "future_joints":  # its last layer starts at zero
            assert gradient.abs().sum() > 0, name


def test_a_masked_camera_has_no_influence(profile: RobotProfile) -> None:
    data = profile.dump()
    data["cameras"].append({**data["cameras"][0], "name": "side", "topic": "side/image_raw"})
    two = parse_profile(data, "test")
    torch.manual_seed(0)
    net = WorldModelNet(Dims.of(two), ModelConfig()).eval()
    frames = torch.randint(0, 256, (2, 2, 64, 64, 3), dtype=torch.uint8)
    frames[1, 0] = frames[0, 0]
    mask = torch.tensor([[1.0, 0.0], [1.0, 0.0]])
    with torch.no_grad():
        masked = net.encoder(frames, mask)
        seen = net.encoder(frames, torch.ones(2, 2))
    torch.testing.assert_close(masked[0], masked[1])
    assert (seen[0] - seen[1]).abs().max() > 1e-3


def test_sigreg_is_low_for_gaussian_and_high_for_collapsed_latents() -> None:
    torch.manual_seed(0)
    gaussian = torch.randn(2, 256, 32)
    collapsed = torch.zeros(2, 256, 32) + 0.01 * torch.randn(2, 256, 32)
    line = torch.randn(2, 256, 1).expand(2, 256, 32)
    assert sigreg(gaussian) < 2.0
    assert sigreg(collapsed) > 20.0
    assert sigreg(line) > 5.0


def test_running_max() -> None:
    values = torch.tensor([[[0.1], [0.5], [0.2]]])
    assert running_max(values).flatten().tolist() == pytest.approx([0.1, 0.5, 0.5])
