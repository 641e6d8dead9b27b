"""Turns raw camera messages into JPEG ones for the recording, in a thread of its own."""

from __future__ import annotations

import array
import threading
from collections import deque
from collections.abc import Callable
from typing import NamedTuple

from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import CompressedImage, Image

from wm_node.data.images import decode_image, encode_jpeg
from wm_node.errors import WmError
from wm_node.recording.metadata import Topic

# JPEG keeps 8 bits a channel: depth and 16-bit images are recorded as they are.
_DEEP = ("16", "32F", "32S", "64F", "mono16", "rgb16", "bgr16", "rgba16", "bgra16")


class Frame(NamedTuple):
    """A serialised ``sensor_msgs/Image``, its two times in ns, and where it is recorded.

    As JPEG it belongs to ``jpeg_topic``, as it is to ``topic``.
    """

    topic: Topic
    jpeg_topic: Topic
    log_ns: int
    publish_ns: int
    data: bytes


# Takes the frame and the serialised CompressedImage, or None if it must be recorded as it is.
Deliver = Callable[[Frame, bytes | None], None]


def compress(data: bytes, quality: int) -> bytes | None:
    """Return a serialised CompressedImage for a serialised Image; None if JPEG does not fit it.

    JPEG does not fit 16-bit and depth images, and what cannot be shown as a picture at all.
    """
    message = deserialize_message(data, Image)
    encoding = str(message.encoding)
    if encoding.startswith(_DEEP) or encoding.endswith("16"):
        return None
    try:
        jpeg = encode_jpeg(decode_image(message), quality)
    except WmError:
        return None
    out = CompressedImage(header=message.header, format=f"{encoding}; jpeg compressed bgr8")
    out.data = array.array("B", jpeg)
    return bytes(serialize_message(out))


class ImageEncoder:
    """Encodes frames in order, in one thread, from a bounded queue."""

    def __init__(self, deliver: Deliver, quality: int, capacity: int) -> None:
        """Start the thread.

        Args:
            deliver: called in the thread with every frame and its result, in order.
            quality: JPEG quality, 1 to 100.
            capacity: frames that may wait; more are refused.
        """
        self._deliver = deliver
        self._quality = quality
        self._capacity = capacity
        self._waiting: deque[Frame] = deque()
        self._condition = threading.Condition()
        self._stop = False
        self._dropped: dict[str, int] = {}
        self.fault = ""
        self._thread = threading.Thread(target=self._run, name="image_encoder", daemon=True)
        self._thread.start()

    def submit(self, frame: Frame) -> bool:
        """Queue a frame; returns False, and counts it, if the encoder is too far behind."""
        with self._condition:
            if self._stop or len(self._waiting) >= self._capacity:
                name = frame.topic.name
                self._dropped[name] = self._dropped.get(name, 0) + 1
                return False
            self._waiting.append(frame)
            self._condition.notify()
        return True

    def dropped(self) -> dict[str, int]:
        """Return the frames refused so far, by topic."""
        with self._condition:
            return dict(self._dropped)

    def close(self, timeout_s: float = 10.0) -> None:
        """Encode what is waiting, then end the thread."""
        with self._condition:
            self._stop = True
            self._condition.notify()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        try:
            while True:
                with self._condition:
                    while not self._waiting and not self._stop:
                        self._condition.wait()
                    if not self._waiting:
                        return
                    frame = self._waiting.popleft()
                self._deliver(frame, compress(frame.data, self._quality))
        except Exception as error:
            self.fault = f"the image encoder stopped on {error!r}; please report it"
            with self._condition:
                self._stop = True
            raise
