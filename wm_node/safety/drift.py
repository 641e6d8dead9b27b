"""Tells when a running robot's scores no longer come from where the calibrated ones came from.

Each score gets a p-value among the calibrated ones; small ones are bet on with a mixture of power
calibrators (Vovk and Wang, E-values, 2021), and the bets are summed over all times at which a
change may have begun (Shiryaev-Roberts; as an e-detector: Shin, Ramdas and Rinaldo, 2023). While
nothing has changed, the mean number of scores before an alarm is at least the chosen one, whatever
their distribution is.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import ArrayLike

from wm_node.errors import WmError
from wm_node.safety.conformal import CONFIDENCE

_POWERS = np.arange(0.1, 0.95, 0.1)


class DriftMonitor:
    """Compares the mean of each window of a signal with the calibrated windows' means.

    Args:
        scores: (M,) of calibrated windows.
        window: how many values make one.
        patience: windows without a change that a false alarm takes at least, on average.
        confidence: that this holds, for these calibrated scores.

    Raises:
        WmError: a score that is not finite, none at all, or a number out of range.

    Attributes:
        windows: seen so far.
        drifted: whether there was an alarm since the start.
    """

    def __init__(
        self, scores: ArrayLike, window: int, patience: float, confidence: float = CONFIDENCE
    ) -> None:
        self._scores = np.sort(np.asarray(scores, dtype=np.float64).ravel())
        if not self._scores.size or not np.isfinite(self._scores).all():
            raise WmError("a drift monitor needs finite scores of calibrated windows.")
        if window < 1 or not 1.0 < patience < math.inf or not 0.0 < confidence < 1.0:
            raise WmError("a drift monitor needs a window, a patience above 1, and a confidence.")
        # The calibrated scores are a sample too: how far their distribution may be from the true
        # one (Massart, 1990).
        self._margin = math.sqrt(-math.log(1.0 - confidence) / (2.0 * self._scores.size))
        self._window, self._limit = window, math.log(patience)
        self._sum, self._count = 0.0, 0
        self._log_evidence = -math.inf
        self.windows = 0
        self.drifted = False

    @property
    def evidence(self) -> float:
        """Share of the way to an alarm, on a logarithmic scale, 0 to 1 and beyond."""
        return max(0.0, self._log_evidence / self._limit)

    def add(self, value: float) -> None:
        """Take the signal's next value; values that are not finite are passed over."""
        if not math.isfinite(value):
            return
        self._sum += value
        self._count += 1
        if self._count == self._window:
            self._judge(self._sum / self._count)
            self._sum, self._count = 0.0, 0

    def _judge(self, score: float) -> None:
        size = self._scores.size
        above = size - int(np.searchsorted(self._scores, score, side="left"))
        p = min(1.0, above / size + self._margin)
        bet = float((_POWERS * p ** (_POWERS - 1.0)).mean())
        # log((evidence + 1) * bet), which may be large.
        self._log_evidence = float(np.logaddexp(self._log_evidence, 0.0)) + math.log(bet)
        self.windows += 1
        self.drifted |= self._log_evidence >= self._limit
