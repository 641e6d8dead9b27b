"""The drift monitor keeps its promise without a change, and is quick with one."""

from __future__ import annotations

import numpy as np
import pytest

from wm_node.errors import WmError
from wm_node.safety.drift import DriftMonitor

WINDOW, PATIENCE = 5, 200.0


def windows_until_alarm(shift: float, seed: int, most: int, begin: int = 0) -> int:
    """Windows of log-normal values until the alarm, shifted by ``shift`` deviations from begin."""
    random = np.random.default_rng(seed)
    calibrated = np.exp(random.standard_normal((100, WINDOW))).mean(1)
    monitor = DriftMonitor(calibrated, WINDOW, PATIENCE)
    for number in range(most):
        for value in np.exp(random.standard_normal(WINDOW) + shift * (number >= begin)):
            monitor.add(float(value))
        if monitor.drifted:
            return number + 1
    return most


def test_without_a_change_false_alarms_take_as_long_as_promised():
    runs = [windows_until_alarm(0.0, seed, 3 * int(PATIENCE)) for seed in range(60)]
    assert np.mean(runs) >= PATIENCE  # cut at three times that


def test_a_change_is_found_soon_whenever_it_begins():
    for begin in (0, 150):
        delays = [windows_until_alarm(1.5, seed, 400, begin) - begin for seed in range(20)]
        assert 3 <= np.median(delays) <= 40
        assert max(delays) < 80


def test_less_surprise_than_usual_is_no_alarm():
    assert windows_until_alarm(-2.0, 0, 500) == 500


def test_values_that_are_not_available_are_passed_over():
    monitor = DriftMonitor([1.0, 2.0], 2, 10.0)
    for value in (np.nan, 1.0, np.inf, 3.0):
        monitor.add(value)
    assert monitor.windows == 1
    assert not monitor.drifted
    assert monitor.evidence == 0.0


@pytest.mark.parametrize(
    ("scores", "window", "patience", "confidence"),
    [([], 5, 10, 0.9), ([np.nan], 5, 10, 0.9), ([1.0], 0, 10, 0.9), ([1.0], 5, 1.0, 0.9)],
)
def test_what_makes_no_sense_is_refused(scores, window, patience, confidence):
    with pytest.raises(WmError, match="drift monitor"):
        DriftMonitor(scores, window, patience, confidence)
