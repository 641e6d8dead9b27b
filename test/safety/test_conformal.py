"""Conformal thresholds keep the error rate that they promise."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wm_node.errors import WmError
from wm_node.safety.conformal import alarm_threshold, fewest, limit_threshold

REPEATS = 2000


@pytest.mark.parametrize("rate", [0.05, 0.1, 0.3])
def test_the_share_of_misses_and_of_false_alarms_is_what_was_promised(rate: float):
    random = np.random.default_rng(0)
    missed = false = 0
    for _ in range(REPEATS):
        scores = random.normal(size=41)
        missed += scores[-1] <= alarm_threshold(scores[:-1], rate)
        false += scores[-1] > limit_threshold(scores[:-1], rate)
    slack = 4 * np.sqrt(rate / REPEATS)
    # Not only below the promise, but as near to it as so many scores allow: 1 / 41.
    assert rate - 1 / 41 - slack < missed / REPEATS <= rate + slack
    assert rate - 1 / 41 - slack < false / REPEATS <= rate + slack


@given(
    st.lists(st.floats(0, 1), min_size=40, max_size=200),
    st.floats(0.05, 0.9),
)
def test_on_its_own_scores_a_threshold_errs_at_most_as_promised(scores: list[float], rate: float):
    values = np.array(scores)
    # Of N scores at most rate * (N + 1) are given up, ties counted as the alarm counts them.
    assert (values <= alarm_threshold(values, rate)).sum() <= rate * (len(values) + 1) + 1e-9
    assert (values > limit_threshold(values, rate)).sum() <= rate * (len(values) + 1) + 1e-9


def test_equal_scores_are_all_alarmed():
    assert alarm_threshold([0.7] * 50, 0.1) < 0.7
    assert alarm_threshold([0.7] * 50, 0.1) == pytest.approx(0.7)


def test_too_few_scores_promise_nothing():
    assert fewest(0.05) == 19
    alarm_threshold(np.ones(19), 0.05)
    for choose in (alarm_threshold, limit_threshold):
        with pytest.raises(WmError, match="use at least 19"):
            choose(np.ones(18), 0.05)
        with pytest.raises(WmError, match="not finite"):
            choose([np.nan] * 30, 0.05)
        with pytest.raises(WmError, match="between 0 and 1"):
            choose(np.ones(30), 0.0)
