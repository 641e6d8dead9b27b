"""The node of a command that drives a run's other nodes and hears their last figures."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable
from types import TracebackType
from typing import TypeVar

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from wm_node.errors import WmError
from wm_node.nodes.common import RELIABLE_QOS
from wm_node.nodes.lifecycle import Caller

DIAGNOSTICS_S = 2.5  # two periods of the nodes' diagnostics, and a little
# A process killed while it holds the lock of a port in shared memory has all others open that port
# anew when they have waited for it for a second. Fast DDS (2.14, and master) does so in the
# listening thread, and a participant that is closed meanwhile waits for a lock in memory that is
# no longer mapped: a segmentation fault in SharedMemChannelResource::release.
AFTER_A_KILL_S = 2.5

Own = TypeVar("Own", bound="Conductor")


class Conductor:
    """Context manager around one rclpy node; use it after the node processes were started.

    Args:
        name: of the node.
        watch: called while waiting; raises WmError when a process has died or time is up.

    Attributes:
        values: last diagnostic values by node.
    """

    def __init__(self, name: str, watch: Callable[[], None]) -> None:
        # Signals stay with Python, which turns Ctrl-C into an exception that cleans up.
        rclpy.init(args=[], signal_handler_options=SignalHandlerOptions.NO)
        self._node = Node(name)
        self._caller = Caller(self._node, watch)
        self.values: dict[str, dict[str, str]] = {}
        self._node.create_subscription(
            DiagnosticArray, "/diagnostics", self._on_diagnostics, RELIABLE_QOS
        )

    def __enter__(self: Own) -> Own:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if isinstance(error, WmError):  # perhaps that a process was killed
            time.sleep(AFTER_A_KILL_S)
        self._caller.close()
        self._node.destroy_node()
        rclpy.try_shutdown()

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            node = str(status.name).partition(":")[0]
            values = self.values.setdefault(node, {})
            values.update({str(pair.key): str(pair.value) for pair in status.values})

    def _change(self, names: Iterable[str], transition: str) -> None:
        """Make nodes do a transition, one after the other (WmError: one refused)."""
        for name in names:
            self._caller.change(name, transition)

    def _hear_last_figures(self) -> None:
        self._caller.spin_for(DIAGNOSTICS_S)
