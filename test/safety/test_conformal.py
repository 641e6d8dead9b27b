"""Conformal thresholds keep the error rate that they promise, with the confidence that they do."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wm_node.errors import WmError
from wm_node.safety.conformal import alarm_threshold, fewest, limit_threshold

REPEATS = 2000


@pytest.mark.parametrize(("rate", "confidence"), [(0.05, 0.9), (0.1, 0.9), (0.3, 0.7)])
def test_the_share_of_errors_is_kept_as_often_as_promised(rate: float, confidence: float):
    random, count = np.random.default_rng(0), 60
    kept_missed = kept_false = 0
    for _ in range(REPEATS):
        scores = random.uniform(size=count)
        # Of a uniform score the share below a threshold is the threshold.
        kept_missed += alarm_threshold(scores, rate, confidence) <= rate
        kept_false += 1.0 - limit_threshold(scores, rate, confidence) <= rate
    slack = 4 * np.sqrt(confidence * (1 - confidence) / REPEATS)
    for kept in (kept_missed / REPEATS, kept_false / REPEATS):
        # Not only as often as promised: no higher threshold would keep it that often.
        assert confidence - slack <= kept
        assert kept < 1.0


def test_the_threshold_is_the_highest_that_keeps_the_promise():
    random, count, rate, confidence = np.random.default_rng(1), 60, 0.1, 0.9
    kept = 0
    for _ in range(REPEATS):
        scores = np.sort(random.uniform(size=count))
        rank = int(np.sum(scores <= alarm_threshold(scores, rate, confidence)))
        kept += scores[rank + 1] <= rate  # one score higher than the one that was chosen
    assert kept / REPEATS < confidence


@given(
    st.lists(st.floats(0, 1), min_size=50, max_size=200),
    st.floats(0.05, 0.9),
)
def test_on_its_own_scores_a_threshold_errs_less_than_promised(scores: list[float], rate: float):
    values = np.array(scores)
    assert (values <= alarm_threshold(values, rate)).mean() <= rate
    assert (values > limit_threshold(values, rate)).mean() <= rate


def test_equal_scores_are_all_alarmed():
    assert alarm_threshold([0.7] * 50, 0.1) < 0.7
    assert alarm_threshold([0.7] * 50, 0.1) == pytest.approx(0.7)


def test_too_few_scores_promise_nothing():
    assert fewest(0.05) == 45
    alarm_threshold(np.ones(45), 0.05)
    limit_threshold(np.ones(45), 0.05)
    for choose in (alarm_threshold, limit_threshold):
        with pytest.raises(WmError, match="use at least 45"):
            choose(np.ones(44), 0.05)
        with pytest.raises(WmError, match="not finite"):
            choose([np.nan] * 60, 0.05)
        with pytest.raises(WmError, match="between 0 and 1"):
            choose(np.ones(60), 0.0)
        with pytest.raises(WmError, match="confidence of 1"):
            choose(np.ones(60), 0.1, 1.0)
