"""How hard to search: as hard as the deadline allows on this machine, as it is loaded now.

A search that comes too late is worth nothing, and a machine that is too slow for it is too slow in
every cycle. So the planner goes down a ladder of smaller searches when plans come late or nearly
so, and up again when a larger one has fitted for long. One that did not fit is tried more rarely.
"""

from __future__ import annotations

from collections import deque
from collections.abc import Sequence
from dataclasses import replace

from wm_node.planning.planner import PlannerConfig

NEARLY = 0.9  # share of the time to the deadline from which a plan counts as late
WINDOW = 10  # plans of which
TOO_MANY = 2  # so many late ones lead down
PATIENCE = 50  # plans in a row with room for a larger search that lead up
MOST_PATIENCE = 3200
ROOM = 0.75  # share of the time to the deadline that a larger search may be expected to take


class Effort:
    """Chooses one of several sizes of search, plan by plan.

    Args:
        ladder: sizes, the largest first; at least one.
    """

    def __init__(self, ladder: Sequence[PlannerConfig]) -> None:
        self._ladder = tuple(ladder)
        self._rung = 0
        self._late: deque[bool] = deque(maxlen=WINDOW)
        self._fitting = 0
        self._patience = PATIENCE
        self._climbed = False
        self._held = 0  # plans since the size changed
        self.steps_down = 0
        """Since the beginning."""

    @property
    def config(self) -> PlannerConfig:
        """The size to search with now."""
        return self._ladder[self._rung]

    def note(self, ready_s: float, plan_s: float, deadline_s: float) -> None:
        """Learn from a plan that was made.

        Args:
            ready_s: from its frame to the decision.
            plan_s: part of it that the search took.
            deadline_s: from its frame to when it had to be ready.
        """
        late = ready_s > NEARLY * deadline_s
        self._late.append(late)
        if sum(self._late) >= TOO_MANY:
            self._go_down()
            return
        self._held += 1
        if self._climbed and self._held >= PATIENCE:
            self._climbed, self._patience = False, PATIENCE  # it fits after all
        self._fitting = self._fitting + 1 if self._has_room(ready_s, plan_s, deadline_s) else 0
        if self._fitting >= self._patience:
            self._go_up()

    def _has_room(self, ready_s: float, plan_s: float, deadline_s: float) -> bool:
        if self._rung == 0:
            return False
        larger = _work(self._ladder[self._rung - 1]) / _work(self.config)
        return ready_s + (larger - 1.0) * plan_s <= ROOM * deadline_s

    def _go_down(self) -> None:
        self._late.clear()
        self._fitting = self._held = 0
        if self._rung + 1 == len(self._ladder):
            return
        if self._climbed:  # the last try did not fit: wait longer before the next
            self._patience = min(2 * self._patience, MOST_PATIENCE)
        self._climbed = False
        self._rung += 1
        self.steps_down += 1

    def _go_up(self) -> None:
        self._late.clear()
        self._fitting = self._held = 0
        self._rung -= 1
        self._climbed = True


def ladder(config: PlannerConfig, compiled: Sequence[tuple[int, int]]) -> list[PlannerConfig]:
    """Return a size and the smaller ones that a bundle holds as graphs, the largest first.

    Args:
        config: the largest size.
        compiled: candidates and iterations of the graphs.
    """
    smaller = [
        replace(config, candidates=candidates, iterations=iterations)
        for candidates, iterations in compiled
    ]
    smaller = [one for one in smaller if _work(one) < _work(config)]
    return [config, *sorted(smaller, key=_work, reverse=True)]


def _work(config: PlannerConfig) -> float:
    return float(config.candidates * config.iterations)
