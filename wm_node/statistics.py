"""Statistics that several reports share."""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray


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


def quantiles(values: NDArray[np.floating]) -> dict[str, float]:
    """Return ``p50``, ``p99`` and ``max`` of values (N,): what a limit is chosen by."""
    return {
        "p50": round(float(np.percentile(values, 50)), 4),
        "p99": round(float(np.percentile(values, 99)), 4),
        "max": round(float(values.max()), 4),
    }
