"""Arrays that grow on disk: what one bag gives, before it is taken into the dataset."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray


class FileRows:
    """Rows ``start .. start + count`` of a raw file, read slice by slice."""

    def __init__(
        self, path: Path, dtype: str, item: tuple[int, ...], start: int, count: int
    ) -> None:
        """Look at rows of shape ``item``; nothing is read yet."""
        self.path = path
        self.dtype = np.dtype(dtype)
        self.item = item
        self.start = start
        self.count = count

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first."""
        return (self.count, *self.item)

    def __getitem__(self, rows: slice) -> NDArray[Any]:
        """Read a contiguous slice."""
        first, last, _ = rows.indices(self.count)
        number = max(last - first, 0)
        size = int(np.prod(self.item, dtype=np.int64))
        offset = (self.start + first) * size * self.dtype.itemsize
        with self.path.open("rb") as file:
            file.seek(offset)
            flat = np.fromfile(file, dtype=self.dtype, count=number * size)
        return flat.reshape(number, *self.item)


class FileWriter:
    """Writes rows of one array to a raw file, in order or at a row's place."""

    def __init__(self, path: Path, dtype: str, item: tuple[int, ...]) -> None:
        """Create the file."""
        self.path = path
        self.dtype = np.dtype(dtype)
        self.item = item
        self.row_bytes = int(np.prod(item, dtype=np.int64)) * self.dtype.itemsize
        path.parent.mkdir(parents=True, exist_ok=True)
        self._file = path.open("wb")

    def append(self, block: NDArray[Any]) -> None:
        """Append rows."""
        self._file.write(np.ascontiguousarray(block, dtype=self.dtype).tobytes())

    def put(self, row: int, values: NDArray[Any]) -> None:
        """Write one row at its place; rows between stay zero and take no room."""
        self._file.seek(row * self.row_bytes)
        self._file.write(np.ascontiguousarray(values, dtype=self.dtype).tobytes())

    def close(self, rows: int) -> None:
        """Close the file at a length of ``rows``."""
        self._file.truncate(rows * self.row_bytes)
        self._file.close()
