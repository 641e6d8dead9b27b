"""Scores of planners on the simulated task suite, with Wilson intervals."""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np

from wm_node.bundle import load_bundle
from wm_node.errors import WmError
from wm_node.profile import RobotProfile, load_profile
from wm_node.safety.gate import GateConfig
from wm_node.sim.levels import find_played_level
from wm_node.sim.seeds import EVALUATION_SEED, VALIDATION_SEED, evaluation_seeds
from wm_node.sim.strips import Trace, write_strips
from wm_node.sim.suite import REFERENCE_POLICIES, PolicyFactory, reference_policy, run_suite
from wm_node.sim.task import TOLERANCE_M, EpisodeScore
from wm_node.statistics import wilson95
from wm_node.training.policies import CloningPolicy, MpcPolicy, OraclePolicy, PlanSettings

GATED = "mpc"
"""The planner that tells the gate what it foresees."""
WITH_BUNDLE = {GATED: MpcPolicy, "cloning": CloningPolicy}
PLANNERS = (*WITH_BUNDLE, "oracle", *REFERENCE_POLICIES)


def policy_factory(
    planner: str,
    goal: str,
    bundle: Path | None,
    backend: str,
    settings: PlanSettings,
) -> PolicyFactory:
    """Return what builds the policy in each worker.

    Raises:
        WmError: unknown planner, or one that needs a bundle without one.
    """
    if planner in REFERENCE_POLICIES:
        return reference_policy(planner)
    if planner == "oracle":
        profile: RobotProfile = load_bundle(bundle).profile if bundle else load_profile("tabletop")
        return partial(OraclePolicy, profile, settings)
    if planner not in WITH_BUNDLE:
        raise WmError(f"unknown planner '{planner}'; use one of {', '.join(PLANNERS)}.")
    if bundle is None:
        raise WmError(f"planner '{planner}' needs a --bundle.")
    load_bundle(bundle)
    return partial(WITH_BUNDLE[planner], str(bundle), backend, goal, settings)


def check_planners(
    planners: Sequence[str],
    level: str,
    goal: str,
    bundle: Path | None,
    backend: str,
    settings: PlanSettings,
) -> None:
    """Refuse what cannot run before anything runs.

    Raises:
        WmError: an unknown planner or level, or one that needs a bundle without one.
    """
    find_played_level(level)
    for planner in planners:
        policy_factory(planner, goal, bundle, backend, settings)


def summarise(scores: Sequence[EpisodeScore]) -> dict[str, Any]:
    """Return counts, the Wilson interval of success, and planning times in ms.

    Falls and zone entries are violations too, beside the breaches of the level's own rules.
    """
    count = len(scores)
    successes = sum(score.success for score in scores)
    times = np.concatenate([np.asarray(score.act_ms) for score in scores])
    low, high = wilson95(successes, count)
    return {
        "episodes": count,
        "successes": successes,
        "success": successes / count,
        "success_wilson95": [round(low, 4), round(high, 4)],
        "falls": sum(score.fell for score in scores),
        "zone_entries": sum(score.zone for score in scores),
        "violations": sum(score.violation for score in scores),
        "violation_reasons": dict(
            sorted(Counter(score.reason for score in scores if score.reason).items())
        ),
        "gate_stops": _stops(scores),
        "ticks_mean": round(float(np.mean([score.ticks for score in scores])), 2),
        "final_distance_cm": round(
            float(np.mean([score.final_distance for score in scores])) * 100, 2
        ),
        **_misread(scores),
        "plan_ms": {
            "p50": round(float(np.percentile(times, 50)), 2),
            "p99": round(float(np.percentile(times, 99)), 2),
        },
    }


def _misread(scores: Sequence[EpisodeScore]) -> dict[str, dict[str, float]]:
    """How far off places were read, for policies that read any: medians over episodes, and more."""
    figures = {}
    for name, values in (
        ("mug_misread", [score.mug_misread for score in scores]),
        ("goal_misread", [score.goal_misread for score in scores]),
    ):
        known = np.array([value for value in values if value is not None])
        if len(known):
            figures[name] = {
                "median_cm": round(100 * float(np.median(known)), 2),
                "beyond_tolerance": int((known > TOLERANCE_M).sum()),
            }
    return figures


def _stops(scores: Sequence[EpisodeScore]) -> dict[str, float]:
    """Mean seconds an episode in which the gate let no command pass, by reason."""
    total: Counter[str] = Counter()
    for score in scores:
        total.update(dict(score.stops))
    seconds = {name: GateConfig.period_s * steps / len(scores) for name, steps in total.items()}
    return {name: round(value, 3) for name, value in sorted(seconds.items())}


def episode_figures(score: EpisodeScore) -> dict[str, Any]:
    """Return one episode for JSON, so that runs of the same seed can be compared in pairs."""
    return {
        "seed": score.seed,
        "success": score.success,
        "reason": score.reason,
        "ticks": score.ticks,
        "final_distance_cm": round(100 * score.final_distance, 2),
        "least_distance_cm": round(100 * score.least_distance, 2),
        "mug_misread_cm": _cm(score.mug_misread),
        "goal_misread_cm": _cm(score.goal_misread),
    }


def _cm(distance: float | None) -> float | None:
    return None if distance is None else round(100 * distance, 2)


def evaluate_suite(
    planner: str,
    goal: str = "state",
    bundle: Path | None = None,
    backend: str = "openvino",
    episodes: int = 200,
    seed: int = 0,
    first_seed: int = EVALUATION_SEED,
    workers: int = 2,
    settings: PlanSettings | None = None,
    on_score: Callable[[EpisodeScore], None] | None = None,
    level: str = "basic",
    pictures: Path | None = None,
) -> dict[str, Any]:
    """Run a planner on a level of the suite and return its figures.

    With ``pictures``, a folder, strips of the first successes and of every failure are written.
    """
    settings = settings or PlanSettings()
    factory = policy_factory(planner, goal, bundle, backend, settings)
    gated = settings.safety == "full" and planner == GATED
    seeds = evaluation_seeds(seed, episodes, first_seed)
    traced: list[tuple[EpisodeScore, Trace]] = []
    scores = run_suite(
        factory,
        seeds,
        workers,
        latency_s=settings.latency_s,
        on_score=on_score,
        level=level,
        on_trace=None if pictures is None else lambda *episode: traced.append(episode),
        profile=load_bundle(bundle).profile if gated and bundle else None,
    )
    figures = {
        "planner": planner,
        "goal": goal,
        "seed": seed,
        "level": level,
        "safety": settings.safety if planner == GATED else None,
        "bundle_sha256": load_bundle(bundle).sha256 if bundle and planner in WITH_BUNDLE else None,
        **summarise(scores),
        "episode_list": [episode_figures(score) for score in scores],
    }
    if pictures is not None:
        figures["pictures"] = len(write_strips(pictures, level, planner, traced))
    return figures


def planning_score(
    episodes: int, workers: int, backend: str, levels: Sequence[str] = ("basic",)
) -> Callable[[Path], dict[str, float]]:
    """Return the function that scores a checkpoint during training, on validation seeds.

    Args:
        episodes: in all, spread evenly over the levels.
        workers: processes.
        backend: of the engine.
        levels: of the suite.

    Raises:
        WmError: an unknown level, or fewer episodes than levels.
    """
    for level in levels:
        find_played_level(level)
    share = episodes // len(levels)
    if share < 1:
        raise WmError(f"{episodes} planning episodes do not suffice for {len(levels)} levels.")

    def score(bundle: Path) -> dict[str, float]:
        rows = [
            evaluate_suite(
                "mpc",
                "state",
                bundle,
                backend,
                share,
                first_seed=VALIDATION_SEED,
                workers=workers,
                level=level,
            )
            for level in levels
        ]
        count = share * len(levels)
        return {
            "success": sum(row["successes"] for row in rows) / count,
            "falls": sum(row["falls"] for row in rows) / count,
            "violations": sum(row["violations"] for row in rows) / count,
            "final_distance_cm": float(np.mean([row["final_distance_cm"] for row in rows])),
        }

    return score
