"""First pass over a bag: every stream that the profile names, as stamped series.

Stamps are those of the headers. Messages without a header (``std_msgs/Bool`` and the like) have
only the time at which they were recorded; it is moved by the median difference of the two clocks
where these differ by more than ``CLOCK_TOLERANCE_NS``, and the notes say so.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import numpy as np

from wm_node.data.bags import Bag, BagError, TopicInfo, header_stamp_ns, resolve_topic
from wm_node.data.fields import ActionReader, NamedValues, field_value
from wm_node.data.float_fields import FloatFields
from wm_node.data.resample import to_ns
from wm_node.data.series import Series
from wm_node.errors import WmError
from wm_node.profile import Camera, Label, RobotProfile

IMAGE_TRANSPORTS = {
    "sensor_msgs/msg/Image": "raw",
    "sensor_msgs/msg/CompressedImage": "compressed",
}
IMAGE_TYPES = tuple(IMAGE_TRANSPORTS)
IMAGE_CACHE_BYTES = 48 << 20  # a bag whose images fit is read only once
CLOCK_TOLERANCE_NS = 500_000_000
CLOCK_JUMP_NS = 1_000_000_000
CLOCK_SAMPLES = 2048
MAX_JOINT_GROUPS = 16


@dataclass
class JointGroup:
    """Joints that arrive in the same messages; robots may publish an arm and a hand apart."""

    columns: tuple[int, ...]
    series: Series


@dataclass
class LabelGroup:
    """Labels that are read from the same topic."""

    columns: tuple[int, ...]
    fields: tuple[str, ...]
    series: Series
    fast: FloatFields | None


@dataclass
class Streams:
    """What the first pass found; ``close`` frees temporary files."""

    cameras: dict[str, str]  # camera -> topic, only those that are in the bag
    frames: dict[str, Series]  # camera -> stamps of the frames, moved by the camera's latency
    joints: list[JointGroup]
    actions: Series
    labels: list[LabelGroup]
    events: dict[int, Series]
    images: list[tuple[str, bytes]] | None  # (camera, CDR) of every frame kept, if few
    topics: dict[str, tuple[str, int, float]]  # topic -> type, messages, rate
    log_timed: set[str] = field(default_factory=set)
    non_finite: int = 0
    unstamped: int = 0
    stale: int = 0
    notes: list[str] = field(default_factory=list)

    def all_series(self) -> list[Series]:
        """Every series, for counting and closing."""
        return [
            *self.frames.values(),
            *(group.series for group in self.joints),
            self.actions,
            *(group.series for group in self.labels),
            *self.events.values(),
        ]

    def close(self) -> None:
        """Free temporary files."""
        for series in self.all_series():
            series.close()


def collect(bag: Bag, profile: RobotProfile, namespace: str = "") -> Streams:
    """Read every stream that the profile names.

    Args:
        bag: an open bag.
        profile: the robot.
        namespace: where the profile's relative topics lie in the bag.

    Raises:
        BagError: a needed topic is missing, has the wrong type or no messages, or the bag is
            damaged.
    """
    return _Collector(bag, profile, namespace).run()


class _Collector:
    def __init__(self, bag: Bag, profile: RobotProfile, namespace: str) -> None:
        self.bag = bag
        self.profile = profile
        self.namespace = namespace
        self.joint_reader = NamedValues(profile.joints.names)
        self.action_reader = ActionReader(profile.action)
        self.pending: list[tuple[int, Any]] = []  # points of the trajectory in force
        self.groups: dict[tuple[int, ...], JointGroup] = {}
        self.cached_bytes = 0
        self.clock: list[int] = []  # log time minus header stamp
        self.headered: dict[str, bool] = {}
        self.streams = Streams({}, {}, [], Series(len(profile.action.names)), [], {}, [], {})

    def run(self) -> Streams:
        streams = self.streams
        try:
            routes = self._routes()
            for topic, log_ns, raw in self.bag.messages(list(routes)):
                stamp = self._stamp(topic, log_ns, raw)
                if stamp is None:
                    continue
                for kind, key in routes[topic]:
                    if kind == "camera":
                        self._frame(key, stamp, raw)
                    else:
                        self._values(kind, key, topic, stamp, raw)
            self._flush_pending(None)
            streams.joints = list(self.groups.values())
            self._finish(routes)
        except BaseException:
            streams.close()
            raise
        return streams

    def _routes(self) -> dict[str, list[tuple[str, Any]]]:
        """Decide which topic feeds what."""
        profile, streams = self.profile, self.streams
        routes: dict[str, list[tuple[str, Any]]] = {}
        missing = []
        for camera in profile.cameras:
            topic = camera_topic(camera, self.namespace, self.bag.topics)
            if topic is None:
                missing.append(resolve_topic(camera.topic, self.namespace))
                continue
            streams.cameras[camera.name] = topic
            streams.frames[camera.name] = Series(0)
            streams.frames[camera.name].shift_ns = -to_ns(camera.latency_s)
            routes.setdefault(topic, []).append(("camera", camera.name))
        if not streams.cameras:
            raise BagError(
                f"no messages of a camera topic {_quoted(missing)}; it has {self._listing()}"
            )
        if missing:
            streams.notes.append(f"no camera {_quoted(missing)}: masked")
        for kind, wanted, message in (
            ("joints", profile.joints.topic, "sensor_msgs/msg/JointState"),
            ("action", profile.action.readback.topic, profile.action.readback.message),
        ):
            routes.setdefault(self._needed(kind, wanted, message), []).append((kind, None))
        for topic, group in self._label_groups().items():
            streams.labels.append(group)
            routes.setdefault(topic, []).append(("labels", group))
        for number, event in enumerate(profile.events):
            found = self._optional(event.topic, event.message)
            if found is not None:
                streams.events[number] = Series(1)
                routes.setdefault(found, []).append(("event", number))
        self.headered = {topic: self.bag.has_header(topic) for topic in routes}
        streams.log_timed = {topic for topic, has in self.headered.items() if not has}
        return routes

    def _needed(self, kind: str, wanted: str, message: str) -> str:
        name = resolve_topic(wanted, self.namespace)
        info = self.bag.topics.get(name)
        what = "joint states" if kind == "joints" else "applied action"
        if info is None:
            raise BagError(f"no topic '{name}' ({what}); it has {self._listing()}")
        if info.msgtype != message:
            raise BagError(f"'{name}' ({what}) is a {info.msgtype}, the profile says {message}")
        if info.count == 0:
            raise BagError(f"'{name}' ({what}) has no messages")
        return name

    def _optional(self, wanted: str, message: str) -> str | None:
        """Find a label's or event's topic; without it there is no label, which is allowed."""
        name = resolve_topic(wanted, self.namespace)
        info = self.bag.topics.get(name)
        if info is None or info.count == 0:
            self.streams.notes.append(f"'{name}' is not in the bag: unlabelled")
            return None
        if info.msgtype != message:
            raise BagError(f"'{name}' is a {info.msgtype}, the profile says {message}")
        return name

    def _label_groups(self) -> dict[str, LabelGroup]:
        by_topic: dict[tuple[str, str], list[tuple[int, Label]]] = {}
        for number, label in enumerate(self.profile.labels):
            by_topic.setdefault((label.topic, label.message), []).append((number, label))
        groups = {}
        for (wanted, message), items in by_topic.items():
            found = self._optional(wanted, message)
            if found is not None:
                groups[found] = LabelGroup(
                    tuple(number for number, _ in items),
                    tuple(label.field for _, label in items),
                    Series(len(items)),
                    self.bag.float_fields(found, [label.field for _, label in items]),
                )
        return groups

    def _listing(self) -> str:
        names = sorted(self.bag.topics)
        more = f" and {len(names) - 8} more" if len(names) > 8 else ""
        return (", ".join(names[:8]) + more) if names else "no topics at all"

    def _stamp(self, topic: str, log_ns: int, raw: bytes) -> int | None:
        if not self.headered[topic]:
            return log_ns
        stamp = header_stamp_ns(raw)
        if stamp > 0:
            if len(self.clock) < CLOCK_SAMPLES:
                self.clock.append(log_ns - stamp)
            return stamp
        if self.bag.topics[topic].msgtype == "trajectory_msgs/msg/JointTrajectory":
            return log_ns  # by that message's definition, zero means "now"
        self.streams.unstamped += 1
        return None

    def _frame(self, camera: str, stamp: int, raw: bytes) -> None:
        streams = self.streams
        if not streams.frames[camera].append(stamp):
            return
        if streams.images is not None:
            self.cached_bytes += len(raw)
            if self.cached_bytes > IMAGE_CACHE_BYTES:
                streams.images = None
            else:
                streams.images.append((camera, raw))

    def _values(self, kind: str, key: Any, topic: str, stamp: int, raw: bytes) -> None:
        if kind == "labels" and key.fast is not None:
            values = key.fast.read(raw)
            if values is not None:
                self._append(key.series, stamp, values)
                return
        message = self.bag.deserialize(topic, raw)
        try:
            if kind == "joints":
                self._joints(stamp, message)
            elif kind == "action":
                self._action(stamp, message)
            elif kind == "labels":
                values = np.array([field_value(message, path) for path in key.fields], dtype="f8")
                self._append(key.series, stamp, values)
            else:
                active = bool(field_value(message, self.profile.events[key].field))
                self.streams.events[key].append(stamp, (float(active),))
        except WmError as error:
            raise BagError(f"'{topic}': {str(error).rstrip('.')}") from error

    def _joints(self, stamp: int, message: Any) -> None:
        columns, values = self.joint_reader.pick(message.name, message.position)
        if not columns:
            return
        group = self.groups.get(columns)
        if group is None:
            if len(self.groups) == MAX_JOINT_GROUPS:
                raise WmError(f"joints arrive in more than {MAX_JOINT_GROUPS} combinations.")
            group = self.groups[columns] = JointGroup(columns, Series(len(columns)))
        self._append(group.series, stamp, values)

    def _action(self, stamp: int, message: Any) -> None:
        points = self.action_reader.read(message)
        self._flush_pending(stamp)
        for point in points:
            self.pending.append((stamp + point.after_ns, point.values))
        if len(points) == 1:
            self._flush_pending(None)

    def _flush_pending(self, before: int | None) -> None:
        """Keep the points that came into force before the message that replaces them."""
        for stamp, values in self.pending:
            if before is None or stamp < before:
                self._append(self.streams.actions, stamp, values)
        self.pending = []

    def _append(self, series: Series, stamp: int, values: Any) -> None:
        if np.isfinite(values).all():
            series.append(stamp, values)
        else:
            self.streams.non_finite += 1

    def _finish(self, routes: dict[str, list[tuple[str, Any]]]) -> None:
        streams, profile = self.streams, self.profile
        for series in streams.all_series():
            series.finish()
            streams.stale += series.stale
        covered = {column for group in streams.joints for column in group.columns}
        absent = [name for i, name in enumerate(profile.joints.names) if i not in covered]
        joint_topic = resolve_topic(profile.joints.topic, self.namespace)
        if absent:
            raise BagError(
                f"'{joint_topic}' never has the joints {_quoted(absent)} of the profile"
                + (f"; {streams.unstamped} messages have no stamp" if streams.unstamped else "")
            )
        needed = {
            **{streams.cameras[name]: series for name, series in streams.frames.items()},
            joint_topic: max((g.series for g in streams.joints), key=lambda s: s.jump_back_ns),
            resolve_topic(profile.action.readback.topic, self.namespace): streams.actions,
        }
        for topic, series in needed.items():
            if series.count == 0:
                why = "no stamps in their headers" if streams.unstamped else "no finite values"
                raise BagError(f"the messages of '{topic}' have {why}")
            if series.jump_back_ns > CLOCK_JUMP_NS:
                raise BagError(
                    f"the clock of '{topic}' jumps back by {series.jump_back_ns / 1e9:.1f} s; "
                    "split the bag there"
                )
        self._align_clocks(routes)
        self._measure(routes)

    def _align_clocks(self, routes: dict[str, list[tuple[str, Any]]]) -> None:
        streams = self.streams
        if not streams.log_timed or not self.clock:
            return
        names = _quoted(sorted(streams.log_timed))
        offset = int(np.median(self.clock))
        if abs(offset) <= CLOCK_TOLERANCE_NS:
            streams.notes.append(f"{names} have no header: aligned by the time of recording")
            return
        streams.notes.append(
            f"{names} have no header: aligned by the time of recording less {offset / 1e9:.3f} s, "
            "by which the recorder's clock was ahead of the headers"
        )
        for topic in streams.log_timed:
            for kind, key in routes[topic]:
                for series in self._series(kind, key):
                    series.shift_ns = -offset

    def _measure(self, routes: dict[str, list[tuple[str, Any]]]) -> None:
        for topic, uses in routes.items():
            longest = max(self._series(*uses[0]), key=lambda series: series.count)
            info = self.bag.topics[topic]
            self.streams.topics[topic] = (info.msgtype, info.count, longest.rate_hz)

    def _series(self, kind: str, key: Any) -> list[Series]:
        """Return the series that a route feeds."""
        if kind == "camera":
            return [self.streams.frames[key]]
        if kind == "joints":
            return [group.series for group in self.streams.joints]
        if kind == "action":
            return [self.streams.actions]
        return [key.series] if kind == "labels" else [self.streams.events[key]]


def camera_topic(camera: Camera, namespace: str, topics: dict[str, TopicInfo]) -> str | None:
    """Find a camera's topic, as the profile names it or in its other transport.

    Recorders compress what drivers publish raw: the same profile reads both.

    Raises:
        BagError: the topic is there, but carries no images.
    """
    name = resolve_topic(camera.topic, namespace)
    other = (
        name.removesuffix("/compressed") if name.endswith("/compressed") else f"{name}/compressed"
    )
    for candidate in (name, other):
        info = topics.get(candidate)
        if info is None or info.count == 0:
            continue
        if info.msgtype not in IMAGE_TYPES:
            raise BagError(f"camera topic '{candidate}' is a {info.msgtype}, not an image")
        return candidate
    return None


def _quoted(names: list[str]) -> str:
    more = f" and {len(names) - 5} more" if len(names) > 5 else ""
    return ", ".join(f"'{name}'" for name in names[:5]) + more
