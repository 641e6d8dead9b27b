"""Level ``edge``: where foresight of risk pays.

Half the targets lie near the table's edge, and half where the straight path would push the mug
through the red zone.
"""

from __future__ import annotations

from dataclasses import replace
from math import hypot

import mujoco
import numpy as np

from wm_node.sim.level import Level, Point, Setup, Start, has_target
from wm_node.sim.scene import TABLE_BOUNDS, ZONE_BOUNDS
from wm_node.sim.task import EDGE_MARGIN_M, ZONE_MARGIN_M, is_on_table, path_is_free

TO_EDGE_M = (0.08, 0.30)  # far enough for an edge to be within reach from every start
PAST_ZONE_M = (0.10, 0.22)  # the way round is longer
LEAST_EDGE_M = 0.03  # from the target to the edge: the mug still stands there by itself
THROUGH_ZONE_M = 0.006  # how deep a path must lie in the zone to count as crossing it
TIP_FROM_MUG_M = 0.10
TICKS = 120  # ways round are two to three times as long as the straight ones of other levels
LEAST_TARGETS = 3  # of the grid: where one alone is fit the mug, as it settles, may lose it


def near_edge(start: Point, goal: Point) -> bool:
    """Whether the target lies 3 to 6 cm from an edge, with the zone off the straight path."""
    return (
        is_on_table(goal, LEAST_EDGE_M)
        and not TABLE_BOUNDS.contains(*goal, margin=EDGE_MARGIN_M)
        and path_is_free(start, goal)
    )


def behind_zone(start: Point, goal: Point) -> bool:
    """Whether the target is an ordinary one but for the zone across the straight path to it."""
    return (
        is_on_table(goal)
        and not ZONE_BOUNDS.contains(*goal, margin=-ZONE_MARGIN_M)
        and not path_is_free(start, goal, -THROUGH_ZONE_M)
    )


def _arrange(model: mujoco.MjModel, start: Start, rng: np.random.Generator) -> Setup:
    if rng.random() < 0.5:
        return Setup(start, TO_EDGE_M, near_edge)
    while True:  # few of the starts are beside the zone
        mug = float(rng.uniform(-0.12, 0.21)), float(rng.uniform(-0.14, 0.14))
        if ZONE_BOUNDS.contains(*mug, margin=-0.05):
            continue
        if hypot(mug[0] - start.tip[0], mug[1] - start.tip[1]) <= TIP_FROM_MUG_M:
            continue
        setup = Setup(replace(start, mug=mug), PAST_ZONE_M, behind_zone)
        if has_target(setup, LEAST_TARGETS):
            return setup


EDGE = Level("edge", arrange=_arrange, hazards=True, ticks=TICKS)
