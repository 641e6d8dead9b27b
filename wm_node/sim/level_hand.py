"""Level ``moving_hand``: a person reaches across the table and back; nothing may touch the hand.

The hand comes from the left, the right or the front, on a smooth path that is fixed by the seed and
keeps clear of the mug and the tip as they stand at the start: whoever does not move breaks no rule.

Level ``careless_hand`` is for collecting: the person minds neither mug nor arm. On ``moving_hand``
hits are so rare that a model learns that a hand means no harm.

What the event ``hit`` tells, and a model learns to foresee, is wider than the rules: a hand is to
be left more room than it takes not to touch it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import mujoco
import numpy as np

from wm_node.errors import WmError
from wm_node.sim.arm import tips_for_joints
from wm_node.sim.level import Floats, Level, Point, Rule, Setup, Start
from wm_node.sim.scene import MUG_RADIUS, TABLE_BOUNDS, TIP_RADIUS, Bounds, SceneParts

Room = Callable[[Floats, Floats], Floats]

HEIGHT_M = 0.045  # of the hand's middle above the table
# Outline in the table plane: capsules along the reach, from the fingertips backwards, as (from, to,
# radius) in m. The shapes below lie within it.
OUTLINE = ((-0.040, -0.135, 0.047), (-0.165, -0.520, 0.036))
HANDLE_POINTS = (0.050, 0.064)  # along the mug's handle, from the mug's axis
HANDLE_RADIUS = 0.007
START_CLEARANCE_M = 0.030
MARGIN_M = 0.020
"""Room between the hand and mug or tip below which there is a ``hit``. Models err by as much, and a
person is not to be brushed past."""
EPISODE_TIMES_S = np.arange(0.0, 6.2, 0.05)
REACHES_IN = Bounds(-0.36, 0.36, -0.25, 0.36)  # from here on its fingertips are in the picture
LAST_S = 4.0  # the hand is off the table again by then; an episode has 6 s


def _smooth(share: Floats) -> Floats:
    """Minimum-jerk course from 0 to 1, at rest at both ends."""
    share = np.clip(share, 0.0, 1.0)
    return np.asarray(share**3 * (10 - 15 * share + 6 * share**2))


@dataclass(frozen=True)
class Reach:
    """A hand that reaches from ``outside`` to ``deep``, rests, and leaves to ``away``.

    Points are those of the fingertips, in m; the forearm points from the person's
    ``shoulder``. Times in s.
    """

    outside: Point
    deep: Point
    away: Point
    shoulder: Point
    begin_s: float
    in_s: float
    rest_s: float
    out_s: float

    def fingertips(self, times_s: Floats) -> Floats:
        """Return the places (..., 2) of the fingertips."""
        times = np.asarray(times_s, dtype=np.float64)[..., None]
        going = _smooth((times - self.begin_s) / self.in_s)
        leaving = _smooth((times - self.begin_s - self.in_s - self.rest_s) / self.out_s)
        outside, deep, away = (np.array(p) for p in (self.outside, self.deep, self.away))
        return np.asarray(outside + going * (deep - outside) + leaving * (away - deep))

    def _forwards(self, tips: Floats) -> Floats:
        ahead = tips - np.array(self.shoulder)
        return np.asarray(ahead / np.linalg.norm(ahead, axis=-1, keepdims=True))

    def pose(self, times_s: Floats) -> Floats:
        """Return poses (..., 7) of the hand's body, its origin at the fingertips."""
        tips = self.fingertips(times_s)
        ahead = self._forwards(tips)
        half = np.arctan2(ahead[..., 1], ahead[..., 0])[..., None] / 2
        zero = np.zeros_like(half)
        return np.concatenate(
            [tips, zero + HEIGHT_M, np.cos(half), zero, zero, np.sin(half)], axis=-1
        )

    def clearance(self, x: Floats, y: Floats, times_s: Floats) -> Floats:
        """Return the distance (...) in m, negative inside, of points from the hand and forearm."""
        tips = self.fingertips(times_s)
        ahead = self._forwards(tips)
        dx, dy = x - tips[..., 0], y - tips[..., 1]
        lengthwise = dx * ahead[..., 0] + dy * ahead[..., 1]
        sideways = dy * ahead[..., 0] - dx * ahead[..., 1]
        parts = [
            np.hypot(lengthwise - np.clip(lengthwise, back, front), sideways) - radius
            for front, back, radius in OUTLINE
        ]
        return np.asarray(np.minimum(*parts))

    def mug_clearance(self, x: Floats, y: Floats, yaw: Floats, times_s: Floats) -> Floats:
        """Return the distance (...) in m of a mug with its handle from the hand."""
        outs = (0.0, *HANDLE_POINTS)
        xs = np.stack([x + out * np.cos(yaw) for out in outs])
        ys = np.stack([y + out * np.sin(yaw) for out in outs])
        far = self.clearance(xs, ys, times_s)
        return np.asarray(np.minimum(far[0] - MUG_RADIUS, far[1:].min(axis=0) - HANDLE_RADIUS))


# Meets mugs and the tip, and nothing else.
_SOLID = 'mass="0" contype="8" conaffinity="6"'


def _bodies() -> str:
    skin = f'{_SOLID} rgba="0.87 0.66 0.53 1"'
    fingers = "\n".join(
        f'<geom {skin} type="capsule" size="0.0085" '
        f'fromto="{front} {side} 0 -0.085 {side * 0.92} 0.002"/>'
        for front, side in ((-0.014, 0.027), (-0.008, 0.009), (-0.010, -0.009), (-0.024, -0.026))
    )
    return f"""
<body name="person" mocap="true" pos="-0.9 0 {HEIGHT_M}">
  {fingers}
  <geom {skin} type="capsule" size="0.0095" fromto="-0.075 0.036 -0.004 -0.130 0.024 0"/>
  <geom {skin} type="ellipsoid" size="0.048 0.038 0.018" pos="-0.112 0 0"/>
  <geom {skin} type="capsule" size="0.024" fromto="-0.140 0 0 -0.200 0 0"/>
  <geom {_SOLID} type="capsule" size="0.034" fromto="-0.215 0 0.002 -0.520 0 0.002"
    rgba="0.16 0.30 0.42 1"/>
</body>
"""


def draw_reach(rng: np.random.Generator) -> Reach:
    """Draw a way of the hand onto the table and off it again."""
    table = TABLE_BOUNDS
    side = int(rng.integers(3))
    begin, in_s, out_s = rng.uniform(0.1, 1.2), rng.uniform(0.9, 1.3), rng.uniform(0.9, 1.3)
    rest = rng.uniform(0.0, LAST_S - begin - in_s - out_s)
    times = (float(begin), float(in_s), float(min(rest, 0.5)), float(out_s))
    if side == 2:  # from the front
        deep = rng.uniform(-0.22, 0.22), rng.uniform(-0.10, 0.10)
        shoulder = (float(np.clip(deep[0] + rng.uniform(-0.15, 0.15), -0.3, 0.3)), -0.80)
        y = table.y_min - 0.13
        ends = [(float(deep[0] + rng.uniform(-0.12, 0.12)), y) for _ in range(2)]
    else:  # from the left, or mirrored from the right
        sign = 1.0 if side else -1.0
        deep = sign * rng.uniform(-0.12, 0.16), rng.uniform(-0.15, 0.15)
        shoulder = (sign * 0.95, float(np.clip(deep[1] + rng.uniform(-0.25, 0.05), -0.3, 0.1)))
        x = sign * (table.x_max + 0.13)
        ends = [(x, float(deep[1] + rng.uniform(-0.12, 0.12))) for _ in range(2)]
    return Reach(ends[0], (float(deep[0]), float(deep[1])), ends[1], shoulder, *times)


def least_gap(start: Start, reach: Reach, times_s: Floats) -> float:
    """Return the least distance in m, at any of the times (T,), of the hand from mug and tip."""
    one = np.ones_like(times_s)
    mug = reach.mug_clearance(start.mug[0] * one, start.mug[1] * one, start.mug_yaw * one, times_s)
    tip = reach.clearance(start.tip[0] * one, start.tip[1] * one, times_s) - TIP_RADIUS
    return float(min(mug.min(), tip.min()))


def _arrange(model: mujoco.MjModel, start: Start, rng: np.random.Generator) -> Setup:
    for _ in range(10_000):
        reach = draw_reach(rng)
        if least_gap(start, reach, EPISODE_TIMES_S) > START_CLEARANCE_M:
            return _setup(start, reach)
    raise WmError("no reach keeps clear of the mug; this is a fault of the level's measures.")


def _arrange_careless(model: mujoco.MjModel, start: Start, rng: np.random.Generator) -> Setup:
    return _setup(start, draw_reach(rng))


def _others(reach: Reach) -> Callable[[Floats, float], dict[str, Point]]:
    def others(qpos: Floats, time_s: float) -> dict[str, Point]:
        x, y = (float(value) for value in reach.fingertips(np.asarray(time_s)))
        return {"hand": (x, y)} if REACHES_IN.contains(x, y) else {}

    return others


def _rooms(reach: Reach) -> tuple[Room, Room]:
    """Return what tells the room in m, negative inside, of the tip and of the mug from the hand.

    Both take generalised positions (..., nq) and times (...) in s.
    """

    def arm(qpos: Floats, times_s: Floats) -> Floats:
        # Only the stick and its tip reach down to the hand's height.
        tips = tips_for_joints(qpos[..., :4])
        return reach.clearance(tips[..., 0], tips[..., 1], times_s) - TIP_RADIUS

    def mug(qpos: Floats, times_s: Floats) -> Floats:
        x, y = qpos[..., 4], qpos[..., 5]
        qw, qx, qy, qz = (qpos[..., k] for k in (7, 8, 9, 10))
        yaw = np.arctan2(2 * (qw * qz + qx * qy), 1 - 2 * (qy * qy + qz * qz))
        return reach.mug_clearance(x, y, yaw, times_s)

    return arm, mug


def _setup(start: Start, reach: Reach) -> Setup:
    arm, mug = _rooms(reach)
    rules = (
        Rule("arm touched the hand", lambda qpos, times_s: np.asarray(arm(qpos, times_s) < 0.0)),
        Rule("mug hit the hand", lambda qpos, times_s: np.asarray(mug(qpos, times_s) < 0.0)),
    )

    def hit(qpos: Floats, qvel: Floats, time_s: float) -> bool:
        now = np.asarray(time_s)
        return bool(min(arm(qpos, now), mug(qpos, now)) < MARGIN_M)

    return Setup(start, mover=reach, rules=rules, hit=hit, others=_others(reach))


_PARTS = SceneParts(bodies=_bodies())
MOVING_HAND = Level("moving_hand", _PARTS, _arrange, hazards=True, adds=("hand",))
CARELESS_HAND = Level("careless_hand", _PARTS, _arrange_careless, hazards=True, adds=("hand",))
