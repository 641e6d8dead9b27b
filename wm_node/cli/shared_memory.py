"""Shared memory that processes left behind when they were killed.

Fast DDS keeps each participant's segments and ports in ``/dev/shm`` and a lock file beside each,
locked for as long as its process lives. What dies by ``kill -9`` removes nothing, some megabytes
each time.
"""

from __future__ import annotations

import fcntl
import os
from pathlib import Path

FOLDER = Path("/dev/shm")
LOCK = "_el"
PATTERN = f"fastrtps_*{LOCK}"


def _is_free(lock: Path) -> bool:
    """Whether nobody holds the lock any more."""
    try:
        file = os.open(lock, os.O_RDONLY)
    except OSError:  # gone meanwhile, or another user's
        return False
    try:
        fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except OSError:
        return False
    finally:
        os.close(file)
    return True


def stale_segments(folder: Path = FOLDER) -> list[Path]:
    """Return the files of Fast DDS whose processes are dead, with their locks.

    A file without a lock beside it belongs to nobody that can be asked, and is left alone.
    """
    found = []
    for lock in sorted(folder.glob(PATTERN)):
        if _is_free(lock):
            segment = lock.with_name(lock.name.removesuffix(LOCK))
            mutex = lock.with_name(f"sem.{segment.name}_mutex")
            found += [path for path in (segment, mutex, lock) if path.exists()]
    return found


def size_of(paths: list[Path]) -> int:
    """Return the bytes that files take, those that are gone meanwhile left out."""
    total = 0
    for path in paths:
        try:
            total += path.stat().st_size
        except OSError:
            continue
    return total


def remove_stale_segments(folder: Path = FOLDER) -> int:
    """Remove them and return the bytes that they took."""
    paths = stale_segments(folder)
    size = size_of(paths)
    for path in paths:
        path.unlink(missing_ok=True)
    return size
