"""Turns what a replayed bag left behind into ``summary.json`` and ``report.html``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wm_node import __version__
from wm_node.bundle import Bundle
from wm_node.engine import load_engine
from wm_node.json_file import write_json
from wm_node.planning.world_model import WorldModel
from wm_node.profile import RobotProfile
from wm_node.reporting.demo import latencies
from wm_node.reporting.hindsight import Moment, StepScores, look_back, score
from wm_node.reporting.report import ReportData, joint_unit, write_report
from wm_node.reporting.run_log import NS, RunLog, read_run
from wm_node.reporting.summary import (
    count_of,
    percentiles_of,
    provenance,
    share_figures,
    shares_of_limits,
)

MOST_MOMENTS = 240  # bounds the memory for frames
LEAST_SPACING_S = 0.4


@dataclass(frozen=True)
class ReplayRun:
    """What the command knows when all processes have stopped.

    Attributes:
        out: folder that holds ``bag/`` and gets the results.
        source: the bag that was played.
        profile: the robot, with the topics of that bag.
        played: messages played by topic.
        values: last diagnostic values by node.
    """

    out: Path
    source: Path
    bundle: Bundle
    profile: RobotProfile
    backend: str
    rate: float
    played: dict[str, int]
    values: dict[str, dict[str, str]]
    wall_s: float


def finish(run: ReplayRun) -> dict[str, Any]:
    """Read the recorded bag, write ``summary.json`` and ``report.html``; return the summary.

    Raises:
        WmError: the bag cannot be read, or a result not be written.
    """
    log = read_run(run.out / "bag", run.profile)
    moments = _moments(run, log)
    scores = score(moments, run.profile.model.step_s)
    summary = _summary(run, log, scores)
    write_json(run.out / "summary.json", summary)
    profile = run.profile
    write_report(
        run.out / "report.html",
        ReportData(
            title=f"wm replay: {run.source.name}",
            subtitle=profile.description,
            log=log,
            cards=_cards(summary, scores, profile),
            details=[
                ("bag played", f"{run.source}, at {run.rate:g} times its speed"),
                ("bag recorded", summary["bag"]),
                ("bundle", f"{run.bundle.path} ({run.bundle.sha256})"),
                ("engine", summary["backend"]),
                ("machine", summary["machine"]),
                ("versions", f"wm_node {__version__}, Python {summary['python']}"),
            ],
            shadow=True,
            moments=moments,
            scores=scores,
            latencies=latencies(log),
            deadline_ms=1e3 / profile.action.rate_hz,
        ),
    )
    return summary


def _moments(run: ReplayRun, log: RunLog) -> list[Moment]:
    """Ask the model about moments that are spread over the whole recording."""
    stamps = log.frames.get(run.profile.cameras[0].name, np.zeros(0, dtype=np.int64))
    if stamps.size == 0:
        return []
    span_s = (int(stamps[-1]) - int(stamps[0])) / NS
    count = int(np.clip(span_s / LEAST_SPACING_S, 1, MOST_MOMENTS))
    at = np.linspace(stamps[0], stamps[-1], count).astype(np.int64)
    model = WorldModel(run.bundle, load_engine(run.bundle, run.backend))
    return look_back(log, model, at.tolist())


def _summary(run: ReplayRun, log: RunLog, scores: StepScores | None) -> dict[str, Any]:
    world = run.values.get("world_model", {})
    prediction = None
    if scores is not None:
        prediction = {
            "moments": scores.moments,
            "joint_unit": run.profile.joints.unit_text,
            "seconds": [round(float(s), 4) for s in scores.seconds],
            "joint_rmse": scores.joint_rmse.tolist(),
            "joint_rmse_hold": scores.joint_rmse_hold.tolist(),
            "psnr": scores.psnr.tolist(),
            "psnr_copy": scores.psnr_copy.tolist(),
        }
    return {
        "robot": run.profile.name,
        "simulated": run.profile.simulated,
        "played": str(run.source),
        "rate": run.rate,
        "seconds": round(log.duration_s, 3),
        "frames_played": run.played.get(run.profile.cameras[0].topic, 0),
        "frames_received": count_of(world, "frames_received"),
        "outcomes": int(next((s.stamps.size for s in log.foreseen.values()), 0)),
        "encode_ms": percentiles_of(world, "encode_ms"),
        "of_limit": share_figures(shares_of_limits(log)),
        "prediction": prediction,
        **provenance(run.out, run.bundle, run.backend, run.values, run.wall_s),
    }


def _cards(
    summary: dict[str, Any], scores: StepScores | None, profile: RobotProfile
) -> list[tuple[str, str, str]]:
    cards = [
        (
            "frames received",
            str(summary["frames_received"]),
            f"of {summary['frames_played']} played",
        ),
        ("outcomes", str(summary["outcomes"]), "predictions published"),
    ]
    if scores is None:
        return cards
    ahead = f"{scores.seconds[-1]:.2g} s ahead"
    return [
        *cards,
        (
            "joint RMSE",
            f"{scores.joint_rmse[-1]:.3f} {joint_unit(profile)}",
            f"{ahead}; hold last: {scores.joint_rmse_hold[-1]:.3f}",
        ),
        (
            "picture",
            f"{scores.psnr[-1]:.1f} dB",
            f"{ahead}; copy last: {scores.psnr_copy[-1]:.1f} dB",
        ),
    ]
