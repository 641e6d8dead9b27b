"""Goals shown by a clip: leads the object along the places that a demonstration showed.

A goal picture says where the object should be; a clip says on which way, too. The planner is given
one place of that way after the other: the one that lies a little ahead of the place that the
object has come to, and at last the goal itself.
"""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import median_filter

from wm_node.planning.world_model import Floats, Goal

AHEAD_M = 0.06
"""The next place lies so far along the way."""
SEARCH_M = 0.10
"""How far along the way progress is looked for: one that crosses itself is not cut short."""
STEP_M = 0.005
"""Spacing of the places that are compared with the object's."""
APART_M = 0.02
"""Places of the demonstration that are nearer to the one before are no movement, but noise."""
SMOOTHED = 5
"""Pictures whose median is taken: in some the arm stands before the object."""

Doubles = NDArray[np.float64]


class Guide:
    """Follows one demonstration; it remembers how far it has come.

    Args:
        goal: with ``via`` (M, 2), in the labels' unit (m), and the ``state`` (2,) that it ends at.
    """

    def __init__(self, goal: Goal) -> None:
        assert goal.via is not None
        assert goal.state is not None
        self._goal = goal
        self._places = _evenly(_corners(goal.via, goal.state))
        self._at = 0

    def next(self, here: Floats) -> Goal:
        """Return where to push the object next, from (2,) where it is."""
        window = self._places[self._at : self._at + 1 + round(SEARCH_M / STEP_M)]
        self._at += int(np.linalg.norm(window - here, axis=1).argmin())
        ahead = self._at + round(AHEAD_M / STEP_M)
        if ahead >= len(self._places) - 1:
            return self._goal
        # Without the picture of the goal: it does not show this place.
        return Goal(state=self._places[ahead].astype(np.float32))


def guide_to(goal: Goal | None) -> Guide | None:
    """Return what leads to a goal that a clip shows; None for any other."""
    return Guide(goal) if goal is not None and goal.via is not None else None


def _corners(via: Floats, end: Floats) -> Doubles:
    """Return the corners (M, 2) of the way that readings (N, 2) show, which ends at (2,)."""
    readings = median_filter(np.asarray(via, np.float64), size=(SMOOTHED, 1), mode="nearest")
    kept = [readings[0]]
    for place in readings[1:]:
        if np.linalg.norm(place - kept[-1]) >= APART_M:
            kept.append(place)
    return np.stack([*kept, np.asarray(end, np.float64)])


def _evenly(corners: Doubles) -> Doubles:
    """Return places (P, 2) along a line of corners (M, 2), ``STEP_M`` apart, both ends included."""
    lengths = np.linalg.norm(np.diff(corners, axis=0), axis=1)
    along = np.concatenate([[0.0], np.cumsum(lengths)])
    at = np.linspace(0.0, along[-1], 1 + int(np.ceil(along[-1] / STEP_M)))
    return np.stack([np.interp(at, along, column) for column in corners.T], axis=1)
