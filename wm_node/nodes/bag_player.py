"""Plays a recorded bag through the real topics, at the rate at which it was recorded.

Messages go out as the bytes that the bag holds. Time comes with them: ``/clock`` follows the
recording, and the nodes run with ``use_sim_time``, so that stamps need no change.
"""

from __future__ import annotations

import time
from collections.abc import Callable, Iterable, Mapping
from functools import partial
from typing import Any

from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from rosgraph_msgs.msg import Clock

from wm_node.nodes.common import RELIABLE_QOS, message_class, set_stamp, steady_clock
from wm_node.nodes.conductor import Conductor

NODES = ("flight_recorder", "world_model", "mpc_planner")
STOP_ORDER = ("mpc_planner", "world_model", "flight_recorder")

CLOCK_QOS = QoSProfile(
    history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.BEST_EFFORT
)
CLOCK_PERIOD_NS = 5_000_000
NAP_S = 0.005
LOOK_S = 0.2
DISCOVERY_S = 30.0


def _is_heard(publisher: Any) -> bool:
    """Whether both the world model and the recorder listen."""
    return int(publisher.get_subscription_count()) >= 2


class BagPlayer(Conductor):
    """Plays to the recorder and the world model with its planner, and drives their lifecycle.

    Args:
        topics: message type by topic, of everything that will be played.
        start_ns: time of the recording's first message.
        watch: called while waiting; raises WmError when a process has died.
    """

    def __init__(self, topics: Mapping[str, str], start_ns: int, watch: Callable[[], None]) -> None:
        super().__init__("wm_replay", watch)
        self._watch = watch
        self._clock = self._node.create_publisher(Clock, "/clock", CLOCK_QOS)
        self._clock_ns = start_ns
        self._sent_ns = 0
        self._publishers = {
            topic: self._node.create_publisher(message_class(kind), topic, RELIABLE_QOS)
            for topic, kind in topics.items()
        }
        self.played = dict.fromkeys(topics, 0)
        # Until the recording starts, its clock stands at its beginning.
        self._node.create_timer(0.1, self._repeat_clock, clock=steady_clock())

    def _repeat_clock(self) -> None:
        self._sent_ns = 0
        self._set_clock(self._clock_ns)

    def _set_clock(self, now_ns: int) -> None:
        if now_ns - self._sent_ns < CLOCK_PERIOD_NS:
            return
        self._clock_ns = self._sent_ns = now_ns
        message = Clock()
        set_stamp(message.clock, now_ns)
        self._clock.publish(message)

    def bring_up(self, needed: Iterable[str]) -> None:
        """Configure and activate the nodes, and wait until both listen to the needed topics."""
        for transition in ("configure", "activate"):
            self._change(NODES, transition)
        for topic in needed:
            publisher = self._publishers[topic]
            self._caller.spin_until(
                partial(_is_heard, publisher),
                DISCOVERY_S,
                f"the nodes did not subscribe to '{topic}'",
            )

    def play(
        self,
        messages: Iterable[tuple[str, int, bytes]],
        rate: float,
        show: Callable[[int], None],
    ) -> None:
        """Publish messages, each when it is due.

        Args:
            messages: (topic, recording time in ns, CDR bytes), in order of time.
            rate: of the playback; 1 is as recorded.
            show: told the recording time a few times a second.
        """
        first: int | None = None
        began = time.monotonic()
        looked = began
        for topic, recorded_ns, data in messages:
            if first is None:
                first = recorded_ns
            while (now := time.monotonic()) < (due := began + (recorded_ns - first) / rate / 1e9):
                self._set_clock(first + int((now - began) * rate * 1e9))
                if now - looked > LOOK_S:
                    looked = now
                    self._look(show)
                time.sleep(min(NAP_S, due - now))
            self._set_clock(recorded_ns)
            self._publishers[topic].publish(bytes(data))
            self.played[topic] += 1

    def _look(self, show: Callable[[int], None]) -> None:
        self._watch()
        self._caller.spin_for(0.0)
        show(self._clock_ns)

    def take_down(self) -> None:
        """Let the nodes finish what they have, hear their last figures, deactivate them."""
        self._hear_last_figures()
        self._change(STOP_ORDER, "deactivate")
