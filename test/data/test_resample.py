"""The rules that put streams onto ticks, against brute force and as properties."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wm_node.data.resample import (
    NO_LABEL,
    event_flags,
    frame_skew_ns,
    held,
    held_mean,
    interpolate,
    nearest,
    tick_actions,
    tick_stamps,
)

TICK = 100
stamp_lists = st.lists(st.integers(0, 2000), min_size=1, max_size=20, unique=True).map(sorted)
times = st.lists(st.integers(-100, 2100), min_size=1, max_size=20).map(sorted)


def ints(values: list[int]) -> np.ndarray:
    return np.array(values, dtype=np.int64)


@given(stamp_lists, times, st.integers(0, 300))
def test_nearest_is_the_nearest(stamps: list[int], at: list[int], skew: int) -> None:
    found = nearest(ints(stamps), ints(at), skew)
    for t, index in zip(at, found, strict=True):
        best = min(abs(s - t) for s in stamps)
        if best > skew:
            assert index == -1
        else:
            assert abs(stamps[index] - t) == best
            assert index == min(i for i, s in enumerate(stamps) if abs(s - t) == best)


@given(stamp_lists, times, st.integers(1, 500), st.floats(-5, 5), st.floats(-5, 5))
def test_interpolation_is_exact_on_lines_and_silent_in_gaps(
    stamps: list[int], at: list[int], gap: int, slope: float, offset: float
) -> None:
    values = (slope * ints(stamps) + offset)[:, None]
    out, known = interpolate(ints(stamps), values, ints(at), gap)
    for t, value, is_known in zip(at, out[:, 0], known, strict=True):
        before = [s for s in stamps if s <= t]
        after = [s for s in stamps if s >= t]
        bridged = bool(before and after) and (before[-1] == t or after[0] - before[-1] <= gap)
        assert is_known == bridged
        assert np.isfinite(value) == bridged
        if bridged:
            assert value == pytest.approx(slope * t + offset, abs=1e-6)


def test_interpolation_holds_the_ends_as_long_as_asked() -> None:
    out, known = interpolate(
        ints([100, 200]), np.array([[1.0], [2.0]]), ints([80, 89, 211]), 100, 15
    )
    assert known.tolist() == [False, True, True]
    assert out[1:, 0].tolist() == [1.0, 2.0]


@given(
    stamp_lists,
    st.data(),
    st.lists(st.integers(-100, 2100), min_size=2, max_size=12, unique=True).map(sorted),
    st.one_of(st.none(), st.integers(1, 400)),
)
def test_held_mean_equals_the_average_of_every_nanosecond(
    stamps: list[int], data: st.DataObject, edges: list[int], timeout: int | None
) -> None:
    count = len(stamps)
    values = np.array(data.draw(st.lists(st.floats(-3, 3), min_size=count, max_size=count)))
    found = held_mean(ints(stamps), values[:, None], ints(edges[:-1]), ints(edges[1:]), timeout)

    def at(t: int) -> float:
        index = int(np.searchsorted(stamps, t, side="right")) - 1
        if index < 0 or (timeout is not None and t - stamps[index] >= timeout):
            return 0.0
        return float(values[index])

    for low, high, mean in zip(edges[:-1], edges[1:], found[:, 0], strict=True):
        assert mean == pytest.approx(np.mean([at(t) for t in range(low, high)]), abs=1e-9)


@given(stamp_lists, times)
def test_held_is_the_last_before(stamps: list[int], before: list[int]) -> None:
    out = held(ints(stamps), np.arange(len(stamps), dtype=float)[:, None], ints(before))[:, 0]
    for t, value in zip(before, out, strict=True):
        earlier = [i for i, s in enumerate(stamps) if s < t]
        assert (value == earlier[-1]) if earlier else np.isnan(value)


@given(stamp_lists, st.data(), st.lists(st.integers(-100, 2100), min_size=1, max_size=15))
def test_event_flags_against_every_nanosecond(
    stamps: list[int], data: st.DataObject, starts: list[int]
) -> None:
    count = len(stamps)
    active = np.array(data.draw(st.lists(st.booleans(), min_size=count, max_size=count)))
    begin = ints(starts)
    flags = event_flags(ints(stamps), active, begin, begin + TICK)
    for start, flag in zip(starts, flags, strict=True):
        states = [
            bool(active[np.searchsorted(stamps, t, side="right") - 1])
            for t in range(start, start + TICK)
            if t >= stamps[0]
        ]
        assert flag == (NO_LABEL if not states else int(any(states)))


def test_position_of_a_tick_is_the_command_given_at_its_beginning() -> None:
    ticks = tick_stamps(0, 1e9 / TICK, 0, 6)
    commands = np.arange(6, dtype=float)[:, None]
    none = np.zeros(1, dtype=np.int64)
    exact = tick_actions("joint_position", ticks, commands, ticks, TICK, none, None)
    assert exact[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    # Stamps that are early by rounding or jitter must not bring the next command forward.
    early = tick_actions("joint_position", ticks - 3, commands, ticks, TICK, none, None)
    assert early[:, 0].tolist() == [0, 1, 2, 3, 4, 5]


def test_position_is_shifted_by_each_joints_own_delay() -> None:
    ticks = tick_stamps(0, 1e9 / TICK, 0, 6)
    commands = np.stack([np.arange(6.0), 10 + np.arange(6.0)], axis=1)
    out = tick_actions("joint_position", ticks, commands, ticks, TICK, ints([0, 2 * TICK]), None)
    assert out[:, 0].tolist() == [0, 1, 2, 3, 4, 5]
    assert np.isnan(out[:2, 1]).all()
    assert out[2:, 1].tolist() == [10, 11, 12, 13]


def test_velocity_is_delayed_averaged_and_ends_at_the_timeout() -> None:
    ticks = tick_stamps(0, 1e9 / TICK, 0, 5)
    out = tick_actions("twist", ints([0]), np.array([[1.0, 1.0]]), ticks, TICK, ints([0, 50]), 220)
    assert out[:, 0].tolist() == pytest.approx([1, 1, 0.2, 0, 0])
    assert out[:, 1].tolist() == pytest.approx([0.5, 1, 0.7, 0, 0])


@given(
    st.integers(0, 500), st.integers(1, 12), st.lists(st.integers(0, 150), min_size=2, max_size=2)
)
def test_blocks_of_ticks_give_what_all_ticks_give(seed: int, cut: int, delays: list[int]) -> None:
    rng = np.random.default_rng(seed)
    stamps = np.unique(rng.integers(-300, 1500, 40)).astype(np.int64)
    values = rng.normal(size=(stamps.size, 2))
    ticks = tick_stamps(0, 1e9 / TICK, 0, 13)
    for kind in ("twist", "joint_position"):
        whole = tick_actions(kind, stamps, values, ticks, TICK, ints(delays), 120)
        parts = [
            tick_actions(kind, stamps, values, part, TICK, ints(delays), 120)
            for part in (ticks[:cut], ticks[cut:])
        ]
        np.testing.assert_allclose(np.concatenate(parts), whole, atol=1e-9)


def test_ticks_do_not_drift() -> None:
    hour = tick_stamps(5, 30.0, 108_000, 1)
    assert hour[0] == 5 + 3600 * 10**9


def test_skew_is_half_a_period_or_a_quarter_tick() -> None:
    assert frame_skew_ns(10, 20) == pytest.approx(25e6, rel=0.02)
    assert frame_skew_ns(10, 60) == pytest.approx(25e6, rel=0.02)
    assert frame_skew_ns(10, 10) == pytest.approx(50e6, rel=0.02)
