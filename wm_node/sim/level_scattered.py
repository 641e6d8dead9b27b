"""Level ``scattered``: every picture shows another scene, for encoders that learn to read places.

Mug, arm, second mug, block and hand stand anywhere on the table, the latter three not always, under
the looks of level ``restless`` or the usual ones. An episode is sixty scenes that have nothing to
do with each other, each at rest (domain randomisation: Tobin et al., arXiv 1703.06907). ``wm train
--stills`` reads labels from its frames and learns nothing of motion from it.
"""

from __future__ import annotations

from dataclasses import dataclass
from math import cos, hypot, inf, pi, sin

import mujoco
import numpy as np

from wm_node.errors import WmError
from wm_node.sim.level import Floats, Level, Point, Setup, Start, standing
from wm_node.sim.level_clutter import (
    BLOCK_RADIUS,
    CLUTTER,
    SECOND_QPOS,
    paint_second_mug,
    place_block,
)
from wm_node.sim.level_hand import MOVING_HAND, REACHES_IN, Reach, draw_reach, least_gap
from wm_node.sim.level_varied import OF_EACH_RESTLESS, RESTLESS, looks, undress
from wm_node.sim.looks import MUG_GEOMS
from wm_node.sim.scene import (
    MUG_RADIUS,
    TABLE_BOUNDS,
    TABLE_HEIGHT,
    TIP_BOUNDS,
    TIP_RADIUS,
    Bounds,
    SceneParts,
)

USUAL = 0.2
"""Share of scenes that look as those of level ``basic``."""
NEAR = 0.5
"""Share of scenes in which the tip is near the mug, as it is while it pushes."""
NEAR_M = 0.13
SECOND_MUG, BLOCK, HAND = 0.5, 0.5, 0.35
"""Shares of scenes in which these are there."""
EDGE_M = 0.01  # least distance of a mug's middle from the table's edge
APART_M = 0.004  # least gap between things
AWAY = (50.0, 50.0, -TABLE_HEIGHT)
"""Where things stand that are not there: on the floor, far out of sight."""
_PARTS = (RESTLESS.parts, CLUTTER.parts, MOVING_HAND.parts)


@dataclass(frozen=True)
class Held:
    """A hand that stays where a reach has it at one time; without a reach it is away."""

    reach: Reach | None
    at_s: float

    def pose(self, times_s: Floats) -> Floats:
        """Return its pose (..., 7), the same at all times (...)."""
        shape = np.shape(times_s)
        if self.reach is None:
            return np.broadcast_to((*AWAY, 1.0, 0.0, 0.0, 0.0), (*shape, 7)).copy()
        return self.reach.pose(np.full(shape, self.at_s))

    def clearance(self, x: Floats, y: Floats, times_s: Floats) -> Floats:
        """Return the distance (...) in m of points from it."""
        if self.reach is None:
            return np.full(np.shape(x), np.inf)
        return self.reach.clearance(x, y, np.full(np.shape(x), self.at_s))

    @property
    def fingertips(self) -> Point | None:
        """Where its fingertips are; None where they are not in the picture."""
        if self.reach is None:
            return None
        x, y = self.reach.fingertips(np.asarray(self.at_s)).tolist()
        return (x, y) if REACHES_IN.contains(x, y) else None

    def gap(self, start: Start) -> float:
        """Return its least distance in m from mug and tip."""
        return inf if self.reach is None else least_gap(start, self.reach, np.array([self.at_s]))


def _within(bounds: Bounds, margin: float, rng: np.random.Generator) -> Point:
    x = rng.uniform(bounds.x_min + margin, bounds.x_max - margin)
    return float(x), float(rng.uniform(bounds.y_min + margin, bounds.y_max - margin))


def _tip(mug: Point, rng: np.random.Generator) -> Point:
    if rng.random() < NEAR:
        far, angle = rng.uniform(MUG_RADIUS + TIP_RADIUS, NEAR_M), rng.uniform(-pi, pi)
        return float(mug[0] + far * cos(angle)), float(mug[1] + far * sin(angle))
    return _within(TIP_BOUNDS, 0.0, rng)


def _hand(rng: np.random.Generator) -> Held:
    reach = draw_reach(rng)
    return Held(reach, reach.begin_s + float(rng.random()) * (reach.in_s + reach.rest_s))


def _apart(discs: list[tuple[Point, float]]) -> bool:
    return all(
        hypot(a[0] - b[0], a[1] - b[1]) > first + second + APART_M
        for k, (a, first) in enumerate(discs)
        for b, second in discs[:k]
    )


def _arrange(model: mujoco.MjModel, start: Start, rng: np.random.Generator) -> Setup:
    red, green, blue = model.geom_rgba[model.geom(MUG_GEOMS[0]).id, :3].tolist()
    undress(model, (red, green, blue))
    if rng.random() >= USUAL:
        looks(model, OF_EACH_RESTLESS)(rng)
    has_second, has_block, has_hand = rng.random(3) < (SECOND_MUG, BLOCK, HAND)
    for _ in range(10_000):
        mug, second = (_within(TABLE_BOUNDS, EDGE_M, rng) for _ in range(2))
        block, tip = _within(TABLE_BOUNDS, BLOCK_RADIUS, rng), _tip(mug, rng)
        yaw, second_yaw = (float(angle) for angle in rng.uniform(-pi, pi, 2))
        hand = _hand(rng) if has_hand else Held(None, 0.0)
        mugs = [(mug, yaw), (second, second_yaw)] if has_second else [(mug, yaw)]
        discs = [(place, MUG_RADIUS) for place, _ in mugs] + [(tip, TIP_RADIUS)]
        discs += [(block, BLOCK_RADIUS)] if has_block else []
        if (
            TIP_BOUNDS.contains(*tip)
            and _apart(discs)
            and all(hand.gap(Start(*one, tip)) > APART_M for one in mugs)
        ):
            break
    else:
        raise WmError("no scene fits the table; this is a fault of the level's measures.")
    paint_second_mug(model, rng)
    at = SECOND_QPOS
    place_block(model, block if has_block else AWAY[:2], rng)
    return Setup(
        Start(mug, yaw, tip),
        rest_qpos=tuple(standing(*second, second_yaw)) if has_second else (*AWAY, 1.0, 0, 0, 0),
        mover=hand,
        hit=lambda qpos, qvel, time_s: False,
        others=lambda qpos, time_s: (
            ({"second_mug": (float(qpos[at]), float(qpos[at + 1]))} if has_second else {})
            | ({"block": block} if has_block else {})
            | ({"hand": tips} if (tips := hand.fingertips) else {})
        ),
    )


SCATTERED = Level(
    "scattered",
    SceneParts(
        "\n".join(parts.assets for parts in _PARTS),
        "\n".join(parts.bodies for parts in _PARTS),
        RESTLESS.parts.files,
    ),
    _arrange,
    adds=(*CLUTTER.adds, *MOVING_HAND.adds),
    scattered=True,
)
