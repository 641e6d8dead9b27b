"""Episodes with the robot's own safety gate between policy and simulator."""

from __future__ import annotations

import math

import numpy as np
import pytest
from numpy.typing import NDArray

from wm_node.profile import KeepOut, load_profile
from wm_node.safety.reasons import Reason
from wm_node.sim.gated import GatedLoop, Told, gate_of
from wm_node.sim.loop import Observation
from wm_node.sim.suite import run_episode
from wm_node.sim.tabletop import TabletopSim
from wm_node.sim.task import EPISODE_TICKS, Task

PROFILE = load_profile("tabletop")
HARMLESS = Told(Reason.OK, dict.fromkeys(PROFILE.event_names, 0.0))
TOWARDS = np.array([0.1, 0.0])


class Steady:
    """Commands the same velocity all the time, and tells the same of it."""

    uses_frames = False

    def __init__(self, told: Told, velocity: NDArray[np.float64] = TOWARDS) -> None:
        self.told, self._velocity = told, velocity
        self.seen: list[Observation] = []

    def reset(self, task: Task, sim: TabletopSim) -> None:
        self.seen.clear()

    def act(self, observation: Observation) -> NDArray[np.float64]:
        self.seen.append(observation)
        return self._velocity


@pytest.fixture(scope="module")
def sim() -> TabletopSim:
    return TabletopSim((160, 120), render=False)


@pytest.mark.parametrize(
    ("told", "reason"),
    [
        (HARMLESS, None),
        (Told(Reason.OK, {**HARMLESS.risk, "fell": 0.9}), "RISK"),
        (Told(Reason.OK, HARMLESS.risk, uncertainty=1.5), "UNCERTAINTY"),
        (Told(Reason.OK, HARMLESS.risk, surprise=1.5), "SURPRISE"),
        (Told(Reason.OK, {**HARMLESS.risk, "zone": math.nan}), "UNVERIFIED"),
        (Told(Reason.FRAMES_STRANGE), "FRAMES_STRANGE"),
        (Told(Reason.GOAL_REACHED), "GOAL_REACHED"),
    ],
)
def test_the_gate_decides_what_the_robot_gets(
    sim: TabletopSim, told: Told, reason: str | None
) -> None:
    policy = Steady(told)
    score = run_episode(sim, 3, policy, 0.1, profile=PROFILE)
    stops = dict(score.stops)
    begin = {"NO_COMMAND"}  # until the first frame's command is there
    assert set(stops) == begin | ({reason} if reason else set())
    outputs = np.array([value for _, value in policy.seen[-1].applied])
    if reason is None:
        np.testing.assert_allclose(outputs[-1], TOWARDS, atol=1e-6)
    else:
        assert not outputs.any()
        assert stops[reason] > 4 * EPISODE_TICKS


def test_outputs_keep_the_limits_and_are_what_the_policy_sees_as_applied(sim: TabletopSim) -> None:
    sim.reset(3)
    loop = GatedLoop(sim, 0.1, gate_of(PROFILE), PROFILE.action.frame_id)
    rng = np.random.default_rng(0)
    for _ in range(20):
        loop.command(rng.uniform(-0.25, 0.25, 2), HARMLESS)
        for _ in range(10):
            loop.advance(0.01)
    observation = loop.observe(False)
    assert observation.planned is not None
    assert len(observation.planned) == 20
    stamps = np.array([stamp for stamp, _ in observation.applied])
    outputs = np.array([value for _, value in observation.applied])
    assert (np.diff(stamps) == 20_000_000).all()
    assert PROFILE.action.max_acceleration is not None
    change = np.abs(np.diff(outputs, axis=0)).max(axis=0) / 0.02
    assert (change <= np.array(PROFILE.action.max_acceleration) * 1.001).all()
    assert np.abs(outputs).max() > 0.1


def test_a_volume_is_kept_free_whatever_the_policy_says(sim: TabletopSim) -> None:
    space = PROFILE.safety.space
    assert space is not None
    post = KeepOut(name="post", lower=(0.15, -0.4, -0.1), upper=(0.4, 0.4, 0.3))
    guarded = space.model_copy(update={"keep_out": (post,)})
    safety = PROFILE.safety.model_copy(update={"space": guarded})
    sim.reset(3)
    gate = gate_of(PROFILE.model_copy(update={"safety": safety}))
    loop = GatedLoop(sim, 0.1, gate, PROFILE.action.frame_id)
    for _ in range(60):
        loop.command(np.array([0.25, 0.0]), HARMLESS)
        for _ in range(10):
            loop.advance(0.01)
    assert set(loop.stops) == {"NO_COMMAND", "KEEP_OUT"}
    assert sim.tip()[0] < 0.15 - space.links[0].radius_m + 0.001
