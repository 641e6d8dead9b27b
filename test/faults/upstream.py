"""Stands in for the world model's process: the planner's topics, without the model.

It keeps the protocol of ``wm_node/nodes/safety_gate.py`` at the planner's rates and is told on
standard input, one JSON object a line, what to do wrong: any attribute of :class:`Told`.
"""

from __future__ import annotations

import json
import math
import sys
import threading
from dataclasses import dataclass, field

import numpy as np
import rclpy
from rclpy.executors import ExternalShutdownException
from rclpy.node import Node
from sensor_msgs.msg import PointCloud2
from std_msgs.msg import Header

from wm_node.nodes import common
from wm_node.nodes.pointcloud import pack
from wm_node.profile import load_profile


@dataclass
class Told:
    """What to publish; everything is healthy by default, and the robot stands still."""

    values: list[float] = field(default_factory=lambda: [0.0, 0.0])
    not_finite: bool = False
    risk: float = 0.05
    stamp_shift_s: float = 0.0
    reason: str = "OK"
    frame_id: str = ""
    mute: list[str] = field(default_factory=list)
    hang: bool = False
    flood: int = 0
    """Commands more, with each heartbeat."""
    leave: bool = False
    """Leave the ROS graph, and live on."""


class Upstream(Node):
    """Heartbeat at 50 Hz, verdict and command at the profile's rate."""

    def __init__(self, robot: str) -> None:
        super().__init__("mpc_planner")
        self.told = Told()
        self._profile = load_profile(robot)
        self._stamp_ns = 0
        command = common.message_class(self._profile.action.message)
        self._heartbeat = self.create_publisher(
            Header, "mpc_planner/heartbeat", common.HEARTBEAT_QOS
        )
        self._verdict = self.create_publisher(
            PointCloud2, "mpc_planner/verdict", common.COMMAND_QOS
        )
        self._command = self.create_publisher(command, "mpc_planner/command", common.COMMAND_QOS)
        steady = common.steady_clock()
        self.create_timer(0.02, self._beat, clock=steady)
        self.create_timer(1.0 / self._profile.action.rate_hz, self._plan, clock=steady)

    def _beat(self) -> None:
        for _ in range(self.told.flood):
            stamp_ns = self.get_clock().now().nanoseconds
            values = np.array(self.told.values)
            self._command.publish(common.command_message(self._profile, values, stamp_ns))
        if "heartbeat" in self.told.mute:
            return
        message = Header(frame_id=self.told.reason)
        common.set_stamp(message.stamp, self._stamp_ns)
        self._heartbeat.publish(message)

    def _plan(self) -> None:
        told = self.told
        if told.reason != "OK":
            return
        stamp_ns = self.get_clock().now().nanoseconds + int(told.stamp_shift_s * 1e9)
        if not told.hang:
            self._stamp_ns = stamp_ns
        if "verdict" not in told.mute:
            risk = np.full((1, 8), told.risk, dtype=np.float32)
            channels = {f"risk_{name}": risk for name in self._profile.event_names}
            self._verdict.publish(pack(channels, stamp_ns))
        if "command" not in told.mute:
            values = np.array(told.values)
            if told.not_finite:
                values[0] = math.nan
            message = common.command_message(self._profile, values, stamp_ns)
            if told.frame_id:
                message.header.frame_id = told.frame_id
            self._command.publish(message)


def _listen(node: Upstream) -> None:
    for line in sys.stdin:
        node.told = Told(**json.loads(line))
        if node.told.leave:
            rclpy.shutdown()


def main() -> None:
    """Run until killed."""
    rclpy.init()
    node = Upstream(sys.argv[1])
    threading.Thread(target=_listen, args=(node,), daemon=True).start()
    try:
        rclpy.spin(node)
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    finally:
        rclpy.try_shutdown()
    if node.told.leave:
        threading.Event().wait()  # until killed


if __name__ == "__main__":
    main()
