"""One bag onto ticks: aligned, resampled, cut at gaps, staged on disk.

Pass one gathers the streams (:mod:`wm_node.data.streams`), then the grid is computed block by
block, then pass two decodes the frames that ticks need. Memory does not grow with the bag.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from itertools import pairwise
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wm_node.data.bags import Bag, BagError, BagSource, header_stamp_ns
from wm_node.data.dataset import Rows, array_specs
from wm_node.data.event_labels import EventLabels
from wm_node.data.images import DamagedImage, decode_image, resize_area
from wm_node.data.resample import (
    NO_LABEL,
    Stamps,
    event_flags,
    frame_skew_ns,
    interpolate,
    nearest,
    tick_actions,
    tick_stamps,
    to_ns,
)
from wm_node.data.series import Series
from wm_node.data.staging import FileRows, FileWriter
from wm_node.data.streams import Streams, collect
from wm_node.errors import WmError
from wm_node.profile import RobotProfile

BLOCK_TICKS = 2048
JOINT_GAP_PERIODS = 3
LABEL_GAP_PERIODS = 5
LABEL_GAP_TICKS = 3  # at most, of slow labels; half a tick at least, of fast ones
CAUSES = ("frame", "joints", "action", "damaged frame")
_VALID = 0  # codes of a tick: valid, or 1 + index into CAUSES


@dataclass
class BagReport:
    """What became of one bag; plain data, it becomes JSON."""

    name: str
    path: str
    size_bytes: int = 0
    message_count: int = 0
    skipped: str | None = None
    segments: list[tuple[int, int]] = field(default_factory=list)  # first tick, ticks
    topics: dict[str, tuple[str, int, float]] = field(default_factory=dict)
    first_frame_ns: int = 0
    ticks: int = 0
    gaps: dict[str, int] = field(default_factory=dict)
    ticks_lost: dict[str, int] = field(default_factory=dict)
    short_segments: int = 0
    frames_missing: dict[str, int] = field(default_factory=dict)
    frames_damaged: int = 0
    frames_masked: dict[str, int] = field(default_factory=dict)
    frame_skew_ms: float = 0.0
    stale_messages: int = 0
    non_finite_messages: int = 0
    unstamped_messages: int = 0
    event_onsets: list[int] = field(default_factory=list)
    event_ticks: list[int] = field(default_factory=list)
    labelled_ticks: list[int] = field(default_factory=list)
    joint_low: list[float] = field(default_factory=list)
    joint_high: list[float] = field(default_factory=list)
    action_low: list[float] = field(default_factory=list)
    action_high: list[float] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


@dataclass(frozen=True)
class Segment:
    """One episode of a bag: a name and where its rows are staged."""

    name: str
    ticks: int
    rows: dict[str, Rows]


def minimum_ticks(profile: RobotProfile) -> int:
    """Shortest episode that is kept: the model's context and horizon together."""
    model = profile.model
    return (model.context_steps + model.horizon_steps) * model.ticks_per_step


def ingest_bag(
    source: BagSource,
    profile: RobotProfile,
    namespace: str,
    folder: Path,
    labels: EventLabels | None = None,
) -> BagReport:
    """Stage one bag's episodes under ``folder``; :func:`segments` then finds them there.

    ``labels`` are events that a person saw. A bag that cannot be used gives a report with
    ``skipped`` set to the reason.

    Raises:
        OSError: ``folder`` cannot be written, for example because the disk is full.
        WmError: the profile itself does not fit bags.
    """
    report = BagReport(source.name, str(source.path))
    try:
        report.size_bytes = source.size_bytes
        with Bag(source) as bag:
            report.message_count = bag.message_count
            streams = collect(bag, profile, namespace)
            try:
                _Ingest(bag, profile, streams, folder, report, labels).run()
            finally:
                streams.close()
    except BagError as error:
        report.skipped = str(error).rstrip(".")
        report.segments = []
    return report


def segments(report: BagReport, profile: RobotProfile, folder: Path) -> Iterator[Segment]:
    """Yield the episodes that :func:`ingest_bag` staged."""
    specs = array_specs(profile)
    for number, (start, ticks) in enumerate(report.segments):
        name = report.name if len(report.segments) == 1 else f"{report.name}#{number}"
        rows: dict[str, Rows] = {
            key: FileRows(folder / key, dtype, item, start, ticks)
            for key, (dtype, item) in specs.items()
        }
        yield Segment(name, ticks, rows)


class _Ingest:
    def __init__(
        self,
        bag: Bag,
        profile: RobotProfile,
        streams: Streams,
        folder: Path,
        report: BagReport,
        seen: EventLabels | None,
    ) -> None:
        self.bag = bag
        self.profile = profile
        self.streams = streams
        self.folder = folder
        self.report = report
        self.seen = seen
        self.rate = profile.model.tick_rate_hz
        self.tick_ns = to_ns(profile.model.tick_s)
        self.specs = array_specs(profile)
        self.skews = {c.name: frame_skew_ns(self.rate, c.rate_hz) for c in profile.cameras}
        delays = profile.action.delay_s or (0.0,) * len(profile.action.names)
        self.delay_ns = np.array([to_ns(delay) for delay in delays], dtype=np.int64)
        timeout = profile.action.command_timeout_s
        position = profile.action.kind == "joint_position"
        self.timeout_ns = None if timeout is None or position else to_ns(timeout)
        self.codes: list[NDArray[np.uint8]] = []  # a code for every tick, block by block
        self.breaks: list[int] = []  # ticks at which a new grid starts
        self.wanted = {name: _Wanted(folder / "wanted" / name) for name in streams.cameras}

    def run(self) -> None:
        self._grid()
        codes = np.concatenate(self.codes) if self.codes else np.zeros(0, dtype=np.uint8)
        self.report.ticks = codes.size
        self._frames(codes)
        self.report.segments = self._cut(codes)
        self._measure()
        if not self.report.segments:
            raise BagError(self._why_empty(codes))

    # the grid

    def _spans(self) -> Iterator[tuple[int, int]]:
        """Yield stretches in which some camera gives frames; each has its own grid of ticks.

        A new grid starts after a silence longer than a tick, so that ticks again fall on frames.
        """
        limit = self.tick_ns + 2 * max(self.skews.values())
        begin = last = None
        for stamp in _merged(list(self.streams.frames.values())):
            if last is not None and stamp - last > limit:
                yield begin or 0, last
                begin = None
            begin = stamp if begin is None else begin
            last = stamp
        if begin is not None and last is not None:
            yield begin, last

    def _grid(self) -> None:
        """Compute everything but pixels for every tick and stage it."""
        writers = {
            key: FileWriter(self.folder / key, dtype, item)
            for key, (dtype, item) in self.specs.items()
            if not key.startswith("frames/")
        }
        reach = max(self.skews.values())
        total = 0
        for start, end in self._spans():
            if not self.breaks:
                self.report.first_frame_ns = start
            self.breaks.append(total)
            count = int((end + reach - start) // self.tick_ns) + 1
            for first in range(0, count, BLOCK_TICKS):
                ticks = tick_stamps(start, self.rate, first, min(BLOCK_TICKS, count - first))
                block, code = self._block(ticks)
                for key, writer in writers.items():
                    writer.append(block[key])
                self.codes.append(code)
                total += ticks.size
        for writer in writers.values():
            writer.close(total)
        for wanted in self.wanted.values():
            wanted.writer.close(total)

    def _block(self, ticks: Stamps) -> tuple[dict[str, NDArray[Any]], NDArray[np.uint8]]:
        frame_valid = np.zeros((ticks.size, len(self.profile.cameras)), dtype=np.uint8)
        for number, camera in enumerate(self.profile.cameras):
            if camera.name in self.streams.frames:
                index = self._nearest_frames(camera.name, ticks)
                self.wanted[camera.name].writer.append(index)
                frame_valid[:, number] = index >= 0
        joints, joints_known = self._joints(ticks)
        actions = self._actions(ticks)
        code = np.full(ticks.size, _VALID, dtype=np.uint8)
        code[~np.isfinite(actions).all(axis=1)] = 1 + CAUSES.index("action")
        code[~joints_known] = 1 + CAUSES.index("joints")
        code[~frame_valid.any(axis=1)] = 1 + CAUSES.index("frame")
        block: dict[str, NDArray[Any]] = {
            "frame_valid": frame_valid,
            "joints": joints,
            "actions": actions,
            "labels": self._labels(ticks),
            "events": self._events(ticks),
            "stamps": ticks,
        }
        return block, code

    def _nearest_frames(self, camera: str, ticks: Stamps) -> NDArray[np.int64]:
        series, skew = self.streams.frames[camera], self.skews[camera]
        start = int(ticks[0]) - skew
        stamps, _ = series.between(start, int(ticks[-1]) + skew)
        index = nearest(stamps, ticks, skew)
        found = index >= 0
        if found.any():
            worst = float(np.abs(stamps[index[found]] - ticks[found]).max()) / 1e6
            self.report.frame_skew_ms = max(self.report.frame_skew_ms, worst)
        return np.where(found, index + series.position(start), -1)

    def _joints(self, ticks: Stamps) -> tuple[NDArray[np.float64], NDArray[np.bool_]]:
        period = 1.0 / self.profile.joints.rate_hz
        gap = to_ns(1.01 * JOINT_GAP_PERIODS * period)
        joints = np.full((ticks.size, len(self.profile.joints.names)), np.nan)
        for group in self.streams.joints:
            stamps, values = group.series.between(int(ticks[0]), int(ticks[-1]))
            part, known = interpolate(stamps, values, ticks, gap, edge_ns=to_ns(period))
            for place, column in enumerate(group.columns):
                use = known & np.isnan(joints[:, column])
                joints[use, column] = part[use, place]
        known = np.isfinite(joints).all(axis=1)
        return np.where(np.isnan(joints), 0.0, joints), known

    def _actions(self, ticks: Stamps) -> NDArray[np.float64]:
        start = int(ticks[0]) - int(self.delay_ns.max())
        stamps, values = self.streams.actions.between(start, int(ticks[-1]) + self.tick_ns)
        return tick_actions(
            self.profile.action.kind,
            stamps,
            values,
            ticks,
            self.tick_ns,
            self.delay_ns,
            self.timeout_ns,
        )

    def _labels(self, ticks: Stamps) -> NDArray[np.float64]:
        labels = np.full((ticks.size, len(self.profile.labels)), np.nan)
        for group in self.streams.labels:
            stamps, values = group.series.between(int(ticks[0]), int(ticks[-1]))
            period = int(np.median(np.diff(stamps))) if stamps.size > 1 else self.tick_ns
            # A label that falls silent is unknown: what it tells of may have left the table.
            gap = max(LABEL_GAP_PERIODS * period, self.tick_ns // 2)
            part, _ = interpolate(
                stamps,
                values,
                ticks,
                min(gap, LABEL_GAP_TICKS * self.tick_ns),
                edge_ns=min(9 * period // 10, self.tick_ns),
            )
            labels[:, list(group.columns)] = part
        return labels

    def _events(self, ticks: Stamps) -> NDArray[np.uint8]:
        events = np.full((ticks.size, len(self.profile.events)), NO_LABEL, dtype=np.uint8)
        for number, series in self.streams.events.items():
            stamps, values = series.between(int(ticks[0]), int(ticks[-1]) + self.tick_ns)
            events[:, number] = event_flags(stamps, values[:, 0] > 0, ticks, ticks + self.tick_ns)
        if self.seen is not None:
            start_s = (ticks - self.report.first_frame_ns) * 1e-9
            for number, name in enumerate(self.profile.event_names):
                active = self.seen.active(self.report.name, name, start_s, self.tick_ns * 1e-9)
                if active is not None:
                    events[:, number] = active
        return events

    # the pixels

    def _frames(self, codes: NDArray[np.uint8]) -> None:
        """Decode the frames that ticks need and stage them; damaged ones invalidate their tick."""
        for camera in self.profile.cameras:
            if camera.name not in self.streams.cameras:  # masked: the file is all zeros
                key = f"frames/{camera.name}"
                FileWriter(self.folder / key, *self.specs[key]).close(codes.size)
        sinks = {name: _FrameSink(self, name, codes.size) for name in self.streams.cameras}
        usable = codes == _VALID
        damaged: dict[str, list[int]] = {name: [] for name in sinks}
        for name, raw in self._images():
            sink = sinks[name]
            ticks = sink.ticks_of_next_frame(usable)
            if not ticks:
                continue
            try:
                sink.write(ticks, raw)
            except DamagedImage:
                self.report.frames_damaged += 1
                damaged[name] += ticks
        for sink in sinks.values():
            sink.writer.close(codes.size)
        self._mark_damaged(damaged, codes)

    def _images(self) -> Iterator[tuple[str, bytes]]:
        """Yield the frames whose stamps pass one kept, in the same order."""
        if self.streams.images is not None:
            yield from self.streams.images
            return
        by_topic: dict[str, list[str]] = {}
        for name, topic in self.streams.cameras.items():
            by_topic.setdefault(topic, []).append(name)
        newest: dict[str, int] = {}
        for topic, _, raw in self.bag.messages(list(by_topic)):
            stamp = header_stamp_ns(raw)
            if stamp <= newest.get(topic, 0):
                continue
            newest[topic] = stamp
            for name in by_topic[topic]:
                yield name, raw

    def _mark_damaged(self, damaged: dict[str, list[int]], codes: NDArray[np.uint8]) -> None:
        ticks = sorted({tick for items in damaged.values() for tick in items})
        if not ticks:
            return
        key = "frame_valid"
        rows = FileRows(self.folder / key, *self.specs[key], 0, codes.size)
        valid = rows[:]
        for number, camera in enumerate(self.profile.cameras):
            valid[damaged.get(camera.name, []), number] = 0
        lost = [tick for tick in ticks if not valid[tick].any()]
        codes[lost] = 1 + CAUSES.index("damaged frame")
        writer = FileWriter(self.folder / key, *self.specs[key])
        writer.append(valid)
        writer.close(codes.size)

    # cutting and measuring

    def _cut(self, codes: NDArray[np.uint8]) -> list[tuple[int, int]]:
        """Return the runs of valid ticks that are long enough, and count what is lost."""
        report = self.report
        report.ticks_lost = {
            cause: int((codes == 1 + number).sum()) for number, cause in enumerate(CAUSES)
        }
        runs = _runs(codes == _VALID, self.breaks)
        need = minimum_ticks(self.profile)
        kept = [run for run in runs if run[1] >= need]
        report.short_segments = len(runs) - len(kept)
        report.gaps = dict.fromkeys(CAUSES, 0)
        for (start, ticks), (following, _) in pairwise(runs):
            cause = int(codes[start + ticks]) if following > start + ticks else _VALID
            # Two runs that touch are two grids, which only a silence of all cameras separates.
            report.gaps[CAUSES[cause - 1] if cause else "frame"] += 1
        return kept

    def _measure(self) -> None:
        report, profile, streams = self.report, self.profile, self.streams
        report.topics = streams.topics
        report.stale_messages = streams.stale
        report.non_finite_messages = streams.non_finite
        report.unstamped_messages = streams.unstamped
        report.notes = streams.notes + report.notes
        for camera in profile.cameras:
            series = streams.frames.get(camera.name)
            if series is not None:
                period = 1e9 / camera.rate_hz
                due = round((series.last_ns - series.first_ns) / period) + 1
                report.frames_missing[camera.name] = max(0, due - series.count)
        events = np.zeros((2, len(profile.events)), dtype=np.int64)  # ticks active, onsets
        labelled = np.zeros(len(profile.labels), dtype=np.int64)
        masked = np.zeros(len(profile.cameras), dtype=np.int64)
        joints, actions = _Range(), _Range()
        for segment in segments(report, profile, self.folder):
            before = np.zeros((1, len(profile.events)), dtype=bool)
            for start in range(0, segment.ticks, BLOCK_TICKS):
                part = slice(start, start + BLOCK_TICKS)
                active = segment.rows["events"][part] == 1
                events[0] += active.sum(axis=0)
                events[1] += (active & ~np.concatenate([before, active[:-1]])).sum(axis=0)
                before = active[-1:]
                labelled += np.isfinite(segment.rows["labels"][part]).sum(axis=0)
                masked += (segment.rows["frame_valid"][part] == 0).sum(axis=0)
                joints.add(segment.rows["joints"][part])
                actions.add(segment.rows["actions"][part])
        report.event_ticks, report.event_onsets = events[0].tolist(), events[1].tolist()
        report.labelled_ticks = labelled.tolist()
        report.frames_masked = {
            camera.name: int(count) for camera, count in zip(profile.cameras, masked, strict=True)
        }
        report.joint_low, report.joint_high = joints.low, joints.high
        report.action_low, report.action_high = actions.low, actions.high

    def _why_empty(self, codes: NDArray[np.uint8]) -> str:
        need = minimum_ticks(self.profile)
        what = (
            f"no {need} ticks in a row ({need / self.rate:.1f} s, context and horizon) are complete"
        )
        if codes.size < need:
            return f"too short: {codes.size / self.rate:.1f} s, {need / self.rate:.1f} s are needed"
        lost = {cause: count for cause, count in self.report.ticks_lost.items() if count}
        if not lost:
            return f"{what}: cameras fall silent too often"
        cause = max(lost, key=lambda name: lost[name])
        return (
            f"{what}: {lost[cause]} of {codes.size} ticks lack "
            f"{'an ' if cause == 'action' else ''}{cause}{self._rate_hint(cause)}"
        )

    def _rate_hint(self, cause: str) -> str:
        """Say so when a topic is slower than the profile promises."""
        if cause == "joints":
            measured = max(group.series.rate_hz for group in self.streams.joints)
            promised = self.profile.joints.rate_hz
        elif cause == "frame":
            camera = next(c for c in self.profile.cameras if c.name in self.streams.frames)
            measured, promised = self.streams.frames[camera.name].rate_hz, camera.rate_hz
        else:
            return ""
        if measured > 0.8 * promised:
            return ""
        return f" (measured {measured:.1f} Hz, the profile says {promised:g} Hz)"


class _Range:
    """Smallest and largest value of each column."""

    def __init__(self) -> None:
        self.low: list[float] = []
        self.high: list[float] = []

    def add(self, values: NDArray[np.float32]) -> None:
        low, high = values.min(axis=0), values.max(axis=0)
        self.low = np.minimum(low, self.low).tolist() if self.low else low.tolist()
        self.high = np.maximum(high, self.high).tolist() if self.high else high.tolist()


class _Wanted:
    """For every tick the number of the frame it needs from one camera, on disk."""

    def __init__(self, path: Path) -> None:
        self.writer = FileWriter(path, "<i8", ())

    def pairs(self, ticks: int) -> Iterator[tuple[int, int]]:
        """Yield (frame number, tick) in order."""
        rows = FileRows(self.writer.path, "<i8", (), 0, ticks)
        for start in range(0, ticks, BLOCK_TICKS):
            for offset, number in enumerate(rows[start : start + BLOCK_TICKS].tolist()):
                if number >= 0:
                    yield number, start + offset


class _FrameSink:
    """Takes one camera's frames in order and writes those that ticks want."""

    def __init__(self, ingest: _Ingest, camera: str, ticks: int) -> None:
        key = f"frames/{camera}"
        self.camera = next(c for c in ingest.profile.cameras if c.name == camera)
        self.topic = ingest.streams.cameras[camera]
        self.bag = ingest.bag
        self.report = ingest.report
        self.writer = FileWriter(ingest.folder / key, *ingest.specs[key])
        self._pairs = ingest.wanted[camera].pairs(ticks)
        self._next = next(self._pairs, None)
        self._number = -1
        self._noted = False

    def ticks_of_next_frame(self, usable: NDArray[np.bool_]) -> list[int]:
        """Advance by one frame; return the usable ticks that want it."""
        self._number += 1
        ticks = []
        while self._next is not None and self._next[0] <= self._number:
            if self._next[0] == self._number and usable[self._next[1]]:
                ticks.append(self._next[1])
            self._next = next(self._pairs, None)
        return ticks

    def write(self, ticks: list[int], raw: bytes) -> None:
        """Decode a frame, resize it and write it for every tick."""
        message = self.bag.deserialize(self.topic, raw)
        try:
            image = decode_image(message)
        except DamagedImage:
            raise
        except WmError as error:
            raise BagError(f"'{self.topic}': {str(error).rstrip('.')}") from error
        self._note_size(image.shape[1], image.shape[0])
        small = resize_area(image, self.camera.model_width, self.camera.model_height)
        for tick in ticks:
            self.writer.put(tick, small)

    def _note_size(self, width: int, height: int) -> None:
        if self._noted:
            return
        self._noted = True
        camera = self.camera
        if (width, height) == (camera.width, camera.height):
            return
        if abs(width * camera.height - height * camera.width) > 0.02 * width * camera.height:
            raise BagError(
                f"'{self.topic}' has {width}x{height} pixels, another shape than the profile's "
                f"{camera.width}x{camera.height}"
            )
        self.report.notes.append(
            f"'{self.topic}' has {width}x{height} pixels, the profile says "
            f"{camera.width}x{camera.height}"
        )


def _merged(series: list[Series]) -> Iterator[int]:
    """Yield the stamps of several series in order, reading them block by block."""
    chunk = to_ns(60.0)
    filled = [one for one in series if one.count]
    if not filled:
        return
    start = min(one.first_ns + one.shift_ns for one in filled)
    end = max(one.last_ns + one.shift_ns for one in filled)
    while start <= end:
        parts, later = [], []
        for one in filled:
            stamps, _ = one.between(start, start + chunk - 1)
            parts.append(stamps[(stamps >= start) & (stamps < start + chunk)])
            later.append(stamps[stamps >= start + chunk])
        yield from np.unique(np.concatenate(parts)).tolist()
        following = np.concatenate(later)  # skips silences of any length in one go
        start = int(following.min()) if following.size else start + chunk


def _runs(valid: NDArray[np.bool_], breaks: list[int]) -> list[tuple[int, int]]:
    """Return (start, length) of the runs of valid ticks; none crosses a break."""
    edges = np.zeros(valid.size + 1, dtype=bool)
    edges[0] = edges[-1] = True
    edges[1:-1] = valid[1:] != valid[:-1]
    edges[np.array(breaks, dtype=np.int64)] = True
    bounds = np.flatnonzero(edges)
    return [(start, end - start) for start, end in pairwise(bounds.tolist()) if valid[start]]
