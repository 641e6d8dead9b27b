"""A picture of a dataset at a glance: episodes spread over it, one a row, time to the right."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageDraw

from wm_node.data.dataset import Dataset, Episode
from wm_node.profile import Camera

ROWS = 8
COLUMNS = 8
MARGIN = 2
CAPTION = 12  # pixels above a row, for the episode's name
BACKGROUND, INK = (24, 24, 24), (230, 230, 230)
MIN_WIDTH = 96  # small frames are enlarged to about this width


def write_contact_sheet(dataset: Dataset, path: Path) -> None:
    """Write a PNG with frames of up to 8 episodes, each camera beside the other."""
    cameras = dataset.profile.cameras
    count = min(ROWS, len(dataset.episodes))
    chosen = [
        dataset.episodes[i] for i in np.linspace(0, len(dataset.episodes) - 1, count).astype(int)
    ]
    scale, column, row = _layout(cameras)
    sheet = Image.new("RGB", (COLUMNS * column, row * count), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for number, episode in enumerate(chosen):
        seconds = episode.length * dataset.profile.model.tick_s
        draw.text((2, number * row), f"{episode.name}  {seconds:.1f} s", fill=INK)
        ticks = episode.start + np.linspace(0, episode.length - 1, COLUMNS).astype(int)
        for place, tick in enumerate(ticks.tolist()):
            _paste(sheet, dataset, tick, scale, place * column, number * row + CAPTION)
    sheet.save(path)


def write_time_sheet(
    dataset: Dataset, episode: Episode, zero_ns: int, every_s: float, path: Path
) -> None:
    """Write a PNG with frames of one episode at regular times, each with its time in seconds.

    Args:
        dataset: of the episode.
        episode: which.
        zero_ns: stamp that counts as 0 s.
        every_s: time between pictures.
        path: of the PNG.
    """
    scale, column, row = _layout(dataset.profile.cameras)
    step = max(1, round(every_s / dataset.profile.model.tick_s))
    ticks = range(episode.start, episode.start + episode.length, step)
    sheet = Image.new("RGB", (COLUMNS * column, row * -(-len(ticks) // COLUMNS)), BACKGROUND)
    draw = ImageDraw.Draw(sheet)
    for number, tick in enumerate(ticks):
        left, top = number % COLUMNS * column, number // COLUMNS * row
        seconds = (int(dataset.stamps[tick]) - zero_ns) * 1e-9
        draw.text((left + 2, top), f"{seconds:.1f} s", fill=INK)
        _paste(sheet, dataset, tick, scale, left, top + CAPTION)
    sheet.save(path)


def _layout(cameras: Sequence[Camera]) -> tuple[int, int, int]:
    """Return how often frames are enlarged, and width and height of a place in pixels."""
    scale = max(1, round(MIN_WIDTH / cameras[0].model_width))
    width = sum(camera.model_width for camera in cameras) * scale
    height = max(camera.model_height for camera in cameras) * scale
    return scale, width + MARGIN, height + CAPTION + MARGIN


def _paste(
    sheet: Image.Image, dataset: Dataset, tick: int, scale: int, left: int, top: int
) -> None:
    """Put the frames of a tick there, each camera beside the other."""
    for camera in dataset.profile.cameras:
        frame = Image.fromarray(dataset.frames(camera.name)[tick : tick + 1][0])
        size = (camera.model_width * scale, camera.model_height * scale)
        sheet.paste(frame.resize(size, Image.Resampling.NEAREST), (left, top))
        left += size[0]
