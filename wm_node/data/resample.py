"""Recorded or live streams onto ticks: the rules, in one place, as pure functions.

The same functions serve ``wm ingest`` and the live nodes, so that what the model was trained on is
what it is given. Stamps are int64 nanoseconds and strictly increasing; intervals are half-open.

**Which action acted in an interval** (:func:`tick_actions`). A command stamped ``s`` for a channel
with delay ``d`` takes effect at ``s + d``.

* ``twist`` and ``joint_velocity``: the command is held until the next one, or until the driver's
  own timeout has passed, after which the driver brakes and the value is zero; before the first
  command it is zero. The action of a tick is the time-weighted mean over [t, t + tick).
* ``joint_position``: a position stays in force until the next command. The action of a tick is the
  command in force at the interval's end, that is the last one that took effect before it, because
  that is where the joint is heading when the next state is seen. The last ``END_GUARD`` of the
  interval does not count: a command for the next tick, early by rounding or jitter, must not take
  the place of this one. Before the first command there is no action (NaN).
"""

from __future__ import annotations

from typing import Literal

import numpy as np
from numpy.typing import NDArray

Stamps = NDArray[np.int64]
Floats = NDArray[np.float64]

ActionKind = Literal["twist", "joint_velocity", "joint_position"]

NS = 1_000_000_000
END_GUARD = 0.05  # of a tick
NO_LABEL = 255  # event value where nothing is known


def to_ns(seconds: float) -> int:
    """Seconds to whole nanoseconds."""
    return round(seconds * NS)


def tick_stamps(start_ns: int, tick_rate_hz: float, first: int, count: int) -> Stamps:
    """Return stamps of ticks ``first .. first + count`` of a grid; rounding does not accumulate."""
    steps = np.arange(first, first + count, dtype=np.float64)
    return np.int64(start_ns) + np.rint(steps * (NS / tick_rate_hz)).astype(np.int64)


def frame_skew_ns(tick_rate_hz: float, camera_rate_hz: float) -> int:
    """Largest distance of a frame from its tick: half a camera period or a quarter of a tick."""
    # One per cent more, because real cameras run a little slower than they say.
    return round(1.01 * max(0.5 / camera_rate_hz, 0.25 / tick_rate_hz) * NS)


def nearest(stamps: Stamps, at: Stamps, max_skew_ns: int) -> NDArray[np.int64]:
    """Find the sample nearest to each time; on a tie the earlier one.

    Args:
        stamps: (N,) increasing.
        at: (K,) wanted times.
        max_skew_ns: a sample further away does not count.

    Returns:
        (K,) indices into ``stamps``, -1 where none is near enough.
    """
    if stamps.size == 0:
        return np.full(at.shape, -1, dtype=np.int64)
    right = np.searchsorted(stamps, at, side="left")
    left = np.clip(right - 1, 0, stamps.size - 1)
    right = np.clip(right, 0, stamps.size - 1)
    to_left, to_right = np.abs(at - stamps[left]), np.abs(stamps[right] - at)
    index = np.where(to_left <= to_right, left, right)
    skew = np.minimum(to_left, to_right)
    return np.where(skew <= max_skew_ns, index, -1).astype(np.int64)


def interpolate(
    stamps: Stamps, values: Floats, at: Stamps, max_gap_ns: int, edge_ns: int = 0
) -> tuple[Floats, NDArray[np.bool_]]:
    """Interpolate linearly between the two samples around each time.

    Args:
        stamps: (N,) increasing.
        values: (N, D).
        at: (K,) wanted times.
        max_gap_ns: neighbours further apart than this are a gap, in which nothing is known.
        edge_ns: the first and last sample also hold this long before and after themselves.

    Returns:
        values (K, D), NaN where unknown, and known (K,).
    """
    out = np.full((at.size, values.shape[1]), np.nan)
    if stamps.size == 0:
        return out, np.zeros(at.size, dtype=np.bool_)
    right = np.searchsorted(stamps, at, side="right")
    left = np.clip(right - 1, 0, stamps.size - 1)
    right = np.clip(right, 0, stamps.size - 1)
    gap = stamps[right] - stamps[left]
    inside = (at >= stamps[0]) & (at <= stamps[-1])
    known = inside & ((gap <= max_gap_ns) | (at == stamps[left]))
    known |= ~inside & (np.minimum(np.abs(at - stamps[0]), np.abs(at - stamps[-1])) <= edge_ns)
    share = np.where(gap > 0, np.clip((at - stamps[left]) / np.maximum(gap, 1), 0.0, 1.0), 0.0)
    low, high = values[left[known]], values[right[known]]
    out[known] = low + share[known, None] * (high - low)
    return out, known


def held(stamps: Stamps, values: Floats, before: Stamps) -> Floats:
    """Return the last value stamped strictly before each time (K, D); NaN where there is none."""
    index = np.searchsorted(stamps, before, side="left") - 1
    out = np.full((before.size, values.shape[1]), np.nan)
    out[index >= 0] = values[index[index >= 0]]
    return out


def held_mean(
    stamps: Stamps, values: Floats, start: Stamps, end: Stamps, timeout_ns: int | None
) -> Floats:
    """Average a held command over intervals, weighted by time.

    Args:
        stamps: (N,) increasing times at which each command took effect.
        values: (N, D).
        start: (K,) beginnings of the intervals.
        end: (K,) their ends, later than ``start``.
        timeout_ns: a command counts as zero this long after its stamp; None: it holds for ever.

    Returns:
        (K, D); zero where no command was in force.
    """
    if stamps.size == 0:
        return np.zeros((start.size, values.shape[1]))
    limit = np.iinfo(np.int64).max if timeout_ns is None else timeout_ns
    lasted = np.minimum(np.diff(stamps), limit).astype(np.float64)
    integral = np.zeros(values.shape)
    np.cumsum(values[:-1] * lasted[:, None], axis=0, out=integral[1:])

    def until(at: Stamps) -> Floats:
        index = np.searchsorted(stamps, at, side="right") - 1
        base = np.clip(index, 0, None)
        since = np.minimum(at - stamps[base], limit).astype(np.float64)
        total = integral[base] + values[base] * since[:, None]
        return np.asarray(np.where(index[:, None] >= 0, total, 0.0))

    return np.asarray((until(end) - until(start)) / (end - start).astype(np.float64)[:, None])


def tick_actions(
    kind: ActionKind,
    stamps: Stamps,
    values: Floats,
    ticks: Stamps,
    tick_ns: int,
    delay_ns: NDArray[np.int64],
    timeout_ns: int | None,
) -> Floats:
    """Return the action that acted in each interval [tick, tick + tick_ns); see the module's text.

    Args:
        kind: the profile's ``action.kind``.
        stamps: (N,) increasing stamps of the commands.
        values: (N, A) commands.
        ticks: (K,) beginnings of the intervals, increasing.
        tick_ns: length of an interval.
        delay_ns: (A,) time from a command's stamp to its effect.
        timeout_ns: the driver's own command timeout, None if it has none.

    Returns:
        (K, A); NaN where a position has not been commanded yet.
    """
    out = np.zeros((ticks.size, values.shape[1]))
    if ticks.size == 0:
        return out
    # Only the commands that can matter: ticks come in blocks, and a recording may be long.
    first = np.searchsorted(stamps, ticks[0] - delay_ns.max(initial=0), side="left") - 1
    stop = np.searchsorted(stamps, ticks[-1] + tick_ns - delay_ns.min(initial=0), side="right")
    near = slice(max(int(first), 0), int(stop))
    stamps, values = stamps[near], np.asarray(values[near], dtype=np.float64)
    guard = 0 if kind != "joint_position" else round(END_GUARD * tick_ns)
    for channel, delay in enumerate(delay_ns):
        column = values[:, channel : channel + 1]
        start = ticks - delay
        if kind == "joint_position":
            out[:, channel] = held(stamps, column, start + tick_ns - guard)[:, 0]
        else:
            out[:, channel] = held_mean(stamps, column, start, start + tick_ns, timeout_ns)[:, 0]
    return out


def event_flags(
    stamps: Stamps, active: NDArray[np.bool_], start: Stamps, end: Stamps
) -> NDArray[np.uint8]:
    """Tell whether an event was active at any time in each interval [start, end).

    An event's state holds from one message to the next.

    Args:
        stamps: (N,) increasing.
        active: (N,) state from each message on.
        start: (K,).
        end: (K,).

    Returns:
        (K,) 1 or 0, and 255 for intervals that end before anything was said.
    """
    low = np.searchsorted(stamps, start, side="right")  # messages up to and at the start
    high = np.searchsorted(stamps, end, side="left")
    total = np.concatenate([[0], np.cumsum(active, dtype=np.int64)])
    any_inside = total[np.maximum(high, low)] > total[low]
    at_start = np.zeros(start.shape, dtype=np.bool_)
    at_start[low > 0] = active[low[low > 0] - 1]
    flags = (any_inside | at_start).astype(np.uint8)
    flags[high == 0] = NO_LABEL
    return flags
