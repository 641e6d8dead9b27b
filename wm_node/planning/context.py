"""The model's prompt, assembled from what a running robot observes.

Frames, joints and applied actions arrive at their own times. The context takes the frames nearest
to t - k * step (skew at most a quarter of a tick or half a camera period), joints interpolated to
the frames' stamps and the actions that acted between them, by the same functions as ``wm ingest``.
A gap, a reset or stamps that run backwards empty it: a robot must not act on a stitched past.

Silence of the readback means that nothing acts on the robot. It does not where nobody publishes the
readback although commands were sent: its topic is misspelt, or its publisher is dead. Both are
asked for, because a gate that is not active, or in shadow mode, is rightly silent.
"""

from __future__ import annotations

import threading
from collections import deque
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wm_node.data.resample import NS, frame_skew_ns, interpolate, nearest, tick_actions, to_ns
from wm_node.planning.passed import Ramp, as_planned
from wm_node.planning.world_model import Context, Floats
from wm_node.profile import RobotProfile

JOINT_GAP_PERIODS = 5.0


@dataclass(frozen=True)
class NotReady:
    """Why there is no context yet."""

    reason: str
    """One of ``frames``, ``joints``, ``actions``."""


def _ramp(
    profile: RobotProfile, delay_ns: NDArray[np.int64], timeout_ns: int | None
) -> Ramp | None:
    """Return how the robot's velocities are led to what is commanded; None for other robots."""
    action = profile.action
    if action.max_acceleration is None or action.kind == "joint_position":
        return None
    reach = np.asarray(action.upper) - np.asarray(action.lower)
    return Ramp(action.kind, np.asarray(action.max_acceleration), reach, delay_ns, timeout_ns)


class ObservationBuffer:
    """Short history of latents, joints and applied actions. Thread-safe; memory bounded."""

    def __init__(self, profile: RobotProfile, delay_s: tuple[float, ...] | None = None) -> None:
        rates = profile.model
        self._profile = profile
        self._steps = rates.context_steps
        self._step_ns = to_ns(rates.step_s)
        self._tick_ns = to_ns(rates.tick_s)
        self._ticks = rates.ticks_per_step
        self._skew_ns = frame_skew_ns(rates.tick_rate_hz, profile.cameras[0].rate_hz)
        self._joint_gap_ns = to_ns(JOINT_GAP_PERIODS / profile.joints.rate_hz)
        delays = delay_s or profile.action.delay_s or (0.0,) * len(profile.action.names)
        self._delay_ns = np.array([to_ns(delay) for delay in delays], dtype=np.int64)
        timeout = profile.action.command_timeout_s
        self._timeout_ns = None if timeout is None else to_ns(timeout)
        span_s = (rates.context_steps + 2) * rates.step_s + 1.0 + max(delays)
        self._span_ns = to_ns(span_s)
        # Until then a readback may still be on its way.
        answer_s = profile.safety.max_frame_age_s + (timeout or 0.0) + max(delays)
        self._answer_ns = to_ns(answer_s)
        self.readback_exists = True
        """Whether anybody publishes the readback, as far as is known."""
        self._unanswered_ns: int | None = None
        self._lock = threading.Lock()
        self._latents: deque[tuple[int, Floats]] = deque()
        self._joints: deque[tuple[int, NDArray[np.float64]]] = deque()
        self._actions: deque[tuple[int, NDArray[np.float64]]] = deque()
        self._planned: deque[tuple[int, NDArray[np.float64]]] = deque()
        self._ramp = _ramp(profile, self._delay_ns, self._timeout_ns)

    def reset(self) -> None:
        """Forget everything."""
        with self._lock:
            self._clear()

    def _clear(self) -> None:
        self._latents.clear()
        self._joints.clear()
        self._actions.clear()
        self._planned.clear()
        self._unanswered_ns = None

    def add_frame(self, stamp_ns: int, latent: Floats) -> None:
        """Add the latent (latent,) of a frame; a stamp before the last one empties the history."""
        self._add(self._latents, stamp_ns, np.array(latent, dtype=np.float32))

    def add_joints(self, stamp_ns: int, positions: NDArray[np.floating]) -> None:
        """Add joint positions (J,) in model order."""
        self._add(self._joints, stamp_ns, np.array(positions, dtype=np.float64))

    def add_action(self, stamp_ns: int, value: NDArray[np.floating]) -> None:
        """Add a command (A,) that was really applied."""
        self._add(self._actions, stamp_ns, np.array(value, dtype=np.float64))
        self.forget_commands()

    def add_planned(self, effect_ns: int, value: NDArray[np.floating]) -> None:
        """Add a command (A,) that was decided, to be in force from ``effect_ns`` on.

        It takes the place of any later one. What acted is still what is read back, but for the
        ramp that leads to a command (:mod:`wm_node.planning.passed`).
        """
        with self._lock:
            planned = self._planned
            while planned and planned[-1][0] >= effect_ns:
                planned.pop()
            planned.append((effect_ns, np.array(value, dtype=np.float64)))
            while effect_ns - planned[0][0] > self._span_ns:
                planned.popleft()

    def forget_planned(self) -> None:
        """Nothing is commanded any more."""
        with self._lock:
            self._planned.clear()

    def expect_readback(self, effect_ns: int) -> None:
        """A command that moves the robot was sent, in force from ``effect_ns`` on."""
        with self._lock:
            if self._unanswered_ns is None:
                self._unanswered_ns = effect_ns

    def forget_commands(self) -> None:
        """No readback of earlier commands is missing."""
        with self._lock:
            self._unanswered_ns = None

    def _add(self, series: deque[tuple[int, NDArray]], stamp_ns: int, value: NDArray) -> None:  # type: ignore[type-arg]
        with self._lock:
            if series and stamp_ns <= series[-1][0]:
                if stamp_ns == series[-1][0]:
                    return
                self._clear()
            series.append((stamp_ns, value))
            while stamp_ns - series[0][0] > self._span_ns:
                series.popleft()

    def context(self, stamp_ns: int) -> Context | NotReady:
        """Return the context whose newest frame is the one nearest to ``stamp_ns``."""
        with self._lock:
            latents, joints, actions = list(self._latents), list(self._joints), list(self._actions)
            unanswered_ns = None if self.readback_exists else self._unanswered_ns
        if not latents:
            return NotReady("frames")
        stamps = np.array([stamp for stamp, _ in latents], dtype=np.int64)
        wanted = stamp_ns - self._step_ns * np.arange(self._steps - 1, -1, -1, dtype=np.int64)
        index = nearest(stamps, wanted, self._skew_ns)
        if (index < 0).any():
            return NotReady("frames")
        at = stamps[index]
        if not joints:
            return NotReady("joints")
        positions, known = interpolate(
            np.array([stamp for stamp, _ in joints], dtype=np.int64),
            np.stack([value for _, value in joints]),
            at,
            self._joint_gap_ns,
            edge_ns=self._joint_gap_ns,
        )
        if not known.all():
            return NotReady("joints")
        if unanswered_ns is not None and int(at[-1]) - unanswered_ns > self._answer_ns:
            return NotReady("actions")
        past = self.applied(int(at[-1]), actions)
        if np.isnan(past).any():
            return NotReady("actions")
        return Context(
            stamp_ns=int(at[-1]),
            latents=np.stack([latents[i][1] for i in index]),
            joints=positions.astype(np.float32),
            actions=past.reshape(self._steps, self._ticks, -1).astype(np.float32),
        )

    def applied(
        self, stamp_ns: int, actions: list[tuple[int, NDArray[np.float64]]] | None = None
    ) -> NDArray[np.float64]:
        """Return what acted in each tick of the context that ends at a stamp (C * ticks, A)."""
        with self._lock:
            planned = list(self._planned)
            if actions is None:
                actions = list(self._actions)
        count = self._steps * self._ticks
        ticks = stamp_ns - self._tick_ns * np.arange(count, 0, -1, dtype=np.int64)
        size = len(self._profile.action.names)
        stamps = np.array([stamp for stamp, _ in actions], dtype=np.int64)
        values = (
            np.stack([value for _, value in actions]) if actions else np.zeros((0, size), float)
        )
        read = tick_actions(
            self._profile.action.kind,
            stamps,
            values,
            ticks,
            self._tick_ns,
            self._delay_ns,
            self._timeout_ns,
        )
        if self._ramp is None or not planned:
            return read
        decided = (
            np.array([stamp for stamp, _ in planned], dtype=np.int64),
            np.stack([value for _, value in planned]),
        )
        return as_planned(read, ticks, self._tick_ns, (stamps, values), decided, self._ramp)

    def history_s(self) -> float:
        """Return the seconds of frames at hand."""
        with self._lock:
            if not self._latents:
                return 0.0
            return (self._latents[-1][0] - self._latents[0][0]) / NS
