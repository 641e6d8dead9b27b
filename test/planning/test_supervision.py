"""External commands, foreseen by the shipped bundle beside the simulator's own truth."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wm_node.bundle import Bundle, load_bundle
from wm_node.engine import load_engine
from wm_node.errors import WmError
from wm_node.planning.supervision import (
    SupervisionConfig,
    Supervisor,
    held_then_braked,
    worst_risk,
)
from wm_node.planning.world_model import Context, WorldModel
from wm_node.profile import RobotProfile, load_profile
from wm_node.resources import BUNDLE, resource
from wm_node.sim.behaviours import push_velocity
from wm_node.sim.loop import DEFAULT_LATENCY_S, Observation
from wm_node.sim.preventable import last_preventable_s, play
from wm_node.sim.scene import TABLE_BOUNDS
from wm_node.sim.tabletop import TabletopSim
from wm_node.sim.task import task_for_seed
from wm_node.training.policies import MpcPolicy, committed_commands

LIMITS = {"fell": 0.5, "zone": 0.5}


@pytest.fixture(scope="module")
def policy() -> MpcPolicy:
    """What turns observations of the simulator into contexts of the shipped bundle."""
    return MpcPolicy(resource(BUNDLE), "openvino", "state")


@pytest.fixture(scope="module")
def sim() -> Iterator[TabletopSim]:
    made = TabletopSim()
    yield made
    made.close()


def test_a_future_holds_the_command_and_ends_at_rest():
    profile = load_profile("tabletop")
    futures = held_then_braked(profile, np.array([0.1, -0.2]), (0, 3))
    assert futures.shape == (2, profile.model.horizon_ticks, 2)
    assert not futures[0].any()
    assert (futures[1, :3] == np.float32([0.1, -0.2])).all()
    assert not futures[1, 3:].any()


def test_a_push_over_the_edge_is_foreseen_in_time_and_a_push_to_a_goal_passes(
    policy: MpcPolicy, sim: TabletopSim
):
    supervisor = Supervisor(policy.model, SupervisionConfig(), DEFAULT_LATENCY_S)
    profile = policy.model.profile

    def watch(seed: int, over: bool) -> tuple[float | None, list[float], list[float]]:
        """Last preventable moment, times of alarms, speeds."""
        task = task_for_seed(sim, seed)
        policy.reset(task, sim)
        goal = (sim.mug_pose()[0], TABLE_BOUNDS.y_min - 0.08) if over else task.goal
        alarms, speeds = [], []

        def act(observation: Observation) -> np.ndarray:
            context = policy.observe(observation)
            tip_x, tip_y = sim.tip().tolist()
            command = push_velocity((tip_x, tip_y), sim.mug_pose()[:2], goal)
            seen = supervisor.foresee(
                context, command, committed_commands(observation, profile), LIMITS
            )
            speeds.append(seen.speed)
            if max(seen.full_risk.values()) > 0.5:
                alarms.append(sim.time_s + DEFAULT_LATENCY_S)
            return command

        played = play(sim, act, DEFAULT_LATENCY_S)
        last_s = last_preventable_s(sim, played, "fell") if "fell" in played.events else None
        return last_s, alarms, speeds

    fallen = [found for seed in range(10) if (found := watch(seed, True))[0] is not None]
    assert len(fallen) >= 3
    in_time = [alarms[0] <= last_s for last_s, alarms, _ in fallen if alarms and last_s]
    assert sum(in_time) >= 0.75 * len(fallen)
    assert any(min(speeds) < 1.0 for _, _, speeds in fallen), "at half speed it is still safe once"
    calm = [watch(seed, False) for seed in range(6)]
    assert sum(not alarms for _, alarms, _ in calm) >= 5


def model_of(bundle: Bundle) -> WorldModel:
    return WorldModel(bundle, load_engine(bundle, "openvino", 1))


def context_of(model: WorldModel, profile: RobotProfile) -> Context:
    rates, joints = profile.model, len(profile.joints.names)
    return Context(
        0,
        np.zeros((rates.context_steps, model.latent_size), np.float32),
        np.zeros((rates.context_steps, joints), np.float32),
        np.zeros(
            (rates.context_steps, rates.ticks_per_step, len(profile.action.names)), np.float32
        ),
    )


@pytest.fixture(scope="module")
def small(
    random_bundle_of: Callable[[RobotProfile, Path], Bundle],
    tmp_path_factory: pytest.TempPathFactory,
) -> WorldModel:
    return model_of(
        random_bundle_of(load_profile("tabletop"), tmp_path_factory.mktemp("bundle") / "b")
    )


def test_the_fastest_speed_without_risk_is_chosen(small: WorldModel):
    config = SupervisionConfig(speeds=(1.0, 0.6, 0.2))
    supervisor = Supervisor(small, config, 0.1)
    context, command = context_of(small, small.profile), np.array([0.2, 0.1])
    committed = np.zeros((2, 2))
    calls = {"count": 0}
    rollout = small.rollout

    def with_risk(*risks: float) -> Supervisor:
        def falsified(*args: object, **more: object):
            out = rollout(*args, **more)
            calls["count"] += 1
            risk = np.zeros_like(out.risk)
            risk[:, 4, 0] = risks  # in the midst of the horizon
            return replace(out, risk=risk)

        supervisor._model = type("Falsified", (), {"profile": small.profile, "rollout": falsified})
        return supervisor

    for risks, speed in (((0.1, 0.1, 0.1), 1.0), ((0.9, 0.6, 0.1), 0.2), ((0.9, 0.4, 0.1), 0.6)):
        seen = with_risk(*risks).foresee(context, command, committed, LIMITS)
        assert seen.speed == speed
        assert seen.actions[0] == pytest.approx(speed * command)
        assert seen.full_risk["fell"] == pytest.approx(risks[0])
    # Nothing is safe: the command as it came, with the risk for which the gate stops.
    seen = with_risk(0.9, 0.8, 0.7).foresee(context, command, committed, LIMITS)
    assert seen.speed == 1.0
    assert worst_risk(seen.outcomes, 0, small.profile)["fell"] == pytest.approx(0.9)
    assert calls["count"] == 4, "one call of the engine a command"


@pytest.mark.parametrize("speeds", [(), (0.5,), (1.0, 0.3, 0.6)])
def test_speeds_that_are_no_shares_are_refused(speeds: tuple[float, ...]):
    with pytest.raises(WmError, match="from 1 downwards"):
        SupervisionConfig(speeds=speeds)


def test_a_hold_that_is_no_time_is_refused():
    with pytest.raises(WmError, match="use 0 to 2 s"):
        SupervisionConfig(hold_s=0.0)


def test_the_bundle_that_ships_has_a_risk_to_supervise_by():
    assert set(LIMITS) <= set(load_bundle(resource(BUNDLE)).profile.event_names)
