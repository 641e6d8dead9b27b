"""Plans as messages for RViz and Foxglove; applied actions read back from messages."""

from __future__ import annotations

from dataclasses import fields
from typing import Any

import numpy as np
import pytest
import yaml
from geometry_msgs.msg import TwistStamped
from sensor_msgs.msg import JointState
from std_msgs.msg import Float64MultiArray
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from wm_node.errors import WmError
from wm_node.nodes.common import stamp_to_ns
from wm_node.nodes.cycle import Limits
from wm_node.nodes.drawing import plan_markers, plan_path, plan_trajectory
from wm_node.nodes.world_model import read_applied
from wm_node.planning.objective import Weights
from wm_node.planning.planner import PlannerConfig
from wm_node.planning.world_model import Goal, Outcomes
from wm_node.profile import RobotProfile, load_profile, parse_profile
from wm_node.resources import resource

STAMP = 5_000_000_000


def _outcomes() -> Outcomes:
    state = np.arange(32, dtype=np.float32).reshape(1, 8, 4)
    empty = np.zeros((1, 8, 1), np.float32)
    return Outcomes(empty, empty, state, empty, empty[..., 0], empty[..., 0])


def test_the_path_is_that_of_the_tool_one_pose_a_step():
    path = plan_path(load_profile("tabletop"), _outcomes(), STAMP)
    assert path is not None
    assert path.header.frame_id == "table"
    assert [pose.pose.position.x for pose in path.poses] == [2.0 + 4 * k for k in range(8)]
    assert [stamp_to_ns(pose.header.stamp) for pose in path.poses] == [
        STAMP + (k + 1) * 200_000_000 for k in range(8)
    ]


def test_markers_show_goal_object_and_tool():
    goal = Goal(state=np.array([0.1, 0.2], np.float32))
    markers = plan_markers(load_profile("tabletop"), _outcomes(), goal, STAMP).markers
    assert [len(marker.points) for marker in markers] == [0, 8, 8]
    assert len({marker.id for marker in markers}) == 3
    assert markers[0].pose.position.y == pytest.approx(0.2)
    assert markers[1].points[1].x == 4.0
    assert len(plan_markers(load_profile("tabletop"), _outcomes(), None, STAMP).markers) == 2


def test_joint_plans_are_trajectories_one_point_a_tick(arm_profile: RobotProfile):
    profile = arm_profile
    actions = np.tile(np.linspace(0, 1, 16)[:, None], (1, 7))
    message = plan_trajectory(profile, actions, STAMP)
    assert list(message.joint_names) == list(profile.action.names)
    assert len(message.points) == 16
    assert message.points[15].positions[6] == 1.0
    assert stamp_to_ns(message.points[1].time_from_start) == 200_000_000


def _twist() -> Any:
    message = TwistStamped()
    message.twist.linear.x, message.twist.linear.y = 0.1, -0.2
    return message


def test_the_applied_action_is_read_by_field_or_by_joint_name(arm_profile: RobotProfile):
    assert read_applied(load_profile("tabletop"), _twist()).tolist() == [0.1, -0.2]
    arm = arm_profile
    names = list(reversed(arm.action.names))
    state = JointState(name=names, position=[float(k) for k in range(7)])
    assert read_applied(arm, state).tolist() == [6.0, 5.0, 4.0, 3.0, 2.0, 1.0, 0.0]
    with pytest.raises(WmError, match="lacks the joints joint_0"):
        read_applied(arm, JointState(name=names[:-1], position=[0.0] * 6))


def test_the_applied_action_of_an_array_or_a_trajectory_is_read(arm_profile: RobotProfile):
    data = arm_profile.dump()
    spec = {"topic": "arm/applied", "message": "std_msgs/msg/Float64MultiArray", "fields": ["data"]}
    data["action"]["readback"] = spec
    profile = parse_profile(data, "test")
    message = Float64MultiArray(data=[0.5] * 7)
    assert read_applied(profile, message).tolist() == [0.5] * 7
    with pytest.raises(WmError, match="has 3 values, the profile 'tabletop' has 7"):
        read_applied(profile, Float64MultiArray(data=[0.5] * 3))
    data["action"]["readback"] = {
        "topic": "arm/trajectory",
        "message": "trajectory_msgs/msg/JointTrajectory",
        "fields": ["positions"],
    }
    profile = parse_profile(data, "test")
    trajectory = JointTrajectory(joint_names=list(profile.action.names))
    trajectory.points = [JointTrajectoryPoint(positions=[0.25] * 7)]
    assert read_applied(profile, trajectory).tolist() == [0.25] * 7


def test_the_shipped_parameters_are_the_defaults():
    """So that the task suite, which uses the defaults, plans as the node does."""
    text = resource("config/mpc_planner.yaml").read_text(encoding="utf-8")
    (parameters,) = (part["ros__parameters"] for part in yaml.safe_load(text).values())
    config, limits = PlannerConfig(), Limits()
    assert parameters["candidates"] == config.candidates
    assert parameters["iterations"] == config.iterations
    assert parameters["goal_reached"] == limits.hold.reached
    assert parameters["goal_resume"] == limits.hold.resume
    assert "surprise_limit" not in parameters  # it would override what was calibrated
    assert load_profile("tabletop").safety.surprise_limit == limits.surprise
    assert parameters["surprise_cycles"] == limits.surprise_cycles
    for field in fields(Weights):
        assert f"weights.{field.name}" in text
