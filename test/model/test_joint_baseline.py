"""The linear baseline finds the law that made the data, and sees no future commands."""

from __future__ import annotations

import pytest
import torch

from wm_node.model.config import Dims
from wm_node.model.joint_baseline import JointBaseline, fit_joint_baseline, own_features

DIMS = Dims(
    cameras=1,
    height=16,
    frame_width=16,
    joints=3,
    action=2,
    ticks=2,
    context=2,
    horizon=4,
    labels=0,
    events=0,
)


def windows(count: int = 400, seed: int = 0) -> tuple[torch.Tensor, ...]:
    """Joints 0 and 1 go half of the way to their command each tick; joint 2 keeps its speed."""
    torch.manual_seed(seed)
    ticks = DIMS.ticks * (DIMS.context + DIMS.horizon)
    actions = torch.randn(count, ticks, 2).cumsum(1) * 0.2 + 1.0
    state, speed = torch.randn(count, 3), torch.randn(count) * 0.1
    track = []
    for tick in range(ticks):
        state = state.clone()
        state[:, :2] += 0.5 * (actions[:, tick] - state[:, :2])
        state[:, 2] += speed
        track.append(state)
    ends = torch.stack(track, 1)[:, DIMS.ticks - 1 :: DIMS.ticks]
    steps = actions.view(count, -1, DIMS.ticks, 2)
    return (
        ends[:, : DIMS.context],
        steps[:, : DIMS.context],
        steps[:, DIMS.context :],
        ends[:, DIMS.context :],
    )


@pytest.fixture(scope="module")
def baseline() -> JointBaseline:
    data = windows()
    module = JointBaseline(DIMS)
    module.set_fit(fit_joint_baseline(*data, torch.arange(400) // 40))
    return module


def test_a_linear_law_is_found(baseline: JointBaseline) -> None:
    joints, past, actions, future = windows(seed=1)
    predicted = baseline(joints, past, actions.unsqueeze(1))[:, 0]
    moved = (future - joints[:, -1:]).pow(2).mean().sqrt()
    assert (predicted - future).pow(2).mean().sqrt() < 0.01 * moved
    assert baseline.residual.max() < 0.01


def test_later_commands_do_not_move_earlier_steps(baseline: JointBaseline) -> None:
    joints, past, actions, _ = windows(count=3, seed=2)
    changed = actions.clone()
    changed[:, 2:] += 5.0
    before = baseline(joints, past, actions.unsqueeze(1))[:, 0]
    after = baseline(joints, past, changed.unsqueeze(1))[:, 0]
    torch.testing.assert_close(after[:, :2], before[:, :2])
    assert (after[:, 2:, :2] - before[:, 2:, :2]).abs().min() > 1.0


def test_candidates_are_independent(baseline: JointBaseline) -> None:
    joints, past, actions, _ = windows(count=5, seed=3)
    one = joints[:1], past[:1]
    together = baseline(*one, actions.unsqueeze(0))
    for number in range(5):
        alone = baseline(*one, actions[number][None, None])
        torch.testing.assert_close(together[:, number : number + 1], alone)


def test_half_precision_weights_keep_the_law(baseline: JointBaseline) -> None:
    joints, past, actions, future = windows(seed=4)
    rounded = JointBaseline(DIMS)
    rounded.load_state_dict(baseline.state_dict())
    rounded = rounded.half().float()
    predicted = rounded(joints, past, actions.unsqueeze(1))[:, 0]
    assert (predicted - future).abs().max() < 0.02


def test_features_are_differences_and_the_present() -> None:
    joints = torch.tensor([[[1.0, 2.0, 3.0], [1.5, 2.5, 3.5]]])
    past = torch.arange(8.0).view(1, 2, 2, 2)
    expected = [-0.5, -0.5, -0.5, 1.5, 2.5, 3.5, -6, -6, -4, -4, -2, -2, 6, 7]
    torch.testing.assert_close(own_features(joints, past)[0], torch.tensor(expected))


def test_unfitted_it_predicts_that_nothing_moves() -> None:
    joints, past, actions, _ = windows(count=2)
    predicted = JointBaseline(DIMS)(joints, past, actions.unsqueeze(1))
    torch.testing.assert_close(predicted[:, 0], joints[:, -1:].expand(-1, DIMS.horizon, -1))


def test_noise_gets_a_strong_penalty_and_constants_do_no_harm() -> None:
    joints, past, actions, future = windows()
    past = torch.ones_like(past)
    fit = fit_joint_baseline(
        joints, past, torch.ones_like(actions), torch.randn_like(future), torch.arange(400) // 40
    )
    assert all(torch.isfinite(torch.from_numpy(a)).all() for a in (fit.own, fit.planned, fit.bias))
    lone = fit_joint_baseline(joints, past, actions, future, torch.zeros(400))
    assert torch.isfinite(torch.from_numpy(lone.own)).all()
