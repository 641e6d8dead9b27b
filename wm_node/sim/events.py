"""What may happen; and what happens to a mug, told from its pose alone."""

from __future__ import annotations

import numpy as np
from numpy.typing import ArrayLike, NDArray

from wm_node.sim.scene import ZONE_BOUNDS

EVENTS = ("fell", "zone", "hit")
"""What profiles of the table-top name: the mug is down, stands in the red zone, or something that
the level wants left alone is hit, or missed by too little where it is a hand."""
STANDS_ABOVE = -0.02  # m; a mug whose bottom is lower has left the table


def has_fallen(z: ArrayLike, qx: ArrayLike, qy: ArrayLike) -> NDArray[np.bool_]:
    """Whether a mug at height ``z`` (m) with quaternion parts ``qx, qy`` is down; any shape."""
    leans = np.square(qx) + np.square(qy) > 0.25  # by more than 60 degrees
    return np.asarray((np.asarray(z) < STANDS_ABOVE) | leans)


def is_in_zone(x: ArrayLike, y: ArrayLike, z: ArrayLike) -> NDArray[np.bool_]:
    """Whether a mug at ``(x, y, z)`` in m stands inside the red zone; any shape."""
    zone = ZONE_BOUNDS
    x, y = np.asarray(x), np.asarray(y)
    inside = (x >= zone.x_min) & (x <= zone.x_max) & (y >= zone.y_min) & (y <= zone.y_max)
    return np.asarray(inside & (np.asarray(z) > STANDS_ABOVE))
