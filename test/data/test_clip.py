"""Demonstrations out of bags: evenly spaced pictures, and clear words about what cannot be used."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wm_node.data import clip, messages
from wm_node.data.bag_writer import BagWriter
from wm_node.data.images import encode_jpeg
from wm_node.errors import WmError
from wm_node.profile import load_profile

START = 1_700_000_000_000_000_000
PROFILE = load_profile("tabletop")


def save(path: Path, count: int, rate_hz: float = 20.0, jpeg: bool = False) -> Path:
    """A bag of grey frames, each a shade brighter than the one before."""
    topic = "/image_raw/compressed" if jpeg else "/image_raw"
    kind = "CompressedImage" if jpeg else "Image"
    with BagWriter(path) as bag:
        bag.add_topic(topic, f"sensor_msgs/msg/{kind}")
        bag.add_topic("/events/fell", "std_msgs/msg/Bool")
        bag.write("/events/fell", messages.boolean(False), START)
        for k in range(count):
            stamp = START + round(k * 1e9 / rate_hz)
            frame = np.full((48, 64, 3), 2 * k, np.uint8)
            message = (
                messages.compressed_image(stamp, "front", encode_jpeg(frame))
                if jpeg
                else messages.image(stamp, "front", frame)
            )
            bag.write(topic, message, stamp)
    return path


@pytest.mark.parametrize("jpeg", [False, True])
def test_pictures_are_evenly_spaced_and_the_last_is_among_them(tmp_path: Path, jpeg: bool) -> None:
    pictures = clip.read_clip(save(tmp_path / "bag", 30, jpeg=jpeg), PROFILE)
    camera = PROFILE.cameras[0]
    assert {one.shape for one in pictures} == {(camera.model_height, camera.model_width, 3)}
    shades = [float(one.mean()) / 2 for one in pictures]
    np.testing.assert_allclose(shades, [0, 4, 8, 12, 16, 20, 24, 28, 29], atol=1.0)


def test_what_is_no_demonstration_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("nothing", "", "\0", "a" * 5000, "~nobody_of_that_name"):
        with pytest.raises(WmError, match="there is no bag at"):
            clip.read_clip(str(tmp_path / name) if name == "nothing" else name, PROFILE)
    for name in ("/", "/dev/null"):  # nothing is searched for
        with pytest.raises(WmError, match="bag"):
            clip.read_clip(name, PROFILE)
    blind = tmp_path / "blind"
    with BagWriter(blind) as bag:
        bag.add_topic("/events/fell", "std_msgs/msg/Bool")
        bag.write("/events/fell", messages.boolean(False), START)
    with pytest.raises(WmError, match=r"no frames of the camera 'front' .* holds /events/fell"):
        clip.read_clip(blind, PROFILE)
    monkeypatch.setattr(clip, "MAX_PICTURES", 5)
    with pytest.raises(WmError, match="shows more than 1 s; record a shorter demonstration"):
        clip.read_clip(save(tmp_path / "long", 30), PROFILE)
    damaged = save(tmp_path / "damaged", 30)
    (file,) = damaged.glob("*.mcap")
    file.write_bytes(file.read_bytes()[:2000])
    with pytest.raises(WmError, match="damaged"):
        clip.read_clip(damaged, PROFILE)
