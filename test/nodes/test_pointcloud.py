from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import PointCloud2

from wm_node.errors import WmError
from wm_node.nodes.pointcloud import pack, unpack


@given(
    shape=st.tuples(st.integers(1, 9), st.integers(1, 7)),
    count=st.integers(1, 5),
    stamp=st.integers(0, 2**31 * 10**9 - 1),
    seed=st.integers(0, 2**32 - 1),
)
def test_round_trip_over_the_wire(
    shape: tuple[int, int], count: int, stamp: int, seed: int
) -> None:
    rng = np.random.default_rng(seed)
    sent = {f"c{i}": rng.normal(size=shape).astype(np.float32) for i in range(count)}
    wire = serialize_message(pack(sent, stamp, "table"))
    stamp_back, got = unpack(deserialize_message(wire, PointCloud2))
    assert stamp_back == stamp
    assert list(got) == list(sent)
    for name in sent:
        assert got[name].dtype == np.float32
        np.testing.assert_array_equal(got[name], sent[name])


def test_values_that_are_not_finite_survive_and_are_marked() -> None:
    message = pack({"risk": np.array([[np.nan, np.inf]])}, 1)
    assert not message.is_dense
    assert np.isnan(unpack(message)[1]["risk"][0, 0])


def test_pack_refuses_unequal_shapes() -> None:
    with pytest.raises(WmError, match="channel 'b'"):
        pack({"a": np.zeros((2, 3)), "b": np.zeros((3, 2))}, 0)
    with pytest.raises(WmError, match="1 to"):
        pack({}, 0)


@pytest.mark.parametrize("damage", ["short", "big", "huge", "type", "twice", "offset", "row"])
def test_unpack_refuses_what_contradicts_itself(damage: str) -> None:
    message = pack({"a": np.zeros((2, 3)), "b": np.zeros((2, 3))}, 0)
    if damage == "short":
        message.data = message.data[:-1]
    elif damage == "big":
        message.is_bigendian = True
    elif damage == "huge":
        message.height = 2**31
    elif damage == "type":
        message.fields[0].datatype = 8
    elif damage == "twice":
        message.fields[1].name = "a"
    elif damage == "offset":
        message.fields[1].offset = 5
    elif damage == "row":
        message.row_step += 1
    with pytest.raises(WmError):
        unpack(message)
