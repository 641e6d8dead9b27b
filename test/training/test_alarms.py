"""Alarms are counted against the last moment that braking would have helped."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wm_node.bundle import Bundle
from wm_node.errors import WmError
from wm_node.profile import RobotProfile, load_profile
from wm_node.resources import BUNDLE, resource
from wm_node.sim.scene import TABLE_BOUNDS, ZONE_BOUNDS
from wm_node.sim.task import Task
from wm_node.training.alarm_figures import (
    AlarmRecord,
    Event,
    conformal_thresholds,
    figures_of,
    timely_score,
)
from wm_node.training.alarms import collect_records, risky_task

BundleOf = Callable[[RobotProfile, Path], Bundle]
LIMITS = {"fell": 0.5, "zone": 0.5}


def record(
    risks: list[float],
    event: Event | None = None,
    guarded_events: tuple[str, ...] = (),
    stops: int = 0,
    seed: int = 0,
) -> AlarmRecord:
    """An episode with a risk of a fall at each tick; the brake acts a tick later."""
    risk = {"fell": np.array(risks), "zone": np.zeros(len(risks))}
    effect_s = 0.1 * np.arange(1, len(risks) + 1)
    events = {} if event is None else {"fell": event}
    return AlarmRecord(seed, "edge", effect_s, risk, events, guarded_events, stops)


def test_only_risk_that_was_seen_in_time_counts():
    risks = [0.0, 0.2, 0.4, 0.6, 0.8]  # brakes take effect at 0.1 to 0.5 s
    assert timely_score(record(risks, Event(0.7, 0.5)), "fell") == pytest.approx(0.4)
    assert timely_score(record(risks, Event(0.7, 0.55)), "fell") == pytest.approx(0.6)
    assert timely_score(record(risks, Event(0.7, 0.5)), "fell", lead_s=0.0) == pytest.approx(0.8)
    assert timely_score(record(risks, Event(0.2, 0.05)), "fell") == 0.0
    assert timely_score(record(risks, Event(0.2, None)), "fell") is None
    assert timely_score(record(risks), "fell") is None
    assert timely_score(record(risks, Event(0.7, 0.5)), "zone") is None


def test_alarms_events_and_what_the_guard_did_are_counted():
    records = [
        record([0.0, 0.9, 0.9, 0.9], Event(0.8, 0.5), seed=1),  # in time
        record([0.0, 0.0, 0.0, 0.9], Event(0.8, 0.5), ("fell",), seed=2),  # too late
        record([0.0, 0.0], Event(0.3, None), ("fell",), seed=3),  # nothing would have helped
        record([0.1, 0.2], seed=4),
        record([0.1, 0.7], stops=1, seed=5),  # in vain
        record([0.1, 0.2], seed=6),
        # Out for an event that did not come: an alarm there is not a false one.
        replace(record([0.1, 0.7], stops=1, seed=7), reckless=True),
    ]
    figures = figures_of(records, LIMITS)
    fell = figures["events"]["fell"]
    assert (fell["happened"], fell["preventable"]) == (3, 2)
    assert (fell["in_time"]["count"], fell["in_time"]["of"]) == (1, 2)
    # First alarms take effect at 0.2 and 0.4 s, both moments are at 0.5 s.
    assert fell["lead_s"][1] == pytest.approx(0.2)
    assert figures["events"]["zone"]["in_time"]["share"] is None
    assert (figures["calm"]["count"], figures["calm"]["of"]) == (1, 3)
    near = figures["reckless_calm"]
    assert (near["count"], near["of"]) == (1, 1)
    guarded = figures["guarded"]
    assert (guarded["still_happened"]["count"], guarded["still_happened"]["of"]) == (2, 3)
    assert (guarded["calm_touched"]["count"], guarded["calm_touched"]["of"]) == (1, 3)
    assert figures["streams"]["edge"]["eventful"] == 3


def test_a_calibrated_threshold_misses_as_few_as_promised():
    random = np.random.default_rng(0)
    peaks = random.uniform(0.2, 1.0, 60)
    both = [
        AlarmRecord(
            0,
            "edge",
            np.array([0.1]),
            {"fell": np.array([peak]), "zone": np.array([peak])},
            {"fell": Event(1.0, 0.9), "zone": Event(1.0, 0.9)},
        )
        for peak in peaks
    ]
    calm = [record([0.1]), record([0.95])]
    chosen = conformal_thresholds([*both, *calm], ("fell", "zone"), 0.1)
    assert (peaks <= chosen["fell"]["threshold"]).sum() <= 0.1 * 60
    assert chosen["fell"]["events"] == 60
    assert (chosen["fell"]["calm_episodes"], chosen["fell"]["calm_alarmed"]) == (2, 1)
    with pytest.raises(WmError, match="event 'fell': 3 events do not suffice"):
        conformal_thresholds(both[:3], ("fell",), 0.1)
    unseen = [record([0.0], Event(1.0, 0.9))] * 30
    with pytest.raises(WmError, match="use a higher --miss-rate"):
        conformal_thresholds([*both, *unseen], ("fell",), 0.1)


def test_half_of_the_planner_s_targets_end_in_an_event():
    random = np.random.default_rng(0)
    task = Task(0, (0.1, -0.1), (0.0, 0.0))
    goals = [risky_task(task, random).goal for _ in range(400)]
    kept = sum(goal == task.goal for goal in goals)
    inside = sum(ZONE_BOUNDS.contains(*goal) for goal in goals)
    beyond = sum(not TABLE_BOUNDS.contains(*goal) for goal in goals)
    assert kept + inside + beyond == 400
    assert 160 < kept < 240
    assert inside > 60
    assert beyond > 60


@pytest.mark.parametrize("source", ["planner", "external"])
def test_the_shipped_bundle_s_alarms_follow_from_the_seed(source: str):
    def run(workers: int) -> list[AlarmRecord]:
        return collect_records(resource(BUNDLE), source, 2, 7, LIMITS, workers=workers)

    first, second = run(1), run(2)
    for one, other in zip(first, second, strict=True):
        assert one.events == other.events
        for event in LIMITS:
            assert one.risk[event] == pytest.approx(other.risk[event], abs=1e-5)
            assert one.risk[event].shape == one.effect_s.shape
            assert ((one.risk[event] >= 0) & (one.risk[event] <= 1)).all()
        assert (one.stops, one.guarded_events) == (other.stops, other.guarded_events)


def test_wrong_use_is_refused(random_bundle_of: BundleOf, tmp_path: Path):
    with pytest.raises(WmError, match="use one of planner, external"):
        collect_records(resource(BUNDLE), "joystick", 1, 0, LIMITS)
    bundle = random_bundle_of(load_profile("g1_bottle"), tmp_path / "bundle")
    with pytest.raises(WmError, match="with other labels or events"):
        collect_records(bundle.path, "external", 1, 0, LIMITS)
