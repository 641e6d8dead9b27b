"""Ways round what must not be entered: the next point to push to, from a map of learned places.

A search over one horizon draws the object straight to its goal, and stands still where an event
lies on that line, because every way round first leads away. So the goal that the search is given
is the farthest point, in clear view of the object, of the shortest free way to the true goal
(Dijkstra on a grid, with a price on narrow passages, pulled straight). Where the straight line is
free, as nearly always, that is the goal itself.

Nothing in the map is written by hand: where the object has stood in the training data is free,
unless events happened there.
"""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file
from scipy.ndimage import distance_transform_edt
from scipy.sparse import csr_array
from scipy.sparse.csgraph import dijkstra

from wm_node.bundle import Bundle
from wm_node.errors import WmError
from wm_node.planning.demonstration import Guide
from wm_node.planning.world_model import Floats, Goal
from wm_node.profile import RobotProfile

FILE = "places.safetensors"
"""In a bundle."""
ROOM_M = 0.07
"""Distance from what is not free at which a way no longer costs more than its length."""
NARROW = 8.0
"""Price of a way along the very border, in lengths."""
VIEW_M = 0.02
"""Distance from what is not free that a straight push keeps, unless it begins or ends nearer."""
AHEAD_M = 0.12
"""The next point lies at most so far along the way."""
MAX_BYTES = 4_000_000
MAX_CELLS = 250_000

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class PlaceMap:
    """Where the object may be: cells of a grid in the plane of the goal's two labels."""

    free: NDArray[np.bool_]
    """(X, Y)."""
    origin: tuple[float, float]
    """Centre of the first cell, in the labels' unit (m)."""
    cell: float
    """Side of a cell, likewise."""


def has_places(profile: RobotProfile) -> bool:
    """Whether the robot's goals are places of an object that it pushes in a plane."""
    spec = profile.objective
    return (
        spec is not None
        and spec.push is not None
        and len(spec.goal) == 2
        and tuple(spec.goal) == tuple(spec.push.object)
    )


class Ways:
    """Finds ways on one map. Keeps what it found out about the last goal."""

    def __init__(self, places: PlaceMap) -> None:
        self._map = places
        self._free = np.argwhere(places.free)
        # A rim that is not free, so that nothing leads along the border of what is known.
        free = np.pad(places.free, 1)
        self._clear: Doubles = places.cell * distance_transform_edt(free)[1:-1, 1:-1]
        self._graph = _graph(places, self._clear)
        self._goal: tuple[float, float] | None = None
        self._next: NDArray[np.int32] = np.zeros(0, np.int32)

    def clearance(self, points: NDArray[np.floating]) -> Doubles:
        """Return how far points (..., 2) lie from what is not free, 0 within it."""
        x, y = np.moveaxis(self._cells(points), -1, 0)
        return np.asarray(self._clear[x, y])

    def towards(self, here: tuple[float, float], goal: tuple[float, float]) -> tuple[float, float]:
        """Return where to push the object next: the goal, or a point on the way round.

        A goal that is not free itself is led to as near as it is free. Where no way is known the
        goal stays: what is not free may be wrongly so.
        """
        if self._in_view(here, goal):
            return goal
        if goal != self._goal:
            self._next, self._goal = self._ways_to(goal), goal
        way: list[int] = []
        at = self._nearest_free(here)
        while at >= 0:
            way.append(at)
            at = int(self._next[at])
        points = self._places(np.array(way))
        if len(way) < 2:
            arrived = way[0] == self._nearest_free(goal)
            # A goal that is not free is not entered: its nearest free cell is as far as it goes.
            return (float(points[0][0]), float(points[0][1])) if arrived else goal
        along = np.cumsum(np.linalg.norm(np.diff(points, axis=0), axis=1))
        ahead = 1 + int(np.searchsorted(along, AHEAD_M))
        lost = not self.clearance(np.array(here))  # it stands where it must not: straight out
        for point in points[ahead:0:-1]:
            there = float(point[0]), float(point[1])
            if lost or self._in_view(here, there):
                return there
        return float(points[1][0]), float(points[1][1])

    def _in_view(self, here: tuple[float, float], there: tuple[float, float]) -> bool:
        """Whether the straight line is free, by as much as its ends allow."""
        ends = np.array([here, there])
        count = max(2, int(np.ceil(np.linalg.norm(ends[1] - ends[0]) / (0.5 * self._map.cell))))
        share = np.linspace(0.0, 1.0, count)[:, None]
        clear = self.clearance(ends[0] + share * (ends[1] - ends[0]))
        # Near its ends a push may be as near as they are.
        room = min(VIEW_M, float(clear[0]), float(clear[-1]))
        return bool(clear[1:-1].min(initial=np.inf) >= room - 1e-9 and room > 0.0)

    def _ways_to(self, goal: tuple[float, float]) -> NDArray[np.int32]:
        """Return for every cell (flat) the next one on its way to the goal, -1 where there is none.

        -1 at the goal's own cell too.
        """
        start = np.array([self._nearest_free(goal)])
        _, before = dijkstra(self._graph, indices=start, return_predecessors=True)
        return np.asarray(np.maximum(before[0], -1))

    def _nearest_free(self, point: tuple[float, float]) -> int:
        """Return the flat index of the free cell that is nearest."""
        away = np.linalg.norm(self._free - self._coordinates(np.array(point)), axis=1)
        x, y = self._free[int(away.argmin())].tolist()
        return int(x * self._map.free.shape[1] + y)

    def _coordinates(self, points: NDArray[np.floating]) -> Doubles:
        return np.asarray((points - np.array(self._map.origin)) / self._map.cell)

    def _cells(self, points: NDArray[np.floating]) -> NDArray[np.int64]:
        last = np.array(self._map.free.shape) - 1
        return np.clip(np.rint(self._coordinates(points)), 0, last).astype(np.int64)

    def _places(self, flat: NDArray[np.integer]) -> Doubles:
        cells = np.stack(np.unravel_index(flat, self._map.free.shape), axis=-1)
        return np.asarray(np.array(self._map.origin) + self._map.cell * cells)


def _graph(places: PlaceMap, clear: Doubles) -> csr_array:
    """Join the free cells to their eight neighbours; a step costs its length, more if narrow."""
    free, shape = places.free, places.free.shape
    index = np.arange(free.size).reshape(shape)
    price = 1.0 + NARROW * np.clip(1.0 - clear / ROOM_M, 0.0, 1.0) ** 2
    rows, columns, costs = [], [], []
    for dx, dy in ((1, 0), (0, 1), (1, 1), (1, -1)):
        one = np.s_[: shape[0] - dx, max(0, -dy) : shape[1] - max(0, dy)]
        other = np.s_[dx:, max(0, dy) : shape[1] + min(0, dy)]
        both = free[one] & free[other]
        rows.append(index[one][both])
        columns.append(index[other][both])
        length = places.cell * float(np.hypot(dx, dy))
        costs.append(length * 0.5 * (price[one] + price[other])[both])
    ends = np.concatenate([*rows, *columns]), np.concatenate([*columns, *rows])
    return csr_array((np.concatenate([*costs, *costs]), ends), shape=(free.size, free.size))


def next_goal(
    ways: Ways | None, goal: Goal, here: Floats | None, guide: Guide | None = None
) -> Goal:
    """Return the goal that a search is given: the true one, or the next point on the way to it.

    Args:
        ways: on the map of the goal's labels; None where there is none, or it is not to be used.
        goal: the true one.
        here: (2,) where the object is now; None where nothing reads it.
        guide: along the demonstration that the goal came with, if it did.
    """
    if guide is not None and here is not None:
        goal = guide.next(here)
    if ways is None or goal.state is None or here is None or not np.isfinite(here).all():
        return goal
    x, y = np.asarray(here, np.float64).tolist()
    goal_x, goal_y = np.asarray(goal.state, np.float64).tolist()
    found = ways.towards((x, y), (goal_x, goal_y))
    if found == (goal_x, goal_y):
        return goal
    # Without the picture of the true goal: it does not show this point.
    return Goal(state=np.asarray(found, np.float32))


# ---- in a bundle ---------------------------------------------------------------------------


def save_places(places: PlaceMap, path: Path) -> None:
    """Write a map as plain arrays."""
    arrays: dict[str, NDArray[Any]] = {
        "free": places.free.astype(np.uint8),
        "origin": np.array(places.origin),
        "cell": np.array([places.cell]),
    }
    save_file(arrays, path)


def load_places(path: Path) -> PlaceMap:
    """Read what :func:`save_places` wrote.

    Raises:
        WmError: damaged, too large, or nothing in it is free.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise WmError(f"{path} is too large for a map of places.")
        data = load_file(path)
        free, origin, cell = data["free"], data["origin"].tolist(), float(data["cell"].item())
        places = PlaceMap(free > 0, (float(origin[0]), float(origin[1])), cell)
    except (OSError, KeyError, ValueError, TypeError, IndexError, SafetensorError) as error:
        raise WmError(f"{path} is no map of places: {error}.") from error
    sound = np.isfinite([*places.origin, cell]).all() and cell > 0.0
    if free.ndim != 2 or not 4 <= free.size <= MAX_CELLS or not places.free.any() or not sound:
        raise WmError(f"{path} is no map of places: values or sizes out of range.")
    return places


def ways_of(bundle: Bundle) -> Ways | None:
    """Return the ways on a bundle's map; None where it has none.

    Raises:
        WmError: the map is damaged.
    """
    file = bundle.optional_file(FILE)
    return None if file is None else Ways(load_places(file))
