"""Series on disk give back what was appended, by time."""

from __future__ import annotations

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wm_node.data import series as module
from wm_node.data.series import Series


@given(
    st.lists(st.integers(0, 5000), min_size=1, max_size=300),
    st.lists(st.tuples(st.integers(-10, 5010), st.integers(0, 2000)), min_size=1, max_size=8),
    st.integers(-50, 50),
)
def test_between_returns_the_range_and_a_neighbour_each_side(
    stamps: list[int], ranges: list[tuple[int, int]], shift: int
) -> None:
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK", 7)
        patch.setattr(module, "MEMORY_BYTES", 100)
        series = Series(1)
        kept = []
        for stamp in stamps:
            if series.append(stamp, (float(stamp),)):
                kept.append(stamp)
        series.finish()
        series.shift_ns = shift
        assert kept == [s for i, s in enumerate(stamps) if s > max(stamps[:i], default=-1)]
        assert series.stale == len(stamps) - len(kept)
        moved = np.array(kept) + shift
        for start, length in ranges:
            found, values = series.between(start, start + length)
            low = max(int(np.searchsorted(moved, start)) - 1, 0)
            high = int(np.searchsorted(moved, start + length, side="right")) + 1
            assert found.tolist() == moved[low:high].tolist()
            assert (values[:, 0] + shift).tolist() == found.tolist()
            assert series.position(start) == low
        series.close()


def test_rates_and_jumps_are_measured() -> None:
    series = Series(0)
    for stamp in (0, 10**8, 2 * 10**8, 10**7):
        series.append(stamp)
    series.finish()
    assert series.rate_hz == pytest.approx(10.0)
    assert series.jump_back_ns == 2 * 10**8 - 10**7
