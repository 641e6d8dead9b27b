"""Raw images become JPEG ones, unless JPEG would lose what they are."""

from __future__ import annotations

import threading

import numpy as np
import pytest
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CompressedImage, Image

from wm_node.data.images import decode_image
from wm_node.nodes.image_encoder import Frame, ImageEncoder, compress
from wm_node.recording.metadata import Topic

RAW = Topic("/image_raw", "sensor_msgs/msg/Image", "")
JPEG = Topic("/image_raw/compressed", "sensor_msgs/msg/CompressedImage", "")


def image(encoding: str, channels: int, size: int = 1) -> bytes:
    gradient = np.linspace(0, 255, 32 * 24).reshape(24, 32, 1).astype(np.uint8)
    data = np.repeat(gradient, channels * size, axis=2).tobytes()
    message = Image(height=24, width=32, encoding=encoding, step=32 * channels * size, data=data)
    message.header.frame_id = "camera"
    message.header.stamp.sec = 7
    return bytes(serialize_message(message))


@pytest.mark.parametrize(("encoding", "channels"), [("rgb8", 3), ("bgr8", 3), ("mono8", 1)])
def test_pictures_are_compressed_and_keep_their_header(encoding, channels):
    raw = image(encoding, channels)
    packed = compress(raw, 90)
    assert packed is not None
    message = deserialize_message(packed, CompressedImage)
    assert (message.header.frame_id, message.header.stamp.sec) == ("camera", 7)
    assert message.format == f"{encoding}; jpeg compressed bgr8"
    before = decode_image(deserialize_message(raw, Image)).astype(int)
    assert np.abs(decode_image(message) - before).mean() < 2


@pytest.mark.parametrize(
    ("encoding", "channels", "size"),
    [("16UC1", 1, 2), ("mono16", 1, 2), ("32FC1", 1, 4), ("nonsense", 3, 1)],
)
def test_what_jpeg_cannot_hold_is_left_as_it_is(encoding, channels, size):
    assert compress(image(encoding, channels, size), 90) is None


def test_frames_keep_their_order_and_those_too_many_are_counted():
    release, order = threading.Event(), []

    def deliver(frame: Frame, jpeg: bytes | None) -> None:
        release.wait(10)
        order.append((frame.log_ns, jpeg is None))

    encoder = ImageEncoder(deliver, 80, capacity=2)
    good, deep = image("rgb8", 3), image("16UC1", 1, 2)
    accepted = [
        encoder.submit(Frame(RAW, JPEG, number, number, deep if number == 1 else good))
        for number in range(20)
    ]
    release.set()
    encoder.close()
    taken = [number for number, ok in enumerate(accepted) if ok]
    assert 2 <= len(taken) <= 3  # one may be in work besides the two that wait
    assert order == [(number, number == 1) for number in taken]
    assert encoder.dropped() == {"/image_raw": 20 - len(taken)}
    assert not encoder.submit(Frame(RAW, JPEG, 99, 99, good))
    assert encoder.fault == ""
