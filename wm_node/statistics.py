"""Statistics that several reports share."""

from __future__ import annotations

from scipy.stats import binomtest


def wilson95(successes: int, count: int) -> tuple[float, float]:
    """Return the Wilson score interval at 95 % of a share."""
    interval = binomtest(successes, count).proportion_ci(0.95, method="wilson")
    return float(interval.low), float(interval.high)
