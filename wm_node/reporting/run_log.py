"""Reads one bag into plain arrays, for reports. Needs neither ROS nor torch."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rosbags.highlevel import AnyReader, AnyReaderError
from rosbags.interfaces import Connection

from wm_node.data.images import decode_image, resize_area
from wm_node.data.messages import typestore
from wm_node.data.recorded_topics import RecordedTopics
from wm_node.data.streams import IMAGE_TYPES
from wm_node.errors import WmError
from wm_node.profile import RobotProfile

NS = 1_000_000_000
FLOAT32_FIELD = 7  # sensor_msgs/PointField.FLOAT32


@dataclass(frozen=True)
class Series:
    """Values over time: ``stamps`` (N,) int64 ns, increasing; ``values`` (N, K) float64."""

    stamps: NDArray[np.int64]
    values: NDArray[np.float64]

    @staticmethod
    def of(rows: Sequence[tuple[int, Sequence[float]]], width: int) -> Series:
        """Sort rows by stamp and stack them; of equal stamps the last one stays."""
        by_stamp = {stamp: tuple(map(float, values)) for stamp, values in rows}
        stamps = np.array(sorted(by_stamp), dtype=np.int64)
        values = np.array([by_stamp[s] for s in stamps.tolist()], dtype=np.float64)
        return Series(stamps, values.reshape(len(stamps), width))

    def between(self, start_ns: int, end_ns: int) -> Series:
        """Return the samples with ``start_ns <= stamp <= end_ns``."""
        low, high = np.searchsorted(self.stamps, [start_ns, end_ns + 1])
        return Series(self.stamps[low:high], self.values[low:high])

    def seconds(self, zero_ns: int) -> NDArray[np.float64]:
        """Return the stamps in seconds after ``zero_ns``."""
        return (self.stamps - zero_ns) / NS


@dataclass(frozen=True)
class Status:
    """One diagnostic status, at the time at which it was recorded."""

    stamp_ns: int
    name: str
    level: int
    message: str
    values: dict[str, str]


@dataclass(frozen=True)
class RunLog:
    """What a bag says about one run.

    Attributes:
        bag: its path.
        start_ns, end_ns: first and last recording time.
        frames: stamps of the frames, by camera.
        labels: labelled state values by name, each (N, 1).
        events: events by name, each (N, 1), 1 while active.
        joints: joint positions (N, J) in model order.
        applied: the actions really applied, (N, A), by the profile's readback.
        commanded: stamps of the planner's commands.
        verdicts: worst value over the steps of each verdict channel, by name, each (N, 1).
        foreseen: the same of the outcomes that the world model published for the plan, or for
            going on as now, stamped with the state that they start from.
        gate: the gate's status at each change.
        diagnostics: everything on /diagnostics.
    """

    bag: Path
    profile: RobotProfile
    start_ns: int
    end_ns: int
    frames: dict[str, NDArray[np.int64]]
    labels: dict[str, Series]
    events: dict[str, Series]
    joints: Series
    applied: Series
    commanded: NDArray[np.int64]
    verdicts: dict[str, Series]
    foreseen: dict[str, Series]
    gate: tuple[Status, ...]
    diagnostics: tuple[Status, ...]

    @property
    def duration_s(self) -> float:
        """Seconds from the first to the last message."""
        return (self.end_ns - self.start_ns) / NS


@contextmanager
def _open(bag: Path) -> Iterator[AnyReader]:
    try:
        with AnyReader([bag], default_typestore=typestore()) as reader:
            yield reader
    except (AnyReaderError, OSError) as error:
        raise WmError(
            f"cannot read the bag {bag}: {error}; if its recorder was killed, run 'wm recover'."
        ) from error


def _stamp(message: Any, recorded_ns: int) -> int:
    header = getattr(message, "header", None)
    if header is None:
        return recorded_ns
    stamp = int(header.stamp.sec) * NS + int(header.stamp.nanosec)
    return stamp or recorded_ns


def _field(message: Any, path: str) -> Any:
    for part in path.split("."):
        message = getattr(message, part)
    return message


def _readback(message: Any, fields: Sequence[str], names: Sequence[str]) -> list[float] | None:
    """Read the applied action from one message; None where it does not hold all values."""
    joints = getattr(message, "name", None) or getattr(message, "joint_names", None)
    if joints is not None:
        source = message.points[0] if getattr(message, "points", None) else message
        by_name = dict(zip(joints, getattr(source, fields[0], ()), strict=False))
        if any(name not in by_name for name in names):
            return None
        return [float(by_name[name]) for name in names]
    if len(fields) == 1 and len(names) > 1:
        values = list(_field(message, fields[0]))
        return [float(v) for v in values] if len(values) == len(names) else None
    return [float(_field(message, path)) for path in fields]


def _worst_of_cloud(message: Any) -> dict[str, float]:
    """Return the largest value over all points of each float32 field of a PointCloud2."""
    data = np.frombuffer(message.data, dtype=np.uint8).reshape(-1, message.point_step)
    worst = {}
    for field in message.fields:
        if field.datatype == FLOAT32_FIELD and field.offset + 4 <= message.point_step:
            column = data[:, field.offset : field.offset + 4].copy().view("<f4")
            known = column[np.isfinite(column)]
            worst[str(field.name)] = float(known.max()) if known.size else float("nan")
    return worst


def _statuses(message: Any, stamp_ns: int) -> Iterator[Status]:
    for status in getattr(message, "status", None) or [message]:
        yield Status(
            stamp_ns=stamp_ns,
            name=str(status.name),
            level=int(status.level),
            message=str(status.message),
            values={str(pair.key): str(pair.value) for pair in status.values},
        )


def _topics_of(profile: RobotProfile, connections: Sequence[Connection]) -> RecordedTopics:
    return RecordedTopics(profile, ((c.topic, c.msgtype) for c in connections if c.msgcount))


def camera_connections(
    connections: Sequence[Connection], profile: RobotProfile, camera: str
) -> list[Connection]:
    """Return the bag's connections that carry one camera, raw or compressed."""
    wanted = next(c for c in profile.cameras if c.name == camera)
    name = _topics_of(profile, connections).find_camera(wanted)
    return [c for c in connections if c.topic == name and c.msgtype in IMAGE_TYPES]


class _Collector:
    """Sorts messages into rows as they are read."""

    def __init__(self, profile: RobotProfile) -> None:
        self.profile = profile
        self.frames: dict[str, list[int]] = {camera.name: [] for camera in profile.cameras}
        self.labels: dict[str, list[tuple[int, list[float]]]] = {}
        self.events: dict[str, list[tuple[int, list[float]]]] = {}
        self.joints: list[tuple[int, list[float]]] = []
        self.applied: list[tuple[int, list[float]]] = []
        self.commanded: list[int] = []
        self.verdicts: dict[str, list[tuple[int, list[float]]]] = {}
        self.foreseen: dict[str, list[tuple[int, list[float]]]] = {}
        self.gate: list[Status] = []
        self.diagnostics: list[Status] = []

    def handlers(
        self, connection: Connection, topics: RecordedTopics
    ) -> list[Callable[[Any, int], None]]:
        """Return what is to be done with the messages of one connection."""
        kind, profile = connection.msgtype, self.profile
        found: list[Callable[[Any, int], None]] = []

        def carries(topic: str, message: str) -> bool:
            return bool(kind == message and connection.topic == topics.find(topic, message))

        for label in profile.labels:
            if carries(label.topic, label.message):
                found.append(_row(self.labels.setdefault(label.name, []), label.field))
        for event in profile.events:
            if carries(event.topic, event.message):
                found.append(_row(self.events.setdefault(event.name, []), event.field))
        if carries(profile.joints.topic, "sensor_msgs/msg/JointState"):
            found.append(self._add_joints)
        if carries(profile.action.readback.topic, profile.action.readback.message):
            found.append(self._add_applied)
        if carries("mpc_planner/command", profile.action.message):
            found.append(lambda message, ns: self.commanded.append(_stamp(message, ns)))
        if carries("mpc_planner/verdict", "sensor_msgs/msg/PointCloud2"):
            found.append(self._add_verdict)
        if carries("world_model/outcomes", "sensor_msgs/msg/PointCloud2"):
            found.append(self._add_foreseen)
        if kind == "diagnostic_msgs/msg/DiagnosticStatus":
            found.append(lambda message, ns: self.gate.extend(_statuses(message, ns)))
        if kind == "diagnostic_msgs/msg/DiagnosticArray":
            found.append(lambda message, ns: self.diagnostics.extend(_statuses(message, ns)))
        return found

    def _add_joints(self, message: Any, recorded_ns: int) -> None:
        values = _readback(message, ("position",), self.profile.joints.names)
        if values is not None:
            self.joints.append((_stamp(message, recorded_ns), values))

    def _add_applied(self, message: Any, recorded_ns: int) -> None:
        action = self.profile.action
        values = _readback(message, action.readback.fields, action.names)
        if values is not None:
            self.applied.append((_stamp(message, recorded_ns), values))

    def _add_verdict(self, message: Any, recorded_ns: int) -> None:
        stamp = _stamp(message, recorded_ns)
        for name, value in _worst_of_cloud(message).items():
            self.verdicts.setdefault(name, []).append((stamp, [value]))

    def _add_foreseen(self, message: Any, recorded_ns: int) -> None:
        if message.height != 1:  # somebody else's candidates
            return
        stamp = _stamp(message, recorded_ns)
        for name, value in _worst_of_cloud(message).items():
            self.foreseen.setdefault(name, []).append((stamp, [value]))


def _row(rows: list[tuple[int, list[float]]], field: str) -> Callable[[Any, int], None]:
    return lambda message, ns: rows.append((_stamp(message, ns), [float(_field(message, field))]))


def read_run(bag: str | Path, profile: RobotProfile) -> RunLog:
    """Read everything but the pictures of a bag; memory grows with time, not with frames.

    Raises:
        WmError: the bag cannot be read or is empty.
    """
    path = Path(bag)
    collected = _Collector(profile)
    with _open(path) as reader:
        if reader.message_count == 0:
            raise WmError(f"the bag {path} holds no messages.")
        cameras: dict[int, str] = {}
        for camera in profile.cameras:
            for connection in camera_connections(reader.connections, profile, camera.name):
                cameras[id(connection)] = camera.name
        topics = _topics_of(profile, reader.connections)
        handlers = {id(c): collected.handlers(c, topics) for c in reader.connections}
        used = [c for c in reader.connections if handlers[id(c)] or id(c) in cameras]
        for connection, recorded_ns, raw in reader.messages(used):
            if (seen_by := cameras.get(id(connection))) is not None:
                collected.frames[seen_by].append(_header_stamp(raw) or recorded_ns)
                continue
            message = reader.deserialize(raw, connection.msgtype)
            for handle in handlers[id(connection)]:
                handle(message, recorded_ns)
        start_ns, end_ns = reader.start_time, reader.end_time
    return RunLog(
        bag=path,
        profile=profile,
        start_ns=start_ns,
        end_ns=end_ns,
        frames={k: np.array(sorted(v), dtype=np.int64) for k, v in collected.frames.items()},
        labels={k: Series.of(rows, 1) for k, rows in collected.labels.items()},
        events={k: Series.of(rows, 1) for k, rows in collected.events.items()},
        joints=Series.of(collected.joints, len(profile.joints.names)),
        applied=Series.of(collected.applied, len(profile.action.names)),
        commanded=np.array(sorted(collected.commanded), dtype=np.int64),
        verdicts={k: Series.of(rows, 1) for k, rows in collected.verdicts.items()},
        foreseen={k: Series.of(rows, 1) for k, rows in collected.foreseen.items()},
        gate=tuple(collected.gate),
        diagnostics=tuple(collected.diagnostics),
    )


def _header_stamp(raw: bytes | memoryview) -> int:
    """Read the stamp of a CDR message that begins with a header, without decoding the rest."""
    order = "<" if bytes(raw[1:2]) == b"\x01" else ">"
    sec, nanosec = np.frombuffer(raw, dtype=f"{order}u4", count=2, offset=4)
    return int(sec) * NS + int(nanosec)


def read_frames(
    bag: str | Path,
    profile: RobotProfile,
    camera: str,
    wanted: Sequence[int],
    size: tuple[int, int] | None = None,
) -> dict[int, NDArray[np.uint8]]:
    """Decode only the wanted frames of one camera.

    Args:
        bag: the bag.
        profile: its robot.
        camera: a camera of the profile.
        wanted: frame stamps from :attr:`RunLog.frames`.
        size: (width, height) to resize to; None keeps the recorded size.

    Returns:
        stamp -> uint8 RGB (H, W, 3); a stamp that the bag does not hold is missing.
    """
    left = set(map(int, wanted))
    found: dict[int, NDArray[np.uint8]] = {}
    if not left:
        return found
    with _open(Path(bag)) as reader:
        connections = camera_connections(reader.connections, profile, camera)
        if not connections:
            return found
        for connection, recorded_ns, raw in reader.messages(connections):
            stamp = _header_stamp(raw) or recorded_ns
            if stamp in left:
                frame = decode_image(reader.deserialize(raw, connection.msgtype))
                found[stamp] = frame if size is None else resize_area(frame, *size)
                left.discard(stamp)
                if not left:
                    break
    return found


def nearest_stamp(stamps: NDArray[np.int64], at_ns: int, skew_ns: int) -> int | None:
    """Return the stamp nearest to a time, None where none is within ``skew_ns``."""
    if stamps.size == 0:
        return None
    index = int(np.argmin(np.abs(stamps - at_ns)))
    stamp = int(stamps[index])
    return stamp if abs(stamp - at_ns) <= skew_ns else None
