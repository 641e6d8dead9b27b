"""The one thread that runs inference, and the mailboxes in front of it.

Executor callbacks only put work into a slot and return; the thread takes the waiting item of the
first slot that has one, so the order of registration is the order of priority. A slot keeps the
newest items only: what a late engine could not take in time is dropped and counted, never queued.
Nothing here knows ROS.
"""

from __future__ import annotations

import threading
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray


@dataclass
class Slot:
    """A mailbox for one kind of work: the newest ``depth`` items wait, older ones are dropped."""

    name: str
    handler: Callable[[Any], None]
    depth: int
    waiting: deque[Any] = field(default_factory=deque)
    taken: int = 0
    dropped: int = 0
    failures: int = 0


class InferenceWorker:
    """Runs handlers of slots in one thread, by priority, newest first.

    Args:
        on_failure: called in the worker's thread with the slot's name and the exception that
            escaped its handler; the thread goes on with the next item.
    """

    def __init__(self, on_failure: Callable[[str, Exception], None]) -> None:
        self._on_failure = on_failure
        self._slots: list[Slot] = []
        self._wake = threading.Condition()
        self._running = False
        self._thread: threading.Thread | None = None

    def slot(self, name: str, handler: Callable[[Any], None], depth: int = 1) -> Slot:
        """Register a kind of work; those registered earlier go first."""
        slot = Slot(name=name, handler=handler, depth=depth)
        with self._wake:
            self._slots.append(slot)
        return slot

    def put(self, slot: Slot, item: Any) -> bool:
        """Leave an item for the worker; return False when an older one was dropped for it."""
        with self._wake:
            kept = len(slot.waiting) < slot.depth
            if not kept:
                slot.waiting.popleft()
                slot.dropped += 1
            slot.waiting.append(item)
            self._wake.notify()
        return kept

    def put_back(self, slot: Slot, item: Any) -> None:
        """Leave the rest of an item for its next turn, unless newer work is waiting there."""
        with self._wake:
            if len(slot.waiting) < slot.depth:
                slot.waiting.appendleft(item)
            else:
                slot.dropped += 1

    def clear(self) -> None:
        """Forget all work that waits (not the item being worked on)."""
        with self._wake:
            for slot in self._slots:
                slot.waiting.clear()

    def start(self) -> None:
        """Start the thread; does nothing when it runs."""
        if self._thread is not None:
            return
        self._running = True
        self._thread = threading.Thread(target=self._run, name="inference", daemon=True)
        self._thread.start()

    def stop(self, timeout_s: float = 5.0) -> bool:
        """End the thread after the item in work; return False if it did not end in time."""
        thread = self._thread
        if thread is None:
            return True
        with self._wake:
            self._running = False
            for slot in self._slots:
                slot.waiting.clear()
            self._wake.notify()
        thread.join(timeout_s)
        if thread.is_alive():
            return False
        self._thread = None
        return True

    def _next(self) -> tuple[Slot, Any] | None:
        with self._wake:
            while self._running:
                for slot in self._slots:
                    if slot.waiting:
                        slot.taken += 1
                        return slot, slot.waiting.popleft()
                self._wake.wait()
        return None

    def _run(self) -> None:
        while (work := self._next()) is not None:
            slot, item = work
            try:
                slot.handler(item)
            except Exception as error:  # the thread must outlive any one item
                slot.failures += 1
                self._on_failure(slot.name, error)


class Samples:
    """The newest ``capacity`` samples of a duration, for percentiles. Written by one thread."""

    def __init__(self, capacity: int = 600) -> None:
        self._values: NDArray[np.float64] = np.zeros(capacity)
        self.count = 0

    def add(self, value: float) -> None:
        """Store one sample in the place of the oldest."""
        self._values[self.count % self._values.size] = value
        self.count += 1

    def percentile(self, percent: float) -> float:
        """Percentile of the stored samples; NaN when there is none."""
        held = self._values[: min(self.count, self._values.size)]
        return float(np.percentile(held, percent)) if held.size else float("nan")


class TickSelector:
    """Picks the frames that start a control cycle from a camera that may be faster.

    A frame is picked when it is the one nearest to a tick. The grid of ticks follows the camera's
    phase: it may lead or lag the last picked frame by a quarter of a frame at most, so a camera of
    19.5 Hz gives every second frame and one of 15 Hz alternates to keep 10 Hz on average.

    Args:
        tick_s: seconds between ticks.
        frame_s: nominal seconds between frames.
    """

    def __init__(self, tick_s: float, frame_s: float) -> None:
        self._tick = tick_s * 1e9
        self._half = 0.5 * frame_s * 1e9
        self._pull = 0.25 * frame_s * 1e9
        self._target: float | None = None
        self._last = 0

    def reset(self) -> None:
        """Start a new grid at the next frame."""
        self._target = None

    def pick(self, stamp_ns: int) -> bool:
        """Whether the frame of this stamp (int64 ns) starts a cycle."""
        target = self._target
        if target is None or stamp_ns < self._last or stamp_ns - target > self._tick:
            self._target = stamp_ns + self._tick
        elif stamp_ns > target - self._half + 1e3:
            following = stamp_ns + self._tick
            low, high = following - self._pull, following + self._pull
            self._target = min(max(target + self._tick, low), high)
        else:
            return False
        self._last = stamp_ns
        return True
