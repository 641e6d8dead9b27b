"""The scripted reference on levels with hazards: it pushes round the zone, round things that stand
in the way, and waits for a hand that moves. It acts on the true state, paths of movers included."""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from itertools import pairwise
from math import cos, dist, hypot, pi, sin

import numpy as np
from numpy.typing import NDArray

from wm_node.errors import WmError
from wm_node.sim.arm import MAX_TIP_SPEED
from wm_node.sim.behaviours import CONTACT_M, next_noise, push_velocity
from wm_node.sim.level import Disc, Mover, Point, along
from wm_node.sim.scene import MUG_RADIUS, TABLE_BOUNDS, TIP_BOUNDS, TIP_RADIUS, ZONE_BOUNDS
from wm_node.sim.tabletop import TabletopSim
from wm_node.sim.task import path_is_free, sample_task

Vector = NDArray[np.float64]

ZONE_ROOM_M = 0.008  # a straight push this close to the zone is no longer trusted
PURSUIT_M = 0.08  # how far ahead on its way the mug is pushed to
CORNER_ROOM_M = 0.035  # at which the mug is led round a corner of the zone
SIDE_ROOM_M = 0.045  # from an obstacle, below which the tip turns aside
HANDLE_M = 0.031  # how far a handle sticks out of its mug
HAND_ROOM_M = 0.025
LOOK_AHEAD_S = 1.2
MOVE_S = 0.4  # how long a velocity is thought to go on before the tip stops
STEP_S = 0.1
SPEED = 0.22
ARRIVED_M = 0.015  # of a target, where the next one is drawn


def way_round_zone(mug: Point, goal: Point) -> list[Point]:
    """Return the points of a way for the mug: straight, or past a corner of the zone."""
    zone, out = ZONE_BOUNDS, CORNER_ROOM_M
    corners = [
        (x, y)
        for x in (zone.x_min - out, zone.x_max + out)
        for y in (zone.y_min - out, zone.y_max + out)
        if TABLE_BOUNDS.contains(x, y, margin=MUG_RADIUS)
        and path_is_free(mug, (x, y), 0.0)
        and path_is_free((x, y), goal, 0.0)
    ]
    if path_is_free(mug, goal, ZONE_ROOM_M) or not corners:
        return [mug, goal]
    return [mug, min(corners, key=lambda via: dist(mug, via) + dist(via, goal)), goal]


def follow(way: Sequence[Point], mug: Point) -> Point:
    """Return the point of the way that lies ``PURSUIT_M`` beyond the one nearest to the mug."""
    points = [point for a, b in pairwise(way) for point in along(a, b)]
    nearest = min(range(len(points)), key=lambda k: dist(points[k], mug))
    ahead = (point for point in points[nearest:] if dist(point, points[nearest]) >= PURSUIT_M)
    return next(ahead, points[-1])


def turn_aside(tip: Point, velocity: Vector, towards: Point, discs: Iterable[Disc]) -> Vector:
    """Bend a velocity (2,) of the tip round obstacles that it comes close to.

    ``towards`` is where the tip is wanted; it decides the side where the velocity does not.
    """
    for disc in discs:
        away = np.array([tip[0] - disc.x, tip[1] - disc.y])
        far = float(np.linalg.norm(away))
        away /= far
        gap = far - disc.radius - TIP_RADIUS
        inwards = -float(away @ velocity)
        if gap > SIDE_ROOM_M or inwards <= 0.0:
            continue
        side = np.array([-away[1], away[0]])
        wanted = np.array([towards[0] - disc.x, towards[1] - disc.y])
        speed = float(np.linalg.norm(velocity))
        sideways = float(side @ velocity)
        if abs(sideways) < 0.35 * speed:
            sideways = float(side @ wanted)
        turn = min(1.0, (SIDE_ROOM_M - gap) / (0.5 * SIDE_ROOM_M))
        bent = side * float(np.sign(sideways)) * speed + away * 3.0 * max(0.0, 0.015 - gap)
        velocity = (1.0 - turn) * velocity + turn * bent
    return velocity


class Careful:
    """Pushes the mug to a goal from behind, and looks out for what the level has in the way."""

    def __init__(self, goal: Point, speed: float = SPEED) -> None:
        self.goal = goal
        self.speed = speed
        self._way = [goal, goal]
        self._last = np.zeros(2)

    def reset(self, sim: TabletopSim, rng: np.random.Generator) -> None:
        """Forget the last episode, and choose the way round the zone."""
        self._way = way_round_zone(_place(sim), self.goal)
        self._last = np.zeros(2)

    def act(self, sim: TabletopSim, rng: np.random.Generator) -> Vector:
        """Return the tip velocity (2,) in m/s for the next tick."""
        mug = _place(sim)
        tip_x, tip_y = sim.tip().tolist()
        tip = (tip_x, tip_y)
        aim = follow(self._way, mug)
        velocity = push_velocity(tip, mug, aim, self.speed)
        velocity = turn_aside(tip, velocity, mug, sim.setup.obstacles)
        if sim.setup.mover is not None:
            velocity = self._mind(sim.setup.mover, sim.time_s, tip, mug, velocity)
        self._last = velocity
        return velocity

    def _mind(self, mover: Mover, now: float, tip: Point, mug: Point, wanted: Vector) -> Vector:
        """Return the wanted velocity if it keeps clear of the mover, else wait or give way."""
        if now > 5.0:
            return wanted
        begin = (tip[0] + self._last[0] * STEP_S, tip[1] + self._last[1] * STEP_S)  # by its effect
        now += STEP_S
        still = np.zeros(2)
        touching = hypot(begin[0] - mug[0], begin[1] - mug[1]) < CONTACT_M + 0.03
        pushes = touching and float(wanted @ (np.array(mug) - begin)) > 0.0
        moved = (mug[0] + wanted[0] * MOVE_S, mug[1] + wanted[1] * MOVE_S)
        # A mug cannot give way: it is pushed only to where the mover will not come any closer.
        mug_is_safe = not pushes or _mug_room(mover, now, moved) > min(
            HAND_ROOM_M, _mug_room(mover, now, mug)
        )
        if mug_is_safe and _tip_room(mover, now, begin, wanted) > HAND_ROOM_M:
            return wanted
        if _tip_room(mover, now, begin, still) > HAND_ROOM_M:
            return still
        ways = [
            self.speed * np.array([cos(k * pi / 8), sin(k * pi / 8)])
            for k in range(16)
            if not _meets(begin, self.speed, k * pi / 8, mug)
        ]
        return max([still, *ways], key=lambda way: _tip_room(mover, now, begin, way))


class CarefulPushes:
    """Pushes the mug to one target of the task after the other, noisily, as :class:`Careful` does.

    For collecting: what it looks like when hazards are minded.
    """

    def __init__(self) -> None:
        self._push = Careful((0.0, 0.0))
        self._deviation = 0.0
        self._noise = np.zeros(2)

    def reset(self, sim: TabletopSim, rng: np.random.Generator) -> None:
        """Draw how fast and how noisy the episode is, and the first target."""
        self._deviation = float(rng.choice([0.0, 0.02, 0.05]))
        self._noise = np.zeros(2)
        self._push = Careful(sample_task(sim, rng).goal, float(rng.uniform(0.12, 0.25)))
        self._push.reset(sim, rng)

    def act(self, sim: TabletopSim, rng: np.random.Generator) -> Vector:
        """Return the tip velocity (2,) in m/s for the next tick."""
        if dist(_place(sim), self._push.goal) < ARRIVED_M and not sim.fell():
            self._aim_anew(sim, rng)
        self._noise = next_noise(self._noise, self._deviation, rng)
        velocity = self._push.act(sim, rng) + self._noise
        return np.clip(velocity, -MAX_TIP_SPEED, MAX_TIP_SPEED)

    def _aim_anew(self, sim: TabletopSim, rng: np.random.Generator) -> None:
        try:
            task = sample_task(sim, rng)
        except WmError:  # no path is free from here: stay with the target
            return
        self._push = Careful(task.goal, self._push.speed)
        self._push.reset(sim, rng)


def _place(sim: TabletopSim) -> Point:
    x, y, _, _ = sim.mug_pose()
    return x, y


def _tip_room(mover: Mover, now: float, tip: Point, velocity: Vector) -> float:
    """Least distance between tip and mover if the tip moves on for a while and then stops."""
    ahead = np.arange(0.0, LOOK_AHEAD_S + 1e-9, STEP_S)
    moving = np.minimum(ahead, MOVE_S)
    bounds = TIP_BOUNDS
    x = np.clip(tip[0] + velocity[0] * moving, bounds.x_min, bounds.x_max)
    y = np.clip(tip[1] + velocity[1] * moving, bounds.y_min, bounds.y_max)
    return float(mover.clearance(x, y, now + ahead).min()) - TIP_RADIUS


def _mug_room(mover: Mover, now: float, mug: Point) -> float:
    """Least distance between the mover and a mug that is left there from now on."""
    times = now + np.arange(0.0, 5.0, STEP_S)
    one = np.ones_like(times)
    nearest = mover.clearance(mug[0] * one, mug[1] * one, times).min()
    return float(nearest) - MUG_RADIUS - HANDLE_M


def _meets(tip: Point, speed: float, angle: float, mug: Sequence[float]) -> bool:
    """Whether the tip would run into the mug on its way."""
    return any(
        hypot(tip[0] + cos(angle) * out - mug[0], tip[1] + sin(angle) * out - mug[1])
        < CONTACT_M + 0.005
        for out in np.linspace(0.01, speed * MOVE_S, 6).tolist()
    )
