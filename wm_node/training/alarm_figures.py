"""What alarms of foreseen risk were worth: counted from episodes, simulated or recorded."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wm_node.errors import WmError
from wm_node.profile import RobotProfile
from wm_node.safety.conformal import alarm_threshold
from wm_node.statistics import wilson95

LEAD_S = 0.15
"""So long before the last preventable moment an alarm must come to be in time."""


@dataclass(frozen=True)
class Event:
    """An event of an episode: when it happened, and how long braking would have prevented it, s."""

    happened_s: float
    preventable_s: float | None


@dataclass(frozen=True)
class AlarmRecord:
    """What alarms would have been worth in one episode.

    Attributes:
        seed: of the episode.
        stream: what commanded the robot.
        reckless: whether it was out for an event. That it is stopped without one is no false alarm,
            so it is counted apart.
        effect_s: (T,) when the brake of an alarm at each tick would have taken effect.
        risk: event -> (T,) highest risk of each tick's command or plan.
        events: of the free episode.
        guarded_events: names of those that happened in spite of the guard.
        stops: ticks of the guarded episode at which it stopped the robot.
        slowed: ticks at which it slowed the command.
    """

    seed: int
    stream: str
    effect_s: NDArray[np.float64]
    risk: dict[str, NDArray[np.float64]]
    events: dict[str, Event]
    guarded_events: tuple[str, ...] = ()
    stops: int = 0
    slowed: int = 0
    reckless: bool = False


def timely_score(record: AlarmRecord, event: str, lead_s: float = LEAD_S) -> float | None:
    """Return the highest risk of an event while its alarm was in time.

    None without the event, or where braking could not have prevented it within the episode.
    """
    found = record.events.get(event)
    if found is None or found.preventable_s is None:
        return None
    in_time = record.effect_s <= found.preventable_s - lead_s + 1e-9
    return float(record.risk[event][in_time].max(initial=0.0))


def conformal_thresholds(
    records: Sequence[AlarmRecord],
    events: Sequence[str],
    miss_rate: float,
    lead_s: float = LEAD_S,
) -> dict[str, dict[str, Any]]:
    """Return event -> threshold that misses at most a share of its events to come, and on what.

    Raises:
        WmError: too few events for that rate, or none that the model foresees.
    """
    chosen = {}
    for event in events:
        scores = [
            score
            for record in records
            if (score := timely_score(record, event, lead_s)) is not None
        ]
        try:
            threshold = alarm_threshold(scores, miss_rate)
        except WmError as error:
            raise WmError(f"event '{event}': {error}") from error
        if threshold <= 0.0:
            raise WmError(
                f"event '{event}': so many of its events are not foreseen in time at all that no "
                f"threshold misses only a share of {miss_rate:g}; use a higher --miss-rate."
            )
        calm = [record for record in records if not record.events and not record.reckless]
        chosen[event] = {
            "threshold": threshold,
            "events": len(scores),
            "calm_episodes": len(calm),
            "calm_alarmed": sum(_alarmed(record, {event: threshold}) for record in calm),
        }
    return chosen


def figures_of(
    records: Sequence[AlarmRecord], thresholds: dict[str, float], lead_s: float = LEAD_S
) -> dict[str, Any]:
    """Count what alarms at these thresholds are worth; plain data for JSON."""
    calm = [record for record in records if not record.events and not record.reckless]
    near = [record for record in records if not record.events and record.reckless]
    eventful = [record for record in records if record.events]
    return {
        "episodes": len(records),
        "lead_s": lead_s,
        "thresholds": thresholds,
        "events": {
            event: _event_figures(records, event, thresholds[event], lead_s) for event in thresholds
        },
        "calm": _share(sum(_alarmed(record, thresholds) for record in calm), len(calm)),
        "reckless_calm": _share(sum(_alarmed(record, thresholds) for record in near), len(near)),
        "guarded": {
            "still_happened": _share(
                sum(bool(record.guarded_events) for record in eventful), len(eventful)
            ),
            "calm_touched": _share(
                sum(record.stops + record.slowed > 0 for record in calm), len(calm)
            ),
            "calm_violated": sum(bool(record.guarded_events) for record in calm),
        },
        "streams": {
            name: {
                "episodes": sum(record.stream == name for record in records),
                "eventful": sum(record.stream == name for record in eventful),
                "calm_alarmed": sum(
                    _alarmed(record, thresholds)
                    for record in [*calm, *near]
                    if record.stream == name
                ),
                "still_happened": sum(
                    bool(record.guarded_events) for record in eventful if record.stream == name
                ),
            }
            for name in sorted({record.stream for record in records})
        },
    }


def _alarmed(record: AlarmRecord, thresholds: dict[str, float]) -> bool:
    return any(bool((record.risk[event] > limit).any()) for event, limit in thresholds.items())


def _event_figures(
    records: Sequence[AlarmRecord], event: str, threshold: float, lead_s: float
) -> dict[str, Any]:
    happened = [record for record in records if event in record.events]
    in_time, leads = 0, []
    for record in happened:
        score = timely_score(record, event, lead_s)
        if score is None:
            continue
        in_time += score > threshold
        preventable_s = record.events[event].preventable_s
        alarms = record.effect_s[record.risk[event] > threshold]
        if len(alarms) and preventable_s is not None:
            leads.append(preventable_s - float(alarms[0]))
    preventable = sum(record.events[event].preventable_s is not None for record in happened)
    return {
        "happened": len(happened),
        "preventable": preventable,
        "in_time": _share(in_time, preventable),
        "lead_s": [round(float(q), 3) for q in np.percentile(leads, (10, 50, 90))]
        if leads
        else None,
    }


def _share(count: int, of: int) -> dict[str, Any]:
    if not of:
        return {"count": 0, "of": 0, "share": None, "wilson95": None}
    low, high = wilson95(int(count), of)
    return {
        "count": int(count),
        "of": of,
        "share": round(count / of, 4),
        "wilson95": [round(low, 4), round(high, 4)],
    }


def thresholds_of(profile: RobotProfile) -> dict[str, float]:
    """Return event -> highest risk that passes, as the gate reads it from the profile.

    Raises:
        WmError: the profile has none.
    """
    thresholds = dict(profile.safety.risk_threshold)
    if not thresholds:
        raise WmError(f"the profile '{profile.name}' has no risk_threshold: nothing is alarmed.")
    return thresholds
