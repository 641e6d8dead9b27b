"""Puts the frames of several cameras together into ticks. Nothing here knows ROS."""

from __future__ import annotations

from typing import Any

from wm_node.data.resample import frame_skew_ns
from wm_node.nodes.foresight import Tick
from wm_node.nodes.inference import TickSelector
from wm_node.profile import RobotProfile


class TickGatherer:
    """Frames in, ticks out.

    The first camera of the profile gives the stamps and the rate. The frames of the others join
    its tick when they are near enough in time; a tick waits for them briefly and then goes without,
    and the model masks what is missing.
    """

    def __init__(self, profile: RobotProfile) -> None:
        first, *others = profile.cameras
        self._first = first.name
        self._rate = profile.model.tick_rate_hz
        self._selector = TickSelector(1.0 / profile.action.rate_hz, 1.0 / first.rate_hz)
        self._skew = {c.name: frame_skew_ns(self._rate, c.rate_hz) for c in others}
        self._newest: dict[str, list[tuple[int, Any]]] = {name: [] for name in self._skew}
        self._open: tuple[int, int, Any] | None = None  # stamp, received, message

    @property
    def wait_ns(self) -> int:
        """How long a tick waits for the other cameras, 0 where there are none."""
        return max(self._skew.values(), default=0)

    @property
    def is_open(self) -> bool:
        """Whether a tick waits for frames of other cameras."""
        return self._open is not None

    def reset(self) -> None:
        """Forget all frames."""
        self._selector.reset()
        self._open = None
        for frames in self._newest.values():
            frames.clear()

    def add(self, camera: str, stamp_ns: int, received_ns: int, message: Any) -> list[Tick]:
        """Add a frame; return the ticks that are now complete, or given up for a newer one."""
        ready = []
        if camera == self._first:
            if not self._selector.pick(stamp_ns):
                return []
            ready += self.close()
            self._open = (stamp_ns, received_ns, message)
        else:
            frames = self._newest[camera]
            frames.append((stamp_ns, message))
            del frames[:-3]
        if self._open is not None and len(self._near(self._open[0])) == len(self._skew):
            ready += self.close()
        return ready

    def close(self) -> list[Tick]:
        """Give up waiting: return the open tick, if any, with the frames that are there."""
        if self._open is None:
            return []
        stamp_ns, received_ns, message = self._open
        self._open = None
        return [Tick(stamp_ns, received_ns, {self._first: message, **self._near(stamp_ns)})]

    def _near(self, stamp_ns: int) -> dict[str, Any]:
        found = {}
        for name, frames in self._newest.items():
            if frames:
                stamp, message = min(frames, key=lambda frame: abs(frame[0] - stamp_ns))
                if abs(stamp - stamp_ns) <= self._skew[name]:
                    found[name] = message
        return found
