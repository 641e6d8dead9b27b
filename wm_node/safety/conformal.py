"""Thresholds with stated error rates, by split conformal prediction.

From scores of episodes that nothing was trained or chosen on, exchangeable with those to come; no
assumption about the model is needed. The share of errors to come follows, over draws of the
calibration, a Beta distribution (Vovk, Conditional validity of inductive conformal predictors,
2012); the threshold is chosen such that the share is kept with a stated confidence, not only on
average: a robot is calibrated once.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike, NDArray
from scipy.stats import beta

from wm_node.errors import WmError

CONFIDENCE = 0.9


def fewest(rate: float, confidence: float = CONFIDENCE) -> int:
    """Return how many scores a threshold of an error rate needs at least."""
    return math.ceil(math.log(1.0 - confidence) / math.log(1.0 - rate) - 1e-9)


def alarm_threshold(scores: ArrayLike, miss_rate: float, confidence: float = CONFIDENCE) -> float:
    """Return the highest threshold that misses at most a share of the events to come.

    Args:
        scores: (N,) one an event: the highest signal while an alarm was still in time.
        miss_rate: 0 to 1; an event is missed if its score is not above the threshold.
        confidence: 0 to 1, that the share is kept.

    Raises:
        WmError: a rate or confidence outside 0 to 1, or too few scores for them.
    """
    values = _checked(scores, miss_rate, confidence, "events")
    rank = _errors_allowed(len(values), miss_rate, confidence)
    return float(np.nextafter(values[rank - 1], -np.inf))  # alarms lie above


def limit_threshold(scores: ArrayLike, false_rate: float, confidence: float = CONFIDENCE) -> float:
    """Return the lowest threshold that at most a share of ordinary episodes to come exceed.

    Args:
        scores: (N,) one an episode: the highest signal in it.
        false_rate: 0 to 1; a false alarm is a score above the threshold.
        confidence: 0 to 1, that the share is kept.

    Raises:
        WmError: a rate or confidence outside 0 to 1, or too few scores for them.
    """
    values = _checked(scores, false_rate, confidence, "ordinary episodes")
    rank = _errors_allowed(len(values), false_rate, confidence)
    return float(values[len(values) - rank])


def _errors_allowed(count: int, rate: float, confidence: float) -> int:
    """Return the largest k such that the k-th score from the end keeps the promise.

    With the k-th smallest of N scores as threshold, the share below it is Beta(k, N + 1 - k).
    """
    ranks = np.arange(1, count + 1)
    kept = beta.cdf(rate, ranks, count + 1 - ranks) >= confidence - 1e-12
    return int(ranks[kept].max())


def _checked(scores: ArrayLike, rate: float, confidence: float, what: str) -> NDArray[np.float64]:
    values = np.sort(np.asarray(scores, dtype=np.float64).ravel())
    if not 0.0 < rate < 1.0:
        raise WmError(f"an error rate of {rate:g} cannot be promised; use one between 0 and 1.")
    if not 0.0 < confidence < 1.0:
        raise WmError(f"a confidence of {confidence:g} cannot be had; use one between 0 and 1.")
    if not np.isfinite(values).all():
        raise WmError(f"scores of {what} are not finite; the signal is not available.")
    if len(values) < fewest(rate, confidence):
        raise WmError(
            f"{len(values)} {what} do not suffice for an error rate of {rate:g} with a confidence "
            f"of {confidence:g}; use at least {fewest(rate, confidence)}."
        )
    return values
