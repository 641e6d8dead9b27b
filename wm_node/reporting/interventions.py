"""What the gate did when it stepped in: why, what was foreseen, and what then really happened."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

from wm_node.reporting.run_log import NS, RunLog
from wm_node.reporting.summary import BENIGN, GateSpan

AFTER_S = 2.0
"""What happens within this time after the gate stepped in is what it led to."""
RISK = "risk_"


@dataclass(frozen=True)
class Intervention:
    """One stretch of time with one reason that is not ordinary.

    Attributes:
        start_ns, end_ns: when.
        states: what the gate did in turn, such as BRAKE and HOLD.
        reason: its name.
        detail: the figures behind it.
        foreseen: event -> risk of the last command before the gate stepped in.
        happened: event -> whether it happened from then until ``AFTER_S`` after the end; events
            that were not recorded are missing.
    """

    start_ns: int
    end_ns: int
    states: tuple[str, ...]
    reason: str
    detail: str
    foreseen: dict[str, float]
    happened: dict[str, bool]

    @property
    def seconds(self) -> float:
        """How long it lasted."""
        return (self.end_ns - self.start_ns) / NS


def find_interventions(log: RunLog, spans: Sequence[GateSpan]) -> list[Intervention]:
    """Join the gate's spans of one reason, and look up what the bag knows of each.

    Args:
        log: of the run.
        spans: of :func:`wm_node.reporting.summary.gate_spans`.
    """
    found: list[Intervention] = []
    group: list[GateSpan] = []
    for span in [*spans, None]:
        if group and (span is None or span.reason != group[0].reason):
            found.append(_intervention(log, group))
            group = []
        if span is not None and span.reason not in BENIGN:
            group.append(span)
    return found


def _intervention(log: RunLog, group: Sequence[GateSpan]) -> Intervention:
    start_ns, end_ns = group[0].start_ns, group[-1].end_ns
    states = [span.state for span in group]
    in_turn = [state for k, state in enumerate(states) if k == 0 or state != states[k - 1]]
    told = [status for status in log.gate if start_ns <= status.stamp_ns < end_ns]
    return Intervention(
        start_ns=start_ns,
        end_ns=end_ns,
        states=tuple(in_turn),
        reason=group[0].reason,
        detail=next((s.values["detail"] for s in told if s.values.get("detail")), ""),
        foreseen=_foreseen(log, start_ns),
        happened=_happened(log, start_ns, end_ns + round(AFTER_S * NS)),
    )


def _foreseen(log: RunLog, at_ns: int) -> dict[str, float]:
    """Risk by event of the last verdict up to a time, or of going on as now where there is none."""
    found = {}
    for name, series in (log.verdicts or log.foreseen).items():
        if not name.startswith(RISK):
            continue
        last = int(np.searchsorted(series.stamps, at_ns, side="right")) - 1
        if last >= 0 and np.isfinite(series.values[last, 0]):
            found[name.removeprefix(RISK)] = float(series.values[last, 0])
    return found


def _happened(log: RunLog, start_ns: int, end_ns: int) -> dict[str, bool]:
    return {
        name: bool((part.values > 0.5).any())
        for name, series in log.events.items()
        if (part := series.between(start_ns, end_ns)).stamps.size
    }
