"""Levels ``varied`` and ``restless``: looks to train on, so that a bundle stands ``shift``.

Colours and surfaces of table, floor and mug, light, the camera's place, and flat things on the
table change with every episode, or with every frame: an episode of sixty frames then shows an
encoder sixty scenes, and its latents can hold nothing of a scene's look. What ``shift`` draws from
is held out: its hues of table, floor and mug, its dark mugs, its patterns, its light, its bright
squares and the whole of its way of the camera are not here, nor are mass and friction other than
the basic scene's.
"""

from __future__ import annotations

from collections.abc import Callable
from functools import cache, partial
from io import BytesIO
from math import cos, pi, radians, sin

import mujoco
import numpy as np
from numpy.typing import NDArray
from PIL import Image
from scipy.ndimage import gaussian_filter
from scipy.spatial import cKDTree

from wm_node.sim.level import Level, Setup, Start
from wm_node.sim.looks import MUG_GEOMS, Colour, colour, dress, move_camera
from wm_node.sim.scene import FLOOR_COLOUR, TABLE_BOUNDS, TABLE_COLOUR, SceneParts

Floats = NDArray[np.float64]

SIDE = 96  # of a surface's picture, in pixels
OF_EACH = 8
"""Surfaces of each kind that episodes of ``varied`` draw from."""
OF_EACH_RESTLESS = 40
REPEATS = (1, 2, 5)
PLAIN = 0.3
"""Share of things that keep a surface without a picture."""
DRESSED = 0.8
"""Share of episodes in which a thing is given another colour, for each thing by itself."""
HUES = (0.72, 1.23)  # of table and floor; shift has 0.25 to 0.70
MUG_HUES = (0.0, 0.80)  # shift has pinks of 0.82 to 0.92, and dark mugs
CAMERA_SHIFT_M, CAMERA_TURN_RAD = 0.015, radians(1.5)
THINGS = 3
THING_HALF_M = (0.012, 0.06)
_PLAIN = "varied_plain"
_USUAL = (("table", TABLE_COLOUR), ("floor", FLOOR_COLOUR))


# ---- surfaces ------------------------------------------------------------------------------


def _clouds(rng: np.random.Generator) -> Floats:
    """Soft spots, at one to three sizes at once."""
    sizes = rng.choice([1.0, 2.0, 4.0, 8.0, 14.0], int(rng.integers(1, 4)), replace=False)
    layers = [gaussian_filter(rng.normal(size=(SIDE, SIDE)), size, mode="wrap") for size in sizes]
    return np.asarray(np.sum([layer / layer.std() for layer in layers], axis=0))


def _stripes(rng: np.random.Generator) -> Floats:
    """Parallel stripes, sharp or soft."""
    across, down = rng.integers(-6, 7, 2)
    across = across or 1
    row, column = np.mgrid[:SIDE, :SIDE] / SIDE
    wave = np.sin(2 * pi * (across * column + down * row) + rng.uniform(-pi, pi))
    return np.asarray(np.tanh(float(rng.choice([0.7, 6.0])) * wave))


def _pieces(rng: np.random.Generator) -> Floats:
    """Crazy paving: each point has the shade of the nearest of some points."""
    count = int(rng.integers(5, 60))
    middle = rng.uniform(0, SIDE, (count, 2))
    points = np.indices((SIDE, SIDE)).reshape(2, -1).T
    _, nearest = cKDTree(middle, boxsize=np.full(2, float(SIDE))).query(points)
    return np.asarray(rng.normal(size=count)[nearest]).reshape(SIDE, SIDE)


KINDS: dict[str, Callable[[np.random.Generator], Floats]] = {
    "clouds": _clouds,
    "stripes": _stripes,
    "pieces": _pieces,
}


def _picture(kind: str, number: int) -> bytes:
    """Return a surface as a PNG file: shades of one tint, brightest at white."""
    rng = np.random.default_rng([number, *kind.encode()])
    shade = KINDS[kind](rng)
    low, high = np.percentile(shade, (2, 98))
    share = np.clip((shade - low) / (high - low), 0.0, 1.0)[..., None]
    dark = rng.uniform(0.3, 0.8) * rng.uniform(0.75, 1.0, 3)
    pixels = 255 * (share + (1 - share) * dark)
    file = BytesIO()
    Image.fromarray(pixels.round().astype(np.uint8)).save(file, "PNG")
    return file.getvalue()


@cache
def _pictures(of_each: int) -> dict[str, bytes]:
    return {f"varied_{kind}_{n}.png": _picture(kind, n) for kind in KINDS for n in range(of_each)}


def _parts(of_each: int) -> SceneParts:
    lines = [f'<material name="{_PLAIN}"/>']
    for name in (f"varied_{kind}_{n}" for kind in KINDS for n in range(of_each)):
        lines.append(f'<texture name="{name}" type="2d" file="{name}.png"/>')
        lines += [
            f'<material name="{name}_{repeat}" texture="{name}" texrepeat="{repeat} {repeat}"/>'
            for repeat in REPEATS
        ]
    # Flat things lie below the zone's paint, which thereby is seen whole.
    bodies = "\n".join(
        f'<geom name="varied_thing_{k}" class="picture" type="{shape}" size="0.03 0.03 0.0003" '
        f'pos="0 0 -0.0001" euler="0 0 0.3" rgba="1 1 1 0"/>'
        for k, shape in enumerate(("box", "ellipsoid", "box"))
    )
    return SceneParts("\n".join(lines), bodies, partial(_pictures, of_each))


# ---- a look --------------------------------------------------------------------------------


def _material(rng: np.random.Generator, of_each: int) -> str:
    kind, number = list(KINDS)[int(rng.integers(len(KINDS)))], int(rng.integers(of_each))
    name = f"varied_{kind}_{number}_{REPEATS[int(rng.integers(len(REPEATS)))]}"
    return _PLAIN if rng.random() < PLAIN else name


def _paint(model: mujoco.MjModel, rng: np.random.Generator, of_each: int, mug: Colour) -> None:
    for thing, usual in _USUAL:
        material, dressed = _material(rng, of_each), rng.random() < DRESSED
        saturation, value = float(rng.uniform(0.0, 0.6)), float(rng.uniform(0.30, 0.95))
        other = colour(rng, HUES, saturation, value)
        dress(model, (thing,), material if dressed else _PLAIN, other if dressed else usual)
    material, dressed = _material(rng, of_each), rng.random() < DRESSED
    saturation, value = float(rng.uniform(0.0, 0.9)), float(rng.uniform(0.55, 1.0))
    other = colour(rng, MUG_HUES, saturation, value)
    dress(model, MUG_GEOMS, material, other if dressed else mug)


def _light(model: mujoco.MjModel, rng: np.random.Generator) -> None:
    strength, warmth = rng.uniform(0.30, 0.70), rng.uniform(-0.15, 0.15)
    model.light_diffuse[0] = strength * np.array([1 + warmth, 1.0, 1 - warmth])
    model.light_dir[0] = [rng.uniform(-0.65, 0.65), rng.uniform(-0.05, 0.6), -1.0]
    model.vis.headlight.ambient[:] = rng.uniform(0.27, 0.43)


def _place_things(model: mujoco.MjModel, rng: np.random.Generator, of_each: int) -> None:
    shown = int(rng.integers(THINGS + 1))
    for k in range(THINGS):
        thing = model.geom(f"varied_thing_{k}").id
        half = rng.uniform(*THING_HALF_M, 2)
        yaw, reach = rng.uniform(-pi, pi), float(np.hypot(*half))
        model.geom_size[thing, :2] = half
        model.geom_pos[thing, :2] = (
            rng.uniform(TABLE_BOUNDS.x_min + reach, TABLE_BOUNDS.x_max - reach),
            rng.uniform(TABLE_BOUNDS.y_min + reach, 0.24 - reach),
        )
        model.geom_quat[thing] = cos(yaw / 2), 0.0, 0.0, sin(yaw / 2)
        painted = colour(rng, (0.0, 1.0), float(rng.uniform(0, 0.8)), float(rng.uniform(0.15, 0.9)))
        dress(model, (f"varied_thing_{k}",), _material(rng, of_each), painted)
        model.geom_rgba[thing, 3] = float(k < shown)


# ---- an episode ----------------------------------------------------------------------------


def undress(model: mujoco.MjModel, mug: Colour) -> None:
    """Give table and floor their usual look, and the mug a plain colour; nothing lies about."""
    for thing, painted in _USUAL:
        dress(model, (thing,), _PLAIN, painted)
    dress(model, MUG_GEOMS, _PLAIN, mug)
    for k in range(THINGS):
        model.geom_rgba[model.geom(f"varied_thing_{k}").id, 3] = 0.0


def looks(model: mujoco.MjModel, of_each: int) -> Callable[[np.random.Generator], None]:
    """Return what gives the scene another look; from its own, which is read now."""
    red, green, blue = model.geom_rgba[model.geom(MUG_GEOMS[0]).id, :3].tolist()
    place, turn = model.cam_pos[0].copy(), model.cam_quat[0].copy()

    def redress(rng: np.random.Generator) -> None:
        model.cam_pos[0], model.cam_quat[0] = place, turn
        _paint(model, rng, of_each, (red, green, blue))
        _light(model, rng)
        shift_m, turn_rad = CAMERA_SHIFT_M * rng.random(), CAMERA_TURN_RAD * rng.random()
        move_camera(model, rng, shift_m, turn_rad)
        _place_things(model, rng, of_each)

    return redress


def _arrange_varied(model: mujoco.MjModel, start: Start, rng: np.random.Generator) -> Setup:
    looks(model, OF_EACH)(rng)
    return Setup(start)


def _arrange_restless(model: mujoco.MjModel, start: Start, rng: np.random.Generator) -> Setup:
    redress = looks(model, OF_EACH_RESTLESS)
    redress(rng)  # so that what is read of the model before the first frame is one of its looks
    return Setup(start, redress=redress)


VARIED = Level("varied", _parts(OF_EACH), _arrange_varied)
RESTLESS = Level("restless", _parts(OF_EACH_RESTLESS), _arrange_restless)
