"""The safety gate as a pure state machine: arrays and times in, decisions out.

Three times appear. ``now_s`` is the steady clock in seconds: every watchdog runs on it. ``ros_ns``
is ROS time in nanoseconds: it is only compared with header stamps and watched for jumps.
``stamp_ns`` is what a header says.

The gate passes a command only while nothing speaks against it; otherwise it brakes first, then
holds. A reason that is latching stays until :meth:`Gate.reset`.

A position is a dangerous thing to repeat: sent to an arm that was moved meanwhile, it is a jump.
So the joints of a position robot must be where the reference was lately (:class:`_Trail`). At rest,
nothing is sent while they are not, or while nobody knows where they are; a reset starts the
reference again where they are.
"""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Mapping
from copy import copy
from dataclasses import dataclass, field
from enum import Enum

import numpy as np
from numpy.typing import NDArray

from wm_node.errors import WmError
from wm_node.profile import RobotProfile
from wm_node.safety.limits import joint_indices, make_shaper
from wm_node.safety.reasons import Reason
from wm_node.safety.space import SpaceGuard

Values = NDArray[np.float64]

_NS = 1_000_000_000
_KEPT_VERDICTS = 16
# A clock that is being disciplined may step back by this much.
_CLOCK_SLACK_S = 0.005
# Commands within a second over those of the profile's rate that are no jitter any more.
_FLOOD = 4.0


class State(Enum):
    """What the gate does with the robot."""

    HOLD = "at rest"
    PASS = "commands pass unchanged, within the acceleration limit"
    LIMIT = "commands pass, reduced to a limit"
    BRAKE = "on the way to rest"


@dataclass(frozen=True)
class GateConfig:
    """Times in seconds on the steady clock, beside those of the profile.

    Attributes:
        period_s: expected time between two steps.
        verdict_wait_s: how long a command may wait for its verdict.
        stamp_ahead_s: how far in the future a command may be stamped.
        clock_jump_s: how far ROS and steady clock may part between two steps, and how long the
            ROS clock may stand still.
        unverified_scale: share of the speed limits that an unverified command may use, where the
            profile limits instead of stopping.
        doubt_s: silence of the planner that confirms the middleware's word that it is dead.
        latch_after_s: how long the planner may be lost or its plans stale before it latches. A
            machine under load may stall a process; a process that was started anew takes longer.
        joint_speed_margin: measured joint speed over the profile's limit at which to brake.
        lock_timeout_s: silence of the lock that engages it.
    """

    period_s: float = 0.02
    verdict_wait_s: float = 0.05
    stamp_ahead_s: float = 0.05
    clock_jump_s: float = 0.2
    unverified_scale: float = 0.25
    doubt_s: float = 0.07
    latch_after_s: float = 1.0
    joint_speed_margin: float = 1.2
    lock_timeout_s: float = 0.3


@dataclass(frozen=True)
class Verdict:
    """What the model foresees for one command; NaN: not available.

    ``uncertainty`` and ``surprise`` are shares of the planner's limits.
    """

    stamp_ns: int
    risk: Mapping[str, float]
    uncertainty: float = math.nan
    surprise: float = math.nan


@dataclass(frozen=True)
class Decision:
    """What to send to the robot now, and why.

    Attributes:
        output: (A,) the action, always finite and within the limits.
        send: whether to send anything; a position at rest only while the joints are known to be
            there.
        manoeuvre: (K, A) what to send in a message that holds a trajectory: the output and the
            braking that follows it, one period apart, ending at rest.
        state: what the gate does.
        reason: why; ``OK`` while commands pass unchanged.
        latched: whether only a reset leads out.
        detail: the figures behind the reason, for people.
    """

    output: Values
    manoeuvre: Values
    send: bool
    state: State
    reason: Reason
    latched: bool
    detail: str


@dataclass(frozen=True)
class _Command:
    stamp_ns: int
    received_s: float
    values: Values


@dataclass(frozen=True)
class _Joints:
    stamp_ns: int
    received_s: float
    positions: Values
    velocities: Values


@dataclass
class _Fault:
    reason: Reason = Reason.OK
    detail: str = ""


@dataclass
class _Planner:
    """What the heartbeat says. ``armed``: its loss is a fault."""

    armed: bool = False
    alive: bool = True
    heard_s: float = -math.inf
    reason: Reason = Reason.NO_COMMAND
    stamp_ns: int = -1
    progress_s: float = -math.inf


@dataclass
class _Inputs:
    """Everything that a reset forgets."""

    planner: _Planner = field(default_factory=_Planner)
    current: _Command | None = None
    current_verdict: Verdict | None = None
    pending: _Command | None = None
    pending_since_s: float = math.inf
    jumped: bool = False
    newest_stamp_ns: int = 0
    refused: _Fault = field(default_factory=_Fault)
    verdicts: dict[int, Verdict] = field(default_factory=dict)
    arrivals: deque[float] = field(default_factory=deque)
    """When the commands of the last second came, as many as tell a flood."""


class _Trail:
    """Where the reference of a position robot was lately, and so where its joints may be.

    A joint follows its command late, so it may be anywhere that the reference was in the last
    ``stopping_time_s`` + ``max_joint_age_s`` + the longest ``delay_s``. Beside that it may be off
    by as far as it can move between two joint states: ``max_velocity`` times ``max_joint_age_s``.
    """

    def __init__(self, profile: RobotProfile) -> None:
        safety, index = profile.safety, joint_indices(profile)
        self._seconds = safety.stopping_time_s + safety.max_joint_age_s
        self._seconds += max(profile.action.delay_s or (0.0,))
        self._margin = np.array(profile.joints.max_velocity)[index] * safety.max_joint_age_s
        self._names = profile.action.names
        self._rows: deque[tuple[float, Values]] = deque()

    def start(self) -> None:
        """Forget everything: the reference starts anew."""
        self._rows.clear()

    def add(self, now_s: float, reference: Values) -> None:
        """Remember the reference, (A,), that holds from ``now_s`` on."""
        self._rows.append((now_s, reference))
        # The row that was in force when the time span began still counts.
        while len(self._rows) > 1 and self._rows[1][0] <= now_s - self._seconds:
            self._rows.popleft()

    def lost(self, positions: Values) -> str:
        """Return which of the measured joints, (A,), is not on the trail, empty if none."""
        if not self._rows:
            return ""
        rows = np.array([row for _, row in self._rows])
        outside = np.maximum(rows.min(axis=0) - positions, positions - rows.max(axis=0))
        worst = int(np.argmax(outside / self._margin))
        if outside[worst] <= self._margin[worst]:
            return ""
        return f"{self._names[worst]} at {positions[worst]:.3f}, commanded {rows[-1][worst]:.3f}"


def event_over_threshold(risk: Mapping[str, float], thresholds: Mapping[str, float]) -> str | None:
    """Return the first event whose risk stops the robot; one without a known risk does not."""
    for event, threshold in thresholds.items():
        if risk.get(event, math.nan) > threshold:
            return event
    return None


def judge_command(
    profile: RobotProfile, values: Values, frame_id: str, age_s: float, stamp_ahead_s: float
) -> tuple[Reason, str]:
    """Return why a command cannot be followed, and the figures behind it; ``OK`` if it can.

    Args:
        profile: of the robot.
        values: (A,) as they came.
        frame_id: of the command, empty where it has none.
        age_s: by its stamp; negative: it is stamped in the future.
        stamp_ahead_s: how far in the future it may be stamped.
    """
    if not np.isfinite(values).all():
        return Reason.COMMAND_NOT_FINITE, f"values {values.tolist()}"
    if frame_id != profile.action.frame_id:
        expected = profile.action.frame_id
        return Reason.COMMAND_FOREIGN_FRAME, f"frame '{frame_id}', expected '{expected}'"
    if age_s < -stamp_ahead_s:
        return Reason.COMMAND_FUTURE, f"{-age_s:.3f} s ahead"
    if age_s > profile.safety.max_command_age_s:
        return Reason.COMMAND_OLD, f"{age_s:.3f} s old on arrival"
    return Reason.OK, ""


class Gate:
    """Decides, every period, what the robot is sent.

    Feed it with the ``on_*`` methods as messages arrive and call :meth:`step` on a timer; not
    thread-safe. It starts at rest, with nothing received.

    Args:
        profile: the robot.
        config: times and shares.
        shadow: another program moves the robot, so that it need not follow the output.
        lockable: commands pass only while a lock says that they may.
        space: keeps links in their workspace and out of volumes; None: nothing does.

    Raises:
        WmError: the profile's limits contradict each other.
    """

    def __init__(
        self,
        profile: RobotProfile,
        config: GateConfig | None = None,
        shadow: bool = False,
        lockable: bool = False,
        space: SpaceGuard | None = None,
    ) -> None:
        self._profile = profile
        self._config = config or GateConfig()
        self._space = space
        self._lockable = lockable
        self._unlocked_s = -math.inf  # when the lock last said that commands may pass
        self._lock_engaged = False
        # A velocity acts until the next step, which may come one period late.
        self._shaper = make_shaper(profile, 2 * self._config.period_s)
        self._index = joint_indices(profile)
        self._lower = np.array(profile.joints.lower)
        self._upper = np.array(profile.joints.upper)
        self._fastest = np.array(profile.joints.max_velocity) * self._config.joint_speed_margin
        self._inputs = _Inputs()
        self._joints: _Joints | None = None
        self._joint_fault = _Fault()
        tracked = profile.action.kind == "joint_position" and not shadow
        self._trail = _Trail(profile) if tracked else None
        self._anchored = False
        self._lost = False
        self._send = True
        self._latched = _Fault()
        self._planner_lost_s = math.inf
        self._planners = 1  # alive, as far as the middleware knows
        self._flood = int(_FLOOD * profile.action.rate_hz)
        self._stepped: tuple[float, int] | None = None
        self._clock_moved_s = -math.inf

    # what arrives

    def on_heartbeat(self, stamp_ns: int, reason: Reason, now_s: float) -> None:
        """The planner is alive; ``stamp_ns``: its last completed plan, ``reason``: what it does."""
        planner = self._inputs.planner
        started = reason is Reason.OK and planner.reason is not Reason.OK
        if started or stamp_ns != planner.stamp_ns:
            planner.progress_s = now_s
        if not planner.armed:
            # The first sign of a new planner may arrive before the middleware's own.
            planner.alive = True
        planner.armed = reason is not Reason.PLANNER_INACTIVE
        planner.heard_s, planner.reason, planner.stamp_ns = now_s, reason, stamp_ns

    def on_liveliness(self, planners: int) -> None:
        """The middleware tells how many planners are alive."""
        self._planners = planners
        self._inputs.planner.alive = planners > 0

    def on_command(
        self, stamp_ns: int, values: Values, frame_id: str, now_s: float, ros_ns: int
    ) -> None:
        """A command, (A,), arrived; ``stamp_ns`` 0: it carries no stamp.

        A command that cannot be accepted makes the gate brake until a good one comes.
        """
        inputs = self._inputs
        self._count(now_s)
        age_s = (ros_ns - stamp_ns) / _NS if stamp_ns else 0.0
        values = np.array(values, dtype=np.float64)
        fault = _Fault(
            *judge_command(self._profile, values, frame_id, age_s, self._config.stamp_ahead_s)
        )
        if fault.reason is Reason.OK and stamp_ns and stamp_ns <= inputs.newest_stamp_ns:
            if stamp_ns == inputs.newest_stamp_ns:
                return  # the same command again does not make it any fresher
            fault = _Fault(Reason.COMMAND_OLD, "older than the command before it")
        if fault.reason is Reason.OK:
            inputs.newest_stamp_ns = stamp_ns or inputs.newest_stamp_ns
            if inputs.pending is None:
                inputs.pending_since_s = now_s
            inputs.pending = _Command(stamp_ns, now_s, values)
        inputs.refused = fault

    def _count(self, now_s: float) -> None:
        arrivals = self._inputs.arrivals
        arrivals.append(now_s)
        if len(arrivals) > self._flood + 1:
            arrivals.popleft()

    def on_malformed(self, detail: str, now_s: float) -> None:
        """A command arrived that could not be read."""
        self._count(now_s)
        self._inputs.refused = _Fault(Reason.COMMAND_MALFORMED, detail)

    def on_verdict(self, verdict: Verdict) -> None:
        """The model's verdict on the command of the same stamp, before or after it."""
        verdicts = self._inputs.verdicts
        verdicts[verdict.stamp_ns] = verdict
        while len(verdicts) > _KEPT_VERDICTS:
            del verdicts[next(iter(verdicts))]

    def on_lock(self, engaged: bool, now_s: float) -> None:
        """The lock says whether commands may pass; what counts is that it keeps saying so."""
        self._lock_engaged = engaged
        if not engaged:
            self._unlocked_s = now_s

    def on_joints(
        self,
        stamp_ns: int,
        positions: Values,
        velocities: Values | None,
        now_s: float,
        ros_ns: int,
    ) -> None:
        """Joint positions and velocities, (J,) in the profile's order, None: not measured.

        A repeated stamp is not a fresh state: a driver that repeats its last message looks dead.
        Nor is one that was old on arrival.
        """
        before = self._joints
        if before is not None and stamp_ns == before.stamp_ns:
            return
        age_s = (ros_ns - stamp_ns) / _NS
        if age_s > self._profile.safety.max_joint_age_s:
            self._joint_fault = _Fault(Reason.JOINTS_STALE, f"{age_s:.3f} s old on arrival")
            return
        if age_s < -self._config.stamp_ahead_s:
            self._joint_fault = _Fault(Reason.JOINTS_FUTURE, f"{-age_s:.3f} s ahead")
            return
        if velocities is None:
            elapsed = 0.0 if before is None else (stamp_ns - before.stamp_ns) / _NS
            velocities = (
                (positions - before.positions) / elapsed
                if before is not None and elapsed > 0
                else np.zeros_like(positions)
            )
        if not (np.isfinite(positions).all() and np.isfinite(velocities).all()):
            self._joint_fault = _Fault(Reason.JOINTS_NOT_FINITE)
            return
        self._joint_fault = _Fault()
        self._joints = _Joints(stamp_ns, now_s, np.array(positions), np.array(velocities))

    def on_foreign_joints(self, detail: str) -> None:
        """A joint state arrived that lacks joints of the profile."""
        self._joint_fault = _Fault(Reason.JOINT_NAMES, detail)

    def stop(self) -> None:
        """Brake and hold until a reset: the operator's stop."""
        self._latched = _Fault(Reason.OPERATOR_STOP)

    def reset(self, publishers: int) -> None:
        """Leave a latched reason and forget what was received.

        Raises:
            WmError: the robot is not at rest, or another node still commands it.
        """
        if not self._shaper.at_rest:
            raise WmError("the robot is still braking; reset when it is at rest.")
        if publishers > 1:
            raise WmError("another node still publishes commands to the robot; stop it first.")
        if self._planners > 1:
            raise WmError(f"{self._planners} planners are alive; stop all but one first.")
        self._latched = _Fault()
        self._planner_lost_s = math.inf
        self._inputs = _Inputs()
        self._anchored = self._lost = False

    @property
    def at_rest(self) -> bool:
        """Whether the output commands standstill."""
        return self._shaper.at_rest

    def doubt_ends_s(self) -> float | None:
        """Return when, in steady time, a planner said to be dead counts as dead; None: it lives."""
        planner = self._inputs.planner
        if planner.alive or not planner.armed:
            return None
        return planner.heard_s + self._config.doubt_s

    # the decision

    def step(self, now_s: float, ros_ns: int, publishers: int = 1) -> Decision:
        """Decide what the robot is sent from now on.

        Args:
            now_s: steady time.
            ros_ns: ROS time.
            publishers: nodes that publish on the robot's command topic, the gate included.
        """
        previous_s = now_s - self._config.period_s if self._stepped is None else self._stepped[0]
        # A gate that slept does not make up for it with one large change.
        dt = min(max(now_s - previous_s, 0.0), 2 * self._config.period_s)
        self._anchor(now_s)
        fault = self._fault(now_s, ros_ns, publishers)
        self._stepped = (now_s, ros_ns)
        self._send = self._may_send(now_s)
        decision = self._decide(fault, now_s, dt)
        if self._trail is not None and self._anchored:
            self._trail.add(now_s, decision.output)
        return decision

    def _decide(self, fault: _Fault, now_s: float, dt: float) -> Decision:
        if self._latches(fault.reason, now_s) and self._latched.reason is Reason.OK:
            self._latched = fault
        if self._latched.reason is not Reason.OK:
            fault = self._latched
        command = self._inputs.current
        if fault.reason is not Reason.OK or command is None:
            self._shaper.brake(dt)
            state = State.HOLD if self._shaper.at_rest else State.BRAKE
            return self._decision(state, fault)
        unverified = self._unverified(self._inputs.current_verdict)
        scale = self._config.unverified_scale if unverified else 1.0
        positions = self._positions()
        age_s = now_s - command.received_s
        before = copy(self._shaper)
        limit = self._shaper.follow(command.values, age_s, dt, scale, positions)
        breach = self._breach()
        if breach.reason is not Reason.OK:
            # As if the command had not come: the last output could still be braked in free space.
            self._shaper = before
            self._shaper.brake(dt)
            return self._decision(State.HOLD if self._shaper.at_rest else State.BRAKE, breach)
        if limit is Reason.OK and self._inputs.jumped:
            limit = Reason.ACCELERATION_LIMIT
        if unverified:
            return self._decision(State.LIMIT, _Fault(Reason.UNVERIFIED, unverified))
        return self._decision(State.PASS if limit is Reason.OK else State.LIMIT, _Fault(limit))

    def _breach(self) -> _Fault:
        """Return whether what would be sent leads out of the free space."""
        if self._space is None or self._joints is None:
            return _Fault()
        manoeuvre = self._shaper.manoeuvre(self._config.period_s)
        return _Fault(*self._space.breach(self._joints.positions, self._shaper.output, manoeuvre))

    def _latches(self, reason: Reason, now_s: float) -> bool:
        if reason not in (Reason.HEARTBEAT_LOST, Reason.PLAN_STALE):
            self._planner_lost_s = math.inf
            return reason.latching
        self._planner_lost_s = min(self._planner_lost_s, now_s)
        return now_s - self._planner_lost_s >= self._config.latch_after_s

    def _decision(self, state: State, fault: _Fault) -> Decision:
        return Decision(
            output=self._shaper.output,
            manoeuvre=self._shaper.manoeuvre(self._config.period_s),
            send=self._send,
            state=state,
            reason=fault.reason,
            latched=self._latched.reason is not Reason.OK,
            detail=fault.detail,
        )

    def _positions(self) -> Values:
        return np.zeros(0) if self._joints is None else self._joints.positions[self._index]

    def _joint_age_s(self, now_s: float) -> float:
        return math.inf if self._joints is None else now_s - self._joints.received_s

    def _joints_known(self, now_s: float) -> bool:
        sound = self._joint_fault.reason is Reason.OK
        return sound and self._joint_age_s(now_s) <= self._profile.safety.max_joint_age_s

    def _anchor(self, now_s: float) -> None:
        """Start the reference of a position command where the joints are, once they are known."""
        if not self._anchored and self._joints_known(now_s) and self._shaper.at_rest:
            self._shaper.reset(self._positions())
            self._anchored = True
            if self._trail is not None:
                self._trail.start()

    def _may_send(self, now_s: float) -> bool:
        if self._profile.action.kind != "joint_position":
            return True
        # Braking is always sent: the robot moves, and it ends at rest.
        still_there = self._joints_known(now_s) and not self._lost
        return self._anchored and (still_there or not self._shaper.at_rest)

    def _fault(self, now_s: float, ros_ns: int, publishers: int) -> _Fault:
        """Return the first fault in order of gravity, or OK."""
        # First of all: behind any other reason the arm may be moved as well.
        tracking = self._tracking_fault(now_s)
        if publishers > 1:
            return _Fault(Reason.SECOND_PUBLISHER, f"{publishers} publishers")
        if self._planners > 1:
            return _Fault(Reason.SECOND_PLANNER, f"{self._planners} are alive")
        if tracking.reason is not Reason.OK:
            return tracking
        if self._lockable and (locked := self._locked(now_s)):
            return _Fault(Reason.LOCKED, locked)
        for check in (self._clock_fault, self._planner_fault, self._joints_fault):
            fault = check(now_s, ros_ns)
            if fault.reason is not Reason.OK:
                return fault
        return self._command_fault(now_s, ros_ns)

    def _locked(self, now_s: float) -> str:
        """Return why the lock keeps commands from passing, empty if it does not."""
        if self._lock_engaged:
            return "engaged"
        silent_s = now_s - self._unlocked_s
        if silent_s <= self._config.lock_timeout_s:
            return ""
        return "never heard" if math.isinf(silent_s) else f"silent for {silent_s:.3f} s"

    def _tracking_fault(self, now_s: float) -> _Fault:
        """Return whether a joint is not where it was commanded to be; that holds until a reset."""
        if self._trail is None or not self._joints_known(now_s):
            return _Fault()
        lost = self._trail.lost(self._positions())
        if not lost:
            return _Fault()
        self._lost = True
        return _Fault(Reason.TRACKING_LOST, lost)

    def _clock_fault(self, now_s: float, ros_ns: int) -> _Fault:
        if self._stepped is None:
            self._clock_moved_s = now_s
            return _Fault()
        steady_s, ros_s = now_s - self._stepped[0], (ros_ns - self._stepped[1]) / _NS
        if ros_s != 0:
            self._clock_moved_s = now_s
        still_s = now_s - self._clock_moved_s
        # Standing still is slow parting, not a jump; what comes after a stand-still may be both.
        if ros_s < -_CLOCK_SLACK_S or ros_s - steady_s > self._config.clock_jump_s:
            return _Fault(Reason.CLOCK_JUMP, f"by {ros_s - steady_s:+.3f} s")
        if still_s > self._config.clock_jump_s:
            return _Fault(Reason.CLOCK_STOPPED, f"for {still_s:.3f} s")
        return _Fault()

    def _planner_fault(self, now_s: float, ros_ns: int) -> _Fault:
        planner, safety = self._inputs.planner, self._profile.safety
        if planner.armed:
            silent_s = now_s - planner.heard_s
            # On a loaded machine the middleware alone is wrong at times; a heartbeat proves it so.
            if not planner.alive and silent_s >= self._config.doubt_s:
                return _Fault(Reason.HEARTBEAT_LOST, "its process is gone")
            if silent_s > safety.max_heartbeat_age_s:
                return _Fault(Reason.HEARTBEAT_LOST, f"silent for {silent_s:.3f} s")
            stale_s = now_s - planner.progress_s
            if planner.reason is Reason.OK and stale_s > safety.max_plan_age_s:
                return _Fault(Reason.PLAN_STALE, f"no plan completed for {stale_s:.3f} s")
        return _Fault(planner.reason)

    def _joints_fault(self, now_s: float, ros_ns: int) -> _Fault:
        if self._joint_fault.reason is not Reason.OK:
            return self._joint_fault
        joints, safety, names = self._joints, self._profile.safety, self._profile.joints.names
        if joints is None:
            return _Fault(Reason.JOINTS_STALE, "none received yet")
        if not self._joints_known(now_s):
            return _Fault(Reason.JOINTS_STALE, f"{self._joint_age_s(now_s):.3f} s old")
        fast = np.abs(joints.velocities) > self._fastest
        if fast.any():
            worst = int(np.argmax(np.abs(joints.velocities) / self._fastest))
            return _Fault(
                Reason.VELOCITY_LIMIT, f"{names[worst]} at {joints.velocities[worst]:.3f}"
            )
        if self._profile.action.kind == "twist":
            # No kinematics here: where each joint would come to rest is all that can be said, not
            # which twist leads back from a limit. So the reason stays there, also at rest: else
            # the joint would creep outwards, stopped and released again and again.
            rest = joints.positions + joints.velocities * safety.stopping_time_s / 2
            over = (
                (joints.positions >= self._upper)
                | (joints.positions <= self._lower)
                | ((rest > self._upper) & (joints.velocities > 0))
                | ((rest < self._lower) & (joints.velocities < 0))
            )
            if over.any():
                worst = int(np.argmax(over))
                return _Fault(
                    Reason.POSITION_LIMIT,
                    f"{names[worst]} at {joints.positions[worst]:.3f}, "
                    f"velocity {joints.velocities[worst]:.3f}",
                )
        return _Fault()

    def _command_fault(self, now_s: float, ros_ns: int) -> _Fault:
        inputs, limit_s = self._inputs, self._profile.safety.max_command_age_s
        self._promote(now_s)
        while inputs.arrivals and inputs.arrivals[0] < now_s - 1.0:
            inputs.arrivals.popleft()
        if len(inputs.arrivals) > self._flood:
            rate = self._profile.action.rate_hz
            return _Fault(Reason.COMMAND_FLOOD, f"over {self._flood} in 1 s, expected {rate:g}")
        if inputs.refused.reason is not Reason.OK:
            return inputs.refused
        command = inputs.current
        if command is None:
            return _Fault(Reason.NO_COMMAND)
        age_s = now_s - command.received_s
        if command.stamp_ns:
            age_s = max(age_s, (ros_ns - command.stamp_ns) / _NS)
        if age_s > limit_s:
            return _Fault(Reason.COMMAND_STALE, f"{age_s:.3f} s old")
        return self._verdict_fault(inputs.current_verdict)

    def _promote(self, now_s: float) -> None:
        """Take over the newest command once its verdict is there, or has not come in time."""
        inputs = self._inputs
        if inputs.pending is None:
            return
        verdict = inputs.verdicts.get(inputs.pending.stamp_ns)
        if verdict is None and now_s - inputs.pending_since_s <= self._config.verdict_wait_s:
            return
        inputs.current, inputs.current_verdict = inputs.pending, verdict
        inputs.jumped = self._shaper.jumps(inputs.current.values)
        inputs.pending = None

    def _unverified(self, verdict: Verdict | None) -> str:
        """Return what the verdict lacks, empty if nothing."""
        if verdict is None:
            return "no verdict of the command's stamp"
        for event in self._profile.safety.risk_threshold:
            if math.isnan(verdict.risk.get(event, math.nan)):
                return f"no risk of '{event}' in the verdict"
        return ""

    def _verdict_fault(self, verdict: Verdict | None) -> _Fault:
        safety = self._profile.safety
        if safety.unverified == "stop" and (lack := self._unverified(verdict)):
            return _Fault(Reason.UNVERIFIED, lack)
        if verdict is None:
            return _Fault()
        event = event_over_threshold(verdict.risk, safety.risk_threshold)
        if event is not None:
            over = f"{event} {verdict.risk[event]:.3f} over {safety.risk_threshold[event]:g}"
            return _Fault(Reason.RISK, over)
        if verdict.uncertainty > 1:
            return _Fault(Reason.UNCERTAINTY, f"{verdict.uncertainty:.3f} of its limit")
        if verdict.surprise > 1:
            return _Fault(Reason.SURPRISE, f"{verdict.surprise:.3f} of its limit")
        return _Fault()
