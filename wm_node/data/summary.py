"""Figures of an ingestion: totals over the reports of its bags, as plain JSON data."""

from __future__ import annotations

from collections.abc import Sequence
from statistics import median
from typing import Any

import numpy as np

from wm_node.data.bag_ingest import CAUSES, BagReport, minimum_ticks
from wm_node.profile import RobotProfile


def summarise(reports: Sequence[BagReport], profile: RobotProfile) -> dict[str, Any]:
    """Add up the reports of all bags.

    Returns:
        ``bags, bags_used, skipped`` (name -> reason), ``episodes, ticks, hours, tick_rate_hz``,
        ``topics`` (type, messages, measured rate: median, lowest, highest), ``gaps`` and
        ``ticks_lost`` by cause, ``short_segments``, ``frames_missing`` by camera, ``events``,
        ``labels``, ``joints`` and ``actions`` (ranges), ``notes`` (text -> number of bags).
    """
    used = [report for report in reports if report.skipped is None]
    ticks = sum(length for report in used for _, length in report.segments)
    return {
        "robot": profile.name,
        "bags": len(reports),
        "bags_used": len(used),
        "skipped": {report.name: report.skipped for report in reports if report.skipped},
        "episodes": sum(len(report.segments) for report in used),
        "ticks": ticks,
        "tick_rate_hz": profile.model.tick_rate_hz,
        "hours": ticks * profile.model.tick_s / 3600.0,
        "minimum_ticks": minimum_ticks(profile),
        "bytes_read": sum(report.size_bytes for report in used),
        "topics": _topics(used),
        "gaps": {cause: sum(r.gaps.get(cause, 0) for r in used) for cause in CAUSES},
        "ticks_lost": {cause: sum(r.ticks_lost.get(cause, 0) for r in used) for cause in CAUSES},
        "short_segments": sum(report.short_segments for report in used),
        "frames_missing": _by_camera(used, profile, "frames_missing"),
        "frames_masked": _by_camera(used, profile, "frames_masked"),
        "frames_damaged": sum(report.frames_damaged for report in used),
        "frame_skew_ms": max((report.frame_skew_ms for report in used), default=0.0),
        "messages_stale": sum(report.stale_messages for report in used),
        "messages_non_finite": sum(report.non_finite_messages for report in used),
        "messages_unstamped": sum(report.unstamped_messages for report in used),
        "events": {
            event.name: {
                "onsets": sum(report.event_onsets[i] for report in used),
                "ticks": sum(report.event_ticks[i] for report in used),
                "bags": sum(report.event_ticks[i] > 0 for report in used),
            }
            for i, event in enumerate(profile.events)
        },
        "labels": {
            label.name: sum(report.labelled_ticks[i] for report in used)
            for i, label in enumerate(profile.labels)
        },
        "joints": _ranges(
            profile.joints.names,
            [(r.joint_low, r.joint_high) for r in used],
            (profile.joints.lower, profile.joints.upper),
        ),
        "actions": _ranges(
            profile.action.names,
            [(r.action_low, r.action_high) for r in used],
            (profile.action.lower, profile.action.upper),
        ),
        "action_delay_s": list(profile.action.delay_s or (0.0,) * len(profile.action.names)),
        "notes": _notes(used),
    }


def _topics(reports: Sequence[BagReport]) -> dict[str, Any]:
    found: dict[str, list[tuple[str, int, float]]] = {}
    for report in reports:
        for topic, entry in report.topics.items():
            found.setdefault(topic, []).append(entry)
    return {
        topic: {
            "type": entries[0][0],
            "bags": len(entries),
            "messages": sum(count for _, count, _ in entries),
            "rate_hz": median(rate for _, _, rate in entries),
            "rate_hz_min": min(rate for _, _, rate in entries),
            "rate_hz_max": max(rate for _, _, rate in entries),
        }
        for topic, entries in found.items()
    }


def _by_camera(
    reports: Sequence[BagReport], profile: RobotProfile, attribute: str
) -> dict[str, int]:
    return {
        camera.name: sum(getattr(report, attribute).get(camera.name, 0) for report in reports)
        for camera in profile.cameras
    }


def _ranges(
    names: Sequence[str],
    found: Sequence[tuple[list[float], list[float]]],
    limits: tuple[Sequence[float], Sequence[float]],
) -> dict[str, Any]:
    if not found:
        return {}
    low = np.min([pair[0] for pair in found], axis=0)
    high = np.max([pair[1] for pair in found], axis=0)
    return {
        name: {
            "min": float(low[i]),
            "max": float(high[i]),
            "outside_limits": bool(low[i] < limits[0][i] or high[i] > limits[1][i]),
        }
        for i, name in enumerate(names)
    }


def _notes(reports: Sequence[BagReport]) -> dict[str, int]:
    counts: dict[str, int] = {}
    for report in reports:
        for note in report.notes:
            counts[note] = counts.get(note, 0) + 1
    return counts
