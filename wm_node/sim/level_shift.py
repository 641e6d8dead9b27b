"""Level ``shift``: the same task in a scene, and with a mug, that training never showed.

Colours and textures of mug, table, floor and background, light, a camera that was moved by 2 cm and
turned by 2 degrees, mass and friction outside the training range, and a bright square on the table.
"""

from __future__ import annotations

from math import cos, pi, radians, sin

import mujoco
import numpy as np

from wm_node.sim.level import Level, Setup, Start
from wm_node.sim.looks import MUG_GEOMS, colour, dress, move_camera, one_of
from wm_node.sim.scene import MUG_MASS, TABLE_BOUNDS, ZONE_BOUNDS, SceneParts

# Training draws mass shares of 0.5 to 2 and friction of 0.25 to 0.6.
MASS_SHARES = ((0.30, 0.45), (2.2, 3.0))
FRICTIONS = ((0.14, 0.22), (0.65, 0.80))
CAMERA_SHIFT_M = 0.02
CAMERA_TURN_RAD = radians(2.0)
SQUARE_HALF_M = (0.020, 0.040)

_PATTERNS = {
    "checks": 'type="2d" builtin="checker" rgb1="1 1 1" rgb2="0.55 0.55 0.55"',
    "fade": 'type="2d" builtin="gradient" rgb1="1 1 1" rgb2="0.45 0.45 0.45"',
    "speckle": 'type="2d" builtin="flat" rgb1="0.9 0.9 0.9" mark="random" markrgb="0.3 0.3 0.3" '
    'random="0.06"',
    "plain": 'type="2d" builtin="flat" rgb1="1 1 1"',
}
_REPEATS = {"table": (3, 7), "floor": (6, 14), "mug": (2, 4)}


def _material(thing: str, pattern: str, repeat: int) -> str:
    return f"shift_{thing}_{pattern}_{repeat}"


def _assets() -> str:
    lines = [
        f'<texture name="shift_{name}" {text} width="128" height="128"/>'
        for name, text in _PATTERNS.items()
    ]
    lines += [
        f'<material name="{_material(thing, pattern, repeat)}" texture="shift_{pattern}" '
        f'texrepeat="{repeat} {repeat}"/>'
        for thing, repeats in _REPEATS.items()
        for pattern in _PATTERNS
        for repeat in repeats
    ]
    lines.append('<material name="shift_square" emission="0.6"/>')  # bright in any light
    return "\n".join(lines)


# The frame of a geom is fixed to its body's where both agree in the text, so these are turned.
_BODIES = """
<geom name="shift_square" class="picture" type="box" size="0.03 0.03 0.0008" pos="0.1 0.1 0.0001"
  euler="0 0 0.3" rgba="1 1 0 1" material="shift_square"/>
"""


def _paint(model: mujoco.MjModel, rng: np.random.Generator) -> None:
    for thing, geoms in (
        ("table", ("table",)),
        ("floor", ("floor",)),
        ("mug", MUG_GEOMS),
    ):
        pattern = list(_PATTERNS)[int(rng.integers(len(_PATTERNS)))]
        repeat = _REPEATS[thing][int(rng.integers(2))]
        if thing == "mug":  # pinks, and reds and browns darker than any in training
            hue, value = ((0.82, 0.92), 0.95) if rng.random() < 0.5 else ((0.70, 1.22), 0.48)
            painted = colour(rng, hue, float(rng.uniform(0.3, 0.8)), value)
        else:  # blues, greens and greys, where training had wood
            hue = (0.25, 0.70)
            saturation, value = float(rng.uniform(0.0, 0.45)), float(rng.uniform(0.30, 0.65))
            painted = colour(rng, hue, saturation, value)
        dress(model, geoms, _material(thing, pattern, repeat), painted)


def _light(model: mujoco.MjModel, rng: np.random.Generator) -> None:
    # Training: strength 0.35 to 0.65, white within 10 %, from the camera's side.
    strength = one_of(((0.18, 0.28), (0.72, 0.85)), rng)
    warmth = rng.uniform(-0.25, 0.25)
    model.light_diffuse[0] = strength * np.array([1 + warmth, 1.0, 1 - warmth])
    aslant = float(rng.choice([-1.0, 1.0])) * rng.uniform(0.7, 1.2)
    model.light_dir[0] = [aslant, rng.uniform(-0.6, -0.1), -1.0]
    model.vis.headlight.ambient[:] = one_of(((0.20, 0.26), (0.44, 0.50)), rng)


def _weigh(model: mujoco.MjModel, rng: np.random.Generator) -> None:
    mug = model.body("mug").id
    share = one_of(MASS_SHARES, rng)
    model.body_inertia[mug] *= share * MUG_MASS / model.body_mass[mug]
    model.body_mass[mug] = share * MUG_MASS
    model.geom_friction[model.geom_bodyid == mug, 0] = one_of(FRICTIONS, rng)


def _place_square(model: mujoco.MjModel, rng: np.random.Generator) -> None:
    half, yaw = float(rng.uniform(*SQUARE_HALF_M)), rng.uniform(-pi, pi)
    reach = half * 2**0.5
    while True:
        x = float(rng.uniform(TABLE_BOUNDS.x_min + reach, TABLE_BOUNDS.x_max - reach))
        y = float(rng.uniform(TABLE_BOUNDS.y_min + reach, 0.22 - reach))
        if not ZONE_BOUNDS.contains(x, y, margin=-reach):
            break
    square = model.geom("shift_square").id
    model.geom_size[square, :2] = half
    model.geom_pos[square, :2] = x, y
    model.geom_quat[square] = cos(yaw / 2), 0.0, 0.0, sin(yaw / 2)
    model.geom_rgba[square, :3] = colour(rng, (0.08, 0.95), 0.95, 1.0)


def _arrange(model: mujoco.MjModel, start: Start, rng: np.random.Generator) -> Setup:
    _paint(model, rng)
    _light(model, rng)
    move_camera(model, rng, CAMERA_SHIFT_M, CAMERA_TURN_RAD)
    _weigh(model, rng)
    _place_square(model, rng)
    return Setup(start)


SHIFT = Level("shift", SceneParts(_assets(), _BODIES), _arrange)
