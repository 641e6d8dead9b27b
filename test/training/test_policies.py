"""The suite's planner does what the robot would: it holds at its goal and brakes for risk."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from wm_node.bundle import Bundle
from wm_node.planning.hold import HoldLimits
from wm_node.planning.planner import PlannerConfig
from wm_node.profile import RobotProfile, load_profile
from wm_node.sim.loop import START_NS, Observation
from wm_node.sim.suite import demonstration
from wm_node.sim.tabletop import TabletopSim
from wm_node.sim.task import task_for_seed
from wm_node.training.policies import CloningPolicy, MpcPolicy, PlanSettings

QUICK = PlanSettings(config=PlannerConfig(candidates=8, iterations=1))
FAR, NEAR = HoldLimits(reached=1e-6, resume=1e-6), HoldLimits(reached=1e6, resume=1e6)


@pytest.fixture(scope="module")
def bundle(
    random_bundle_of: Callable[[RobotProfile, Path], Bundle],
    tmp_path_factory: pytest.TempPathFactory,
) -> Callable[[float], Bundle]:
    """A random bundle whose gate stops above so much risk."""
    folder = tmp_path_factory.mktemp("policies")
    profile = load_profile("tabletop")

    @cache
    def build(threshold: float) -> Bundle:
        limits = dict.fromkeys(profile.event_names, threshold)
        safety = profile.safety.model_copy(update={"risk_threshold": limits})
        robot = profile.model_copy(update={"safety": safety})
        return random_bundle_of(robot, folder / f"risk_{threshold}")

    return build


@pytest.mark.parametrize("goal", ["state", "image", "clip"])
@pytest.mark.parametrize(
    ("threshold", "hold", "deployed", "moves"),
    [
        (1.0, FAR, True, True),
        (1.0, NEAR, True, False),  # at the goal
        (1e-9, FAR, True, False),  # the gate would stop any plan
        (1e-9, NEAR, False, True),  # play for data knows neither
    ],
)
def test_it_holds_at_the_goal_and_brakes_for_risk(
    bundle: Callable[[float], Bundle],
    goal: str,
    threshold: float,
    hold: HoldLimits,
    deployed: bool,
    moves: bool,
) -> None:
    settings = replace(QUICK, hold=hold, deployed=deployed)
    policy = MpcPolicy(bundle(threshold).path, "openvino", goal, settings)
    sim = TabletopSim((160, 120))
    policy.reset(task_for_seed(sim, 3), sim)
    action = policy.act(Observation(START_NS, sim.render(), sim.joint_positions(), ()))
    assert bool(np.abs(action).max() > 1e-3) is moves


def test_a_demonstration_shows_the_task_done_and_leaves_the_episode_as_it_was() -> None:
    sim = TabletopSim((160, 120))
    task = task_for_seed(sim, 3)
    before, seen = sim.pose(), sim.render()
    frames = demonstration(task, sim)
    np.testing.assert_array_equal(sim.pose(), before)
    np.testing.assert_array_equal(sim.render(), seen)
    np.testing.assert_array_equal(frames[0], seen)
    np.testing.assert_array_equal(frames[-1], sim.render_goal(task.goal))
    assert len(frames) > 10
    assert np.abs(frames[-2].astype(float) - frames[0]).max() > 50, "nothing was done"
    sim.close()


def test_a_clip_leads_the_mug_along_what_was_seen(bundle: Callable[[float], Bundle]) -> None:
    policy = MpcPolicy(bundle(1.0).path, "openvino", "clip", replace(QUICK, hold=FAR))
    sim = TabletopSim((160, 120))
    task = task_for_seed(sim, 3)
    policy.reset(task, sim)
    frames = demonstration(task, sim)
    assert policy.goal.via is not None
    read = [policy.model.picture_goal(policy._seen(frame)).state for frame in frames]
    np.testing.assert_allclose(policy.goal.via, read[:-1], atol=1e-5)
    assert policy.goal.state == pytest.approx(read[-1], abs=1e-5)
    led = policy._guide
    assert led is not None
    asked: list[np.ndarray] = []
    original = led.next
    led.next = lambda here: (asked.append(here), original(here))[1]  # type: ignore[method-assign]
    policy.act(Observation(START_NS, sim.render(), sim.joint_positions(), ()))
    assert len(asked) == 1
    sim.close()


@pytest.mark.parametrize("goal", ["state", "image"])
def test_cloning_does_what_the_proposal_says_for_when_its_command_acts(
    bundle: Callable[[float], Bundle], goal: str
) -> None:
    policy = CloningPolicy(bundle(1.0).path, "openvino", goal, replace(QUICK, latency_s=0.2))
    sim = TabletopSim((160, 120))
    policy.reset(task_for_seed(sim, 3), sim)
    observation = Observation(START_NS, sim.render(), sim.joint_positions(), ())
    action = policy.act(observation)
    proposal = policy.model.propose_for(policy.observe(observation), policy.goal)
    assert proposal is not None
    np.testing.assert_allclose(action, np.clip(proposal[0][2], -0.25, 0.25), atol=1e-6)
    assert np.abs(proposal[0][0] - proposal[0][2]).max() > 1e-6
