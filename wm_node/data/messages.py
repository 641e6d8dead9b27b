"""Standard messages outside a ROS process: making, serialising and reading fields of them.

The messages are those of ``rosbags``' Jazzy type store: plain dataclasses with the fields of the
ROS messages, so that functions which read fields also take the messages of ``rclpy``.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache
from typing import Any

import numpy as np
from numpy.typing import ArrayLike, NDArray
from rosbags.typesys import Stores, get_typestore
from rosbags.typesys.store import Typestore

NS = 1_000_000_000


@lru_cache(maxsize=1)
def typestore() -> Typestore:
    """Return the message types of ROS 2 Jazzy, shared: do not add to it."""
    return new_typestore()


def new_typestore() -> Typestore:
    """Return the message types of ROS 2 Jazzy, to add others to."""
    return get_typestore(Stores.ROS2_JAZZY)


def message_class(msgtype: str) -> Any:
    """Return the class of a message type such as ``sensor_msgs/msg/Image``."""
    return typestore().types[msgtype]


def serialize(message: Any, msgtype: str) -> bytes:
    """Serialise a message of the type store to CDR."""
    return bytes(typestore().serialize_cdr(message, msgtype))


def header(stamp_ns: int, frame_id: str = "") -> Any:
    """Make a ``std_msgs/Header``."""
    time = message_class("builtin_interfaces/msg/Time")
    stamp = time(int(stamp_ns // NS), int(stamp_ns % NS))
    return message_class("std_msgs/msg/Header")(stamp, frame_id)


def image(stamp_ns: int, frame_id: str, rgb: NDArray[np.uint8]) -> Any:
    """Make a ``sensor_msgs/Image`` (rgb8) of a uint8 array (H, W, 3)."""
    height, width, _ = rgb.shape
    data = np.ascontiguousarray(rgb).reshape(-1)
    return message_class("sensor_msgs/msg/Image")(
        header(stamp_ns, frame_id), height, width, "rgb8", 0, 3 * width, data
    )


def compressed_image(stamp_ns: int, frame_id: str, jpeg: bytes) -> Any:
    """Make a ``sensor_msgs/CompressedImage`` of JPEG data."""
    data = np.frombuffer(jpeg, dtype=np.uint8)
    return message_class("sensor_msgs/msg/CompressedImage")(
        header(stamp_ns, frame_id), "rgb8; jpeg compressed bgr8", data
    )


def joint_state(
    stamp_ns: int,
    names: Sequence[str],
    positions: ArrayLike,
    velocities: ArrayLike = (),
    efforts: ArrayLike = (),
) -> Any:
    """Make a ``sensor_msgs/JointState``."""
    return message_class("sensor_msgs/msg/JointState")(
        header(stamp_ns),
        list(names),
        np.asarray(positions, dtype=np.float64),
        np.asarray(velocities, dtype=np.float64),
        np.asarray(efforts, dtype=np.float64),
    )


def twist_stamped(
    stamp_ns: int,
    frame_id: str,
    linear: tuple[float, float, float],
    angular: tuple[float, float, float] = (0.0, 0.0, 0.0),
) -> Any:
    """Make a ``geometry_msgs/TwistStamped``."""
    vector = message_class("geometry_msgs/msg/Vector3")
    twist = message_class("geometry_msgs/msg/Twist")(vector(*linear), vector(*angular))
    return message_class("geometry_msgs/msg/TwistStamped")(header(stamp_ns, frame_id), twist)


def pose_stamped(
    stamp_ns: int,
    frame_id: str,
    position: tuple[float, float, float],
    orientation_xyzw: tuple[float, float, float, float] = (0.0, 0.0, 0.0, 1.0),
) -> Any:
    """Make a ``geometry_msgs/PoseStamped``."""
    point = message_class("geometry_msgs/msg/Point")(*position)
    turn = message_class("geometry_msgs/msg/Quaternion")(*orientation_xyzw)
    pose = message_class("geometry_msgs/msg/Pose")(point, turn)
    return message_class("geometry_msgs/msg/PoseStamped")(header(stamp_ns, frame_id), pose)


def point_stamped(stamp_ns: int, frame_id: str, point: tuple[float, float, float]) -> Any:
    """Make a ``geometry_msgs/PointStamped``."""
    return message_class("geometry_msgs/msg/PointStamped")(
        header(stamp_ns, frame_id), message_class("geometry_msgs/msg/Point")(*point)
    )


def boolean(value: bool) -> Any:
    """Make a ``std_msgs/Bool``."""
    return message_class("std_msgs/msg/Bool")(bool(value))


def string(text: str) -> Any:
    """Make a ``std_msgs/String``."""
    return message_class("std_msgs/msg/String")(text)
