"""Thresholds with stated error rates, by split conformal prediction.

From scores of episodes that nothing was trained or chosen on, exchangeable with those to come. The
guarantee is of the share over draws of both and needs no assumption about the model: Vovk et al.,
Algorithmic Learning in a Random World (2005); Angelopoulos and Bates, arXiv 2107.07511.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from wm_node.errors import WmError


def fewest(rate: float) -> int:
    """Return how many scores a threshold of an error rate needs at least."""
    return math.ceil(1.0 / rate) - 1


def alarm_threshold(scores: ArrayLike, miss_rate: float) -> float:
    """Return the highest threshold that misses at most a share of the events to come.

    Args:
        scores: (N,) one an event: the highest signal while an alarm was still in time.
        miss_rate: 0 to 1; an event is missed if its score is not above the threshold.

    Raises:
        WmError: a rate outside 0 to 1, or too few scores for it.
    """
    values = _checked(scores, miss_rate, "events")
    # The k-th smallest of N with k = floor(rate * (N + 1)); just below it, for alarms lie above.
    rank = math.floor(miss_rate * (len(values) + 1) + 1e-9)
    return float(np.nextafter(values[rank - 1], -np.inf))


def limit_threshold(scores: ArrayLike, false_rate: float) -> float:
    """Return the lowest threshold that at most a share of ordinary episodes to come exceed.

    Args:
        scores: (N,) one an episode: the highest signal in it.
        false_rate: 0 to 1; a false alarm is a score above the threshold.

    Raises:
        WmError: a rate outside 0 to 1, or too few scores for it.
    """
    values = _checked(scores, false_rate, "ordinary episodes")
    rank = math.ceil((1.0 - false_rate) * (len(values) + 1) - 1e-9)
    return float(values[rank - 1])


def _checked(scores: ArrayLike, rate: float, what: str) -> np.ndarray:
    values = np.sort(np.asarray(scores, dtype=np.float64).ravel())
    if not 0.0 < rate < 1.0:
        raise WmError(f"an error rate of {rate:g} cannot be promised; use one between 0 and 1.")
    if not np.isfinite(values).all():
        raise WmError(f"scores of {what} are not finite; the signal is not available.")
    if len(values) < fewest(rate):
        raise WmError(
            f"{len(values)} {what} do not suffice for an error rate of {rate:g}; "
            f"use at least {fewest(rate)}."
        )
    return values
