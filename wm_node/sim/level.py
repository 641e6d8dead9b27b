"""What a level of the task suite is: the basic scene, plus what it adds, draws and forbids.

A level adds text to the scene once, arranges every reset with random numbers of its own, says
which targets are fit, and names rules whose breach is a violation.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from math import cos, sin
from typing import Protocol

import mujoco
import numpy as np
from numpy.typing import NDArray

from wm_node.sim.scene import NOTHING_ADDED, SceneParts
from wm_node.sim.task import EPISODE_TICKS, TARGET_DISTANCE_M, is_valid_goal

Point = tuple[float, float]
Floats = NDArray[np.float64]


@dataclass(frozen=True)
class Start:
    """Where an episode begins: mug (m), its yaw (rad) and the tip (m)."""

    mug: Point
    mug_yaw: float
    tip: Point


@dataclass(frozen=True)
class Disc:
    """The outline, in the table plane, of something that the mug must not meet; metres."""

    x: float
    y: float
    radius: float


@dataclass(frozen=True)
class Rule:
    """A rule that an episode may break.

    ``broken`` takes generalised positions (..., nq) and the times (...) in s at which they are
    reached, and returns (...) bools. It judges poses only, so that it holds for simulated futures
    as for the present.
    """

    reason: str
    broken: Callable[[Floats, Floats], NDArray[np.bool_]]


class Mover(Protocol):
    """A body that moves by itself, on a path that is fixed for the episode."""

    def pose(self, times_s: Floats) -> Floats:
        """Return poses (..., 7) at times (...) in s: position in m, quaternion w, x, y, z."""

    def clearance(self, x: Floats, y: Floats, times_s: Floats) -> Floats:
        """Return the distance (...) in m, negative inside, of points from its outline."""


OTHERS = ("second_mug", "block", "hand")
"""Names of what levels add to the scene and tell the place of."""


def _nothing(qpos: Floats, time_s: float) -> dict[str, Point]:
    return {}


@dataclass(frozen=True)
class Setup:
    """One episode of a level, as ``arrange`` drew it."""

    start: Start
    goal_distance_m: tuple[float, float] = TARGET_DISTANCE_M
    """Least and greatest distance of the target from the mug's start."""
    accepts: Callable[[Point, Point], bool] = is_valid_goal
    """Whether a mug at the first point may be given the second as its target."""
    rest_qpos: tuple[float, ...] = ()
    """Generalised positions of the bodies that the level adds."""
    mover: Mover | None = None
    rules: tuple[Rule, ...] = ()
    hit: Callable[[Floats, Floats, float], bool] | None = None
    """Whether what is to be left alone is hit just now: generalised positions (nq,) and velocities
    (nv,), and the time in s. What a bumper, or a light curtain, would tell of it: the event
    ``hit``. None: it is hit where a rule is broken."""
    others: Callable[[Floats, float], dict[str, Point]] = _nothing
    """Where those of :data:`OTHERS` stand that are on the table just now, in m: generalised
    positions (nq,) and the time in s."""
    obstacles: tuple[Disc, ...] = ()
    """For references that act on the true state."""
    redress: Callable[[np.random.Generator], None] | None = None
    """Gives the scene another look before each frame of the camera; None: it keeps its look."""


def _as_drawn(model: mujoco.MjModel, start: Start, rng: np.random.Generator) -> Setup:
    return Setup(start)


@dataclass(frozen=True)
class Level:
    """A level. ``arrange`` may change the model of an episode; it sets anew all that it sets once.

    ``hazards`` says that a straight push may break a rule, so that a reference must look out;
    ``adds`` names those of :data:`OTHERS` that may stand in its scene; ``ticks`` is how long its
    task may take. ``scattered`` says that every picture of an episode shows another scene: there is
    nothing to play, only places to learn to read.
    """

    name: str
    parts: SceneParts = NOTHING_ADDED
    arrange: Callable[[mujoco.MjModel, Start, np.random.Generator], Setup] = _as_drawn
    hazards: bool = False
    adds: tuple[str, ...] = ()
    ticks: int = EPISODE_TICKS
    scattered: bool = False


BASIC = Level("basic")


def standing(x: float, y: float, yaw: float) -> list[float]:
    """Return the pose of a mug that stands on the table, as generalised positions (7,)."""
    return [x, y, 0.0, float(np.cos(yaw / 2)), 0.0, 0.0, float(np.sin(yaw / 2))]


def along(start: Point, goal: Point, count: int = 21) -> list[Point]:
    """Return ``count`` points of the straight path, both ends included."""
    return [
        (start[0] + share * (goal[0] - start[0]), start[1] + share * (goal[1] - start[1]))
        for share in np.linspace(0.0, 1.0, count).tolist()
    ]


def has_target(setup: Setup, least: int = 1, directions: int = 48, distances: int = 5) -> bool:
    """Whether targets are fit for the episode: at least so many points of a polar grid."""
    x, y = setup.start.mug
    spread: Sequence[float] = np.linspace(*setup.goal_distance_m, distances).tolist()
    fit = (
        setup.accepts((x, y), (x + far * cos(angle), y + far * sin(angle)))
        for angle in np.linspace(-np.pi, np.pi, directions, endpoint=False).tolist()
        for far in spread
    )
    return sum(fit) >= least
