"""Picture strips of episodes: some moments beside each other.

The target is drawn as a ring, black and white; where the policy takes the target to be, as a ring
of yellow; and where it takes the mug to stand, as a cross of yellow, on the table.
"""

from __future__ import annotations

from dataclasses import dataclass
from itertools import pairwise
from math import pi, tan
from pathlib import Path

import mujoco
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw

from wm_node.errors import WmError
from wm_node.sim.level import Point
from wm_node.sim.levels import find_played_level
from wm_node.sim.scene import CAMERA_FOVY_DEG
from wm_node.sim.tabletop import TabletopSim
from wm_node.sim.task import TOLERANCE_M, EpisodeScore, Reading

FRAMES = 8
GAP = 4  # pixels between pictures
SUCCESSES = 3  # strips of the first few, to see what is usual
RING_POINTS = 48
Dashes = tuple[tuple[int, int, int], tuple[int, int, int]]
"""Two colours, red, green and blue in 0..255, that take turns along a line."""
RING_COLOURS = ((255, 255, 255), (0, 0, 0))  # seen on any table
READ_COLOURS = ((255, 220, 0), (0, 0, 0))


@dataclass(frozen=True)
class Trace:
    """What an episode looked like: N poses (N, nq), their times (N,) in s, what was read then."""

    poses: NDArray[np.float64]
    times_s: NDArray[np.float64]
    readings: tuple[Reading, ...]


def project(model: mujoco.MjModel, points: NDArray[np.float64], size: Point) -> list[Point]:
    """Return where points (N, 3), in m, of the table's frame lie in the picture, in pixels."""
    matrix = np.empty(9)
    mujoco.mju_quat2Mat(matrix, model.cam_quat[0])
    seen = (points - model.cam_pos[0]) @ matrix.reshape(3, 3)
    scale = size[1] / 2 / tan(CAMERA_FOVY_DEG * pi / 360)
    x = size[0] / 2 + scale * seen[:, 0] / -seen[:, 2]
    y = size[1] / 2 - scale * seen[:, 1] / -seen[:, 2]
    return list(zip(x.tolist(), y.tolist(), strict=True))


def draw_ring(
    picture: NDArray[np.uint8],
    sim: TabletopSim,
    goal: Point,
    colours: Dashes = RING_COLOURS,
) -> NDArray[np.uint8]:
    """Draw the circle within which a mug's centre has reached the target."""
    angles = np.linspace(0.0, 2 * pi, RING_POINTS + 1)
    ring = np.asarray(goal) + TOLERANCE_M * np.stack([np.cos(angles), np.sin(angles)], axis=1)
    return _draw(picture, sim, [ring], colours)


def draw_cross(picture: NDArray[np.uint8], sim: TabletopSim, place: Point) -> NDArray[np.uint8]:
    """Draw a cross on the table where a policy takes the mug to stand."""
    way = np.linspace(-TOLERANCE_M, TOLERANCE_M, RING_POINTS // 2)
    lines = [np.asarray(place) + np.outer(way, axis) for axis in np.eye(2)]
    return _draw(picture, sim, lines, READ_COLOURS)


def _draw(
    picture: NDArray[np.uint8],
    sim: TabletopSim,
    lines: list[NDArray[np.float64]],
    colours: Dashes,
) -> NDArray[np.uint8]:
    """Draw dashed lines through points (N, 2) on the table."""
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    for line in lines:
        places = project(sim.model, np.pad(line, ((0, 0), (0, 1))), sim.camera_size)
        for k, ends in enumerate(pairwise(places)):
            draw.line(ends, fill=colours[k // 3 % 2], width=2)
    return np.asarray(image, dtype=np.uint8)


def strip(sim: TabletopSim, score: EpisodeScore, trace: Trace) -> NDArray[np.uint8]:
    """Return an episode's moments in a row, first and last included; the simulator is reset."""
    sim.reset(score.seed)
    chosen = np.linspace(0, len(trace.poses) - 1, FRAMES).round().astype(int)
    gap = np.full((sim.camera_size[1], GAP, 3), 255, dtype=np.uint8)
    parts: list[NDArray[np.uint8]] = []
    for k in chosen.tolist():
        picture = sim.picture(trace.poses[k], float(trace.times_s[k]))
        picture = draw_ring(picture, sim, score.goal)
        reading = trace.readings[k]
        if reading.goal is not None:
            picture = draw_ring(picture, sim, reading.goal, READ_COLOURS)
        if reading.mug is not None:
            picture = draw_cross(picture, sim, reading.mug)
        parts += [picture, gap]
    return np.concatenate(parts[:-1], axis=1)


def outcome(score: EpisodeScore) -> str:
    """Return how the episode ended, in a word or few."""
    if score.success:
        return "success"
    return score.reason or "out of time"


def write_strips(
    folder: Path,
    level: str,
    planner: str,
    episodes: list[tuple[EpisodeScore, Trace]],
    camera_size: tuple[int, int] = (320, 240),
) -> list[Path]:
    """Write one PNG an episode for every failure and for the first successes, by seed.

    Files are called after level, planner, seed and outcome.

    Raises:
        WmError: the folder cannot be written.
    """
    ordered = sorted(episodes, key=lambda episode: episode[0].seed)
    usual = [episode for episode in ordered if episode[0].success][:SUCCESSES]
    failed = [episode for episode in ordered if not episode[0].success]
    sim = TabletopSim(camera_size, level=find_played_level(level))
    paths = []
    try:
        folder.mkdir(parents=True, exist_ok=True)
        for score, trace in usual + failed:
            words = outcome(score).replace(" ", "_")
            path = folder / f"{level}_{planner}_{score.seed}_{words}.png"
            Image.fromarray(strip(sim, score, trace)).save(path)
            paths.append(path)
    except OSError as error:
        raise WmError(f"cannot write pictures to '{folder}': {error}.") from error
    finally:
        sim.close()
    return paths
