"""The recorder's polled subscription: bytes, as they come, and a count of what never came.

A recorder does not need a message the moment it arrives: DDS notes when that was.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.node import Node
from rclpy.qos import QoSProfile

from wm_node.nodes.polling import Polled

# Serialised message; its info: source_timestamp and received_timestamp in ns, and more.
Take = Callable[[bytes, dict[str, Any]], None]


class GapCounter:
    """Counts what is missing in the sequence numbers of a topic with one or more publishers.

    Messages do not tell whose they are: a number follows the highest one below it. A jump counts
    as loss only if no publisher is left that it may be the first message of.
    """

    def __init__(self) -> None:
        self.publishers = 1
        self._last: list[int] = []  # of each publisher, the most recent at the end

    def see(self, number: int) -> int:
        """Take the number of a message; returns how many before it are missing."""
        missing = 0
        below = max((last for last in self._last if last < number), default=None)
        if below is not None and (below == number - 1 or len(self._last) >= self.publishers):
            self._last.remove(below)
            missing = number - below - 1
        self._last.append(number)
        del self._last[: -max(1, self.publishers)]
        return missing


class PolledSubscription(Polled):
    """Gathers the messages of one topic, at most ``qos.depth`` of them, until :meth:`poll`."""

    def __init__(
        self,
        node: Node,
        kind: type,
        topic: str,
        qos: QoSProfile,
        take: Take,
        gaps: GapCounter,
        lost: Callable[[int], None],
    ) -> None:
        """Subscribe.

        Args:
            node: owner.
            kind: message class.
            topic: absolute name.
            qos: of the subscription.
            take: called for each message.
            gaps: of the topic; outlives the subscription where another takes its place.
            lost: called with the number of messages that were published and never came.
        """
        quiet = SubscriptionEventCallbacks(use_default_callbacks=False)
        super().__init__(node, kind, topic, take, qos, raw=True, event_callbacks=quiet)
        self._most = 2 * qos.depth  # more may come while these are handed over
        self._gaps = gaps
        self._lost = lost

    def _deliver(self, message: bytes, info: dict[str, Any]) -> None:
        number = info.get("publication_sequence_number")
        if number is not None and (missing := self._gaps.see(int(number))):
            self._lost(missing)
        self._callback(message, info)

    def destroy(self) -> None:
        """Hand over what has gathered and unsubscribe."""
        self.poll()
        super().destroy()
