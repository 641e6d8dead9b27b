"""The node of a command that drives a run's other nodes and hears their last figures."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import TypeVar

import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from rclpy.node import Node
from rclpy.signals import SignalHandlerOptions

from wm_node.nodes.common import RELIABLE_QOS
from wm_node.nodes.lifecycle import Caller

DIAGNOSTICS_S = 2.5  # two periods of the nodes' diagnostics, and a little

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

    def __exit__(self, *_: object) -> None:
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
