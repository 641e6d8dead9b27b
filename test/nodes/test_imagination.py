"""The picture of imagined beside real frames."""

from __future__ import annotations

import numpy as np
import pytest

from wm_node.nodes.imagination import Imagination

STEP, TICK = 200_000_000, 100_000_000


def _frame(value: int) -> np.ndarray:
    return np.full((8, 16, 3), value, np.uint8)


def _plan(*values: int) -> np.ndarray:
    return np.stack([_frame(value) for value in values])


def _tile(picture: np.ndarray, row: int, column: int) -> int:
    tile = picture[row * 8 : (row + 1) * 8, column * 16 : (column + 1) * 16]
    assert tile.min() == tile.max()
    return int(tile.max())


def test_the_plan_of_one_horizon_ago_is_shown_beside_what_then_happened():
    imagination = Imagination(horizon=3, step_ns=STEP, tick_ns=TICK)
    for tick in range(7):
        imagination.see(tick * TICK, _frame(10 + tick))
        if tick in (0, 3, 6):
            plan = _plan(100 + tick, 110 + tick, 120 + tick)
            picture = imagination.picture(tick * TICK, _frame(10 + tick), plan)
        if tick == 3:  # nothing is a horizon old yet
            assert not picture[8:].any()
    assert picture.shape == (24, 64, 3)
    assert [_tile(picture, 0, column) for column in range(4)] == [16, 106, 116, 126]
    assert [_tile(picture, 1, column) for column in range(4)] == [10, 100, 110, 120]
    assert [_tile(picture, 2, column) for column in range(4)] == [10, 12, 14, 16]


def test_a_frame_that_was_not_received_stays_black_and_reset_forgets():
    imagination = Imagination(horizon=2, step_ns=STEP, tick_ns=TICK)
    imagination.see(0, _frame(50))
    imagination.picture(0, _frame(50), _plan(1, 2))
    imagination.see(4 * TICK, _frame(54))
    picture = imagination.picture(4 * TICK, _frame(54), _plan(3, 4))
    assert [_tile(picture, 2, column) for column in range(3)] == [50, 0, 54]
    imagination.reset()
    assert imagination.frame_at(0) is None
    picture = imagination.picture(5 * TICK, _frame(55), _plan(5, 6))
    assert not picture[8:].any()


def test_futures_are_further_rows_behind_a_bar_for_how_likely_they_are():
    imagination = Imagination(horizon=2, step_ns=STEP, tick_ns=TICK)
    frames = _plan(1, 2, 3, 4, 5, 6)  # the plan's, then those of two futures
    picture = imagination.picture(0, _frame(50), frames, np.array([0.75, 0.25]))
    assert picture.shape == (5 * 8, 3 * 16, 3)
    assert [_tile(picture, 0, column) for column in range(3)] == [50, 1, 2]
    assert [[_tile(picture, row, column) for column in (1, 2)] for row in (3, 4)] == [
        [3, 4],
        [5, 6],
    ]
    bars = [(picture[row * 8, :16, 0] == 255).sum() for row in (3, 4)]
    assert bars == [12, 4]


@pytest.mark.parametrize(
    ("offset_ns", "found"), [(0, True), (STEP // 4, True), (STEP // 4 + 1, False)]
)
def test_a_frame_counts_for_a_stamp_within_a_quarter_step(offset_ns: int, found: bool):
    imagination = Imagination(horizon=2, step_ns=STEP, tick_ns=TICK)
    imagination.see(10 * TICK, _frame(1))
    assert (imagination.frame_at(10 * TICK + offset_ns) is not None) is found
