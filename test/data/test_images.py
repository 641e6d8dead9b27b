"""Camera messages to RGB arrays."""

from __future__ import annotations

import importlib.util
from types import SimpleNamespace

import cv2
import numpy as np
import pytest

from wm_node.data import images, messages
from wm_node.data.images import DamagedImage, decode_image, encode_jpeg, resize_area
from wm_node.errors import WmError

RNG = np.random.default_rng(1)
PICTURE = RNG.integers(0, 256, (20, 30, 3), dtype=np.uint8)


def raw(encoding: str, array: np.ndarray, padding: int = 0, **changes: int) -> SimpleNamespace:
    rows = array.reshape(array.shape[0], -1).view(np.uint8)
    padded = np.pad(rows, ((0, 0), (0, padding)), constant_values=77)
    fields = {
        "height": array.shape[0],
        "width": array.shape[1],
        "encoding": encoding,
        "is_bigendian": 0,
        "step": padded.shape[1],
        "data": padded.reshape(-1),
    }
    return SimpleNamespace(**{**fields, **changes})


@pytest.mark.parametrize("padding", [0, 6])
def test_colour_encodings(padding: int) -> None:
    alpha = np.dstack([PICTURE, np.full(PICTURE.shape[:2], 9, np.uint8)])
    for encoding, array in (
        ("rgb8", PICTURE),
        ("bgr8", PICTURE[..., ::-1].copy()),
        ("rgba8", alpha),
        ("bgra8", alpha[..., [2, 1, 0, 3]].copy()),
    ):
        np.testing.assert_array_equal(decode_image(raw(encoding, array, padding)), PICTURE)


def test_grey_becomes_rgb() -> None:
    out = decode_image(raw("mono8", PICTURE[..., 0].copy()))
    np.testing.assert_array_equal(out, np.repeat(PICTURE[..., :1], 3, axis=2))


def test_the_result_is_a_copy() -> None:
    message = raw("rgb8", PICTURE)
    out = decode_image(message)
    out[:] = 0
    assert message.data.any()


def test_depth_images_are_refused_by_name() -> None:
    with pytest.raises(WmError, match="16UC1"):
        decode_image(raw("16UC1", RNG.integers(0, 9, (4, 6), dtype=np.uint16)))
    with pytest.raises(WmError, match="nonsense"):
        decode_image(raw("nonsense", PICTURE))
    with pytest.raises(WmError, match="depth"):
        decode_image(SimpleNamespace(format="16UC1; compressedDepth", data=b"123"))


@pytest.mark.parametrize(
    "changes", [{"width": 10**6}, {"height": 8193}, {"height": 21}, {"step": 10**7}, {"step": 3}]
)
def test_images_that_lie_about_their_size_are_damaged(changes: dict[str, int]) -> None:
    with pytest.raises(DamagedImage):
        decode_image(raw("rgb8", PICTURE, **changes))


def test_jpeg_and_png() -> None:
    smooth = resize_area(PICTURE, 6, 4)
    smooth = resize_area(smooth, 60, 40)
    jpeg = decode_image(messages.compressed_image(1, "", encode_jpeg(smooth, 95)))
    assert np.abs(jpeg.astype(int) - smooth).mean() < 3
    png = cv2.imencode(".png", cv2.cvtColor(PICTURE, cv2.COLOR_RGB2BGR))[1].tobytes()
    np.testing.assert_array_equal(decode_image(SimpleNamespace(format="png", data=png)), PICTURE)
    grey = cv2.imencode(".jpg", smooth[..., 0])[1].tobytes()
    assert decode_image(SimpleNamespace(format="jpeg", data=grey)).shape == smooth.shape


def test_damaged_jpegs_are_damaged() -> None:
    jpeg = encode_jpeg(PICTURE)
    for data in (b"", b"\xff\xd8", jpeg[:40], b"not a picture at all"):
        with pytest.raises(DamagedImage):
            decode_image(SimpleNamespace(format="jpeg", data=data))


def test_a_jpeg_that_claims_a_huge_size_is_refused_before_it_is_decoded() -> None:
    jpeg = bytearray(encode_jpeg(PICTURE))
    at = jpeg.index(b"\xff\xc0") + 5
    jpeg[at : at + 4] = b"\xff\xff\xff\xff"
    with pytest.raises(DamagedImage, match="65535x65535"):
        decode_image(SimpleNamespace(format="jpeg", data=bytes(jpeg)))


def test_resizing_averages_areas() -> None:
    board = np.zeros((8, 8, 3), np.uint8)
    board[::2, ::2] = 200
    assert (resize_area(board, 4, 4) == 50).all()
    assert resize_area(board, 8, 8) is board


@pytest.mark.skipif(
    importlib.util.find_spec("cv_bridge") is None, reason="no ROS installation with cv_bridge here"
)
def test_cv_bridge_and_rosbags_image_give_equal_pixels() -> None:
    for encoding, array in (("rgb8", PICTURE), ("mono8", PICTURE[..., 0].copy())):
        message = raw(encoding, array, 6)
        packed = images._RawImage(**vars(message))
        np.testing.assert_array_equal(images._cv_bridge()(packed), images._rosbags_image(packed))
