"""A plan as messages that RViz and Foxglove draw."""

from __future__ import annotations

import numpy as np
from builtin_interfaces.msg import Duration
from geometry_msgs.msg import Point, PoseStamped, Vector3
from nav_msgs.msg import Path
from numpy.typing import NDArray
from std_msgs.msg import ColorRGBA
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint
from visualization_msgs.msg import Marker, MarkerArray

from wm_node.nodes.common import set_stamp, trajectory_field
from wm_node.planning.objective import Goal
from wm_node.planning.world_model import Outcomes
from wm_node.profile import RobotProfile

GOAL, OBJECT, TOOL = (0.2, 0.7, 0.3), (0.9, 0.5, 0.1), (0.2, 0.4, 0.9)
LINE_M = 0.006
LIFETIME_S = 1


def planar_labels(profile: RobotProfile, what: str) -> list[int] | None:
    """Return the columns of a planar pair of labels: ``goal``, ``object`` or ``tool``.

    None where the profile's objective has no such pair.
    """
    spec = profile.objective
    if spec is None:
        return None
    pair: tuple[str, ...] = spec.goal
    if what != "goal":
        if spec.push is None:
            return None
        pair = spec.push.object if what == "object" else spec.push.tool
    return [profile.label_names.index(name) for name in pair] if len(pair) == 2 else None


def plan_path(profile: RobotProfile, outcomes: Outcomes, stamp_ns: int) -> Path | None:
    """Return the predicted path of the tool, else of what the goal is about; a pose a step."""
    columns = planar_labels(profile, "tool") or planar_labels(profile, "goal")
    if columns is None:
        return None
    path = Path()
    path.header.frame_id = profile.action.frame_id
    set_stamp(path.header.stamp, stamp_ns)
    step_ns = round(profile.model.step_s * 1e9)
    for step, (x, y) in enumerate(outcomes.state[0][:, columns], start=1):
        pose = PoseStamped()
        pose.header.frame_id = profile.action.frame_id
        set_stamp(pose.header.stamp, stamp_ns + step * step_ns)
        pose.pose.position.x, pose.pose.position.y = float(x), float(y)
        path.poses.append(pose)
    return path


def plan_trajectory(
    profile: RobotProfile, actions: NDArray[np.floating], stamp_ns: int
) -> JointTrajectory:
    """Return the planned actions (T, A) as a joint trajectory; a point a tick."""
    message = JointTrajectory(joint_names=list(profile.action.names))
    message.header.frame_id = profile.action.frame_id
    set_stamp(message.header.stamp, stamp_ns)
    field = trajectory_field(profile)
    for tick, row in enumerate(np.asarray(actions, dtype=np.float64), start=1):
        point = JointTrajectoryPoint(**{field: row.tolist()})
        set_stamp(point.time_from_start, round(tick * profile.model.tick_s * 1e9))
        message.points.append(point)
    return message


def plan_markers(
    profile: RobotProfile, outcomes: Outcomes, goal: Goal | None, stamp_ns: int
) -> MarkerArray:
    """Return the goal as a disc and the predicted paths of object and tool as lines."""
    markers = MarkerArray()

    def add(kind: int, colour: tuple[float, float, float], size: tuple[float, ...]) -> Marker:
        marker = Marker(ns="plan", id=len(markers.markers), type=kind, action=Marker.ADD)
        marker.header.frame_id = profile.action.frame_id
        set_stamp(marker.header.stamp, stamp_ns)
        marker.pose.orientation.w = 1.0
        marker.scale = Vector3(x=size[0], y=size[1], z=size[2])
        marker.color = ColorRGBA(r=colour[0], g=colour[1], b=colour[2], a=0.8)
        marker.lifetime = Duration(sec=LIFETIME_S)
        markers.markers.append(marker)
        return marker

    spec = profile.objective
    if spec is not None and goal is not None and goal.state is not None and goal.state.size == 2:
        disc = add(Marker.CYLINDER, GOAL, (2 * spec.tolerance, 2 * spec.tolerance, 0.002))
        disc.pose.position.x, disc.pose.position.y = map(float, goal.state)
    for what, colour in (("object", OBJECT), ("tool", TOOL)):
        columns = planar_labels(profile, what)
        if columns is not None:
            line = add(Marker.LINE_STRIP, colour, (LINE_M, 0.0, 0.0))
            points = outcomes.state[0][:, columns]
            line.points = [Point(x=float(x), y=float(y), z=0.0) for x, y in points]
    return markers
