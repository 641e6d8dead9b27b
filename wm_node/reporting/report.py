"""Writes ``report.html``: one file that opens offline, for the demo and for replayed bags."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np
from jinja2 import Environment, PackageLoader
from markupsafe import Markup
from numpy.typing import NDArray

from wm_node.errors import WmError
from wm_node.profile import RobotProfile
from wm_node.reporting import figures
from wm_node.reporting.hindsight import Moment, StepScores
from wm_node.reporting.interventions import AFTER_S, RISK, find_interventions
from wm_node.reporting.run_log import NS, RunLog, Series, nearest_stamp, read_frames
from wm_node.reporting.summary import (
    BENIGN,
    Episode,
    GateSpan,
    gate_spans,
    seconds_by_reason,
    shares_of_limits,
)

STRIP_FRAMES = 8
STRIP_WIDTH = 200
TILE_WIDTH = 128
MOST_INTERVENTIONS = 8
INTERVENTION_FRAMES_S = (-0.6, -0.2, 0.0, 0.4, 0.8, 1.4, 2.0)
"""Around the time at which the gate stepped in."""


@dataclass(frozen=True)
class Scene:
    """What the map of an episode shows besides paths: rectangles (x_min, x_max, y_min, y_max)."""

    table: figures.Rectangle
    zone: figures.Rectangle | None
    object: tuple[str, str]
    """Names of the labels that give the object's place."""
    tool: tuple[str, str] | None


@dataclass(frozen=True)
class ReportData:
    """Everything that a report shows; parts that are empty are left out of the page."""

    title: str
    subtitle: str
    log: RunLog
    cards: Sequence[tuple[str, str, str]]
    """(name, value, note) of each key figure."""
    details: Sequence[tuple[str, str]]
    shadow: bool = False
    episodes: Sequence[Episode] = ()
    scene: Scene | None = None
    moments: Sequence[Moment] = ()
    scores: StepScores | None = None
    latencies: dict[str, NDArray[np.float64]] = field(default_factory=dict)
    deadline_ms: float | None = None


def write_report(path: Path, data: ReportData) -> None:
    """Render the page and write it.

    Raises:
        WmError: the file cannot be written, or the bag's frames cannot be read.
    """
    environment = Environment(
        loader=PackageLoader("wm_node", "reporting/templates"), autoescape=True
    )
    page = environment.get_template("report.html.j2").render(_page(data))
    try:
        path.write_text(page, encoding="utf-8")
    except OSError as error:
        raise WmError(f"cannot write {path}: {error.strerror or error}.") from error


def joint_unit(profile: RobotProfile) -> str:
    """Name the joints' unit for a label; robots may mix radians with shares of a range."""
    text = profile.joints.unit_text
    return "mixed units" if "," in text else text


def _page(data: ReportData) -> dict[str, Any]:
    log, spans = data.log, gate_spans(data.log)
    latencies = {name: values for name, values in data.latencies.items() if values.size}
    unit = joint_unit(log.profile)
    return {
        "title": data.title,
        "subtitle": data.subtitle,
        "simulated": log.profile.simulated,
        "shadow": data.shadow,
        "cards": [{"name": n, "value": v, "note": note} for n, v, note in data.cards],
        "episodes": _episodes(data),
        "moments": [_moment(m, data) for m in _shown(data.moments)],
        "scores": Markup(figures.step_scores(data.scores, unit)) if data.scores else None,
        "scores_note": f"mean over {data.scores.moments} moments" if data.scores else "",
        "traces": _traces(data),
        "timeline": _timeline(data, spans),
        "timeline_title": "Risk, surprise and the gate" if spans else "Risk and surprise",
        "states": list(figures.STATE_COLOURS.items()),
        "latency": Markup(figures.histogram(latencies, data.deadline_ms)) if latencies else None,
        "latency_note": "; ".join(
            f"{name}: p50 {np.percentile(v, 50):.0f}, p99 {np.percentile(v, 99):.0f} ms"
            for name, v in latencies.items()
        ),
        "interventions": _interventions(data, spans),
        "after_s": AFTER_S,
        "gate_rows": _gate_rows(spans),
        "gate_note": f"over {log.duration_s:.0f} s",
        "details": list(data.details),
    }


def _traces(data: ReportData) -> Markup | None:
    """Chart the joints of the first shown moment; a demo's episodes say more than its joints."""
    if not data.moments or data.episodes:
        return None
    profile, moment = data.log.profile, _shown(data.moments)[0]
    return Markup(
        figures.joint_traces(
            moment, profile.joints.names, profile.model.step_s, profile.joints.unit_text
        )
    )


def _shown(moments: Sequence[Moment], most: int = 4) -> list[Moment]:
    """Choose the moments in which most happens in the picture, in the order of time."""

    def motion(moment: Moment) -> float:
        return float(np.abs(moment.real[-1].astype(np.int16) - moment.now).mean())

    lively = sorted(moments, key=motion, reverse=True)
    chosen: list[Moment] = []
    for moment in lively:  # no two that overlap
        span_ns = 2 * NS
        if all(abs(moment.stamp_ns - other.stamp_ns) > span_ns for other in chosen):
            chosen.append(moment)
        if len(chosen) == most:
            break
    return sorted(chosen, key=lambda moment: moment.stamp_ns)


def _risks(log: RunLog, start_ns: int, end_ns: int) -> dict[str, Series]:
    """Predicted risk by event: of the commands, or without any of going on as now."""
    found = {}
    for name, series in (log.verdicts or log.foreseen).items():
        part = series.between(start_ns, end_ns)
        if name.startswith(RISK) and np.isfinite(part.values).any():
            found[name.removeprefix(RISK)] = part
    return found


def _episodes(data: ReportData) -> list[dict[str, Any]]:
    if data.scene is None or not data.episodes:
        return []
    log, camera = data.log, data.log.profile.cameras[0].name
    stamps = log.frames.get(camera, np.zeros(0, dtype=np.int64))
    wanted = {episode.number: _strip_stamps(stamps, episode) for episode in data.episodes}
    frames = read_frames(
        log.bag, log.profile, camera, [s for part in wanted.values() for s in part]
    )
    return [_episode(data, data.scene, episode, wanted, frames) for episode in data.episodes]


def _strip_stamps(stamps: NDArray[np.int64], episode: Episode) -> list[int]:
    # A frame that is a little later would already show the next scene.
    own = stamps[(stamps >= episode.start_ns) & (stamps <= episode.end_ns)]
    ticks = np.linspace(episode.start_ns, episode.end_ns, STRIP_FRAMES).astype(np.int64)
    found = (nearest_stamp(own, int(at), NS // 2) for at in ticks)
    return [stamp for stamp in found if stamp is not None]


def _episode(
    data: ReportData,
    scene: Scene,
    episode: Episode,
    wanted: dict[int, list[int]],
    frames: dict[int, NDArray[np.uint8]],
) -> dict[str, Any]:
    log = data.log
    start, end = episode.start_ns, episode.end_ns
    path = _path(log, scene.object, start, end)
    tip = None if scene.tool is None else _path(log, scene.tool, start, end)
    away = np.hypot(path.values[:, 0] - episode.goal[0], path.values[:, 1] - episode.goal[1])
    objective = log.profile.objective
    tolerance = objective.tolerance if objective else 0.03
    strip = [
        (figures.picture(frames[stamp], STRIP_WIDTH, quality=78), f"{(stamp - start) / NS:.1f} s")
        for stamp in wanted[episode.number]
        if stamp in frames
    ]
    return {
        "number": episode.number,
        "success": episode.success,
        "outcome": episode.outcome,
        "note": (
            f"seed {episode.seed}: from {100 * episode.start_distance:.1f} cm to "
            f"{100 * episode.final_distance:.1f} cm in {episode.ticks / 10:.1f} s"
        ),
        "frames": strip,
        "map": Markup(
            figures.table_map(scene.table, scene.zone, episode.goal, tolerance, path, tip)
        ),
        "chart": Markup(
            figures.distance_and_risk(
                start,
                (end - start) / NS,
                Series(path.stamps, away[:, None]),
                tolerance,
                _risks(log, start, end),
                dict(log.profile.safety.risk_threshold),
            )
        ),
    }


def _path(log: RunLog, names: tuple[str, str], start_ns: int, end_ns: int) -> Series:
    """Join two labels that come from the same messages into positions (N, 2)."""
    empty = Series(np.zeros(0, dtype=np.int64), np.zeros((0, 1)))
    x, y = (log.labels.get(name, empty).between(start_ns, end_ns) for name in names)
    stamps, at_x, at_y = np.intersect1d(x.stamps, y.stamps, return_indices=True)
    return Series(stamps, np.hstack([x.values[at_x], y.values[at_y]]).reshape(-1, 2))


def _moment(moment: Moment, data: ReportData) -> dict[str, Any]:
    step_s = data.log.profile.model.step_s
    steps = moment.real.shape[0]
    at = f"{(moment.stamp_ns - data.log.start_ns) / NS:.1f} s into the run"
    for episode in data.episodes:
        if episode.start_ns <= moment.stamp_ns <= episode.end_ns:
            at = f"Episode {episode.number}, at {(moment.stamp_ns - episode.start_ns) / NS:.1f} s"
    camera = data.log.profile.cameras[0]
    aspect = camera.width / camera.height  # the model's frames may be squeezed

    def tile(frame: NDArray[np.uint8]) -> str:
        return figures.picture(frame, TILE_WIDTH, aspect=aspect)

    now = tile(moment.now)
    return {
        "title": at[0].upper() + at[1:],
        "note": (
            f"{moment.psnr()[-1]:.1f} dB at {steps * step_s:.2g} s ahead "
            f"(unchanged frame: {moment.psnr_of_now()[-1]:.1f} dB)"
        ),
        "labels": ["now", *(f"+{(h + 1) * step_s:.2g} s" for h in range(steps))],
        "imagined": [now, *(tile(frame) for frame in moment.imagined)],
        "real": [now, *(tile(frame) for frame in moment.real)],
    }


def _timeline(data: ReportData, spans: Sequence[GateSpan]) -> Markup | None:
    log = data.log
    risks = _risks(log, log.start_ns, log.end_ns)
    shares = shares_of_limits(log)
    if not spans and not risks and not shares:
        return None
    zero = log.start_ns

    def seconds(stamp: int) -> float:
        return (stamp - zero) / NS

    return Markup(
        figures.timeline(
            zero,
            log.duration_s,
            [(seconds(s.start_ns), seconds(s.end_ns), s.state) for s in spans],
            risks,
            dict(log.profile.safety.risk_threshold),
            shares,
            [
                (
                    seconds(e.start_ns),
                    seconds(e.end_ns),
                    figures.GREEN if e.success else figures.RED,
                )
                for e in data.episodes
            ],
        )
    )


def _interventions(data: ReportData, spans: Sequence[GateSpan]) -> list[dict[str, Any]]:
    """Return the longest interventions, in the order of time, with frames before and after.

    Between the episodes of a demo the scene is reset: what the gate does then is not of interest.
    """
    log = data.log
    found = [
        one
        for one in find_interventions(log, spans)
        if not data.episodes or _in_episode(data, one.start_ns)
    ]
    found.sort(key=lambda one: one.end_ns - one.start_ns)
    shown = sorted(found[-MOST_INTERVENTIONS:], key=lambda one: one.start_ns)
    camera = log.profile.cameras[0].name
    stamps = log.frames.get(camera, np.zeros(0, dtype=np.int64))
    wanted = [
        [
            stamp
            for after_s in INTERVENTION_FRAMES_S
            if (stamp := nearest_stamp(stamps, one.start_ns + round(after_s * NS), NS // 5))
        ]
        for one in shown
    ]
    frames = read_frames(log.bag, log.profile, camera, [s for part in wanted for s in part])
    return [
        {
            "title": f"{one.reason}, {(one.start_ns - log.start_ns) / NS:.1f} s into the run"
            + _in_episode(data, one.start_ns),
            "states": " then ".join(one.states),
            "seconds": f"{one.seconds:.2f}",
            "detail": one.detail,
            "outcomes": [
                (
                    event,
                    f"{risk:.2f}",
                    {True: "happened", False: "did not happen", None: "not recorded"}[
                        one.happened.get(event)
                    ],
                )
                for event, risk in one.foreseen.items()
            ],
            "frames": [
                (
                    figures.picture(frames[stamp], STRIP_WIDTH, quality=78),
                    f"{(stamp - one.start_ns) / NS:+.1f} s",
                )
                for stamp in part
                if stamp in frames
            ],
        }
        for one, part in zip(shown, wanted, strict=True)
    ]


def _in_episode(data: ReportData, at_ns: int) -> str:
    for episode in data.episodes:
        if episode.start_ns <= at_ns <= episode.end_ns:
            return f" (episode {episode.number}, at {(at_ns - episode.start_ns) / NS:.1f} s)"
    return ""


def _gate_rows(spans: Sequence[GateSpan]) -> list[dict[str, Any]]:
    times = Counter((span.state, span.reason) for span in spans)
    rows = [
        {
            "state": state,
            "reason": reason,
            "times": times[(state, reason)],
            "seconds": f"{total:.1f}",
            "benign": reason in BENIGN,
        }
        for state, reason, total in seconds_by_reason(spans)
    ]
    return rows[:14]
