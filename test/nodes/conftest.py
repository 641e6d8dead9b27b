"""What tests of the world model's process share: a small random model and a publishing robot."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rclpy
import yaml
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import TwistStamped
from rclpy.duration import Duration
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from sensor_msgs.msg import Image, JointState, PointCloud2
from std_msgs.msg import Header

from wm_node.bundle import Bundle
from wm_node.cli.processes import private_domain
from wm_node.nodes.common import (
    HEARTBEAT_QOS,
    RELIABLE_QOS,
    SENSOR_QOS,
    steady_clock,
)
from wm_node.profile import RobotProfile, load_profile, parse_profile
from wm_node.resources import resource

PLANNER, WORLD = "mpc_planner", "world_model"
JOINTS = ("base_yaw", "shoulder", "elbow", "wrist")


@pytest.fixture
def check_parameter_file() -> Callable[[Any, str], None]:
    """Compares a node's parameters and their defaults with those of its shipped file."""

    def check(node: Any, file: str) -> None:
        data = yaml.safe_load(resource(file).read_text(encoding="utf-8"))
        (given,) = (entry["ros__parameters"] for entry in data.values())
        own = {
            name
            for name in node._parameters
            if not name.startswith(("use_sim_time", "qos_overrides", "start_type"))
        }
        assert own == set(given)
        for name, value in given.items():
            assert node.get_parameter(name).value == value

    return check


class Robot:
    """Publishes 20 frames and 100 joint states a second and records the process's messages."""

    def __init__(self) -> None:
        self.node = rclpy.create_node("robot")
        self.frames_on = self.joints_on = True
        self.encoding = "rgb8"
        self.joint_names = list(JOINTS)
        self.frames_sent = 0
        self.frozen = False  # the same picture again and again, with fresh stamps
        self.dark = False  # the lens is covered
        self.frame_shift_s = 0.0  # of the pictures' stamps, from the time at which they are sent
        self.drift = 0.0  # of a joint, from one state to the next
        self._position = 0.1
        self.got: dict[str, list[Any]] = {}
        self._news = threading.Condition()
        self._frames = self.node.create_publisher(Image, "image_raw", SENSOR_QOS)
        self._joints = self.node.create_publisher(JointState, "joint_states", SENSOR_QOS)
        self.goal_image = self.node.create_publisher(Image, "goal_image", RELIABLE_QOS)
        self.candidates = self.node.create_publisher(
            PointCloud2, f"{WORLD}/candidates", RELIABLE_QOS
        )
        for kind, topic, qos in (
            (TwistStamped, f"{PLANNER}/command", RELIABLE_QOS),
            (PointCloud2, f"{PLANNER}/verdict", RELIABLE_QOS),
            (Header, f"{PLANNER}/heartbeat", HEARTBEAT_QOS),
            (PointCloud2, f"{WORLD}/outcomes", RELIABLE_QOS),
            (DiagnosticArray, "/diagnostics", RELIABLE_QOS),
        ):
            self.listen(kind, topic, qos)
        clock = steady_clock()
        self.node.create_timer(0.05, self._frame, clock=clock)
        self.node.create_timer(0.01, self._joint, clock=clock)
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(self.node)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        with suppress(ExternalShutdownException):
            self._executor.spin()

    def listen(self, kind: type, topic: str, qos: Any) -> Any:
        self.got[topic] = []
        return self.node.create_subscription(kind, topic, lambda m: self._take(topic, m), qos)

    def _take(self, topic: str, message: Any) -> None:
        with self._news:
            self.got[topic].append(message)
            self._news.notify_all()

    def await_(self, done: Callable[[], Any], what: str, timeout_s: float = 15.0) -> Any:
        """Wait for messages until ``done()`` is true, and return it."""
        deadline = time.monotonic() + timeout_s
        with self._news:
            while not (result := done()):
                assert time.monotonic() < deadline, f"{what} within {timeout_s:g} s"
                self._news.wait(0.1)
        return result

    def fresh(self, topic: str) -> list[Any]:
        """Forget the topic's messages; return the list that new ones go to."""
        with self._news:
            self.got[topic] = []
            return self.got[topic]

    def await_reason(self, reason: str) -> None:
        self.fresh(f"{PLANNER}/heartbeat")
        beats = self.got
        self.await_(
            lambda: any(m.frame_id == reason for m in beats[f"{PLANNER}/heartbeat"]),
            f"heartbeat says {reason}",
        )

    def await_diagnostics(self, name: str, accept: Callable[[str, dict[str, str]], bool]) -> Any:
        self.fresh("/diagnostics")

        def found() -> Any:
            for array in self.got["/diagnostics"]:
                for status in array.status:
                    values = {pair.key: pair.value for pair in status.values}
                    if status.name.startswith(name) and accept(status.message, values):
                        return status.message, values
            return None

        return self.await_(found, f"diagnostics of {name}")

    def now(self) -> Any:
        return self.node.get_clock().now().to_msg()

    def picture(self) -> Image:
        channels = 3 if self.encoding == "rgb8" else 2
        message = Image(height=48, width=64, encoding=self.encoding, step=64 * channels)
        shifted = self.node.get_clock().now() + Duration(seconds=self.frame_shift_s)
        message.header.stamp = shifted.to_msg()
        row = np.arange(64 * channels) + (0 if self.frozen else self.frames_sent)
        light = 0 if self.dark else 1
        message.data = np.tile(light * (row % 256), 48).astype(np.uint8).tobytes()
        return message

    def _frame(self) -> None:
        if self.frames_on:
            self._frames.publish(self.picture())
            self.frames_sent += 1

    def _joint(self) -> None:
        if self.joints_on:
            self._position += self.drift
            position = [self._position, 0.2, 0.3, 0.4]
            message = JointState(name=self.joint_names, position=position)
            message.header.stamp = self.now()
            self._joints.publish(message)

    def close(self) -> None:
        self._executor.shutdown(timeout_sec=2.0)
        self._thread.join(2.0)
        self.node.destroy_node()


@pytest.fixture(scope="session")
def random_bundle(
    random_bundle_of: Callable[[RobotProfile, Path], Bundle],
    tmp_path_factory: pytest.TempPathFactory,
) -> Bundle:
    """A small random model for the table-top robot."""
    return random_bundle_of(load_profile("tabletop"), tmp_path_factory.mktemp("bundle") / "b")


@pytest.fixture(scope="session")
def arm_profile() -> RobotProfile:
    """A 7-joint arm that is commanded in joint positions."""
    data = load_profile("tabletop").dump()
    names = [f"joint_{index}" for index in range(7)]
    data["joints"] |= {"names": names, "lower": [-3.0] * 7, "upper": [3.0] * 7}
    data["joints"]["unit"] = "rad"
    data["joints"]["max_velocity"] = [1.0] * 7
    data["action"] = {
        "kind": "joint_position",
        "names": names,
        "units": ["rad"] * 7,
        "lower": [-3.0] * 7,
        "upper": [3.0] * 7,
        "rate_hz": 10,
        "topic": "arm/trajectory",
        "message": "trajectory_msgs/msg/JointTrajectory",
        "fields": ["positions"],
        "readback": {
            "topic": "arm/state",
            "message": "sensor_msgs/msg/JointState",
            "fields": ["position"],
        },
    }
    return parse_profile(data, "test")


@pytest.fixture(scope="module")
def ros_domain() -> Iterator[int]:
    with private_domain() as number, pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
        rclpy.init(domain_id=number)
        yield number
        rclpy.shutdown()


@pytest.fixture(scope="session")
def robot_class() -> type[Robot]:
    return Robot
