"""Where the object may be: a map of the places where it stood in the data, but for events."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import uniform_filter

from wm_node.data.dataset import Dataset
from wm_node.planning.ways import MAX_CELLS, PlaceMap, has_places

LEAST_EPISODES = 200
CELL_M = 0.01
SEEN = 3.0
"""Ticks in a cell, as a mean over it and its neighbours, for it to be known."""
BAD = 0.5
"""Share of these in which an event is active, for the place to be where it happens."""


def fit_places(dataset: Dataset) -> PlaceMap | None:
    """Fit the map of a robot that pushes an object in a plane; None for others.

    None too where so few episodes are there that a place without the object says nothing. An event
    counts where it belongs to a place: one that happens here and there without the place mattering,
    as hits do, has a small share everywhere.
    """
    profile = dataset.profile
    if not has_places(profile) or len(dataset.episodes) < LEAST_EPISODES:
        return None
    assert profile.objective is not None
    index = [profile.label_names.index(name) for name in profile.objective.goal]
    places = np.asarray(dataset.labels[:], np.float64)[:, index]
    events = np.asarray(dataset.events[:]) == 1
    known = np.isfinite(places).all(-1)
    places, events = places[known], events[known]
    if not len(places):
        return None
    low = np.quantile(places, 0.0005, axis=0) - 2 * CELL_M
    high = np.quantile(places, 0.9995, axis=0) + 2 * CELL_M
    shape = tuple(int(n) for n in np.ceil((high - low) / CELL_M) + 1)
    if shape[0] * shape[1] > MAX_CELLS:
        return None
    cells = np.rint((places - low) / CELL_M).astype(int)
    inside = ((cells >= 0) & (cells < shape)).all(-1)

    def count(rows: NDArray[np.bool_]) -> NDArray[np.float64]:
        x, y = cells[inside & rows].T
        counted = np.bincount(x * shape[1] + y, minlength=shape[0] * shape[1]).reshape(shape)
        return np.asarray(uniform_filter(counted.astype(np.float64), 3, mode="constant"))

    seen = count(np.ones(len(cells), bool))
    happened = [count(column) for column in events.T]
    worst = np.max(happened, axis=0, initial=0.0) if happened else np.zeros(shape)
    free = (seen >= SEEN) & (worst <= BAD * seen)
    if not free.any():
        return None
    rows, columns = (np.flatnonzero(free.any(axis)) for axis in (1, 0))
    first = low + CELL_M * np.array([rows[0], columns[0]])
    cut = free[rows[0] : rows[-1] + 1, columns[0] : columns[-1] + 1]
    return PlaceMap(cut, (float(first[0]), float(first[1])), CELL_M)
