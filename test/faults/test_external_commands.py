"""A person who pushes the mug over the table's edge is stopped, over real topics and processes."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any

import numpy as np
import pytest
from geometry_msgs.msg import PoseStamped, TwistStamped
from std_msgs.msg import Bool

from wm_node.nodes.common import COMMAND_QOS, RELIABLE_QOS, steady_clock
from wm_node.nodes.lifecycle import bring_up
from wm_node.resources import BUNDLE, resource
from wm_node.sim.arm import tip_for_joints
from wm_node.sim.behaviours import push_velocity
from wm_node.sim.loop import DEFAULT_LATENCY_S, Observation
from wm_node.sim.preventable import play
from wm_node.sim.scene import TABLE_BOUNDS
from wm_node.sim.tabletop import JOINT_NAMES, TabletopSim

BEYOND = TABLE_BOUNDS.y_min - 0.08
SEEDS = (2, 3)
"""Episodes in which such pushes end in a fall; the test sees to it that they do."""

pytestmark = pytest.mark.timeout(240)


class Person:
    """Pushes the mug over the near edge by what they see: the robot's joints, and the mug."""

    def __init__(self, bench: Any) -> None:
        self._bench = bench
        self.mug = np.full(2, np.nan)
        self.fell = False
        node = bench.node
        node.create_subscription(PoseStamped, "sim_robot/mug_pose", self._on_mug, RELIABLE_QOS)
        node.create_subscription(Bool, "events/fell", self._on_fell, RELIABLE_QOS)
        self._topic = node.create_publisher(TwistStamped, "external_command", COMMAND_QOS)
        self._timer = node.create_timer(0.1, self._push, clock=steady_clock())

    def _on_mug(self, message: PoseStamped) -> None:
        self.mug = np.array([message.pose.position.x, message.pose.position.y])

    def _on_fell(self, message: Bool) -> None:
        self.fell = message.data

    def _push(self) -> None:
        if not np.isfinite(self.mug).all():
            return
        tip = tip_for_joints([self._bench.positions[name] for name in JOINT_NAMES])
        mug = (float(self.mug[0]), float(self.mug[1]))
        velocity = push_velocity((tip[0], tip[1]), mug, (mug[0], BEYOND))
        message = TwistStamped()
        message.header.frame_id = "table"
        message.header.stamp = self._bench.node.get_clock().now().to_msg()
        message.twist.linear.x, message.twist.linear.y = velocity.tolist()
        self._topic.publish(message)

    def close(self) -> None:
        self._bench.node.destroy_timer(self._timer)
        self._bench.node.destroy_publisher(self._topic)


def falls_without_supervision(seed: int) -> bool:
    sim = TabletopSim(render=False)
    sim.reset(seed)

    def act(observation: Observation) -> np.ndarray:
        tip_x, tip_y = sim.tip().tolist()
        mug = sim.mug_pose()[:2]
        return push_velocity((tip_x, tip_y), mug, (mug[0], BEYOND))

    return "fell" in play(sim, act, DEFAULT_LATENCY_S, frames=False).events


@pytest.fixture
def robot(bench: Any, request: pytest.FixtureRequest) -> Iterator[Any]:
    """Robot, gate and the shipped model, supervising external commands."""
    words = ("--ros-args", "-p", "camera_rate:=20.0", "-p", f"seed:={request.param}")
    bench.start("robot", "-m", "wm_node.nodes.sim_robot", *words)
    bring_up(bench.caller, ["/sim_robot"])
    bench.start_gate()
    bench.start_model(resource(BUNDLE))
    bench.caller.set_parameter("mpc_planner", "source", "external")
    yield bench
    for name in tuple(bench.processes):
        bench.kill(name)


@pytest.mark.parametrize(("robot", "seed"), [(n, n) for n in SEEDS], indirect=["robot"])
def test_who_would_push_the_mug_over_the_edge_is_stopped(robot: Any, seed: int) -> None:
    assert falls_without_supervision(seed)
    robot.statuses.clear()
    person = Person(robot)
    try:
        robot.wait(lambda: "HOLD RISK" in robot.statuses, "the gate did not stop", timeout_s=20.0)
        stopped_at = person.mug[1]
        # The person goes on pushing for as long as it would have taken three times over.
        robot.spin(3.0)
        assert not person.fell
        # It was stopped in front of the edge, not for no reason in the middle of the table.
        assert stopped_at - TABLE_BOUNDS.y_min < 0.09
        assert person.mug[1] > TABLE_BOUNDS.y_min
    finally:
        person.close()
