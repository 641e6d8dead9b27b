"""Camera messages to arrays: the one place where pixels are converted.

Messages are duck-typed: those of ``rclpy`` and those that ``rosbags`` reads both fit. Raw images go
through the real ``cv_bridge`` where a ROS installation has it and through ``rosbags-image``
elsewhere; the two give equal pixels. JPEG and PNG are decoded by OpenCV in both cases.
"""

from __future__ import annotations

import importlib.util
import io
from collections.abc import Callable
from dataclasses import dataclass
from functools import lru_cache
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from PIL import Image as PilImage

from wm_node.errors import WmError

# The profile allows cameras of at most 8192 x 8192; a message that claims more is damaged.
MAX_SIDE = 8192

Rgb = NDArray[np.uint8]


class DamagedImage(WmError):
    """The pixels of one message are damaged; others of the same camera may be whole."""


@dataclass(frozen=True)
class _RawImage:
    """The fields of ``sensor_msgs/Image`` that conversion reads, rows already packed."""

    height: int
    width: int
    encoding: str
    is_bigendian: int
    step: int
    data: NDArray[np.uint8]


def decode_image(message: Any) -> Rgb:
    """Decode a ``sensor_msgs`` Image or CompressedImage to RGB.

    Args:
        message: any object with the message's fields.

    Returns:
        Fresh, contiguous uint8 array (height, width, 3), RGB.

    Raises:
        WmError: the encoding cannot be shown as RGB, the size is absurd, or the data is damaged.
    """
    if hasattr(message, "encoding"):
        return _decode_raw(message)
    return _decode_compressed(message)


def resize_area(image: Rgb, width: int, height: int) -> Rgb:
    """Resize by area averaging (enlarging: bilinear), the same for training and for live frames.

    Args:
        image: uint8 (H, W, 3).
        width: wanted width in pixels.
        height: wanted height in pixels.

    Returns:
        uint8 (height, width, 3).
    """
    if image.shape[0] == height and image.shape[1] == width:
        return image
    shrinks = image.shape[0] >= height and image.shape[1] >= width
    method = cv2.INTER_AREA if shrinks else cv2.INTER_LINEAR
    return np.asarray(cv2.resize(image, (width, height), interpolation=method), dtype=np.uint8)


def encode_jpeg(image: Rgb, quality: int = 90) -> bytes:
    """Encode uint8 RGB (H, W, 3) as JPEG, for a CompressedImage's ``data``."""
    done, data = cv2.imencode(
        ".jpg", cv2.cvtColor(image, cv2.COLOR_RGB2BGR), [cv2.IMWRITE_JPEG_QUALITY, quality]
    )
    if not done:
        raise WmError(f"cannot encode an image of shape {image.shape} as JPEG.")
    return bytes(data)


def _check_size(width: int, height: int) -> None:
    if not (0 < width <= MAX_SIDE and 0 < height <= MAX_SIDE):
        raise DamagedImage(
            f"an image message claims {width}x{height} pixels; at most {MAX_SIDE}x{MAX_SIDE} is "
            "accepted, so the message is damaged or no camera image."
        )


def _decode_compressed(message: Any) -> Rgb:
    kind = str(message.format)
    if "compressedDepth" in kind:
        raise WmError(f"encoding '{kind}' is a depth image; the model needs a colour camera.")
    data = np.frombuffer(message.data, dtype=np.uint8)
    # The size is read from the file's header and checked before memory for the pixels is taken.
    width, height = _jpeg_size(data.tobytes()) or _other_size(data, kind)
    _check_size(width, height)
    image = cv2.imdecode(data, cv2.IMREAD_COLOR | cv2.IMREAD_IGNORE_ORIENTATION)
    if image is None:
        raise DamagedImage(
            f"a compressed image of format '{kind}' is damaged and cannot be decoded."
        )
    return np.asarray(cv2.cvtColor(image, cv2.COLOR_BGR2RGB), dtype=np.uint8)


def _jpeg_size(data: bytes) -> tuple[int, int] | None:
    """Read width and height from the frame header of a JPEG; None if there is none."""
    at = 2
    while data[:2] == b"\xff\xd8" and at + 9 <= len(data) and data[at] == 0xFF:
        marker, length = data[at + 1], int.from_bytes(data[at + 2 : at + 4], "big")
        if 0xC0 <= marker <= 0xCF and marker not in (0xC4, 0xC8, 0xCC):
            height, width = data[at + 5 : at + 7], data[at + 7 : at + 9]
            return int.from_bytes(width, "big"), int.from_bytes(height, "big")
        at += 2 + length
    return None


def _other_size(data: NDArray[np.uint8], kind: str) -> tuple[int, int]:
    try:
        with PilImage.open(io.BytesIO(data.data), formats=("JPEG", "PNG", "WEBP")) as header:
            return header.size
    except (OSError, SyntaxError, ValueError, PilImage.DecompressionBombError) as error:
        raise DamagedImage(
            f"a compressed image of format '{kind}' with {data.size} bytes cannot be decoded: "
            "it is damaged or neither JPEG, PNG nor WebP."
        ) from error


def _decode_raw(message: Any) -> Rgb:
    width, height, step = int(message.width), int(message.height), int(message.step)
    _check_size(width, height)
    data = np.frombuffer(message.data, dtype=np.uint8)
    if step * height > data.size or step < width:
        raise DamagedImage(
            f"an image of {width}x{height} '{message.encoding}' with step {step} holds "
            f"{data.size} bytes, which is too few: the message is damaged."
        )
    raw = _RawImage(
        height, width, str(message.encoding), int(message.is_bigendian), step, data[: step * height]
    )
    image = _converter()(raw)
    if image.shape != (height, width, 3) or image.dtype != np.uint8:
        raise WmError(f"encoding '{raw.encoding}' cannot be shown as RGB.")
    # A view into the message's buffer would keep the message alive and be read-only.
    shared = np.may_share_memory(image, data)
    return np.array(image, order="C", copy=True) if shared else np.ascontiguousarray(image)


@lru_cache(maxsize=1)
def _converter() -> Callable[[_RawImage], NDArray[Any]]:
    """Choose the converter of raw images once: ``cv_bridge``, else ``rosbags-image``."""
    if importlib.util.find_spec("cv_bridge") is not None:
        return _cv_bridge()
    return _rosbags_image


def _cv_bridge() -> Callable[[_RawImage], NDArray[Any]]:
    from cv_bridge import CvBridge, CvBridgeError

    bridge = CvBridge()

    def convert(raw: _RawImage) -> NDArray[Any]:
        try:
            return np.asarray(bridge.imgmsg_to_cv2(raw, desired_encoding="rgb8"))
        except (CvBridgeError, TypeError, ValueError, KeyError) as error:
            raise WmError(f"encoding '{raw.encoding}' cannot be shown as RGB: {error}.") from error

    return convert


def _rosbags_image(raw: _RawImage) -> NDArray[Any]:
    from rosbags.image.image import ImageError, image_to_cvimage, to_cvtype

    try:
        _, _, kind, channels = to_cvtype(raw.encoding)
        row = raw.width * channels * np.dtype(kind).itemsize
        if raw.step < row:
            raise DamagedImage(
                f"an image of width {raw.width} and encoding '{raw.encoding}' needs rows of {row} "
                f"bytes, but its step is {raw.step}: the message is damaged."
            )
        # rosbags-image ignores the step: cut the padding off first.
        packed = np.ascontiguousarray(raw.data.reshape(raw.height, raw.step)[:, :row]).reshape(-1)
        tight = _RawImage(raw.height, raw.width, raw.encoding, raw.is_bigendian, row, packed)
        return np.asarray(image_to_cvimage(tight, "rgb8"))
    except (ImageError, cv2.error, TypeError, ValueError) as error:
        raise WmError(
            f"encoding '{raw.encoding}' cannot be shown as RGB; the camera must publish colour or "
            "grey images such as rgb8, bgr8, mono8 or yuv422."
        ) from error
