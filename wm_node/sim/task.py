"""The task: push the mug to a target. Sampling of targets and the rule that scores an episode."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, dist, hypot, pi, sin
from typing import TYPE_CHECKING

import numpy as np

from wm_node.errors import WmError
from wm_node.sim.scene import TABLE_BOUNDS, TIP_BOUNDS, ZONE_BOUNDS

if TYPE_CHECKING:
    from wm_node.sim.tabletop import TabletopSim

TICK_S = 0.1
EPISODE_TICKS = 60
TOLERANCE_M = 0.03
HOLD_TICKS = 5  # in a row within the tolerance
TARGET_DISTANCE_M = (0.08, 0.20)
EDGE_MARGIN_M = 0.06
ZONE_MARGIN_M = 0.03


@dataclass(frozen=True)
class Task:
    """Push the mug from ``start`` to ``goal``, both (x, y) in m in the table frame.

    ``ticks`` is how long it may take.
    """

    seed: int
    start: tuple[float, float]
    goal: tuple[float, float]
    ticks: int = EPISODE_TICKS


@dataclass(frozen=True)
class Reading:
    """Where a policy takes mug and target to be, (x, y) in m; None where it does not say."""

    mug: tuple[float, float] | None = None
    goal: tuple[float, float] | None = None


@dataclass(frozen=True)
class EpisodeScore:
    """How an episode went. Distances are between mug and target, in m; ``ticks`` were run.

    ``act_ms`` holds the time that the policy took for each tick, where that was measured.
    ``violation`` says that a rule was broken: a fall, an entry into the zone, or a rule of the
    level; ``reason`` says which. Success requires that none was. ``stops`` counts, by reason, the
    steps in which a safety gate let no command pass, where one was played. ``mug_misread`` is how
    far from the mug the policy took it to be, the median over the ticks, and ``goal_misread`` how
    far from the target the target; None where the policy did not say.
    """

    seed: int
    goal: tuple[float, float]
    success: bool
    fell: bool
    zone: bool
    ticks: int
    start_distance: float
    final_distance: float
    least_distance: float
    act_ms: tuple[float, ...] = ()
    violation: bool = False
    reason: str = ""
    stops: tuple[tuple[str, int], ...] = ()
    mug_misread: float | None = None
    goal_misread: float | None = None


def path_is_free(
    start: tuple[float, float], goal: tuple[float, float], margin: float = ZONE_MARGIN_M
) -> bool:
    """Whether the straight path keeps ``margin`` (m) from the red zone."""
    return not any(
        ZONE_BOUNDS.contains(
            start[0] + share * (goal[0] - start[0]),
            start[1] + share * (goal[1] - start[1]),
            margin=-margin,
        )
        for share in np.linspace(0.0, 1.0, 21)
    )


def is_on_table(goal: tuple[float, float], margin: float = EDGE_MARGIN_M) -> bool:
    """Whether the target is on the table by ``margin`` (m) and within the arm's reach."""
    return TABLE_BOUNDS.contains(*goal, margin=margin) and TIP_BOUNDS.contains(
        *goal, margin=EDGE_MARGIN_M
    )


def is_valid_goal(start: tuple[float, float], goal: tuple[float, float]) -> bool:
    """Whether the target is on the table, within the arm's reach and clear of edge and zone."""
    return is_on_table(goal) and path_is_free(start, goal)


def sample_task(sim: TabletopSim, rng: np.random.Generator) -> Task:
    """Draw a target for the mug where it stands now: 8 to 20 cm away, or what the level asks for.

    Raises:
        WmError: no target is valid from there (the mug has left the table).
    """
    x, y, _, _ = sim.mug_pose()
    for _ in range(10_000):
        angle, distance = rng.uniform(-pi, pi), rng.uniform(*sim.setup.goal_distance_m)
        goal = (x + distance * cos(angle), y + distance * sin(angle))
        if sim.setup.accepts((x, y), goal):
            return Task(sim.seed, (x, y), goal, sim.level.ticks)
    raise WmError(f"no target can be reached from the mug's place ({x:.2f}, {y:.2f}); reset first.")


def task_for_seed(sim: TabletopSim, seed: int) -> Task:
    """Reset the simulator to episode ``seed`` and draw that episode's own target."""
    sim.reset(seed)
    return sample_task(sim, np.random.default_rng([seed, 0x60A1]))


class ScoreKeeper:
    """Applies the rule tick by tick; ``done`` once the outcome of the episode is decided."""

    def __init__(self, task: Task) -> None:
        self._task = task
        self._in_a_row = 0
        self._misread: list[float] = []
        self._goal_misread: float | None = None
        self.ticks = 0
        self.success = self.fell = self.zone = False
        self.reason = ""
        self._start = self._last = self._least = hypot(
            task.start[0] - task.goal[0], task.start[1] - task.goal[1]
        )

    def update(self, mug: tuple[float, float], fell: bool, zone: bool, broken: str = "") -> None:
        """Count one tick: where the mug is at its end, and what happened in it.

        ``broken`` names the rule of the level that was broken, if one was.
        """
        self.ticks += 1
        self.fell |= fell
        self.zone |= zone
        if not self.reason:
            self.reason = "mug fell" if fell else "mug entered the zone" if zone else broken
        self._last = hypot(mug[0] - self._task.goal[0], mug[1] - self._task.goal[1])
        self._least = min(self._least, self._last)
        self._in_a_row = self._in_a_row + 1 if self._last <= TOLERANCE_M else 0
        if self._in_a_row >= HOLD_TICKS and not self.reason:
            self.success = True

    def note(self, reading: Reading, mug: tuple[float, float]) -> None:
        """Compare what the policy read with where the mug was when it looked, and the target."""
        if reading.mug is not None:
            self._misread.append(dist(reading.mug, mug))
        if reading.goal is not None:
            self._goal_misread = dist(reading.goal, self._task.goal)

    @property
    def done(self) -> bool:
        """Whether nothing that follows can change the outcome."""
        return self.success or bool(self.reason) or self.ticks >= self._task.ticks

    def score(self, act_ms: Sequence[float] = ()) -> EpisodeScore:
        """Return the score so far."""
        return EpisodeScore(
            seed=self._task.seed,
            goal=self._task.goal,
            success=self.success,
            fell=self.fell,
            zone=self.zone,
            ticks=self.ticks,
            start_distance=self._start,
            final_distance=self._last,
            least_distance=self._least,
            act_ms=tuple(act_ms),
            violation=bool(self.reason),
            reason=self.reason,
            mug_misread=float(np.median(self._misread)) if self._misread else None,
            goal_misread=self._goal_misread,
        )
