"""Between the inference thread and the executor: an outbox, and a watch on callback times."""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from typing import Any

from rclpy.node import Node

from wm_node.nodes.inference import Samples


class Outbox:
    """Lets any thread have a function called by the node's executor, soon and in order.

    Bounded: while the executor is stuck, the oldest items are dropped.
    """

    def __init__(self, node: Node, capacity: int = 256) -> None:
        self._node = node
        self._items: deque[Callable[[], None]] = deque(maxlen=capacity)
        self._guard = node.create_guard_condition(self._drain)
        self._open, self._lock = True, threading.Lock()

    def post(self, call: Callable[[], None]) -> None:
        """Have ``call()`` run by the executor; no-op once closed."""
        with self._lock:
            if self._open:
                self._items.append(call)
                self._guard.trigger()

    def close(self) -> None:
        """Forget what waits and release the guard condition."""
        with self._lock:
            self._open = False
        self._items.clear()
        self._node.destroy_guard_condition(self._guard)

    def _drain(self) -> None:
        for _ in range(len(self._items)):
            self._items.popleft()()


class CallbackWatch:
    """Measures how long the executor is held by callbacks."""

    def __init__(self) -> None:
        self.ms = Samples(capacity=2000)
        self.worst_ms = 0.0

    def __call__(self, callback: Callable[..., None]) -> Callable[..., None]:
        """Wrap a callback."""

        def timed(*args: Any) -> None:
            start = time.perf_counter()
            try:
                callback(*args)
            finally:
                taken = 1e3 * (time.perf_counter() - start)
                self.ms.add(taken)
                self.worst_ms = max(self.worst_ms, taken)

        return timed
