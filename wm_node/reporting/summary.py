"""Figures of a run: what ``summary.json`` holds and what the report shows."""

from __future__ import annotations

import math
import sys
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from wm_node import __version__
from wm_node.bundle import Bundle
from wm_node.machine import machine_name
from wm_node.reporting.run_log import NS, RunLog, Series
from wm_node.safety.reasons import ORDINARY
from wm_node.statistics import quantiles

# What the planner limits, and the channel of its verdict that has it as a share of the limit.
LIMITED = {"surprise": "surprise_now", "uncertainty": "uncertainty"}
# Reasons for which the gate holds although nothing is wrong.
BENIGN = frozenset(reason.name for reason in ORDINARY)


@dataclass(frozen=True)
class Episode:
    """One episode of the demo, scored with the ground truth. Distances in m, times in ns."""

    number: int
    seed: int
    goal: tuple[float, float]
    start_ns: int
    end_ns: int
    success: bool
    fell: bool
    zone: bool
    ticks: int
    start_distance: float
    final_distance: float
    least_distance: float
    reason: str = ""
    """Which rule was broken; empty: none."""

    @property
    def outcome(self) -> str:
        """One or two words."""
        if self.success:
            return "success"
        if self.fell:
            return "fell"
        if self.zone:
            return "zone entered"
        return self.reason or "not reached"


@dataclass(frozen=True)
class GateSpan:
    """A stretch of time in which the gate's state and reason stayed the same."""

    start_ns: int
    end_ns: int
    state: str
    reason: str


def gate_spans(log: RunLog) -> list[GateSpan]:
    """Return what the gate did over the run, from its status at each change."""
    changes = sorted(log.gate, key=lambda status: status.stamp_ns)
    ends = [*(status.stamp_ns for status in changes[1:]), log.end_ns][: len(changes)]
    spans: list[GateSpan] = []
    for status, end_ns in zip(changes, ends, strict=True):
        state, _, reason = status.message.partition(" ")
        last = spans[-1] if spans else None
        if last is not None and (last.state, last.reason) == (state, reason):
            spans[-1] = GateSpan(last.start_ns, end_ns, state, reason)
        else:
            spans.append(GateSpan(status.stamp_ns, end_ns, state, reason))
    return spans


def interventions(
    spans: Sequence[GateSpan], windows: Sequence[tuple[int, int]] | None
) -> Counter[str]:
    """Count how often the gate stepped in, by reason.

    Args:
        spans: of the gate.
        windows: only spans that begin inside one of these (start, end) times count; None: all.
    """
    found: Counter[str] = Counter()
    for span in spans:
        if span.reason in BENIGN:
            continue
        if windows is None or any(low <= span.start_ns <= high for low, high in windows):
            found[span.reason] += 1
    return found


def number(values: dict[str, str], key: str) -> float:
    """Return one diagnostic value as a number, NaN where absent."""
    try:
        return float(values[key])
    except (KeyError, ValueError):
        return float("nan")


def count_of(values: dict[str, str], key: str) -> int | None:
    """Return one diagnostic value as a count, None where absent."""
    found = number(values, key)
    return int(found) if math.isfinite(found) else None


def percentiles_of(values: dict[str, str], key: str) -> dict[str, float]:
    """Return ``p50`` and ``p99`` of a duration that diagnostics give as ``<key>_p50``."""
    return {name: number(values, f"{key}_{name}") for name in ("p50", "p99")}


def seconds_by_reason(spans: Sequence[GateSpan]) -> list[tuple[str, str, float]]:
    """Return (state, reason, seconds), longest first."""
    total: Counter[tuple[str, str]] = Counter()
    for span in spans:
        total[(span.state, span.reason)] += span.end_ns - span.start_ns
    return [(state, reason, ns / NS) for (state, reason), ns in total.most_common()]


def shares_of_limits(log: RunLog) -> dict[str, Series]:
    """Return surprise and uncertainty of each cycle, (N, 1) shares of the planner's limits."""
    shares = {}
    for name, channel in LIMITED.items():
        series = log.verdicts.get(channel)
        if series is not None and (known := np.isfinite(series.values[:, 0])).any():
            shares[name] = Series(series.stamps[known], series.values[known])
    return shares


def share_figures(shares: dict[str, Series]) -> dict[str, dict[str, float]]:
    """Return p50, p99 and maximum of each share: what a limit is chosen by."""
    return {name: quantiles(series.values) for name, series in shares.items()}


def provenance(
    out: Path, bundle: Bundle, backend: str, values: dict[str, dict[str, str]], wall_s: float
) -> dict[str, Any]:
    """Return what every ``summary.json`` ends with: the model, the results, time, machine.

    Args:
        out: folder of the run.
        bundle: the model.
        backend: the engine that was asked for; the world model's own word wins.
        values: last diagnostic values by node.
        wall_s: duration of the run in s.
    """
    return {
        "backend": values.get("world_model", {}).get("backend", backend),
        "bundle_sha256": bundle.sha256,
        "bag": str(out / "bag"),
        "report": str(out / "report.html"),
        "wall_s": round(wall_s, 2),
        "wm_node": __version__,
        "python": sys.version.split()[0],
        "machine": machine_name(),
    }
