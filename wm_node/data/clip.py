"""A demonstration out of a recorded bag: pictures of one camera, evenly spaced in time."""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wm_node.data.bags import Bag, BagError, find_bags
from wm_node.data.images import decode_image, resize_area
from wm_node.data.recorded_topics import RecordedTopics
from wm_node.errors import WmError
from wm_node.profile import RobotProfile

SPACING_S = 0.2
MAX_PICTURES = 600
"""Two minutes."""


def read_clip(path: str | Path, profile: RobotProfile) -> list[NDArray[np.uint8]]:
    """Read the frames of the robot's first camera.

    Args:
        path: folder of the bag, or its file; nothing is searched for below it.
        profile: names the camera, and the size (h, w) that its model sees.

    Returns:
        Frames (h, w, 3), RGB, at least ``SPACING_S`` apart, the last one always.

    Raises:
        WmError: no such bag, a damaged one, no frames in it, or too many.
    """
    try:
        folder = Path(path).expanduser()
        if not ((folder / "metadata.yaml").is_file() or folder.is_file()):
            raise WmError(f"there is no bag at {path}.")
    except (OSError, RuntimeError) as error:  # of names that no file can have, of no user
        raise WmError(f"there is no bag at {str(path)[:200]}: {error}.") from error
    (source,) = find_bags([folder])
    try:
        with Bag(source) as bag:
            return _read(bag, profile)
    except BagError as error:
        raise WmError(f"the bag {source.path}: {error}.") from error


def _read(bag: Bag, profile: RobotProfile) -> list[NDArray[np.uint8]]:
    camera, held = profile.cameras[0], bag.held
    topic = RecordedTopics(profile, held.items()).find_camera(camera)
    if topic is None:
        raise BagError(
            f"it has no frames of the camera '{camera.name}' (topic '{camera.topic}'); it holds "
            f"{', '.join(sorted(held)) or 'nothing'}"
        )
    chosen: list[bytes] = []
    due_ns, newest = 0, b""
    for _, log_ns, raw in bag.messages([topic]):
        newest = raw
        if log_ns >= due_ns:
            chosen.append(raw)
            due_ns = log_ns + round(SPACING_S * 1e9)
        if len(chosen) > MAX_PICTURES:
            seconds = MAX_PICTURES * SPACING_S
            raise BagError(f"it shows more than {seconds:g} s; record a shorter demonstration")
    if chosen[-1] is not newest:
        chosen.append(newest)
    pictures = (decode_image(bag.deserialize(topic, raw)) for raw in chosen)
    return [resize_area(one, camera.model_width, camera.model_height) for one in pictures]
