"""``wm calibrate --delay``: delays measured on bags, as an overlay of the robot's profile."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from statistics import median
from typing import Any

import cv2
import numpy as np

from wm_node.data.bags import Bag, BagError, BagSource, find_bags, header_stamp_ns
from wm_node.data.delay import (
    Estimate,
    Motion,
    Track,
    estimate_camera_latency,
    estimate_command_delays,
)
from wm_node.data.images import DamagedImage, decode_image, resize_area
from wm_node.data.overlay import RobotOverlay
from wm_node.data.resample import NS, interpolate, to_ns
from wm_node.data.streams import Streams, collect
from wm_node.errors import WmError
from wm_node.profile import RobotProfile

MAX_BAGS = 200  # of many bags, these are taken, evenly spread
MIN_TRACK_S = 3.0
MAX_TRACK_S = 120.0  # of each bag: more adds little and takes memory
MAX_GRID_HZ = 50.0
MOTION_SIZE = 64  # frames are compared at this size

Progress = Callable[[int, int, str], None]  # bags done, bags in all, name


@dataclass(frozen=True)
class DelayCalibration:
    """Delays of all action channels and cameras, and the bags that could not be used."""

    robot: str
    channels: tuple[Estimate, ...]
    cameras: tuple[Estimate, ...]
    bags: int
    seconds: float
    skipped: dict[str, str]

    @property
    def delays_s(self) -> dict[str, float]:
        """Dead time of every channel; the median where a channel's own is not identifiable."""
        known = [item.dead_time_s for item in self.channels if item.reason is None]
        if not known:
            return {}
        fallback = median(known)
        return {
            item.name: round(item.dead_time_s if item.reason is None else fallback, 4)
            for item in self.channels
        }

    @property
    def latencies_s(self) -> dict[str, float]:
        """Latency of the cameras where it is identifiable and not negative."""
        return {
            item.name: round(item.lag_s, 4)
            for item in self.cameras
            if item.reason is None and item.lag_s >= 0
        }

    def overlay(self, bundle_sha256: str | None) -> RobotOverlay:
        """Return the robot's entry for an overlay file."""
        return RobotOverlay(
            bundle=bundle_sha256,
            action_delay_s=self.delays_s,
            camera_latency_s=self.latencies_s,
            measured={
                "bags": self.bags,
                "seconds": round(self.seconds, 1),
                "lag_s": {item.name: round(item.lag_s, 4) for item in self.channels},
                "time_constant_s": {item.name: item.time_constant_s for item in self.channels},
                "not_identifiable": {
                    item.name: item.reason
                    for item in (*self.channels, *self.cameras)
                    if item.reason is not None
                },
            },
        )

    def document(self) -> dict[str, Any]:
        """Return everything as JSON data."""
        return {
            "robot": self.robot,
            "bags": self.bags,
            "seconds": round(self.seconds, 3),
            "skipped": self.skipped,
            "channels": [asdict(item) for item in self.channels],
            "cameras": [asdict(item) for item in self.cameras],
            "action_delay_s": self.delays_s,
            "camera_latency_s": self.latencies_s,
        }


def calibrate_delays(
    bags: Sequence[str | Path],
    profile: RobotProfile,
    namespace: str = "",
    max_delay_s: float = 1.0,
    progress: Progress | None = None,
) -> DelayCalibration:
    """Measure the delays of a robot on bags in which it moves.

    Raises:
        WmError: no bag is usable.
    """
    sources = find_bags(bags)
    sources = sources[:: -(-len(sources) // MAX_BAGS)]
    tracks: list[Track] = []
    motions: dict[str, list[Motion]] = {camera.name: [] for camera in profile.cameras}
    skipped: dict[str, str] = {}
    for number, source in enumerate(sources):
        try:
            _read(source, profile, namespace, max_delay_s, tracks, motions)
        except BagError as error:
            skipped[source.name] = str(error).rstrip(".")
        if progress is not None:
            progress(number + 1, len(sources), source.name)
    if not tracks:
        name, reason = next(iter(skipped.items()))
        raise WmError(f"no bag can be used for calibration: '{name}' was skipped ({reason}).")
    action = profile.action
    joints = profile.joints.names
    twist = action.kind == "twist"
    every = list(range(len(joints)))
    channels = estimate_command_delays(
        tracks,
        action.names,
        [every if twist else [joints.index(name)] for name in action.names],
        np.array(action.upper) - np.array(action.lower),
        velocity=action.kind != "joint_position",
        timeout_s=action.command_timeout_s if action.kind != "joint_position" else None,
        max_delay_s=max_delay_s,
    )
    cameras = [estimate_camera_latency(m, name) for name, m in motions.items() if m]
    seconds = sum(float(track.times[-1] - track.times[0]) / NS for track in tracks)
    return DelayCalibration(
        profile.name,
        tuple(channels),
        tuple(cameras),
        len(sources) - len(skipped),
        seconds,
        skipped,
    )


def _read(
    source: BagSource,
    profile: RobotProfile,
    namespace: str,
    max_delay_s: float,
    tracks: list[Track],
    motions: dict[str, list[Motion]],
) -> None:
    with Bag(source) as bag:
        streams = collect(bag, profile, namespace)
        try:
            tracks.append(_track(streams, profile, max_delay_s))
            for camera in streams.cameras:
                motion = _motion(bag, streams, profile, camera)
                if motion is not None:
                    motions[camera].append(motion)
        finally:
            streams.close()


def _track(streams: Streams, profile: RobotProfile, max_delay_s: float) -> Track:
    """Put joints on a uniform grid over the longest stretch without a gap."""
    groups, actions = streams.joints, streams.actions
    start = max(group.series.first_ns + group.series.shift_ns for group in groups)
    start = max(start, actions.first_ns + actions.shift_ns + to_ns(max_delay_s))
    end = min(group.series.last_ns + group.series.shift_ns for group in groups)
    end = min(end, actions.last_ns + actions.shift_ns, start + to_ns(MAX_TRACK_S))
    step = to_ns(1.0 / min(profile.joints.rate_hz, MAX_GRID_HZ))
    times = np.arange(start, end + 1, step, dtype=np.int64)
    if len(times) * step < to_ns(MIN_TRACK_S):
        raise BagError(
            f"joints and commands overlap for less than {MIN_TRACK_S + max_delay_s:.0f} s"
        )
    joints = np.full((len(times), len(profile.joints.names)), np.nan)
    gap = to_ns(3.03 / profile.joints.rate_hz)
    for group in groups:
        stamps, values = group.series.between(int(times[0]), int(times[-1]))
        joints[:, list(group.columns)], _ = interpolate(stamps, values, times, gap)
    low, high = _longest(np.isfinite(joints).all(axis=1))
    if (high - low) * step < to_ns(MIN_TRACK_S):
        raise BagError(f"no {MIN_TRACK_S:.0f} s of joint states in a row without a gap")
    times = times[low:high]
    reach = to_ns(max_delay_s) + step
    stamps, commands = actions.between(int(times[0]) - reach, int(times[-1]) + reach)
    return Track(times, joints[low:high], stamps, commands)


def _longest(valid: Any) -> tuple[int, int]:
    edges = np.flatnonzero(np.diff(np.concatenate([[0], valid.astype(np.int8), [0]])))
    runs = edges.reshape(-1, 2)
    if not len(runs):
        return 0, 0
    low, high = runs[np.argmax(runs[:, 1] - runs[:, 0])]
    return int(low), int(high)


def _motion(bag: Bag, streams: Streams, profile: RobotProfile, camera: str) -> Motion | None:
    """Measure how much each frame differs from the one before, over the first minutes."""
    topic = streams.cameras[camera]
    if len(streams.joints) != 1 or len(streams.joints[0].columns) != len(profile.joints.names):
        return None
    begin: list[int] = []
    end: list[int] = []
    amount: list[float] = []
    last: tuple[int, Any] | None = None
    first = streams.frames[camera].first_ns
    period = 1e9 / next(item.rate_hz for item in profile.cameras if item.name == camera)
    for _, _, raw in bag.messages([topic]):
        stamp = header_stamp_ns(raw)
        if stamp > first + to_ns(MAX_TRACK_S):
            break
        try:
            image = decode_image(bag.deserialize(topic, raw))
        except DamagedImage:
            continue
        except WmError as error:
            raise BagError(f"'{topic}': {str(error).rstrip('.')}") from error
        small = cv2.cvtColor(resize_area(image, MOTION_SIZE, MOTION_SIZE), cv2.COLOR_RGB2GRAY)
        small = small.astype(np.float64)
        if last is not None and 0 < stamp - last[0] < 1.5 * period:
            begin.append(last[0])
            end.append(stamp)
            amount.append(float(np.abs(small - last[1]).mean()))
        last = (stamp, small)
    if len(amount) < 30:
        return None
    series = streams.joints[0].series
    stamps, values = series.between(begin[0] - NS, end[-1] + NS)
    order = list(streams.joints[0].columns)
    joints = np.zeros_like(values)
    joints[:, order] = values
    times = np.array([begin, end], dtype=np.int64)
    return Motion(times[0], times[1], np.array(amount), stamps, joints)
