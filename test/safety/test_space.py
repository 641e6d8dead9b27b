"""Whatever is commanded, watched links stay in their workspace and out of volumes."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wm_node.errors import WmError
from wm_node.profile import RobotProfile, load_profile, parse_profile, urdf_file
from wm_node.safety.gate import Decision, Gate, GateConfig, State, Verdict
from wm_node.safety.kinematics import load_chains
from wm_node.safety.reasons import Reason
from wm_node.safety.space import SpaceGuard
from wm_node.sim.arm import joints_for_tip

PERIOD_S = 0.02
NS = 1_000_000_000
PILLAR = {"name": "pillar", "lower": [0.05, -0.12, 0.0], "upper": [0.15, 0.02, 0.3]}
WORKSPACE = {"lower": [-0.25, -0.20, -0.01], "upper": [0.25, 0.20, 0.2]}
RADIUS_M = 0.016


def profile_with(action: dict[str, Any] | None = None, **space: Any) -> RobotProfile:
    data = load_profile("tabletop").dump()
    data["action"] |= action or {}
    if action:
        data["action"].pop("frame_id", None)
        data["action"].pop("readback")
        data["action"]["readback"] = {
            "topic": "joint_states",
            "message": "sensor_msgs/msg/JointState",
            "fields": ["position"],
        }
    data["safety"]["space"] |= {"workspace": WORKSPACE, "keep_out": [PILLAR]} | space
    return parse_profile(data, "test")


JOINTS: dict[str, Any] = {
    "names": ["base_yaw", "shoulder", "elbow", "wrist"],
    "lower": [-1.0] * 4,
    "upper": [1.0] * 4,
    "max_acceleration": [8.0] * 4,
}
VELOCITIES = JOINTS | {
    "kind": "joint_velocity",
    "units": ["rad/s"] * 4,
    "message": "std_msgs/msg/Float64MultiArray",
    "fields": ["data"],
}
POSITIONS = JOINTS | {
    "kind": "joint_position",
    "units": ["rad"] * 4,
    "lower": [-2.5] * 4,
    "upper": [2.5] * 4,
    "max_acceleration": [20.0] * 4,
    "message": "trajectory_msgs/msg/JointTrajectory",
    "fields": ["positions"],
}


class Robot:
    """A robot that does what it is told, one period later, behind a gate that guards its space."""

    def __init__(self, profile: RobotProfile, tip: tuple[float, float] = (-0.1, -0.1)) -> None:
        space = profile.safety.space
        assert space is not None
        urdf = urdf_file("tabletop", space)
        guard = SpaceGuard(profile, space, urdf, 2 * PERIOD_S)
        self.gate = Gate(profile, GateConfig(period_s=PERIOD_S), space=guard)
        self.kind = profile.action.kind
        (self._chain,) = load_chains(urdf, "table", ["tip"], profile.joints.names)
        self._frame = profile.action.frame_id
        self.joints = np.array(joints_for_tip(*tip))
        self.tip = np.array(tip)
        self.number = 0
        self._told = np.zeros(len(profile.action.names))

    @property
    def place(self) -> np.ndarray:
        return self._chain.places(self.joints[None])[0]

    def step(self, command: np.ndarray) -> Decision:
        self.number += 1
        now_s, stamp = self.number * PERIOD_S, 10**18 + round(self.number * PERIOD_S * NS)
        self.gate.on_heartbeat(stamp, Reason.OK, now_s)
        self.gate.on_joints(stamp, self.joints, np.zeros(4), now_s, stamp)
        if self.number % 5 == 1:
            self.gate.on_verdict(Verdict(stamp, {"fell": 0.0, "zone": 0.0}))
            self.gate.on_command(stamp, command, self._frame, now_s, stamp)
        decision = self.gate.step(now_s, stamp)
        self._act()
        self._told = decision.output
        return decision

    def _act(self) -> None:
        """What was told in the last period acts in this one."""
        if self.kind == "twist":
            self.tip = self.tip + PERIOD_S * self._told
            self.joints = np.array(joints_for_tip(*self.tip))
        elif self.kind == "joint_velocity":
            self.joints = self.joints + PERIOD_S * self._told
        elif self.number > 1:
            self.joints = np.array(self._told)


def room(place: np.ndarray) -> float:
    """Distance of the tip's ball to the nearest border, negative beyond it."""
    low, high = np.array(WORKSPACE["lower"]), np.array(WORKSPACE["upper"])
    inside = min((place - low).min(), (high - place).min())
    away = np.maximum(np.array(PILLAR["lower"]) - place, place - np.array(PILLAR["upper"]))
    outside = float(np.linalg.norm(np.maximum(away, 0.0))) + min(float(away.max()), 0.0)
    return min(inside, outside) - RADIUS_M


@given(
    st.lists(
        st.tuples(st.floats(-0.25, 0.25), st.floats(-0.25, 0.25), st.integers(1, 60)),
        min_size=1,
        max_size=12,
    )
)
def test_no_stream_of_twists_leads_the_tip_out_of_its_space(
    commands: list[tuple[float, float, int]],
):
    robot = Robot(profile_with())
    for vx, vy, ticks in commands:
        for _ in range(ticks):
            decision = robot.step(np.array([vx, vy]))
            assert room(robot.place) >= 0.0
            if decision.reason in (Reason.WORKSPACE, Reason.KEEP_OUT):
                assert decision.state in (State.BRAKE, State.HOLD)


@pytest.mark.parametrize("action", [VELOCITIES, POSITIONS], ids=["velocities", "positions"])
@given(data=st.data())
def test_no_stream_of_joint_commands_leads_the_tip_out_of_its_space(
    action: dict[str, Any], data: st.DataObject
):
    robot = Robot(profile_with(action | {"kind": action["kind"]}))
    size = st.floats(-1.0, 1.0)
    for _ in range(data.draw(st.integers(1, 6))):
        change = np.array(data.draw(st.lists(size, min_size=4, max_size=4)))
        command = change if action is VELOCITIES else robot.joints + change
        for _ in range(data.draw(st.integers(1, 40))):
            robot.step(command)
            # Velocities act over a curve that is looked at in samples: a hair's breadth.
            assert room(robot.place) >= -1e-3


def drive(robot: Robot, command: tuple[float, float], ticks: int = 150) -> Decision:
    for _ in range(ticks):
        decision = robot.step(np.array(command))
    return decision


def test_at_the_border_the_robot_rests_with_the_reason_and_the_way_back_passes():
    for command, reason, name in (
        ((0.2, 0.0), Reason.KEEP_OUT, "'pillar'"),
        ((-0.2, 0.0), Reason.WORKSPACE, "the border of the workspace"),
    ):
        robot = Robot(profile_with())
        decision = drive(robot, command)
        assert (decision.state, decision.reason) == (State.HOLD, reason)
        assert decision.detail.startswith("tip, ")
        assert name in decision.detail
        assert not decision.output.any()
        # It did not stop far away: a centimetre or two are what it needs to brake at this speed.
        assert 0.0 <= room(robot.place) < 0.035
        assert drive(robot, (-command[0], 0.0), ticks=20).state is State.PASS


def test_a_robot_that_was_moved_beyond_a_border_may_move_back_only():
    inside = (0.07, -0.05)  # of the pillar, nearest to its left side
    robot = Robot(profile_with(), tip=inside)
    assert drive(robot, (0.2, 0.0), ticks=30).reason is Reason.KEEP_OUT
    assert robot.tip == pytest.approx(inside)
    robot = Robot(profile_with(), tip=inside)
    assert drive(robot, (-0.2, 0.0), ticks=60).state is State.PASS
    assert room(robot.place) > 0.0


def test_a_space_that_leaves_ordinary_work_alone(tmp_path: Path):
    """The shipped workspace is wider than the simulated driver's own bounds."""
    profile = load_profile("tabletop")
    robot = Robot(profile)
    for command in ((0.25, 0.0), (0.0, 0.25), (-0.25, 0.0), (0.0, -0.25)):
        decision = robot.step(np.array(command))
        for _ in range(8):
            decision = robot.step(np.array(command))
        assert decision.reason not in (Reason.WORKSPACE, Reason.KEEP_OUT)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"links": [{"link": "nose"}]}, "no link 'nose'"),
        ({"urdf": "nowhere.urdf"}, "cannot read the URDF"),
    ],
)
def test_a_space_that_cannot_be_watched_is_refused(change: dict[str, Any], sentence: str):
    profile = profile_with(**change)
    space = profile.safety.space
    assert space is not None
    with pytest.raises(WmError, match=sentence):
        SpaceGuard(profile, space, urdf_file("tabletop", space), 2 * PERIOD_S)


@pytest.mark.parametrize(
    ("change", "sentence"),
    [
        ({"workspace": {"lower": [0, 0, 0], "upper": [1, 0, 1]}}, "must be below its 'upper'"),
        ({"links": [{"link": "tip"}, {"link": "hand"}]}, "watches one link"),
        ({"links": []}, "links"),
        ({"links": [{"link": "tip", "radius_m": -1}]}, "radius_m"),
    ],
)
def test_a_space_that_makes_no_sense_is_refused(change: dict[str, Any], sentence: str):
    with pytest.raises(WmError, match=sentence):
        profile_with(**change)
