"""Limits of doubt keep the rate of false alarms that was asked for."""

from __future__ import annotations

import numpy as np
import pytest

from wm_node.errors import WmError
from wm_node.training.doubt import Stretch, calibrate_doubt

TICK_S, TICKS, PER_HOUR = 0.1, 600, 12.0


def work(minutes: int, seed: int) -> list[Stretch]:
    """One stretch a minute, as surprised and as unsure as the luck of the minute."""
    random = np.random.default_rng(seed)
    return [
        Stretch(
            random.lognormal(0.0, 0.2) * random.lognormal(0.0, 0.2, TICKS),
            random.lognormal(0.0, 0.4) * random.lognormal(0.0, 0.1, TICKS),
        )
        for _ in range(minutes)
    ]


def test_ordinary_work_to_come_is_stopped_no_more_often_than_asked():
    kept = []
    for seed in range(40):
        found = calibrate_doubt(work(120, seed), "0" * 64, TICK_S, PER_HOUR)
        later = work(600, 1000 + seed)
        alarms = sum(one.lasting_surprise(3) > found.surprise_limit for one in later)
        alarms += sum(one.uncertainty.max() > found.uncertainty_limit for one in later)
        kept.append(alarms / 10.0 <= PER_HOUR)
    assert np.mean(kept) >= 0.9


def test_surprise_must_last():
    glint = np.ones(50)
    glint[10:12] = 9.0
    assert Stretch(glint, glint).lasting_surprise(3) == 1.0
    glint[12] = 8.0
    assert Stretch(glint, glint).lasting_surprise(3) == 8.0


def test_what_is_usual_is_kept_in_windows():
    found = calibrate_doubt(work(120, 0), "0" * 64, TICK_S, PER_HOUR)
    assert found.window_s == pytest.approx(5.0)
    assert len(found.windows) == 400  # of 1,440
    assert found.measured["hours"] == pytest.approx(2.0)


@pytest.mark.parametrize(
    ("minutes", "per_hour", "told"),
    [(10, 12.0, "record 23 minutes, or allow more"), (60, 500.0, "ask for fewer")],
)
def test_a_rate_that_the_work_cannot_promise_is_refused(minutes, per_hour, told):
    with pytest.raises(WmError, match=told):
        calibrate_doubt(work(minutes, 0), "0" * 64, TICK_S, per_hour)
