"""Behaviours that move the tip: for collecting data, and as references in the task suite.

A behaviour sees the simulator's true state. ``reset`` draws what makes one episode differ from the
next (speed, noise, target); ``act`` returns the tip velocity (2,) in m/s for the next tick.
"""

from __future__ import annotations

from collections.abc import Sequence
from math import atan2, cos, hypot, pi, sin
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wm_node.errors import WmError
from wm_node.sim.arm import MAX_TIP_SPEED
from wm_node.sim.level import Disc, Mover
from wm_node.sim.scene import MUG_RADIUS, TABLE_BOUNDS, TIP_BOUNDS, TIP_RADIUS, ZONE_BOUNDS
from wm_node.sim.tabletop import TabletopSim

CONTACT_M = MUG_RADIUS + TIP_RADIUS  # distance of the centres at touch
PLACES = ("table", "edge", "zone", "mover", "obstacle")
MEET_S = (0.2, 1.8)  # from the present to when a mover is met
REACH_BACK_M = 0.15  # of what follows a mover's end
TIP_ALONE_SHARE = 0.35
Vector = NDArray[np.float64]


class Behaviour(Protocol):
    """What every behaviour offers."""

    def reset(self, sim: TabletopSim, rng: np.random.Generator) -> None:
        """Begin an episode that the simulator has just been reset to."""

    def act(self, sim: TabletopSim, rng: np.random.Generator) -> Vector:
        """Return the tip velocity (2,) in m/s for the next tick."""


def _turn(angle: float) -> float:
    return (angle + pi) % (2 * pi) - pi


def push_velocity(
    tip: tuple[float, float],
    mug: tuple[float, float],
    goal: tuple[float, float],
    speed: float = 0.22,
    offset: float = 0.0,
    clearance: float = 0.030,
    stop_within: float = 0.006,
) -> Vector:
    """Velocity (2,) that walks the tip round the mug and pushes it to ``goal`` from behind.

    ``offset`` (rad) moves the point of contact off the line to the goal, for glancing pushes;
    ``clearance`` (m) is kept while walking round.
    """
    distance = hypot(goal[0] - mug[0], goal[1] - mug[1])
    if distance < stop_within:
        return np.zeros(2)
    towards = atan2(goal[1] - mug[1], goal[0] - mug[0])
    radius = hypot(tip[0] - mug[0], tip[1] - mug[1])
    angle = atan2(tip[1] - mug[1], tip[0] - mug[0])
    error = _turn(towards + pi + offset - angle)  # how far to walk round, rad
    out = np.array([cos(angle), sin(angle)])
    round_ = np.array([-sin(angle), cos(angle)])
    if abs(error) < 0.45 and radius < CONTACT_M + clearance + 0.02:
        # Push, and slide sideways to get exactly behind. Slow down in front of the goal.
        pace = (
            min(speed, 0.02 + 2.2 * distance)
            if radius > CONTACT_M + 0.004
            else min(speed, 2.2 * distance)
        )
        forward = np.array([cos(towards), sin(towards)])
        sideways = np.array([-sin(towards), cos(towards)])
        return forward * pace * cos(error) - sideways * 1.6 * radius * error
    want_radius = CONTACT_M + clearance
    if abs(error) < 1.2:
        want_radius -= 0.6 * clearance * (1.2 - abs(error)) / 1.2
    radial = float(np.clip(4.0 * (want_radius - radius), -speed, speed))
    around = speed * float(np.sign(error)) * min(1.0, abs(error) / 0.4)
    if radius > want_radius + 0.05:  # far away: head straight for the near side of the circle
        aim = towards + pi + offset
        bend = _turn(aim - angle)
        aim = angle + float(np.clip(bend, -1.2, 1.2))
        point = np.array(
            [mug[0] + want_radius * cos(aim) - tip[0], mug[1] + want_radius * sin(aim) - tip[1]]
        )
        return speed * point / (float(np.linalg.norm(point)) + 1e-9)
    if radius < CONTACT_M + 0.012 and abs(error) > 0.45:
        around *= 0.3  # first get clear of the mug, so as not to drag it along
        radial = max(radial, 0.6 * speed)
    velocity = out * radial + round_ * around
    norm = float(np.linalg.norm(velocity))
    return velocity if norm <= speed else velocity * (speed / norm)


def next_noise(noise: Vector, deviation: float, rng: np.random.Generator) -> Vector:
    """Return the next noise (2,): 0.7 of it lasts, and its deviation stays."""
    return 0.7 * noise + rng.normal(0.0, 0.71 * deviation, 2)


def _positions(sim: TabletopSim) -> tuple[tuple[float, float], tuple[float, float]]:
    tip, mug = sim.tip(), sim.mug_pose()
    return (float(tip[0]), float(tip[1])), (mug[0], mug[1])


class Still:
    """Never moves."""

    def reset(self, sim: TabletopSim, rng: np.random.Generator) -> None:
        """Nothing to draw."""

    def act(self, sim: TabletopSim, rng: np.random.Generator) -> Vector:
        """Return zero."""
        return np.zeros(2)


class Wander:
    """Smooth random velocities that turn back at the borders, in half the episodes near the mug."""

    def __init__(self) -> None:
        self._velocity = np.zeros(2)
        self._keep = 0.8
        self._scale = 0.15
        self._pull = 0.0

    def reset(self, sim: TabletopSim, rng: np.random.Generator) -> None:
        """Draw how smooth and how fast this episode is."""
        self._keep = float(rng.uniform(0.6, 0.92))
        self._scale = float(rng.uniform(0.06, 0.22))
        self._pull = float(rng.uniform(0.3, 1.2)) if rng.random() < 0.5 else 0.0
        self._velocity = rng.normal(0.0, self._scale, 2)

    def act(self, sim: TabletopSim, rng: np.random.Generator) -> Vector:
        """Return an autoregressive random velocity."""
        kick = self._scale * np.sqrt(1 - self._keep**2)
        self._velocity = self._keep * self._velocity + rng.normal(0.0, kick, 2)
        tip = sim.tip()
        low = (TIP_BOUNDS.x_min, TIP_BOUNDS.y_min)
        high = (TIP_BOUNDS.x_max, TIP_BOUNDS.y_max)
        for axis in range(2):
            if (tip[axis] < low[axis] + 0.03 and self._velocity[axis] < 0) or (
                tip[axis] > high[axis] - 0.03 and self._velocity[axis] > 0
            ):
                self._velocity[axis] *= -1
        towards = np.array(sim.mug_pose()[:2]) - tip
        velocity = self._velocity + np.clip(self._pull * towards, -0.12, 0.12)
        return np.clip(velocity, -MAX_TIP_SPEED, MAX_TIP_SPEED)


class Scripted:
    """Pushes the mug to a goal from behind, on the true state: proof that a task is feasible."""

    def __init__(self, goal: tuple[float, float], speed: float = 0.22) -> None:
        self.goal = goal
        self.speed = speed

    def reset(self, sim: TabletopSim, rng: np.random.Generator) -> None:
        """Nothing to draw."""

    def act(self, sim: TabletopSim, rng: np.random.Generator) -> Vector:
        """Return the velocity of :func:`push_velocity`."""
        return push_velocity(*_positions(sim), self.goal, self.speed)


class AimedPush:
    """Noisy pushes to random targets, with pauses, slow stretches, glancing contacts and wandering.

    ``where`` chooses the targets: ``table`` anywhere on it, ``edge`` beyond an edge, ``zone``
    inside the red zone, ``mover`` where something that moves by itself will be, for the mug or, in
    some pushes, for the tip alone, ``obstacle`` where something stands in the way; on the table
    where a level has no such thing.
    """

    def __init__(self, where: str) -> None:
        if where not in PLACES:
            raise WmError(f"'{where}' is no place to push to; use one of {', '.join(PLACES)}.")
        self._where = where
        self._wander = Wander()
        self._target = (0.0, 0.0)
        self._speed = 0.2
        self._offset = 0.0
        self._clearance = 0.03
        self._noise = 0.03
        self._noise_now = np.zeros(2)
        self._mode_left = 0
        self._mode = "push"
        self._tip_alone = False

    def reset(self, sim: TabletopSim, rng: np.random.Generator) -> None:
        """Draw the character of the episode and the first target."""
        self._wander.reset(sim, rng)
        self._noise = float(rng.choice([0.01, 0.03, 0.06]))
        self._noise_now = np.zeros(2)
        self._mode, self._mode_left = "push", int(rng.integers(10, 40))
        self._new_push(sim, rng)

    def _new_push(self, sim: TabletopSim, rng: np.random.Generator) -> None:
        self._target = self._draw_target(sim, rng)
        self._speed = float(
            rng.uniform(0.05, 0.12) if rng.random() < 0.2 else rng.uniform(0.14, 0.25)
        )
        self._offset = float(rng.normal(0.0, 0.35)) if rng.random() < 0.35 else 0.0
        self._clearance = float(rng.uniform(0.012, 0.045))
        met = self._where == "mover" and sim.setup.mover is not None
        self._tip_alone = met and rng.random() < TIP_ALONE_SHARE

    def _draw_target(self, sim: TabletopSim, rng: np.random.Generator) -> tuple[float, float]:
        x, y, _, _ = sim.mug_pose()
        table = TABLE_BOUNDS
        mover = sim.setup.mover
        if self._where == "mover" and mover is not None:
            return _meeting_point(mover, sim.time_s + float(rng.uniform(*MEET_S)), rng)
        if self._where == "obstacle" and sim.setup.obstacles:
            disc = _one_of(sim.setup.obstacles, rng)
            jitter = rng.normal(0.0, 0.5 * disc.radius, 2)
            return disc.x + float(jitter[0]), disc.y + float(jitter[1])
        if self._where == "zone":
            zone = ZONE_BOUNDS
            return float(rng.uniform(zone.x_min, zone.x_max)), float(
                rng.uniform(zone.y_min, zone.y_max)
            )
        if self._where == "edge":
            beyond = float(rng.uniform(-0.02, 0.08))
            along = float(rng.normal(0.0, 0.05))
            nearness = 1.0 / np.maximum(_edge_distances(x, y), 0.02)
            edge = int(rng.choice(3, p=nearness / nearness.sum()))
            return (
                (table.x_min - beyond, y + along),
                (table.x_max + beyond, y + along),
                (x + along, table.y_min - beyond),
            )[edge]
        return float(rng.uniform(table.x_min + 0.03, table.x_max - 0.03)), float(
            rng.uniform(table.y_min + 0.03, TIP_BOUNDS.y_max - 0.03)
        )

    def act(self, sim: TabletopSim, rng: np.random.Generator) -> Vector:
        """Return a noisy push, a pause or a stretch of wandering."""
        tip, mug = _positions(sim)
        self._mode_left -= 1
        if self._mode_left <= 0:
            self._mode = str(rng.choice(["push", "pause", "wander"], p=[0.7, 0.12, 0.18]))
            self._mode_left = int(
                rng.integers(10, 40) if self._mode == "push" else rng.integers(2, 10)
            )
            if self._mode == "push" and rng.random() < 0.5:
                self._new_push(sim, rng)
        if hypot(mug[0] - self._target[0], mug[1] - self._target[1]) < 0.015:
            self._new_push(sim, rng)
        self._noise_now = next_noise(self._noise_now, self._noise, rng)
        if self._mode == "pause":
            return np.zeros(2)
        if self._mode == "wander":
            return self._wander.act(sim, rng)
        if self._tip_alone:
            way = np.subtract(self._target, tip)
            velocity = self._speed * way / max(float(np.linalg.norm(way)), 0.02)
        else:
            velocity = push_velocity(
                tip, mug, self._target, self._speed, self._offset, self._clearance
            )
        return np.clip(velocity + self._noise_now, -MAX_TIP_SPEED, MAX_TIP_SPEED)


class Bump:
    """Drives the tip against what stands in the way, leans on it, slides along it and leaves again.

    What contact stops is learnt from contact, which pushes that aim elsewhere seldom have. Where a
    level has nothing in the way it wanders.
    """

    def __init__(self) -> None:
        self._wander = Wander()
        self._disc: Disc | None = None
        self._aside = np.zeros(2)
        self._speed = 0.2
        self._slide = 0.0
        self._phase = "approach"
        self._left = 0
        self._noise = 0.02
        self._noise_now = np.zeros(2)

    def reset(self, sim: TabletopSim, rng: np.random.Generator) -> None:
        """Draw how noisy the episode is, and what is bumped into first."""
        self._wander.reset(sim, rng)
        self._noise = float(rng.choice([0.0, 0.02, 0.05]))
        self._noise_now = np.zeros(2)
        self._new_bump(sim, rng)

    def _new_bump(self, sim: TabletopSim, rng: np.random.Generator) -> None:
        obstacles = sim.setup.obstacles
        self._disc = _one_of(obstacles, rng) if obstacles else None
        self._speed = float(rng.uniform(0.06, MAX_TIP_SPEED))
        self._aside = rng.uniform(-0.8, 0.8, 2)  # in radii: glancing, too
        self._slide = float(rng.uniform(-1.3, 1.3))
        self._phase, self._left = "approach", int(rng.integers(15, 35))

    def act(self, sim: TabletopSim, rng: np.random.Generator) -> Vector:
        """Return the velocity of the present phase, with noise."""
        disc = self._disc
        if disc is None:
            return self._wander.act(sim, rng)
        tip = sim.tip()
        way = np.array([disc.x, disc.y]) + self._aside * disc.radius - tip
        near = hypot(disc.x - tip[0], disc.y - tip[1]) < disc.radius + TIP_RADIUS + 0.005
        self._left -= 1
        if self._phase == "approach" and near:
            self._phase, self._left = "lean", int(rng.integers(3, 16))
        elif self._phase == "lean" and self._left <= 0:
            self._phase, self._left = "leave", int(rng.integers(3, 11))
            self._slide = float(rng.uniform(-1.5, 1.5))
        elif self._left <= 0:
            self._new_bump(sim, rng)
        heading = atan2(way[1], way[0])
        if self._phase == "lean":
            heading += self._slide
        elif self._phase == "leave":
            heading += pi + self._slide
        self._noise_now = next_noise(self._noise_now, self._noise, rng)
        velocity = self._speed * np.array([cos(heading), sin(heading)]) + self._noise_now
        return np.clip(velocity, -MAX_TIP_SPEED, MAX_TIP_SPEED)


def _one_of(discs: Sequence[Disc], rng: np.random.Generator) -> Disc:
    return discs[int(rng.integers(len(discs)))]


def _meeting_point(mover: Mover, time_s: float, rng: np.random.Generator) -> tuple[float, float]:
    """Return a point of a moving body at a time: its end, or behind it along its heading."""
    pose = mover.pose(np.asarray(time_s))
    yaw, back = 2.0 * atan2(float(pose[6]), float(pose[3])), float(rng.uniform(0.0, REACH_BACK_M))
    return float(pose[0]) - back * cos(yaw), float(pose[1]) - back * sin(yaw)


def _edge_distances(x: float, y: float) -> Vector:
    return np.array([x - TABLE_BOUNDS.x_min, TABLE_BOUNDS.x_max - x, y - TABLE_BOUNDS.y_min])
