"""Small real bags, made on the spot."""

from __future__ import annotations

import os
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rosbags.rosbag2 import StoragePlugin, Writer

from wm_node.data import messages
from wm_node.data.bag_writer import BagWriter
from wm_node.data.images import encode_jpeg
from wm_node.profile import RobotProfile, load_profile

MS = 1_000_000
START = 1_700_000_000_000_000_000


@dataclass
class Recording:
    """Messages by topic, to be saved in any storage."""

    types: dict[str, str] = field(default_factory=dict)
    items: list[tuple[int, str, Any]] = field(default_factory=list)

    def add(self, topic: str, msgtype: str, log_ns: int, message: Any) -> None:
        self.types[topic] = msgtype
        self.items.append((log_ns, topic, message))

    def announce(self, topic: str, msgtype: str) -> None:
        self.types[topic] = msgtype

    def drop(self, topic: str) -> None:
        del self.types[topic]
        self.items = [item for item in self.items if item[1] != topic]

    def keep(self, wanted: Callable[[int, str], bool]) -> None:
        """Keep the messages for which wanted(log time, topic) is true."""
        self.items = [item for item in self.items if wanted(item[0], item[1])]

    def save(self, path: Path, storage: str = "mcap") -> Path:
        self.items.sort(key=lambda item: item[0])
        if storage == "mcap":
            with BagWriter(path) as bag:
                for topic, msgtype in self.types.items():
                    bag.add_topic(topic, msgtype)
                for log_ns, topic, message in self.items:
                    bag.write(topic, message, log_ns)
            return path
        with Writer(path, version=9, storage_plugin=StoragePlugin.SQLITE3) as bag:
            connections = {
                topic: bag.add_connection(topic, msgtype, typestore=messages.typestore())
                for topic, msgtype in self.types.items()
            }
            for log_ns, topic, message in self.items:
                data = messages.serialize(message, self.types[topic])
                bag.write(connections[topic], log_ns, data)
        return path


def frame(number: int, width: int = 80, height: int = 60) -> np.ndarray:
    """A picture whose mean brightness tells its number."""
    image = np.full((height, width, 3), (number * 3) % 250, dtype=np.uint8)
    image[: height // 2, : width // 2] //= 2
    return image


def tabletop_recording(
    seconds: float = 4.0,
    *,
    compressed: bool = False,
    namespace: str = "",
    start: int = START,
    size: tuple[int, int] = (80, 60),
) -> Recording:
    """What the table-top robot records; joint 0 is the time in s, the command counts its ticks."""
    recording = Recording()
    names = ["wrist", "elbow", "shoulder", "base_yaw"]  # another order than the profile's
    for number in range(int(seconds * 20) + 1):
        stamp = start + number * 50 * MS
        picture = frame(number, *size)
        if compressed:
            message = messages.compressed_image(stamp, "camera", encode_jpeg(picture))
            topic, kind = "/image_raw/compressed", "sensor_msgs/msg/CompressedImage"
        else:
            message = messages.image(stamp, "camera", picture)
            topic, kind = "/image_raw", "sensor_msgs/msg/Image"
        recording.add(namespace + topic, kind, stamp + 3 * MS, message)
    for number in range(int(seconds * 100) + 1):
        stamp, t = start + number * 10 * MS, number * 0.01
        message = messages.joint_state(stamp, names, [t + 3, t + 2, t + 1, t])
        kind = "sensor_msgs/msg/JointState"
        recording.add(namespace + "/joint_states", kind, stamp + MS, message)
        pose = messages.pose_stamped(stamp, "table", (0.1 * t, -0.1 * t, 0.0))
        kind = "geometry_msgs/msg/PoseStamped"
        recording.add(namespace + "/sim_robot/mug_pose", kind, stamp + MS, pose)
        point = messages.point_stamped(stamp, "table", (0.2 * t, 0.3 * t, 0.0))
        recording.add(
            namespace + "/sim_robot/tip", "geometry_msgs/msg/PointStamped", stamp + MS, point
        )
    for number in range(int(seconds * 10) + 1):
        stamp = start + number * 100 * MS
        twist = messages.twist_stamped(stamp, "table", (0.001 * number, -0.001 * number, 0.0))
        recording.add(namespace + "/command", "geometry_msgs/msg/TwistStamped", stamp + MS, twist)
        for event, first in (("fell", 30), ("zone", 10_000)):
            recording.add(
                f"{namespace}/events/{event}",
                "std_msgs/msg/Bool",
                stamp,
                messages.boolean(number >= first),
            )
    return recording


@pytest.fixture(scope="session")
def tabletop() -> RobotProfile:
    return load_profile("tabletop")


@pytest.fixture(scope="session")
def record() -> Callable[..., Recording]:
    """Return the function that makes a table-top recording."""
    return tabletop_recording


@pytest.fixture(scope="session")
def g1_bags() -> Path:
    """Return the folder of the real recordings that docs/real_data.md describes."""
    folder = os.environ.get("WM_G1_BAGS", "")
    if not folder or not Path(folder).is_dir():
        pytest.skip("WM_G1_BAGS does not name the folder of the real recordings")
    return Path(folder)
