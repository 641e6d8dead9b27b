"""Events that a person saw in recordings: a CSV beside the bags, which stay as they are.

    bag,event,from_s,to_s
    run_07,spilled,12.5,14.0     # happened then, in seconds since the bag's first frame
    run_08,spilled,,             # looked at: nothing happened
    run_09,spilled,?,            # not looked at yet: nothing is known

A bag and event that a row speaks of is labelled for the whole bag, whatever its topics say.
"""

from __future__ import annotations

import csv
import hashlib
import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wm_node.errors import WmError
from wm_node.profile import RobotProfile

FILE = "labels.csv"
COLUMNS = ["bag", "event", "from_s", "to_s"]
UNSEEN = "?"
MAX_BYTES = 20_000_000

Span = tuple[float, float]


@dataclass(frozen=True)
class EventLabels:
    """What was seen: (bag, event) -> spans in s; an empty tuple says that nothing happened."""

    spans: Mapping[tuple[str, str], tuple[Span, ...]]

    @property
    def digest(self) -> str:
        """The sha256 of all labels, whatever their order in the file."""
        return hashlib.sha256(repr(sorted(self.spans.items())).encode()).hexdigest()

    def active(
        self, bag: str, event: str, start_s: NDArray[np.floating], tick_s: float
    ) -> NDArray[np.bool_] | None:
        """Whether an event was active in each [start, start + tick); None where nothing is known.

        Args:
            bag: its name.
            event: its name.
            start_s: (K,) seconds since the bag's first frame.
            tick_s: length of a tick.
        """
        spans = self.spans.get((bag, event))
        if spans is None:
            return None
        active = np.zeros(start_s.shape, dtype=np.bool_)
        for begin, end in spans:
            active |= (start_s < end) & (start_s + tick_s > begin)
        return active


def load_event_labels(path: Path, profile: RobotProfile) -> EventLabels:
    """Read labels.

    Raises:
        WmError: unreadable, other columns, an event that the profile does not name, or times that
            are no span.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise WmError(f"{path} is too large for a file of labels.")
        rows = list(csv.reader(path.read_text(encoding="utf-8").splitlines()))
    except (OSError, UnicodeDecodeError, csv.Error) as error:
        raise WmError(f"cannot read the labels {path}: {error}.") from error
    if not rows or [cell.strip() for cell in rows[0]] != COLUMNS:
        raise WmError(f"{path} is no file of labels: its first line must be {','.join(COLUMNS)}.")
    found: dict[tuple[str, str], tuple[Span, ...]] = {}
    for number, row in enumerate(rows[1:], start=2):
        cells = [cell.strip() for cell in row]
        if not any(cells):
            continue
        where = f"{path}, line {number}"
        if len(cells) != len(COLUMNS):
            raise WmError(f"{where}: {len(cells)} cells instead of {len(COLUMNS)}.")
        bag, event, begin, end = cells
        if event not in profile.event_names:
            known = ", ".join(profile.event_names) or "none"
            raise WmError(f"{where}: the robot '{profile.name}' has no event '{event}' ({known}).")
        if begin == UNSEEN:
            continue
        before = found.setdefault((bag, event), ())
        if begin or end:
            found[bag, event] = (*before, _span(begin, end, where))
    if not found:
        raise WmError(f"{path} labels nothing: replace the '{UNSEEN}' of what you looked at.")
    return EventLabels(found)


def _span(begin: str, end: str, where: str) -> Span:
    try:
        low, high = float(begin), float(end)
    except ValueError:
        low = high = math.nan
    if not 0.0 <= low < high < math.inf:
        raise WmError(f"{where}: from_s '{begin}' and to_s '{end}' are no span of time in seconds.")
    return low, high


def write_template(path: Path, rows: Iterable[tuple[str, str]]) -> None:
    """Write a file of (bag, event) that nobody has looked at yet.

    Raises:
        WmError: it exists already, and with it somebody's work; or it cannot be written.
    """
    try:
        with path.open("x", newline="", encoding="utf-8") as stream:
            writer = csv.writer(stream)
            writer.writerow(COLUMNS)
            writer.writerows([bag, event, UNSEEN, ""] for bag, event in rows)
    except FileExistsError:
        raise WmError(f"{path} exists already and is kept; choose another --out.") from None
    except OSError as error:
        raise WmError(f"cannot write {path}: {error.strerror}.") from error
