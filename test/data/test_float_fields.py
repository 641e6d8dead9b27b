"""Fast reading of numbers equals full deserialisation."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wm_node.data import messages
from wm_node.data.fields import field_value
from wm_node.data.float_fields import float_fields

floats = st.floats(allow_nan=False, width=64)


@given(st.text(max_size=30), st.tuples(floats, floats, floats), st.tuples(*[floats] * 4))
def test_fields_equal_those_of_the_message(
    frame_id: str, position: tuple[float, ...], turn: tuple[float, ...]
) -> None:
    frame_id = frame_id.replace("\0", "")
    kind = "geometry_msgs/msg/PoseStamped"
    paths = ["pose.orientation.w", "pose.position.x", "pose.position.z"]
    message = messages.pose_stamped(5, frame_id, position, turn)  # type: ignore[arg-type]
    reader = float_fields(messages.typestore(), kind, paths)
    assert reader is not None
    raw = messages.serialize(message, kind)
    found = reader.read(raw)
    assert found is not None
    assert found.tolist() == [field_value(message, path) for path in paths]
    assert reader.read(raw[:-9]) is None
    assert reader.read(b"\x00\x00" + raw[2:]) is None


@pytest.mark.parametrize(
    ("kind", "path"),
    [
        ("sensor_msgs/msg/JointState", "position"),
        ("sensor_msgs/msg/Imu", "linear_acceleration.x"),
        ("std_msgs/msg/Bool", "data"),
        ("geometry_msgs/msg/PoseStamped", "pose.position"),
    ],
)
def test_other_types_are_left_to_deserialisation(kind: str, path: str) -> None:
    assert float_fields(messages.typestore(), kind, [path]) is None


def test_twists_are_fast_too() -> None:
    kind = "geometry_msgs/msg/TwistStamped"
    reader = float_fields(messages.typestore(), kind, ["twist.angular.z", "twist.linear.x"])
    assert reader is not None
    raw = messages.serialize(messages.twist_stamped(1, "t", (1, 2, 3), (4, 5, 6)), kind)
    np.testing.assert_array_equal(reader.read(raw), [6, 1])
