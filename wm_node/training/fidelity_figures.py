"""Figures of how faithful imagined futures are; pure functions of what was measured.

``wm_node.training.fidelity`` measures, this module counts. "True" is always the simulator's.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.stats import rankdata

from wm_node.planning.world_model import Floats
from wm_node.training.floors import fit_ridge

MOVED_M = 0.01
"""A mug that truly moved further than this has moved."""
FEWEST = 5
"""Fewer positive cases than this say nothing about a ranking."""
BINS = 10
RESAMPLES = 2000

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Pair:
    """The same quantity as predicted and as it truly comes; two arrays of one shape."""

    predicted: NDArray[np.floating]
    true: NDArray[np.floating]


@dataclass(frozen=True)
class Choice:
    """What the planner chose in one state: its cost and the mug's last distance to the goal."""

    predicted_cost: float
    true_cost: float
    predicted_distance_m: float
    true_distance_m: float


@dataclass(frozen=True)
class Transitions:
    """Pairs of latents one model step apart, and what acted between them."""

    latents: Floats
    """(N, 2 * latent): before, and the change."""
    actions: Floats
    """(N, A): mean over the step's ticks."""


@dataclass(frozen=True)
class StateRecord:
    """What was measured in one state: N sequences of actions, H steps and as many rolled on."""

    seed: int
    behaviour: str
    tick: int
    cost: Pair
    """(N,) all terms that the planner weighs; the true one has no learned terms."""
    shared: Doubles
    """(N,) predicted cost of those terms alone that the true cost has too."""
    distance: Pair
    """(N,) the terms that say how far the goal is."""
    moved: NDArray[np.bool_]
    """(N,) whether the mug truly moved within the horizon."""
    mug: Pair
    """(N, 2 * H, 2) in m; true is NaN where not measured, or where the mug has fallen by then."""
    mug_now: Floats
    """(2,) in m, true."""
    mug_read: Floats
    """(2,) in m, as the model reads it from the present latent; NaN if it cannot."""
    fallen: NDArray[np.int64]
    """(2 * H,) sequences left out of ``mug`` because the mug had fallen."""
    risk: Pair
    """(N, E) by the horizon's end; predicted is NaN where not available, true is 0 or 1."""
    choices: Mapping[float, Choice]
    """By weight of the uncertainty."""
    observed: Transitions
    imagined: Transitions


def spearman(a: NDArray[np.floating], b: NDArray[np.floating]) -> float:
    """Rank correlation of (N,) and (N,); NaN where one of them is constant."""
    ranks = rankdata(a), rankdata(b)
    if any(np.ptp(rank) == 0 for rank in ranks):
        return float("nan")
    return float(np.corrcoef(*ranks)[0, 1])


def auroc(predicted: NDArray[np.floating], happened: NDArray[np.bool_]) -> float | None:
    """Chance that a case that happened was given more risk than one that did not; ties half.

    None with fewer than ``FEWEST`` cases of either kind.
    """
    positives = int(happened.sum())
    negatives = happened.size - positives
    if min(positives, negatives) < FEWEST:
        return None
    above = rankdata(predicted)[happened].sum() - positives * (positives + 1) / 2
    return float(above / (positives * negatives))


def reliability(predicted: NDArray[np.floating], happened: NDArray[np.bool_]) -> dict[str, Any]:
    """Compare predicted risk (N,) with what happened (N,), in bins of equal width.

    Returns:
        ``cases``, ``positives``, ``bins`` (from, to, count, mean predicted, share that happened),
        ``ece``: mean distance of the two weighted by count, ``brier``, ``brier_base_rate``: what
        the share of positives alone would score, and ``auroc``.
    """
    p, y = predicted.astype(np.float64), happened.astype(np.float64)
    at = np.clip((p * BINS).astype(np.int64), 0, BINS - 1)
    bins, ece = [], 0.0
    for number in range(BINS):
        inside = at == number
        count = int(inside.sum())
        mean = float(p[inside].mean()) if count else None
        share = float(y[inside].mean()) if count else None
        if mean is not None and share is not None:
            ece += count / p.size * abs(mean - share)
        low, high = number / BINS, (number + 1) / BINS
        bins.append({"from": low, "to": high, "count": count, "predicted": mean, "true": share})
    return {
        "cases": int(p.size),
        "positives": int(happened.sum()),
        "ece": ece,
        "brier": float(np.mean((p - y) ** 2)),
        "brier_base_rate": float(y.mean() * (1.0 - y.mean())),
        "auroc": auroc(predicted, happened),
        "bins": bins,
    }


def figures_of(
    records: Sequence[StateRecord],
    fitted_on: Transitions,
    groups: NDArray[np.int64],
    event_names: Sequence[str],
    step_s: float,
) -> dict[str, Any]:
    """Count everything.

    Args:
        records: one a state.
        fitted_on: (M, ...) transitions in states of other seeds, and groups: (M,) their states.
        event_names: in the order of the risks.
        step_s: length of a model step.

    Returns:
        Figures as plain data, None where something could not be measured;
        ``docs/training.md`` explains them.
    """
    return {
        "spearman": {
            "cost": _spread([spearman(r.cost.predicted, r.cost.true) for r in records]),
            # Terms that follow from the actions alone are ranked without foresight.
            "goal_where_mug_moved": _spread(
                [
                    spearman(r.distance.predicted[r.moved], r.distance.true[r.moved])
                    for r in records
                    if r.moved.sum() >= FEWEST
                ]
            ),
        },
        "mug_error_cm": {
            "reading_now": _centimetres(
                np.array([np.linalg.norm(r.mug_read - r.mug_now) for r in records])
            ),
            "steps": _mug_errors(records, step_s),
        },
        "risk": {name: _risk(records, number) for number, name in enumerate(event_names)},
        "exploitation": _exploitation(records),
        "action_recovery": _recovery(records, fitted_on, groups),
    }


def _number(value: float) -> float | None:
    """JSON has no NaN."""
    return float(value) if np.isfinite(value) else None


def _interval(values: Doubles, of: Any) -> list[float] | None:
    """Bootstrap a figure over states: its 95 % interval."""
    if values.size < 2:
        return None
    draws = np.random.default_rng(0).integers(0, values.size, (RESAMPLES, values.size))
    return [float(edge) for edge in np.percentile(of(values[draws], axis=1), [2.5, 97.5])]


def _spread(values: Sequence[float]) -> dict[str, Any]:
    known = np.array([value for value in values if np.isfinite(value)], dtype=np.float64)
    if not known.size:
        return {"states": 0, "median": None, "quartiles": None, "median_95": None}
    low, middle, high = np.percentile(known, [25, 50, 75])
    return {
        "states": int(known.size),
        "median": float(middle),
        "quartiles": [float(low), float(high)],
        "median_95": _interval(known, np.median),
    }


def _centimetres(metres: Doubles) -> dict[str, Any] | None:
    if not metres.size or np.isnan(metres).all():
        return None
    at = 100.0 * metres
    return {
        "mean": _number(at.mean()),
        "median": _number(float(np.median(at))),
        "p90": _number(float(np.percentile(at, 90))),
    }


def _mug_errors(records: Sequence[StateRecord], step_s: float) -> list[dict[str, Any]]:
    """One entry a step; those that were not measured hold None."""
    predicted = np.concatenate([r.mug.predicted for r in records])
    true = np.concatenate([r.mug.true for r in records])
    start = np.concatenate([np.repeat(r.mug_now[None], len(r.mug.true), 0) for r in records])
    fallen = np.sum([r.fallen for r in records], axis=0)
    entries = []
    for step in range(true.shape[1]):
        there = np.isfinite(true[:, step]).all(-1)
        error = np.linalg.norm((predicted[:, step] - true[:, step])[there], axis=-1)
        copied = np.linalg.norm((true[:, step] - start)[there], axis=-1)
        moved = copied > MOVED_M
        entries.append(
            {
                "step": step + 1,
                "seconds": round((step + 1) * step_s, 3),
                "sequences": int(there.sum()),
                "fallen_left_out": int(fallen[step]),
                "model": _centimetres(error),
                "copy_last": _centimetres(copied),
                "moved": {
                    "sequences": int(moved.sum()),
                    "model": _centimetres(error[moved]),
                    "copy_last": _centimetres(copied[moved]),
                },
            }
        )
    return entries


def _risk(records: Sequence[StateRecord], event: int) -> dict[str, Any] | None:
    predicted = np.concatenate([r.risk.predicted[:, event] for r in records])
    if np.isnan(predicted).any():
        return None
    happened = [r.risk.true[:, event] > 0.5 for r in records]
    return {
        # Cases of one state are alike: this is how many there are to learn from.
        "positive_states": sum(bool(one.any()) for one in happened),
        **reliability(predicted, np.concatenate(happened)),
    }


def _exploitation(records: Sequence[StateRecord]) -> dict[str, Any]:
    sampled = np.array([np.mean(r.cost.true - r.shared) for r in records])
    weights = list(records[0].choices)
    return {
        # What the model misjudges without anything being chosen for looking good.
        "sampled_gap": _mean(sampled),
        "chosen": [_chosen(weight, [r.choices[weight] for r in records]) for weight in weights],
    }


def _chosen(weight: float, choices: Sequence[Choice]) -> dict[str, Any]:
    predicted = np.array([choice.predicted_cost for choice in choices])
    true = np.array([choice.true_cost for choice in choices])
    expected = np.array([choice.predicted_distance_m for choice in choices])
    reached = np.array([choice.true_distance_m for choice in choices])
    return {
        "uncertainty_weight": weight,
        "predicted_cost": _mean(predicted),
        "true_cost": _mean(true),
        "gap": _mean(true - predicted),
        "predicted_distance_cm": _mean(100.0 * expected),
        "true_distance_cm": _mean(100.0 * reached),
    }


def _mean(values: Doubles) -> dict[str, Any]:
    if not np.isfinite(values).all():
        return {"mean": None, "mean_95": None}
    return {"mean": float(values.mean()), "mean_95": _interval(values, np.mean)}


def _recovery(
    records: Sequence[StateRecord], fitted_on: Transitions, groups: NDArray[np.int64]
) -> dict[str, Any] | None:
    if not fitted_on.latents.size or len(np.unique(groups)) < 2:
        return None
    ridge = fit_ridge(
        fitted_on.latents.astype(np.float64), fitted_on.actions.astype(np.float64), groups
    )
    scores: dict[str, Any] = {"fitted_on": len(groups)}
    for name in ("observed", "imagined"):
        parts: list[Transitions] = [getattr(record, name) for record in records]
        actions = np.concatenate([part.actions for part in parts]).astype(np.float64)
        latents = np.concatenate([part.latents for part in parts]).astype(np.float64)
        scores[f"{name}_r2"] = _number(r_squared(ridge.predict(latents), actions))
        scores["transitions"] = len(actions)
    return scores


def r_squared(predicted: Doubles, true: Doubles) -> float:
    """Share of the variance of (N, A) that is explained, over all columns together."""
    missed = float(np.sum((predicted - true) ** 2))
    return 1.0 - missed / float(np.sum((true - true.mean(0)) ** 2))
