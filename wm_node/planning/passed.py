"""Which commands passed the gate but for its ramp, and so count in a context as they were planned.

The gate, and a robot's own driver, lead a velocity to what is commanded at a bounded acceleration.
What is read back are ramps, while a model that was trained on what was commanded knows steps, and
plans in steps. So a tick in which the readback is what the plan must have become counts as planned;
any other, a brake or a limit, counts as it was read back.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wm_node.data.resample import NS, ActionKind, Stamps, tick_actions

PARTS = 20
"""Of a tick, in which its ramp is followed."""
LAG_S = 0.03
"""By which the readback may trail: the gate's period, and the way of a message."""
ROUGHNESS = 0.01
"""Deviation that is never a matter, in shares of the action's range."""

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Ramp:
    """How velocities are led to what is commanded.

    Attributes:
        kind: of the action.
        acceleration: (A,) greatest change a second.
        reach: (A,) upper minus lower limit of the action.
        delay_ns: (A,) from a command's stamp to its effect.
        timeout_ns: the driver brakes this long after a command; None: it holds the last one.
    """

    kind: ActionKind
    acceleration: Doubles
    reach: Doubles
    delay_ns: NDArray[np.int64]
    timeout_ns: int | None


def as_planned(
    read: Doubles,
    ticks: Stamps,
    tick_ns: int,
    readback: tuple[Stamps, Doubles],
    planned: tuple[Stamps, Doubles],
    ramp: Ramp,
) -> Doubles:
    """Return what acted in each tick (K, A): as planned where that explains what was read back.

    Args:
        read: (K, A) means of the readback over the ticks.
        ticks: (K,) beginnings of the ticks.
        tick_ns: length of a tick.
        readback: stamps (N,) and values (N, A).
        planned: stamps (M,) from which commands (M, A) are in force, one at least.
        ramp: how one leads to the other.
    """
    if not len(readback[0]):
        return read
    steps = tick_actions(ramp.kind, *planned, ticks, tick_ns, ramp.delay_ns, ramp.timeout_ns)
    part_ns = tick_ns // PARTS
    grid = ticks[:, None] + part_ns * np.arange(PARTS, dtype=np.int64)  # (K, PARTS)
    most = ramp.acceleration * part_ns / NS
    out = read.copy()
    for channel, delay in enumerate(ramp.delay_ns):
        at = (grid - delay).ravel() + 1  # what is stamped at a time is in force from then on
        target = _in_force(planned, channel, at, ramp.timeout_ns).reshape(grid.shape)
        value = _in_force(readback, channel, at[::PARTS], ramp.timeout_ns)
        change = np.abs(target - value[:, None]).max(axis=1)
        mean = np.zeros(len(ticks))
        for part in range(PARTS):
            value = value + np.clip(target[:, part] - value, -most[channel], most[channel])
            mean += value / PARTS
        allowed = ROUGHNESS * ramp.reach[channel] + change * min(1.0, LAG_S * NS / tick_ns)
        explained = np.abs(mean - out[:, channel]) <= allowed
        known = ticks - delay >= planned[0][0]
        out[:, channel] = np.where(explained & known, steps[:, channel], out[:, channel])
    return out


def _in_force(
    commands: tuple[Stamps, Doubles], channel: int, at: Stamps, timeout_ns: int | None
) -> Doubles:
    """Value of the command in force just before each time; zero without one, or an expired one."""
    stamps, values = commands
    index = np.searchsorted(stamps, at, side="left") - 1
    last = np.maximum(index, 0)
    none = index < 0
    if timeout_ns is not None:
        none |= at - stamps[last] > timeout_ns
    return np.where(none, 0.0, values[last, channel])
