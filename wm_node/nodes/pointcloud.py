"""Tensors as ``sensor_msgs/PointCloud2``: every ROS tool, bag and language can read them.

A cloud is a table of ``height`` x ``width`` points, for us candidates x steps, with one float32
field a channel. ``header.stamp`` is the stamp of the state or command that the values belong to.
"""

from __future__ import annotations

from array import array
from collections.abc import Mapping
from typing import Any

import numpy as np
from numpy.typing import NDArray
from sensor_msgs.msg import PointCloud2, PointField

from wm_node.errors import WmError

MAX_FIELDS = 256
MAX_BYTES = 64 * 1024 * 1024


def pack(
    channels: Mapping[str, NDArray[np.floating]], stamp_ns: int, frame_id: str = ""
) -> PointCloud2:
    """Pack channels of equal shape (height, width) into a cloud, in the mapping's order.

    Raises:
        WmError: no channel, a shape that differs from the first or is not 2-D, or over 64 MiB.
    """
    if not channels or len(channels) > MAX_FIELDS:
        raise WmError(f"a tensor message needs 1 to {MAX_FIELDS} channels, not {len(channels)}.")
    shape = next(iter(channels.values())).shape
    for name, values in channels.items():
        if values.ndim != 2 or values.shape != shape:
            raise WmError(
                f"channel '{name}' has shape {values.shape}; all channels of a tensor message "
                f"need the same (height, width), here {shape}."
            )
    points = np.stack([np.asarray(v, dtype="<f4") for v in channels.values()], axis=-1)
    if points.nbytes > MAX_BYTES:
        raise WmError(f"a tensor message of {points.nbytes} bytes is over {MAX_BYTES}.")
    message = PointCloud2()
    message.header.stamp.sec, message.header.stamp.nanosec = divmod(int(stamp_ns), 1_000_000_000)
    message.header.frame_id = frame_id
    message.height, message.width = int(shape[0]), int(shape[1])
    message.fields = [
        PointField(name=name, offset=4 * i, datatype=PointField.FLOAT32, count=1)
        for i, name in enumerate(channels)
    ]
    message.point_step = 4 * len(channels)
    message.row_step = message.point_step * message.width
    message.is_dense = bool(np.isfinite(points).all())
    # An array.array is assigned as it is; bytes would be copied value by value.
    data = array("B")
    data.frombytes(points.tobytes())
    message.data = data
    return message


def unpack(message: Any, max_points: int = 1_000_000) -> tuple[int, dict[str, NDArray[np.float32]]]:
    """Return the stamp in ns and the float32 channels, each of shape (height, width).

    Values may be NaN or infinite: that is for the receiver to judge.

    Raises:
        WmError: not such a message, sizes that contradict each other, or over ``max_points``.
    """
    height, width, step = int(message.height), int(message.width), int(message.point_step)
    count = len(message.fields)
    if height * width > max_points or not 1 <= count <= MAX_FIELDS:
        raise WmError(
            f"a tensor message of {height} x {width} points and {count} fields is refused; "
            f"at most {max_points} points and 1 to {MAX_FIELDS} fields are read."
        )
    if message.is_bigendian:
        raise WmError("a big-endian tensor message is not supported.")
    offsets: dict[str, int] = {}
    for field in message.fields:
        if field.datatype != PointField.FLOAT32 or field.count != 1 or field.offset + 4 > step:
            raise WmError(f"field '{field.name}' of a tensor message must be one float32.")
        if field.name in offsets:
            raise WmError(f"a tensor message holds the field '{field.name}' twice.")
        offsets[field.name] = int(field.offset)
    data = np.frombuffer(message.data, dtype=np.uint8)
    if message.row_step != step * width or data.size != step * width * height:
        raise WmError(
            f"a tensor message of {height} x {width} points of {step} bytes holds "
            f"{data.size} bytes."
        )
    points = data.reshape(height, width, step)
    channels = {
        name: points[:, :, at : at + 4].copy().view("<f4")[:, :, 0].astype(np.float32)
        for name, at in offsets.items()
    }
    stamp = message.header.stamp
    return int(stamp.sec) * 1_000_000_000 + int(stamp.nanosec), channels
