"""How things look, drawn anew for an episode: colours, surfaces, light, the camera's place.

Levels that change looks share this; what they draw from is theirs.
"""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from math import cos, sin

import mujoco
import numpy as np
from numpy.typing import NDArray

Colour = tuple[float, float, float]
Range = tuple[float, float]

MUG_GEOMS = tuple(f"mug_{part}" for part in ("body", "handle_top", "handle_side", "handle_low"))
"""Of the mug, what is painted."""


def one_of(ranges: Sequence[Range], rng: np.random.Generator) -> float:
    """Draw one of the ranges, and a number from it."""
    return float(rng.uniform(*ranges[int(rng.integers(len(ranges)))]))


def colour(rng: np.random.Generator, hue: Range, saturation: float, value: float) -> Colour:
    """Draw a hue, which may run past 1 to the reds again; return red, green and blue in 0..1."""
    return colorsys.hsv_to_rgb(rng.uniform(*hue) % 1.0, saturation, value)


def dress(model: mujoco.MjModel, geoms: Sequence[str], material: str, painted: Colour) -> None:
    """Give geoms a material of the scene, tinted."""
    for name in geoms:
        geom = model.geom(name).id
        model.geom_matid[geom] = model.material(material).id
        model.geom_rgba[geom, :3] = painted


def _direction(rng: np.random.Generator) -> NDArray[np.float64]:
    """Return a random direction in space, (3,) of length 1."""
    drawn = rng.normal(size=3)
    return np.asarray(drawn / np.linalg.norm(drawn))


def move_camera(
    model: mujoco.MjModel, rng: np.random.Generator, shift_m: float, turn_rad: float
) -> None:
    """Move the camera by a distance and turn it by an angle, both in random directions."""
    model.cam_pos[0] += shift_m * _direction(rng)
    half = turn_rad / 2
    turn = np.array([cos(half), *(sin(half) * _direction(rng))])
    turned = np.empty(4)
    mujoco.mju_mulQuat(turned, turn, model.cam_quat[0])
    model.cam_quat[0] = turned
