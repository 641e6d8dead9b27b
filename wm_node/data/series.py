"""A stream of stamped values that stays small in memory however long the recording is."""

from __future__ import annotations

import tempfile

import numpy as np
from numpy.typing import NDArray

from wm_node.data.resample import Floats, Stamps

MEMORY_BYTES = 8 << 20  # a series moves to a temporary file above this size
BLOCK = 1024  # records between two entries of the index


class Series:
    """Stamps and rows of values, appended in order, read back by time.

    Records are kept in memory up to ``MEMORY_BYTES`` and in an anonymous temporary file beyond, so
    a recording of many hours takes no more memory than a short one.

    A record whose stamp is not newer than the one before is not kept (``stale`` counts them).
    """

    def __init__(self, width: int) -> None:
        """Start an empty series of ``width`` values a record."""
        self.width = width
        self.count = 0
        self.stale = 0
        self.first_ns = 0
        self.last_ns = 0
        self.jump_back_ns = 0  # largest step back in time that was seen
        self.shift_ns = 0  # added to every stamp when reading, for a clock that is off
        self.low = np.full(width, np.inf)
        self.high = np.full(width, -np.inf)
        self._record = np.dtype([("stamp", "<i8"), ("values", "<f8", (width,))])
        self._file = tempfile.SpooledTemporaryFile(max_size=MEMORY_BYTES)  # noqa: SIM115
        self._buffer = np.zeros(BLOCK, dtype=self._record)
        self._filled = 0
        self._index: list[int] = []  # stamp of the first record of each block

    def append(self, stamp_ns: int, values: NDArray[np.float64] | tuple[float, ...] = ()) -> bool:
        """Append a record; return False if its stamp is not newer than the last one."""
        if self.count and stamp_ns <= self.last_ns:
            self.stale += 1
            self.jump_back_ns = max(self.jump_back_ns, self.last_ns - stamp_ns)
            return False
        if not self.count:
            self.first_ns = stamp_ns
        if self._filled == BLOCK:
            self._spill()
        if self._filled == 0:
            self._index.append(stamp_ns)
        record = self._buffer[self._filled]
        record["stamp"] = stamp_ns
        if self.width:
            record["values"] = values
        self._filled += 1
        self.count += 1
        self.last_ns = stamp_ns
        return True

    def finish(self) -> None:
        """Write what is buffered; call once, before reading."""
        self._spill()

    @property
    def rate_hz(self) -> float:
        """Mean rate, 0 with fewer than two records."""
        span = self.last_ns - self.first_ns
        return (self.count - 1) * 1e9 / span if self.count > 1 and span > 0 else 0.0

    def between(self, start_ns: int, end_ns: int) -> tuple[Stamps, Floats]:
        """Return the records of [start, end], with one more on either side where there is one.

        Returns:
            stamps (n,) int64 and values (n, width) float64.
        """
        start, end = start_ns - self.shift_ns, end_ns - self.shift_ns
        index = np.array(self._index, dtype=np.int64)
        first = max(int(np.searchsorted(index, start, side="left")) - 1, 0)
        last = int(np.searchsorted(index, end, side="right")) + 1
        self._file.seek(first * BLOCK * self._record.itemsize)
        count = max(last - first, 0) * BLOCK
        records = np.frombuffer(self._file.read(count * self._record.itemsize), dtype=self._record)
        stamps = records["stamp"]
        low = max(int(np.searchsorted(stamps, start, side="left")) - 1, 0)
        high = int(np.searchsorted(stamps, end, side="right")) + 1
        part = records[low:high]
        return part["stamp"] + np.int64(self.shift_ns), part["values"].reshape(
            len(part), self.width
        )

    def position(self, start_ns: int) -> int:
        """Return the number of the first record that :meth:`between` returns for ``start_ns``."""
        start = start_ns - self.shift_ns
        index = np.array(self._index, dtype=np.int64)
        block = max(int(np.searchsorted(index, start, side="left")) - 1, 0)
        self._file.seek(block * BLOCK * self._record.itemsize)
        records = np.frombuffer(self._file.read(BLOCK * self._record.itemsize), dtype=self._record)
        inside = int(np.searchsorted(records["stamp"], start, side="left"))
        return block * BLOCK + max(inside - 1, 0)

    def close(self) -> None:
        """Free the memory or the temporary file."""
        self._file.close()

    def _spill(self) -> None:
        if not self._filled:
            return
        part = self._buffer[: self._filled]
        if self.width:
            self.low = np.minimum(self.low, part["values"].min(axis=0))
            self.high = np.maximum(self.high, part["values"].max(axis=0))
        self._file.write(part.tobytes())
        self._filled = 0
