"""Turns what a demo run left behind into ``summary.json`` and ``report.html``."""

from __future__ import annotations

from dataclasses import asdict, dataclass
from datetime import datetime
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wm_node.bundle import Bundle
from wm_node.engine import load_engine
from wm_node.json_file import write_json
from wm_node.planning.world_model import WorldModel
from wm_node.reporting.hindsight import Moment, look_back, score
from wm_node.reporting.report import ReportData, Scene, write_report
from wm_node.reporting.run_log import NS, RunLog, read_run
from wm_node.reporting.summary import (
    Episode,
    count_of,
    gate_spans,
    interventions,
    percentiles_of,
    provenance,
    share_figures,
    shares_of_limits,
)
from wm_node.sim.scene import TABLE_BOUNDS, ZONE_BOUNDS, Bounds
from wm_node.statistics import wilson95

# Moments of each episode that the model is asked about afterwards.
LOOK_BACK_S = (0.3, 1.3, 2.3, 3.3)


@dataclass(frozen=True)
class DemoRun:
    """What the command knows when all processes have stopped.

    Attributes:
        out: folder that holds ``bag/`` and gets the results.
        values: last diagnostic values by node.
    """

    out: Path
    bundle: Bundle
    backend: str
    goal: str
    level: str
    seed: int
    episodes: list[Episode]
    values: dict[str, dict[str, str]]
    started_s: float
    wall_s: float


def summarise(run: DemoRun, log: RunLog) -> dict[str, Any]:
    """Return the figures of ``summary.json``."""
    episodes = run.episodes
    planner = run.values.get("mpc_planner", {})
    windows = [(episode.start_ns, episode.end_ns) for episode in episodes]
    successes = sum(episode.success for episode in episodes)
    return {
        "robot": run.bundle.profile.name,
        "simulated": run.bundle.profile.simulated,
        "goal": run.goal,
        "level": run.level,
        "seed": run.seed,
        "episodes": len(episodes),
        "successes": successes,
        "success_wilson95": list(wilson95(successes, len(episodes))),
        "falls": sum(episode.fell for episode in episodes),
        "zone_entries": sum(episode.zone for episode in episodes),
        "other_violations": sum(
            bool(episode.reason) and not (episode.fell or episode.zone) for episode in episodes
        ),
        "interventions": dict(interventions(gate_spans(log), windows)),
        "of_limit": share_figures(shares_of_limits(log)),
        "plan_ms": percentiles_of(planner, "plan_ms"),
        "frame_to_command_ms": percentiles_of(planner, "frame_to_command_ms"),
        "search": {
            name: count_of(planner, name) for name in ("candidates", "iterations", "steps_down")
        },
        "cycles": count_of(planner, "cycles"),
        "deadline_misses": count_of(planner, "deadline_misses"),
        "control_hz": _control_rate(log, windows),
        "frames_published": count_of(run.values.get("sim_robot", {}), "frames_published"),
        "frames_received": count_of(run.values.get("world_model", {}), "frames_received"),
        **provenance(run.out, run.bundle, run.backend, run.values, run.wall_s),
        "episode_list": [
            asdict(episode) | {"outcome": episode.outcome, "goal": list(episode.goal)}
            for episode in episodes
        ],
    }


def search_size(summary: dict[str, Any]) -> str:
    """Return how large the last search was, candidates x iterations."""
    search = summary["search"]
    return f"{search['candidates']} x {search['iterations']}"


def _control_rate(log: RunLog, windows: list[tuple[int, int]]) -> float:
    """Return the mean rate of the planner's commands while it had a goal and moved, in Hz."""
    gaps = [
        np.diff(log.commanded[(log.commanded >= low) & (log.commanded <= high)]) / NS
        for low, high in windows
    ]
    together = np.concatenate(gaps) if gaps else np.zeros(0)
    moving = together[together < 0.5]  # longer: the planner held for a while
    return float(1.0 / moving.mean()) if moving.size else float("nan")


def moments(run: DemoRun, log: RunLog) -> list[Moment]:
    """Ask the model, afterwards, about moments of each episode."""
    model = WorldModel(run.bundle, load_engine(run.bundle, run.backend))
    rates = run.bundle.profile.model
    ahead_ns = round(rates.horizon_steps * rates.step_s * NS)
    # What follows a moment must lie in its episode: after it, the scene is another.
    at = [
        episode.start_ns + round(after * NS)
        for episode in run.episodes
        for after in LOOK_BACK_S
        if episode.start_ns + round(after * NS) + ahead_ns <= episode.end_ns
    ]
    return look_back(log, model, at)


def latencies(log: RunLog) -> dict[str, NDArray[np.float64]]:
    """Return samples of durations in ms, from the verdicts that carry them."""
    names = {"plan_ms": "plan", "frame_to_command_ms": "frame to command"}
    found = {}
    for channel, name in names.items():
        series = log.verdicts.get(channel)
        if series is not None:
            values = series.values[:, 0]
            found[name] = values[np.isfinite(values)]
    return found


def finish(run: DemoRun) -> dict[str, Any]:
    """Read the bag, write ``summary.json`` and ``report.html``; return the summary.

    Raises:
        WmError: the bag cannot be read, or a result not be written.
    """
    log = read_run(run.out / "bag", run.bundle.profile)
    summary = summarise(run, log)
    write_json(run.out / "summary.json", summary)
    seen = moments(run, log)
    profile = run.bundle.profile
    write_report(
        run.out / "report.html",
        ReportData(
            title="wm demo: a robot that foresees",
            subtitle=(
                f"{profile.description} {len(run.episodes)} episodes, goal given as "
                f"{'numbers' if run.goal == 'state' else 'a picture'}."
            ),
            log=log,
            cards=_cards(summary),
            details=_details(run, summary),
            episodes=run.episodes,
            scene=Scene(
                table=_rectangle(TABLE_BOUNDS),
                zone=_rectangle(ZONE_BOUNDS),
                object=("mug_x", "mug_y"),
                tool=("tip_x", "tip_y"),
            ),
            moments=seen,
            scores=score(seen, profile.model.step_s),
            latencies=latencies(log),
            deadline_ms=1e3 / profile.action.rate_hz,
        ),
    )
    return summary


def _rectangle(bounds: Bounds) -> tuple[float, float, float, float]:
    return bounds.x_min, bounds.x_max, bounds.y_min, bounds.y_max


def _cards(summary: dict[str, Any]) -> list[tuple[str, str, str]]:
    low, high = summary["success_wilson95"]
    plan, whole = summary["plan_ms"], summary["frame_to_command_ms"]
    misses, cycles = summary["deadline_misses"], summary["cycles"]
    share = f"{100 * misses / cycles:.1f} % of {cycles} cycles" if cycles else ""
    stepped_in = summary["interventions"]
    return [
        (
            "success",
            f"{summary['successes']} of {summary['episodes']}",
            f"95 % interval {100 * low:.0f} to {100 * high:.0f} %",
        ),
        ("falls", str(summary["falls"]), "mug over the edge"),
        ("zone entries", str(summary["zone_entries"]), "mug in the red area"),
        ("other violations", str(summary["other_violations"]), f"of level {summary['level']}"),
        (
            "interventions",
            str(sum(stepped_in.values())),
            ", ".join(f"{name} {n}" for name, n in stepped_in.items()) or "by the gate",
        ),
        ("plan", _ms(plan["p50"]), f"p99 {_ms(plan['p99'])}"),
        ("search", search_size(summary), "candidates x iterations, at the end"),
        ("frame to command", _ms(whole["p50"]), f"p99 {_ms(whole['p99'])}"),
        ("deadline misses", _text(misses), share),
        (
            "frames received",
            _text(summary["frames_received"]),
            f"of {_text(summary['frames_published'])} published",
        ),
    ]


def _ms(value: float) -> str:
    return f"{value:.0f} ms" if np.isfinite(value) else "-"


def _hz(value: float) -> str:
    return f"{value:.2f} Hz" if np.isfinite(value) else "-"


def _text(value: int | None) -> str:
    return "-" if value is None else str(value)


def _details(run: DemoRun, summary: dict[str, Any]) -> list[tuple[str, str]]:
    started = datetime.fromtimestamp(run.started_s).astimezone()
    return [
        ("robot", f"{summary['robot']}, simulated; nothing of this has run on hardware"),
        ("bundle", f"{run.bundle.path} ({summary['bundle_sha256']})"),
        ("engine", summary["backend"]),
        ("seed", str(run.seed)),
        ("control rate", _hz(summary["control_hz"])),
        ("wall time", f"{summary['wall_s']:.0f} s, from start to stop of all processes"),
        ("machine", summary["machine"]),
        ("versions", f"wm_node {summary['wm_node']}, Python {summary['python']}"),
        ("started", started.isoformat(timespec="seconds")),
        ("bag", summary["bag"]),
    ]
