"""Level ``clutter``: a second mug that must stay where it is, and a block that cannot be moved.

Both stand close by, but leave a free path: round the mug at its start, and for the mug to the
target.
"""

from __future__ import annotations

from math import cos, hypot, pi, sin

import mujoco
import numpy as np
from numpy.typing import NDArray

from wm_node.errors import WmError
from wm_node.sim.events import has_fallen
from wm_node.sim.level import Disc, Floats, Level, Point, Rule, Setup, Start, along, has_target
from wm_node.sim.level import standing as standing_pose
from wm_node.sim.scene import (
    MUG_RADIUS,
    TABLE_BOUNDS,
    TIP_BOUNDS,
    TIP_RADIUS,
    ZONE_BOUNDS,
    SceneParts,
    mug_xml,
)
from wm_node.sim.task import is_valid_goal

MOVED_M = 0.02  # further than this, the second mug has not stayed where it is
BLOCK_HALF_M = 0.034
BLOCK_HEIGHT_M = 0.07
SECOND_QPOS = 11  # where the second mug's pose begins in the generalised positions
SECOND_QVEL = 10  # and where its velocity begins
HIT_SPEED = 0.02  # m/s; what stands by itself is slower

# The second mug with its handle, which sticks out on one side, as one disc.
OUTLINE_RADIUS = 0.056
OUTLINE_SHIFT = 0.0155
BLOCK_RADIUS = BLOCK_HALF_M * 2**0.5

ROUND_START_M = 0.062  # free on all sides of the mug: the tip, 3.2 cm wide, walks round there
ROUND_PATH_M = 0.040  # free beside the mug on its way: its handle reaches 3.1 cm out
FAR_M = 0.13  # no further from the mug than this, so that it is in the way
FURTHER_AFTER = 500  # attempts in a corner of the table after which twice as far will do

_BODIES = f"""
{
    mug_xml(
        "second_mug",
        inside=f'''<geom class="picture" type="cylinder" size="{MUG_RADIUS + 0.0005} 0.010"
          pos="0 0 0.060" rgba="0.95 0.95 0.92 1"/>''',
        collides='conaffinity="3"',
    )
}
<body name="block" pos="0 0 {BLOCK_HEIGHT_M / 2}">
  <geom name="block" type="box" size="{BLOCK_HALF_M} {BLOCK_HALF_M} {BLOCK_HEIGHT_M / 2}"
    rgba="0.33 0.40 0.36 1" contype="1" conaffinity="6"/>
  <geom class="picture" type="box" size="{BLOCK_HALF_M - 0.006} {BLOCK_HALF_M - 0.006} 0.0005"
    pos="0 0 {BLOCK_HEIGHT_M / 2}" rgba="0.45 0.53 0.48 1"/>
</body>
"""
_PAINTED = ("body", "handle_top", "handle_side", "handle_low")


def _gap(disc: Disc, point: Point) -> float:
    return hypot(point[0] - disc.x, point[1] - disc.y) - disc.radius


def _is_place(disc: Disc, start: Start) -> bool:
    """Whether something of this outline may stand there: on the table, near the mug, not on it."""
    gap = _gap(disc, start.mug) - MUG_RADIUS
    return (
        TABLE_BOUNDS.contains(disc.x, disc.y, margin=disc.radius + 0.01)
        and not ZONE_BOUNDS.contains(disc.x, disc.y, margin=-disc.radius)
        and gap >= ROUND_START_M
        and _gap(disc, start.tip) > TIP_RADIUS + 0.02
    )


def _accepts(discs: tuple[Disc, ...], start: Point, goal: Point) -> bool:
    if not is_valid_goal(start, goal):
        return False
    room = MUG_RADIUS + ROUND_PATH_M
    if any(_gap(disc, point) < room for disc in discs for point in along(start, goal)):
        return False
    length = hypot(goal[0] - start[0], goal[1] - start[1])
    back = (MUG_RADIUS + TIP_RADIUS + 0.03) / length
    behind = start[0] - back * (goal[0] - start[0]), start[1] - back * (goal[1] - start[1])
    return TIP_BOUNDS.contains(*behind)


def _draw_disc(start: Start, radius: float, far: float, rng: np.random.Generator) -> Disc:
    gap = rng.uniform(ROUND_START_M, far) + MUG_RADIUS + radius
    angle = rng.uniform(-pi, pi)
    x, y = start.mug
    return Disc(float(x + gap * cos(angle)), float(y + gap * sin(angle)), radius)


def _arrange(model: mujoco.MjModel, start: Start, rng: np.random.Generator) -> Setup:
    for attempt in range(20_000):
        far = FAR_M * (1 + attempt / FURTHER_AFTER)
        mug = _draw_disc(start, OUTLINE_RADIUS, far, rng)
        block = _draw_disc(start, BLOCK_RADIUS, far, rng)
        apart = hypot(mug.x - block.x, mug.y - block.y) - mug.radius - block.radius
        if not (_is_place(mug, start) and _is_place(block, start) and apart > 0.01):
            continue
        setup = _setup(start, mug, block, float(rng.uniform(-pi, pi)))
        if has_target(setup):
            break
    else:
        raise WmError("no clutter fits round the mug; this is a fault of the level's measures.")
    place_block(model, (block.x, block.y), rng)
    paint_second_mug(model, rng)
    return setup


def place_block(model: mujoco.MjModel, place: Point, rng: np.random.Generator) -> None:
    """Put the block at a place on the table, turned by any angle."""
    body = model.body("block").id
    yaw = rng.uniform(-pi, pi)
    model.body_pos[body, :2] = place
    model.body_quat[body] = cos(yaw / 2), 0.0, 0.0, sin(yaw / 2)


def paint_second_mug(model: mujoco.MjModel, rng: np.random.Generator) -> None:
    """Paint the second mug: dark with a light band, so that no mug to be pushed is like it."""
    dark = rng.uniform(0.10, 0.28, 3)
    for part in _PAINTED:
        model.geom_rgba[model.geom(f"second_mug_{part}").id, :3] = dark


def _setup(start: Start, mug: Disc, block: Disc, yaw: float) -> Setup:
    # The disc's centre is shifted from the mug's towards the handle.
    place = mug.x - OUTLINE_SHIFT * cos(yaw), mug.y - OUTLINE_SHIFT * sin(yaw)
    discs = (mug, block)
    at = SECOND_QPOS

    def moved(qpos: Floats, times_s: Floats) -> NDArray[np.bool_]:
        away = np.hypot(qpos[..., at] - place[0], qpos[..., at + 1] - place[1])
        return np.asarray(away > MOVED_M)

    def fell(qpos: Floats, times_s: Floats) -> NDArray[np.bool_]:
        return has_fallen(qpos[..., at + 2], qpos[..., at + 4], qpos[..., at + 5])

    return Setup(
        start,
        accepts=lambda a, b: _accepts(discs, a, b),
        rest_qpos=tuple(standing_pose(*place, yaw)),
        hit=lambda qpos, qvel, time_s: bool(
            np.hypot(qvel[SECOND_QVEL], qvel[SECOND_QVEL + 1]) > HIT_SPEED
            or fell(qpos, np.asarray(time_s))
        ),
        rules=(Rule("second mug fell", fell), Rule("second mug was moved", moved)),
        others=lambda qpos, time_s: {
            "second_mug": (float(qpos[at]), float(qpos[at + 1])),
            "block": (block.x, block.y),
        },
        obstacles=discs,
    )


CLUTTER = Level(
    "clutter", SceneParts(bodies=_BODIES), _arrange, hazards=True, adds=("second_mug", "block")
)
