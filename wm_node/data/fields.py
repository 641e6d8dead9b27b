"""Reading values out of messages, for bags and for live topics alike.

Messages are duck-typed: those of ``rclpy`` and those of ``rosbags`` have the same fields.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from functools import reduce
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wm_node.errors import WmError
from wm_node.profile import Action

NS = 1_000_000_000


def field_value(message: Any, path: str) -> Any:
    """Follow a path such as ``pose.position.x`` into a message.

    Raises:
        WmError: the message has no such field.
    """
    try:
        return reduce(getattr, path.split("."), message)
    except AttributeError as error:
        raise WmError(f"a {type(message).__name__} has no field '{path}'.") from error


def stamp_ns(message: Any) -> int | None:
    """Return the header stamp in nanoseconds, None for messages without a header."""
    header = getattr(message, "header", None)
    return None if header is None else int(header.stamp.sec) * NS + int(header.stamp.nanosec)


class NamedValues:
    """Picks values by joint name out of messages whose order of joints may differ."""

    def __init__(self, wanted: Sequence[str]) -> None:
        """Look for these names, in this order."""
        self.wanted = tuple(wanted)
        self._names: list[str] = []
        self._columns: tuple[int, ...] = ()
        self._places: NDArray[np.int64] = np.zeros(0, dtype=np.int64)

    def pick(
        self, names: Sequence[str], values: Any
    ) -> tuple[tuple[int, ...], NDArray[np.float64]]:
        """Return which of the wanted names the message has, as indices, and their values.

        Raises:
            WmError: the message has fewer values than names.
        """
        if len(values) != len(names):
            raise WmError(f"a message names {len(names)} joints but has {len(values)} values.")
        if names != self._names:  # the layout seldom changes: look the names up once
            place = {name: index for index, name in enumerate(names)}
            self._columns = tuple(i for i, name in enumerate(self.wanted) if name in place)
            self._places = np.array([place[self.wanted[i]] for i in self._columns], dtype=np.int64)
            self._names = list(names)
        return self._columns, np.asarray(values, dtype=np.float64)[self._places]


@dataclass(frozen=True)
class SetPoint:
    """Action values (A,) that come into force ``after_ns`` after the message's stamp."""

    after_ns: int
    values: NDArray[np.float64]


class ActionReader:
    """Reads the applied action out of messages of the profile's ``action.readback`` topic."""

    def __init__(self, action: Action) -> None:
        """Read the action's values in the order of its names."""
        self._fields = action.readback.fields
        self._message = action.readback.message
        self._named = NamedValues(action.names)

    def read(self, message: Any) -> list[SetPoint]:
        """Return the set-points of a message in order of time; all but trajectories have one.

        A trajectory's point is in force while it is travelled to: from the time of the point
        before it on.

        Raises:
            WmError: the message lacks an action name or a field.
        """
        if self._message == "trajectory_msgs/msg/JointTrajectory":
            return self._trajectory(message)
        if len(self._fields) == 1:
            value = field_value(message, self._fields[0])
            if hasattr(message, "name"):
                return [SetPoint(0, self._by_name(message.name, value))]
            values = np.atleast_1d(np.asarray(value, dtype=np.float64))
        else:
            values = np.array([field_value(message, path) for path in self._fields], dtype="f8")
        if values.shape != (len(self._named.wanted),):
            raise WmError(
                f"a command has {values.size} values, but the profile names "
                f"{len(self._named.wanted)} action values."
            )
        return [SetPoint(0, values)]

    def _by_name(self, names: Sequence[str], values: Any) -> NDArray[np.float64]:
        columns, picked = self._named.pick(names, values)
        if len(columns) != len(self._named.wanted):
            missing = [n for i, n in enumerate(self._named.wanted) if i not in columns]
            raise WmError(f"a command lacks the action names {missing[:5]} of the profile.")
        return picked

    def _trajectory(self, message: Any) -> list[SetPoint]:
        field = self._fields[0].rsplit(".", 1)[-1]
        points: list[SetPoint] = []
        begin = 0
        for point in message.points:
            reach = int(point.time_from_start.sec) * NS + int(point.time_from_start.nanosec)
            values = self._by_name(message.joint_names, field_value(point, field))
            if points and points[-1].after_ns == begin:  # a point that is reached at once
                points.pop()
            points.append(SetPoint(begin, values))
            begin = max(begin, reach)
        return points
