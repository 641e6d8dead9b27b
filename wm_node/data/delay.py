"""How long commands take to show in the joints, and frames to show the joints' motion.

For every shift ``d`` of a search range the response is regressed, by least squares, on the command
held at ``t - d``; sums are gathered per block of a few seconds, so that the spread of the estimate
comes from resampling blocks (bootstrap), and memory does not grow with the recordings.

Two figures are given for a command. ``lag_s`` is the shift of the plain command that fits best: how
far the joint runs behind. ``dead_time_s`` and ``time_constant_s`` split it: the joint follows as a
first-order system after a time in which the command has no effect at all. The dead time is what
the profile's ``delay_s`` means: commands younger than that cannot matter, older ones already do.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from itertools import pairwise

import numpy as np
from numpy.typing import NDArray
from scipy.signal import lfilter

from wm_node.data.resample import Floats, Stamps, held_mean, to_ns

BOOTSTRAP = 200
MIN_FIT = 0.5  # explained share of variance below which a lag is not identifiable
MIN_FIT_CAMERA = 0.3
MAX_SPREAD_S = 0.1  # width of the 90 % interval above which it is not
STILL = 0.01  # share of its range that a command must span to count as moving
BLOCK_S = 5.0
TIME_CONSTANTS_S = (0.0, *(round(0.02 * 1.25**k, 4) for k in range(16)))  # up to 0.57 s


@dataclass(frozen=True)
class Track:
    """A gapless stretch of one recording on a uniform grid of K instants."""

    times: Stamps  # (K,)
    joints: Floats  # (K, J)
    command_stamps: Stamps  # (N,) from well before the first instant on
    commands: Floats  # (N, A)


@dataclass(frozen=True)
class Motion:
    """Motion seen by a camera: one value for every pair of consecutive frames."""

    begin: Stamps  # (M,) stamp of the earlier frame
    end: Stamps  # (M,)
    amount: Floats  # (M,) mean absolute change of the pixels
    joint_stamps: Stamps  # (N,)
    joints: Floats  # (N, J)


@dataclass(frozen=True)
class Estimate:
    """One delay. ``reason`` is set where it is not identifiable, and then says why."""

    name: str
    lag_s: float
    low_s: float  # 90 % interval of the lag
    high_s: float
    fit: float  # explained share of variance, 0 to 1
    dead_time_s: float
    time_constant_s: float
    reason: str | None = None


def estimate_command_delays(
    tracks: Sequence[Track],
    names: Sequence[str],
    outputs: Sequence[Sequence[int]],
    span: Floats,
    velocity: bool,
    timeout_s: float | None,
    max_delay_s: float = 1.0,
    seed: int = 0,
) -> list[Estimate]:
    """Estimate the delay of every action channel.

    Args:
        tracks: stretches of recordings; their grids have the same step.
        names: (A,) channel names.
        outputs: (A,) the joints that answer to each channel: its own joint, or for a twist all.
        span: (A,) range of each command, by which stillness is judged.
        velocity: commands are velocities: the joints' velocities answer, else their positions.
        timeout_s: the driver's own command timeout.
        max_delay_s: end of the search range; it begins at -0.1 s, so that an estimate of zero is
            told from one that wants to be negative.
        seed: of the bootstrap.

    Returns:
        One estimate a channel; a twist's channels share one.
    """
    shared = len(outputs) > 1 and all(len(joints) > 1 for joints in outputs)
    step_s = _step_s(tracks)
    shifts = np.arange(-0.1, max_delay_s + 1e-9, step_s / 4)
    coarse = np.arange(0.0, max_delay_s + 1e-9, step_s / 2)
    blocks: list[_Sums] = []
    total: dict[tuple[int, int], _Sums] = {}
    for track in tracks:
        response = _response(track, outputs, velocity, shared)
        number = int(np.ceil(len(track.times) * step_s / BLOCK_S))
        edges = np.linspace(0, len(track.times), number + 1).astype(int)
        per_shift = [_delayed(track, shift, timeout_s) for shift in shifts]
        for low, high in pairwise(edges.tolist()):
            if high - low >= 8:
                blocks.append(
                    _Sums.of([x[low:high] for x in per_shift], response[low:high], shared)
                )
        for i, shift in enumerate(coarse):
            plain = _delayed(track, shift, timeout_s)
            for j, constant in enumerate(TIME_CONSTANTS_S):
                sums = _Sums.of([_first_order(plain, constant, step_s)], response, shared)
                total[i, j] = total[i, j] + sums if (i, j) in total else sums
    stacked = _Sums.stack(blocks)
    channels = 1 if shared else len(names)
    moving = np.ptp(np.concatenate([track.commands for track in tracks]), axis=0) / span
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(blocks), (BOOTSTRAP, len(blocks)))
    found = []
    for channel in range(channels):
        curve = stacked.fit(np.arange(len(blocks)))[:, channel]
        lag, fit = _peak(shifts, curve)
        spread = [_peak(shifts, stacked.fit(draw)[:, channel])[0] for draw in draws]
        low, high = np.quantile(spread, [0.05, 0.95])
        surface = np.array(
            [
                [total[i, j].fit(np.arange(1))[0, channel] for j in range(len(TIME_CONSTANTS_S))]
                for i in range(len(coarse))
            ]
        )
        dead, constant = _dead_time(coarse, surface)
        still = bool((moving < STILL).all()) if shared else bool(moving[channel] < STILL)
        reason = _doubt(still, fit, MIN_FIT, float(high - low), lag, shifts)
        name = names[channel]
        found.append(Estimate(name, lag, float(low), float(high), fit, dead, constant, reason))
    if shared:
        one = found[0]
        found = [replace(one, name=name) for name in names]
    return found


def estimate_camera_latency(
    motions: Sequence[Motion], name: str, max_latency_s: float = 0.5, seed: int = 0
) -> Estimate:
    """Estimate how old a frame is by its stamp: pixels change when the joints move.

    The change between two frames is regressed on the path of every joint between them, shifted.

    Args:
        motions: one a recording.
        name: the camera.
        max_latency_s: the search goes from minus a third of this to this.
        seed: of the bootstrap.
    """
    step_s = float(np.median(np.concatenate([m.end - m.begin for m in motions]))) / 1e9
    shifts = np.arange(-max_latency_s / 3, max_latency_s + 1e-9, step_s / 4)
    blocks = []
    for motion in motions:
        paths = [_path(motion, shift) for shift in shifts]
        number = int(np.ceil((motion.end[-1] - motion.begin[0]) / 1e9 / BLOCK_S))
        edges = np.linspace(0, len(motion.amount), number + 1).astype(int)
        for low, high in pairwise(edges.tolist()):
            if high - low >= 8:
                response = motion.amount[low:high, None]
                blocks.append(_Sums.of([path[low:high] for path in paths], response, True))
    stacked = _Sums.stack(blocks)
    curve = stacked.fit(np.arange(len(blocks)))[:, 0]
    latency, fit = _peak(shifts, curve)
    rng = np.random.default_rng(seed)
    draws = rng.integers(0, len(blocks), (BOOTSTRAP // 4, len(blocks)))
    spread = [_peak(shifts, stacked.fit(draw)[:, 0])[0] for draw in draws]
    low_s, high_s = (float(value) for value in np.quantile(spread, [0.05, 0.95]))
    reason = _doubt(False, fit, MIN_FIT_CAMERA, high_s - low_s, latency, shifts)
    return Estimate(name, latency, low_s, high_s, fit, latency, 0.0, reason)


@dataclass(frozen=True)
class _Sums:
    """Sums of products that a regression needs, for B blocks, D shifts and C channels.

    One input a channel: ``xx`` (B, D, C), ``xy`` (B, D, C), ``yy`` (B, C).
    Shared, P inputs and O outputs: ``xx`` (B, D, P, P), ``xy`` (B, D, P, O), ``yy`` (B, O).
    Every block is taken about its own mean, which absorbs offsets between recordings.
    """

    xx: Floats
    xy: Floats
    yy: Floats
    shared: bool

    @classmethod
    def of(cls, inputs: Sequence[Floats], response: Floats, shared: bool) -> _Sums:
        x = np.stack(inputs)  # (D, K, P)
        x = x - x.mean(axis=1, keepdims=True)
        y = response - response.mean(axis=0)
        if shared:
            xx = np.einsum("dkp,dkq->dpq", x, x)
            xy = np.einsum("dkp,ko->dpo", x, y)
        else:
            xx = np.einsum("dkc,dkc->dc", x, x)
            xy = np.einsum("dkc,kc->dc", x, y)
        return cls(xx[None], xy[None], np.einsum("kc,kc->c", y, y)[None], shared)

    @classmethod
    def stack(cls, blocks: Sequence[_Sums]) -> _Sums:
        return cls(
            np.concatenate([block.xx for block in blocks]),
            np.concatenate([block.xy for block in blocks]),
            np.concatenate([block.yy for block in blocks]),
            blocks[0].shared,
        )

    def __add__(self, other: _Sums) -> _Sums:
        return _Sums(self.xx + other.xx, self.xy + other.xy, self.yy + other.yy, self.shared)

    def fit(self, chosen: NDArray[np.int64]) -> Floats:
        """Return the explained share of variance (D, C) over the chosen blocks."""
        xx, xy, yy = (part[chosen].sum(axis=0) for part in (self.xx, self.xy, self.yy))
        if not self.shared:
            # A negative gain is no answer to a command: it explains nothing.
            explained = np.where(xx > 0, np.maximum(xy, 0.0) ** 2 / np.maximum(xx, 1e-300), 0.0)
            return np.asarray(explained / np.maximum(yy, 1e-300))
        scale = np.trace(xx, axis1=1, axis2=2)[:, None, None] / xx.shape[-1]
        ridge = xx + (1e-6 * scale + 1e-300) * np.eye(xx.shape[-1])
        gain = np.linalg.solve(ridge, xy)
        explained = np.einsum("dpo,dpo->do", gain, xy) / np.maximum(yy, 1e-300)
        weight = (yy > 1e-12 * max(float(yy.max()), 1e-300)).astype(float)
        return np.asarray((explained * weight).sum(axis=1, keepdims=True) / max(weight.sum(), 1.0))


def _step_s(tracks: Sequence[Track]) -> float:
    return float(tracks[0].times[1] - tracks[0].times[0]) / 1e9


def _response(
    track: Track, outputs: Sequence[Sequence[int]], velocity: bool, shared: bool
) -> Floats:
    joints = track.joints
    if velocity:
        joints = np.gradient(joints, track.times.astype(np.float64) / 1e9, axis=0)
    columns = list(outputs[0]) if shared else [joint[0] for joint in outputs]
    return np.asarray(joints[:, columns])


def _delayed(track: Track, shift_s: float, timeout_s: float | None) -> Floats:
    """Return the held command (K, A) around ``t - shift``, averaged over a step of the grid."""
    step = int(track.times[1] - track.times[0])
    start = track.times - np.int64(to_ns(shift_s)) - np.int64(step // 2)
    timeout = None if timeout_s is None else to_ns(timeout_s)
    return held_mean(track.command_stamps, track.commands, start, start + step, timeout)


def _first_order(command: Floats, constant_s: float, step_s: float) -> Floats:
    """Let a first-order system follow the command from rest at its first value."""
    if constant_s <= 0:
        return command
    keep = float(np.exp(-step_s / constant_s))
    first = command[:1]
    followed, _ = lfilter([1 - keep], [1, -keep], command, axis=0, zi=keep * first)
    return np.asarray(followed)


def _path(motion: Motion, shift_s: float) -> Floats:
    """Return the distance (M, J) that each joint went between two frames, ``shift`` earlier."""
    shift = to_ns(shift_s)
    origin = motion.joint_stamps[0]
    stamps = (motion.joint_stamps - origin).astype(np.float64)
    path = np.zeros((len(motion.amount), motion.joints.shape[1]))
    for joint, values in enumerate(motion.joints.T):
        travelled = np.concatenate([[0.0], np.cumsum(np.abs(np.diff(values)))])
        end = np.interp((motion.end - shift - origin).astype(np.float64), stamps, travelled)
        begin = np.interp((motion.begin - shift - origin).astype(np.float64), stamps, travelled)
        path[:, joint] = end - begin
    return path


def _peak(shifts: Floats, curve: Floats) -> tuple[float, float]:
    """Return the shift of the best fit, between grid points by a parabola, and the fit."""
    best = int(np.argmax(curve))
    if not 0 < best < len(curve) - 1:
        return float(shifts[best]), float(curve[best])
    before, here, after = curve[best - 1 : best + 2]
    bend = before - 2 * here + after
    offset = 0.5 * (before - after) / bend if bend < 0 else 0.0
    return float(shifts[best] + offset * (shifts[1] - shifts[0])), float(here)


def _dead_time(shifts: Floats, surface: Floats) -> tuple[float, float]:
    """Return dead time and time constant of the best first-order fit; surface is (D, constants)."""
    constant = int(np.argmax(surface.max(axis=0)))
    dead, _ = _peak(shifts, surface[:, constant])
    return max(dead, 0.0), TIME_CONSTANTS_S[constant]


def _doubt(
    still: bool, fit: float, min_fit: float, spread_s: float, lag_s: float, shifts: Floats
) -> str | None:
    if still:
        return "does not move"
    if fit < min_fit:
        return f"explains only {100 * fit:.0f} % of the motion"
    if not shifts[0] < lag_s < shifts[-1]:
        return "at the end of the search range"
    if spread_s > MAX_SPREAD_S:
        return f"uncertain by {spread_s:.2f} s"
    return None
