"""Subscriptions that are read when the node wants to, not when messages arrive.

A node that decides on its own timer needs no wake-up for each message: rclpy builds its wait set
anew for every one of them, and a publisher that floods a topic would keep the node busy. A polled
subscription costs one read a period, and at most its queue's depth.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.callback_groups import CallbackGroup
from rclpy.node import Node
from rclpy.qos import QoSProfile


class NeverReady(CallbackGroup):  # type: ignore[misc]  # rclpy ships no types
    """Keeps a subscription out of the executor's wait set.

    And its events too: with Fast DDS the wait for an event also ends while messages are unread,
    and the executor would spin.
    """

    def can_execute(self, entity: Any) -> bool:
        return False

    def beginning_execution(self, entity: Any) -> bool:
        return False

    def ending_execution(self, entity: Any) -> None:
        """Nothing ever begins."""


class Polled:
    """A subscription whose messages wait in the middleware's queue until :meth:`poll`.

    It has no events: an incompatible QoS shows only as messages that never come.
    """

    def __init__(
        self,
        node: Node,
        kind: type,
        topic: str,
        callback: Callable[..., None],
        qos: QoSProfile,
        **options: Any,
    ) -> None:
        self._node = node
        self._callback = callback
        self._most = int(qos.depth)
        # A group lives as long as somebody holds it; the node keeps a weak reference only.
        self._group = NeverReady()
        self._subscription = node.create_subscription(
            kind, topic, callback, qos, callback_group=self._group, **options
        )

    def poll(self) -> None:
        """Call back for each message in the queue, oldest first."""
        subscription = self._subscription
        for _ in range(self._most):
            with subscription.handle:
                taken = subscription.handle.take_message(subscription.msg_type, subscription.raw)
            if taken is None:
                return
            self._deliver(*taken)

    def _deliver(self, message: Any, info: dict[str, Any]) -> None:
        """Hand over one message; ``info`` has its time stamps in ns and its number."""
        self._callback(message)

    def destroy(self) -> None:
        """Drop the subscription."""
        self._node.destroy_subscription(self._subscription)
