"""Picture strips of episodes: some moments beside each other, the target drawn as a ring."""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, pi, sin, tan
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
from wm_node.sim.task import TOLERANCE_M, EpisodeScore

FRAMES = 8
GAP = 4  # pixels between pictures
SUCCESSES = 3  # strips of the first few, to see what is usual
RING_POINTS = 48
RING_COLOURS = ((255, 255, 255), (0, 0, 0))  # seen on any table


@dataclass(frozen=True)
class Trace:
    """What an episode looked like: N poses (N, nq) and their times (N,) in s."""

    poses: NDArray[np.float64]
    times_s: NDArray[np.float64]


def project(model: mujoco.MjModel, points: NDArray[np.float64], size: Point) -> list[Point]:
    """Return where points (N, 3), in m, of the table's frame lie in the picture, in pixels."""
    matrix = np.empty(9)
    mujoco.mju_quat2Mat(matrix, model.cam_quat[0])
    seen = (points - model.cam_pos[0]) @ matrix.reshape(3, 3)
    scale = size[1] / 2 / tan(CAMERA_FOVY_DEG * pi / 360)
    x = size[0] / 2 + scale * seen[:, 0] / -seen[:, 2]
    y = size[1] / 2 - scale * seen[:, 1] / -seen[:, 2]
    return list(zip(x.tolist(), y.tolist(), strict=True))


def draw_ring(picture: NDArray[np.uint8], sim: TabletopSim, goal: Point) -> NDArray[np.uint8]:
    """Draw the circle within which a mug's centre has reached the target."""
    angles = np.linspace(0.0, 2 * pi, RING_POINTS + 1).tolist()
    ring = np.array(
        [
            (goal[0] + TOLERANCE_M * cos(angle), goal[1] + TOLERANCE_M * sin(angle), 0.0)
            for angle in angles
        ]
    )
    places = project(sim.model, ring, sim.camera_size)
    image = Image.fromarray(picture)
    draw = ImageDraw.Draw(image)
    for k in range(RING_POINTS):
        draw.line([places[k], places[k + 1]], fill=RING_COLOURS[k // 3 % 2], width=2)
    return np.asarray(image, dtype=np.uint8)


def strip(sim: TabletopSim, score: EpisodeScore, trace: Trace) -> NDArray[np.uint8]:
    """Return an episode's moments in a row, first and last included; the simulator is reset."""
    sim.reset(score.seed)
    chosen = np.linspace(0, len(trace.poses) - 1, FRAMES).round().astype(int)
    gap = np.full((sim.camera_size[1], GAP, 3), 255, dtype=np.uint8)
    parts: list[NDArray[np.uint8]] = []
    for k in chosen.tolist():
        picture = sim.picture(trace.poses[k], float(trace.times_s[k]))
        parts += [draw_ring(picture, sim, score.goal), gap]
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
