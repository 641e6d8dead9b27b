"""The suite: reference policies, latency, parallel workers; the simulator as its own model."""

from __future__ import annotations

from dataclasses import replace
from functools import partial

import numpy as np
import pytest

from wm_node.errors import WmError
from wm_node.profile import load_profile
from wm_node.sim.events import EVENTS
from wm_node.sim.loop import Observation
from wm_node.sim.oracle import SimulatorModel
from wm_node.sim.suite import reference_policy, run_episode, run_suite
from wm_node.sim.tabletop import TabletopSim
from wm_node.sim.task import Task

SEEDS = range(700_000, 700_020)


class Constant:
    """Pushes one way and keeps what it saw."""

    uses_frames = True

    def __init__(self) -> None:
        self.seen: list[Observation] = []

    def reset(self, task: Task, sim: TabletopSim) -> None:
        self.seen.clear()

    def act(self, observation: Observation) -> np.ndarray:
        self.seen.append(observation)
        return np.array([0.1, 0.0])


def test_the_task_is_feasible_but_not_by_chance():
    rates = {}
    for name in ("still", "random", "scripted"):
        scores = run_suite(reference_policy(name), SEEDS, workers=1)
        assert [score.seed for score in scores] == list(SEEDS)
        rates[name] = np.mean([score.success for score in scores])
        if name == "scripted":
            assert not any(score.fell for score in scores)
    assert rates["still"] == 0.0
    assert rates["random"] <= 0.1
    assert rates["scripted"] >= 0.85


def test_workers_change_nothing_but_the_time():
    told = []
    alone = run_suite(reference_policy("scripted"), SEEDS[:5], workers=1)
    several = run_suite(reference_policy("scripted"), SEEDS[:5], workers=2, on_score=told.append)
    assert [replace(score, act_ms=()) for score in several] == [
        replace(score, act_ms=()) for score in alone
    ]
    assert sorted(score.seed for score in told) == list(SEEDS[:5])


def test_a_fault_in_a_worker_reaches_the_caller():
    with pytest.raises(WmError, match="no built-in policy 'clever'"):
        run_suite(partial(reference_policy, "clever"), SEEDS[:2], workers=2)


def test_unknown_reference_policies_are_refused():
    with pytest.raises(WmError, match="scripted"):
        reference_policy("clever")


def test_a_command_takes_effect_after_the_latency():
    sim = TabletopSim((64, 48))
    policy = Constant()
    run_episode(sim, 3, policy, latency_s=0.13)
    first, second = policy.seen[:2]
    assert first.frame is not None
    assert first.frame.shape == (48, 64, 3)
    assert first.applied == ()
    assert second.stamp_ns - first.stamp_ns == 100_000_000
    (stamp, value), *_ = second.applied
    assert stamp - first.stamp_ns == 130_000_000  # still on its way at the second frame
    np.testing.assert_array_equal(value, [0.1, 0.0])
    np.testing.assert_allclose(second.joints, first.joints, atol=1e-3)
    assert np.abs(policy.seen[3].joints - first.joints).max() > 0.01


def test_the_oracle_predicts_exactly_what_then_happens():
    profile = load_profile("tabletop")
    sim = TabletopSim(render=False)
    sim.reset(3)
    for _ in range(5):
        sim.command_tip_velocity((0.1, 0.05))
        sim.advance(0.1)
    model = SimulatorModel(sim, profile.model.ticks_per_step, threads=2)
    rng = np.random.default_rng(0)
    actions = rng.uniform(-0.25, 0.25, (6, profile.model.horizon_ticks, 2)).astype(np.float32)
    state = sim.save()
    out = model.outcomes(actions)
    after = sim.save()
    np.testing.assert_array_equal(state.physics, after.physics)
    assert out["state"].shape == (6, profile.model.horizon_steps, 4)
    assert out["risk"].shape == (6, profile.model.horizon_steps, len(EVENTS))
    for candidate in (0, 4):
        sim.restore(state)
        for tick, action in enumerate(actions[candidate]):
            sim.command_tip_velocity(action)
            sim.advance(0.1)
            if tick % 2:
                true = [*sim.mug_pose()[:2], *sim.tip()]
                np.testing.assert_allclose(out["state"][candidate, tick // 2], true, atol=1e-6)
    model.close()


def test_the_oracle_sees_falls_and_zone_entries_coming():
    sim = TabletopSim(render=False)
    sim.reset(0)
    # The mug stands at an edge, the tip behind it; candidates: stay, or push it over.
    sim.restore(_mug_at(sim, (-0.25, 0.0), tip=(-0.18, 0.0)))
    model = SimulatorModel(sim, 2, threads=1)
    candidates = np.zeros((2, 16, 2))
    candidates[1, :, 0] = -0.2
    risk = model.outcomes(candidates)["risk"]
    assert not risk[0].any()
    assert risk[1, -1].tolist() == [1.0, 0.0, 0.0]
    assert (np.diff(risk[1, :, 0]) >= 0).all()
    sim.restore(_mug_at(sim, (0.02, 0.1), tip=(-0.05, 0.1)))
    risk = model.outcomes(-candidates)["risk"]
    assert risk[1, -1].tolist() == [0.0, 1.0, 0.0]
    model.close()


def _mug_at(sim: TabletopSim, mug: tuple[float, float], tip: tuple[float, float]):
    from wm_node.sim.arm import driver_at

    state = sim.save()
    physics = state.physics.copy()
    physics[1 : 1 + sim.model.nq] = sim.goal_pose(mug, tip=tip)  # after the time
    return replace(state, physics=physics, driver=driver_at(*tip))


def test_the_oracle_refuses_candidates_of_another_shape():
    sim = TabletopSim(render=False)
    with pytest.raises(WmError, match="do not fit"):
        SimulatorModel(sim, 2).outcomes(np.zeros((3, 15, 2)))
