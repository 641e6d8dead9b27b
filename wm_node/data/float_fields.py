"""Numbers straight out of CDR bytes, for stamped messages that hold nothing but float64.

Poses, points, twists and wrenches come at the full rate of a robot's controller and make up most of
a bag's messages; turning each into objects took most of the time of ``wm ingest``.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np
from numpy.typing import NDArray
from rosbags.interfaces import Nodetype
from rosbags.typesys.store import Typestore

CDR_LITTLE_ENDIAN = b"\x00\x01"


class FloatFields:
    """Picks fields of a message type of a header followed by float64 values only."""

    def __init__(self, count: int, places: Sequence[int]) -> None:
        """Use :func:`float_fields`."""
        self._count = count
        self._places = np.array(places, dtype=np.int64)

    def read(self, raw: bytes) -> NDArray[np.float64] | None:
        """Return the fields, or None where the bytes are not laid out as expected."""
        if raw[:2] != CDR_LITTLE_ENDIAN or len(raw) < 16:
            return None
        # Alignment counts from behind the 4 bytes of the encapsulation: stamp 8, length 4, text.
        end_of_header = 12 + int.from_bytes(raw[12:16], "little")
        offset = 4 + (end_of_header + 7) // 8 * 8
        if len(raw) < offset + 8 * self._count:
            return None
        return np.frombuffer(raw, dtype="<f8", count=self._count, offset=offset)[self._places]


def float_fields(types: Typestore, msgtype: str, paths: Sequence[str]) -> FloatFields | None:
    """Return a reader of the fields, None if the type holds anything but a header and float64."""
    fields = types.fielddefs[msgtype][1]
    if not fields or fields[0][1] != (Nodetype.NAME, "std_msgs/msg/Header"):
        return None
    names: list[str] = []
    for name, kind in fields[1:]:
        if not _walk(types, name, kind, names):
            return None
    if any(path not in names for path in paths):
        return None
    return FloatFields(len(names), [names.index(path) for path in paths])


def _walk(types: Typestore, path: str, kind: object, names: list[str]) -> bool:
    """Append the paths of the float64 values under a field; False if there is something else."""
    node, what = kind  # type: ignore[misc]
    if node == Nodetype.BASE and what[0] == "float64":  # type: ignore[has-type]
        names.append(path)
        return True
    if node != Nodetype.NAME:  # type: ignore[has-type]
        return False
    inner = types.fielddefs[what][1]  # type: ignore[has-type]
    return all(_walk(types, f"{path}.{name}", field, names) for name, field in inner)
