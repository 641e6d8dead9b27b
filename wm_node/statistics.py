"""Statistics that several reports share."""

from __future__ import annotations

import math


def wilson95(successes: int, count: int) -> tuple[float, float]:
    """Return the 95 % Wilson interval of a success rate, as shares; (0, 1) without trials."""
    if count == 0:
        return (0.0, 1.0)
    z, share = 1.959964, successes / count
    centre = (share + z * z / (2 * count)) / (1 + z * z / count)
    half = (
        z
        / (1 + z * z / count)
        * math.sqrt(share * (1 - share) / count + z * z / (4 * count * count))
    )
    return (max(0.0, centre - half), min(1.0, centre + half))
