from __future__ import annotations

import math
from collections import deque
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wm_node.errors import WmError
from wm_node.profile import RobotProfile, load_profile, parse_profile
from wm_node.safety.gate import Decision, Gate, State, Verdict
from wm_node.safety.reasons import ORDINARY, Reason

MS = 1_000_000
PERIOD_MS = 20
FORWARD = np.array([0.2, 0.0])


def profile_with(**safety: Any) -> RobotProfile:
    data = load_profile("tabletop").dump()
    data["safety"] |= safety
    return parse_profile(data, "test")


class Bench:
    """A gate, a clock, and a healthy world around it that single parts can be taken out of."""

    def __init__(self, profile: RobotProfile | None = None) -> None:
        self.profile = profile or load_profile("tabletop")
        self.gate = Gate(self.profile)
        self.ms = 1000
        self.ros_offset_ns = 1_790_000_000_000 * MS
        self.ros_runs = True
        self.muted: set[str] = set()
        self.reason = Reason.OK
        self.command = FORWARD
        self.frame = "table"
        self.stamp_shift_ms = self.joint_shift_ms = 0
        self.risk: dict[str, float] = {"fell": 0.1, "zone": 0.1}
        self.uncertainty = self.surprise = math.nan
        self.publishers = 1
        self.flood = self.malformed = 0  # commands more, each period
        self.positions = np.zeros(4)
        self.velocities = np.zeros(4)
        self.plan_stamp = self.joint_states = 0

    @property
    def now_s(self) -> float:
        return self.ms / 1000

    @property
    def ros_ns(self) -> int:
        return self.ros_offset_ns + (self.ms * MS if self.ros_runs else 0)

    def tick(self) -> Decision:
        """One period: heartbeat, joints, a command every fifth time, then the decision."""
        self.ms += PERIOD_MS
        if self.ms % 100 == 0:
            stamp = self.ros_ns + self.stamp_shift_ms * MS
            self.plan_stamp = self.plan_stamp if "plan" in self.muted else stamp
            if "verdict" not in self.muted:
                verdict = Verdict(stamp, self.risk, self.uncertainty, self.surprise)
                self.gate.on_verdict(verdict)
            if "command" not in self.muted:
                self.gate.on_command(stamp, self.command, self.frame, self.now_s, self.ros_ns)
        for number in range(self.flood):
            stamp = self.ros_ns - self.flood + number
            self.gate.on_command(stamp, self.command, self.frame, self.now_s, self.ros_ns)
        for _ in range(self.malformed):
            self.gate.on_malformed("3 values", self.now_s)
        if "heartbeat" not in self.muted:
            self.gate.on_heartbeat(self.plan_stamp, self.reason, self.now_s)
        if "joints" not in self.muted:
            self.joint_states += 1  # no stamp comes twice, even while the clock stands still
            stamp = self.ros_ns + self.joint_shift_ms * MS + self.joint_states
            self.gate.on_joints(stamp, self.positions, self.velocities, self.now_s, self.ros_ns)
        return self.gate.step(self.now_s, self.ros_ns, self.publishers)

    def run(self, ticks: int) -> Decision:
        for _ in range(ticks):
            decision = self.tick()
        return decision

    def until(self, done: Callable[[Decision], bool], most: int = 200) -> tuple[Decision, int]:
        for count in range(1, most + 1):
            decision = self.tick()
            if done(decision):
                return decision, count
        raise AssertionError(f"never happened: {decision}")


def moving(profile: RobotProfile | None = None) -> Bench:
    bench = Bench(profile)
    decision = bench.run(20)
    assert decision.state is State.PASS
    assert decision.reason is Reason.OK
    np.testing.assert_allclose(decision.output, FORWARD)
    return bench


def test_nothing_received_means_hold() -> None:
    decision = Gate(load_profile("tabletop")).step(1.0, 10**18)
    assert (decision.state, decision.reason) == (State.HOLD, Reason.NO_COMMAND)
    assert not decision.output.any()


# What goes wrong, the reason that the gate must give, and whether it must latch.
def _mute(what: str) -> Callable[[Bench], None]:
    return lambda bench: bench.muted.add(what)


def _set(**values: Any) -> Callable[[Bench], None]:
    return lambda bench: bench.__dict__.update(values)


def _jump(bench: Bench) -> None:
    bench.ros_offset_ns += 3_600_000 * MS


def _jump_back(bench: Bench) -> None:
    bench.ros_offset_ns -= 1_000 * MS


def _stop_clock(bench: Bench) -> None:
    bench.ros_offset_ns += bench.ms * MS
    bench.ros_runs = False


FAULTS: dict[str, tuple[Callable[[Bench], None], Reason, bool]] = {
    "planner dies": (
        lambda b: (b.muted.add("heartbeat"), b.gate.on_liveliness(0))[1],
        Reason.HEARTBEAT_LOST,
        True,
    ),
    "heartbeat silent": (_mute("heartbeat"), Reason.HEARTBEAT_LOST, True),
    "engine hangs": (_mute("plan"), Reason.PLAN_STALE, True),
    "command stale": (_mute("command"), Reason.COMMAND_STALE, False),
    "no verdict": (_mute("verdict"), Reason.UNVERIFIED, False),
    "joints stale": (_mute("joints"), Reason.JOINTS_STALE, False),
    "joints old": (_set(joint_shift_ms=-150), Reason.JOINTS_STALE, False),
    "joints ahead": (_set(joint_shift_ms=100), Reason.JOINTS_FUTURE, False),
    "joints NaN": (_set(positions=np.full(4, np.nan)), Reason.JOINTS_NOT_FINITE, False),
    "joints too fast": (_set(velocities=np.full(4, 4.0)), Reason.VELOCITY_LIMIT, False),
    "joint at its limit": (
        _set(positions=np.array([2.9, 0, 0, 0]), velocities=np.array([1.0, 0, 0, 0])),
        Reason.POSITION_LIMIT,
        False,
    ),
    "joint at rest past its limit": (
        _set(positions=np.array([0, 0, 0, -2.8])),
        Reason.POSITION_LIMIT,
        False,
    ),
    "NaN": (_set(command=np.array([np.nan, 0.0])), Reason.COMMAND_NOT_FINITE, False),
    "infinite": (_set(command=np.array([0.0, np.inf])), Reason.COMMAND_NOT_FINITE, False),
    "other frame": (_set(frame="map"), Reason.COMMAND_FOREIGN_FRAME, False),
    "future stamp": (_set(stamp_shift_ms=400), Reason.COMMAND_FUTURE, False),
    "old stamp": (_set(stamp_shift_ms=-400), Reason.COMMAND_OLD, False),
    "risk": (_set(risk={"fell": 0.51, "zone": 0.0}), Reason.RISK, False),
    "risk unknown": (_set(risk={"fell": 0.1, "zone": math.nan}), Reason.UNVERIFIED, False),
    "risk missing": (_set(risk={"fell": 0.1}), Reason.UNVERIFIED, False),
    "uncertain": (_set(uncertainty=1.1), Reason.UNCERTAINTY, False),
    "surprised": (_set(surprise=1.1), Reason.SURPRISE, False),
    "clock jumps ahead": (_jump, Reason.CLOCK_JUMP, True),
    "clock jumps back": (_jump_back, Reason.CLOCK_JUMP, True),
    "clock stops": (_stop_clock, Reason.CLOCK_STOPPED, False),
    "second publisher": (_set(publishers=2), Reason.SECOND_PUBLISHER, True),
    "second planner": (lambda b: b.gate.on_liveliness(2), Reason.SECOND_PLANNER, True),
    "flood": (_set(flood=20), Reason.COMMAND_FLOOD, False),
    "malformed flood": (_set(malformed=60), Reason.COMMAND_FLOOD, False),
    "operator": (lambda b: b.gate.stop(), Reason.OPERATOR_STOP, True),
    "no goal": (_set(reason=Reason.NO_GOAL), Reason.NO_GOAL, False),
    "frames stale": (_set(reason=Reason.FRAMES_STALE), Reason.FRAMES_STALE, False),
    "malformed": (
        lambda b: (b.muted.add("command"), b.gate.on_malformed("3 values", b.now_s))[1],
        Reason.COMMAND_MALFORMED,
        False,
    ),
    "foreign joints": (
        lambda b: (b.muted.add("joints"), b.gate.on_foreign_joints("no elbow"))[1],
        Reason.JOINT_NAMES,
        False,
    ),
}


@pytest.mark.parametrize("name", FAULTS)
def test_every_fault_brakes_monotonically_to_rest_and_is_named(name: str) -> None:
    break_it, reason, latching = FAULTS[name]
    bench = moving()
    break_it(bench)
    decision, _ = bench.until(lambda d: d.state is State.BRAKE, most=40)
    assert decision.reason is reason
    assert reason.latching == latching
    speed = np.linalg.norm(decision.output)
    assert speed < np.linalg.norm(FORWARD)  # the first decision with the reason decelerates
    steps = 0
    while decision.state is not State.HOLD:
        decision, steps = bench.tick(), steps + 1
        assert decision.reason is reason
        assert np.linalg.norm(decision.output) < speed
        speed = np.linalg.norm(decision.output)
    assert steps * PERIOD_MS / 1000 <= bench.profile.safety.stopping_time_s
    assert not decision.output.any()
    decision = bench.run(51)  # a lost planner latches after a second, the rest at once
    assert decision.reason is reason
    assert decision.latched == latching


@pytest.mark.parametrize("name", FAULTS)
def test_after_a_fault_only_latching_reasons_need_a_reset(name: str) -> None:
    break_it, reason, latching = FAULTS[name]
    bench = moving()
    break_it(bench)
    bench.until(lambda d: d.state is State.HOLD)
    bench.run(51)
    healed = Bench()
    for key in ("muted", "reason", "command", "frame", "stamp_shift_ms", "risk", "publishers"):
        setattr(bench, key, getattr(healed, key))
    bench.uncertainty = bench.surprise = math.nan
    bench.joint_shift_ms = 0
    bench.flood = bench.malformed = 0
    bench.positions, bench.velocities = np.zeros(4), np.zeros(4)
    bench.gate.on_liveliness(1)
    if not bench.ros_runs:
        bench.ros_offset_ns -= bench.ms * MS
        bench.ros_runs = True
    if latching:
        assert bench.run(60).reason is reason
        bench.gate.reset(publishers=1)
    decision, _ = bench.until(lambda d: d.state is State.PASS, most=60)
    assert not decision.latched


def test_fault_timing_follows_the_profile() -> None:
    bench = moving()
    bench.muted.add("joints")
    _, ticks = bench.until(lambda d: d.reason is Reason.JOINTS_STALE)
    assert ticks * PERIOD_MS / 1000 == pytest.approx(0.1, abs=0.021)
    bench = moving()
    bench.muted.add("heartbeat")
    _, ticks = bench.until(lambda d: d.reason is Reason.HEARTBEAT_LOST)
    assert ticks * PERIOD_MS / 1000 == pytest.approx(0.3, abs=0.021)
    bench = moving()
    bench.gate.on_liveliness(0)
    bench.muted.add("heartbeat")
    _, ticks = bench.until(lambda d: d.reason is Reason.HEARTBEAT_LOST)
    assert ticks == 4
    assert bench.gate.doubt_ends_s() is not None


def test_a_reset_is_refused_while_braking_or_with_another_publisher() -> None:
    bench = moving()
    bench.gate.stop()
    assert bench.tick().state is State.BRAKE
    with pytest.raises(WmError, match="at rest"):
        bench.gate.reset(publishers=1)
    bench.run(20)
    with pytest.raises(WmError, match="another node"):
        bench.gate.reset(publishers=2)
    bench.gate.on_liveliness(2)
    with pytest.raises(WmError, match="2 planners"):
        bench.gate.reset(publishers=1)
    assert bench.tick().latched
    bench.gate.on_liveliness(1)
    bench.gate.reset(publishers=1)
    assert not bench.tick().latched


def test_a_flood_that_ends_is_forgiven_and_ordinary_jitter_is_none() -> None:
    bench = moving()
    bench.flood = 1  # 60 a second where 10 are expected
    assert bench.run(60).reason is Reason.COMMAND_FLOOD
    bench.flood = 0
    bench.until(lambda d: d.state is State.PASS)
    for _ in range(20):  # each second two are late and come in one period with the third
        bench.muted.add("command")
        bench.run(10)
        for back in (2, 1):
            stamp = bench.ros_ns - back * 20 * MS
            bench.gate.on_command(stamp, FORWARD, "table", bench.now_s, bench.ros_ns)
        bench.muted.clear()
        for _ in range(40):
            assert bench.tick().reason is not Reason.COMMAND_FLOOD


def test_after_a_reset_a_dead_planner_is_waited_for_not_followed() -> None:
    bench = moving()
    bench.muted |= {"heartbeat", "command"}
    bench.gate.on_liveliness(0)
    bench.run(80)
    bench.gate.reset(publishers=1)
    assert bench.run(50).reason is Reason.NO_COMMAND
    bench.muted.clear()  # the planner is back: its heartbeat, before the middleware says so
    bench.until(lambda d: d.state is State.PASS)


def test_a_planner_that_says_goodbye_may_leave() -> None:
    bench = moving()
    bench.reason = Reason.PLANNER_INACTIVE
    bench.tick()
    bench.muted |= {"heartbeat", "command"}
    bench.gate.on_liveliness(0)
    decision = bench.run(100)
    assert decision.reason is Reason.PLANNER_INACTIVE
    assert not decision.latched


def test_a_planner_that_holds_and_then_dies_is_still_a_fault() -> None:
    bench = moving()
    bench.reason = Reason.NO_GOAL
    bench.run(20)
    bench.gate.on_liveliness(0)
    bench.muted.add("heartbeat")
    assert bench.run(60).latched


def test_a_heartbeat_overrules_the_middleware_and_a_short_stall_does_not_latch() -> None:
    bench = moving()
    bench.gate.on_liveliness(0)
    assert bench.run(5).state is State.PASS
    assert bench.gate.doubt_ends_s() == pytest.approx(bench.now_s + 0.07)
    bench.muted.add("heartbeat")
    decision, ticks = bench.until(lambda d: d.reason is Reason.HEARTBEAT_LOST)
    assert ticks == 4
    bench.run(20)
    bench.gate.on_liveliness(1)
    bench.muted.clear()
    decision, _ = bench.until(lambda d: d.state is State.PASS)
    assert not decision.latched


def test_holding_for_long_without_plans_is_no_hung_engine() -> None:
    bench = moving()
    bench.reason = Reason.NO_GOAL
    bench.muted |= {"plan", "command"}
    bench.run(200)
    bench.reason = Reason.OK
    bench.muted.clear()
    decision, _ = bench.until(lambda d: d.state is State.PASS)
    assert not decision.latched


def test_a_command_waits_for_its_verdict_while_the_one_before_it_goes_on() -> None:
    bench = moving()
    bench.muted |= {"verdict", "command"}
    stamp = bench.ros_ns + MS
    bench.gate.on_command(stamp, -FORWARD, "table", bench.now_s, bench.ros_ns)
    assert bench.tick().state is State.PASS
    bench.gate.on_verdict(Verdict(stamp, bench.risk))
    decision = bench.tick()
    assert decision.output[0] < FORWARD[0]
    assert decision.reason is Reason.ACCELERATION_LIMIT  # from +0.2 to -0.2 in one period


def test_commands_that_come_fast_and_without_verdicts_do_not_hide_behind_an_old_one() -> None:
    bench = moving()
    bench.muted |= {"verdict", "command"}
    for _ in range(6):
        bench.gate.on_command(bench.ros_ns, FORWARD, "table", bench.now_s, bench.ros_ns)
        decision = bench.tick()
    assert decision.reason is Reason.UNVERIFIED


def test_a_verdict_of_another_stamp_verifies_nothing() -> None:
    bench = moving()
    bench.muted.add("verdict")
    bench.gate.on_verdict(Verdict(bench.ros_ns + 1, bench.risk))
    bench.until(lambda d: d.reason is Reason.UNVERIFIED)


def test_unverified_commands_are_slowed_where_the_profile_says_so() -> None:
    bench = Bench(profile_with(unverified="limit"))
    bench.muted.add("verdict")
    decision = bench.run(30)
    assert (decision.state, decision.reason) == (State.LIMIT, Reason.UNVERIFIED)
    assert decision.output[0] == pytest.approx(0.25 * 0.25)
    bench.muted.clear()
    bench.risk = {"fell": 0.9, "zone": 0.0}
    bench.until(lambda d: d.reason is Reason.RISK)


def test_a_command_over_the_limit_is_reduced_and_named() -> None:
    bench = Bench()
    bench.command = np.array([1.0, 0.5])
    decision = bench.run(20)
    assert (decision.state, decision.reason) == (State.LIMIT, Reason.VELOCITY_LIMIT)
    np.testing.assert_allclose(decision.output, [0.25, 0.125])


def test_a_repeated_joint_state_is_not_fresh() -> None:
    bench = moving()
    bench.muted.add("joints")
    repeated = bench.ros_ns + 7
    for _ in range(7):  # the last decision is 0.14 s after the state came
        bench.gate.on_joints(repeated, bench.positions, bench.velocities, bench.now_s, bench.ros_ns)
        decision = bench.tick()
    assert decision.reason is Reason.JOINTS_STALE


class Locked(Bench):
    """A gate with a lock, which an operator holds open."""

    def __init__(self) -> None:
        super().__init__()
        self.gate = Gate(self.profile, lockable=True)
        self.lock: bool | None = False

    def tick(self) -> Decision:
        if self.lock is not None:
            self.gate.on_lock(self.lock, self.now_s)
        return super().tick()


@pytest.mark.parametrize(
    ("lock", "detail", "within"), [(True, "engaged", 1), (None, "silent for 0.3", 17)]
)
def test_a_lock_that_is_engaged_or_silent_brakes_and_lets_go_by_itself(
    lock: bool | None, detail: str, within: int
) -> None:
    bench = Locked()
    assert bench.run(20).state is State.PASS
    bench.lock = lock
    decision, ticks = bench.until(lambda d: d.state is not State.PASS)
    assert (decision.reason, decision.state) == (Reason.LOCKED, State.BRAKE)
    assert decision.detail.startswith(detail)
    assert ticks <= within
    assert bench.run(40).state is State.HOLD
    bench.lock = False
    assert bench.run(20).state is State.PASS


def test_a_lock_that_was_never_heard_is_engaged() -> None:
    bench = Locked()
    bench.lock = None
    decision = bench.run(20)
    assert (decision.reason, decision.detail) == (Reason.LOCKED, "never heard")
    assert not decision.output.any()


def test_joint_velocities_are_differenced_where_they_are_not_measured() -> None:
    bench = moving()
    bench.muted.add("joints")
    for i in range(2):
        stamp = bench.ros_ns + 10 * i * MS
        bench.gate.on_joints(stamp, np.full(4, 0.05 * i), None, bench.now_s, bench.ros_ns)
    assert bench.tick().reason is Reason.VELOCITY_LIMIT


def test_a_gate_that_slept_makes_no_large_step() -> None:
    bench = moving()
    bench.gate.stop()
    bench.ms += 300
    decision = bench.tick()
    assert FORWARD[0] - decision.output[0] <= 3.0 * 2 * PERIOD_MS / 1000 + 1e-9


def joint_profile() -> RobotProfile:
    data = load_profile("tabletop").dump()
    data["action"] |= {
        "kind": "joint_position",
        "names": ["elbow", "wrist"],
        "units": ["rad", "rad"],
        "lower": [-1.0, -1.0],
        "upper": [1.0, 1.0],
        "max_acceleration": [20.0, 20.0],
        "message": "trajectory_msgs/msg/JointTrajectory",
        "fields": ["positions"],
    }
    return parse_profile(data, "test")


def test_positions_start_where_the_joints_are_and_nothing_is_sent_before() -> None:
    bench = Bench(joint_profile())
    bench.muted.add("joints")
    bench.command = np.array([0.5, 0.5])
    assert not bench.run(10).send
    bench.positions = np.array([0.0, 0.0, 0.3, -0.2])
    bench.muted.clear()
    decision = bench.tick()
    assert decision.send
    np.testing.assert_allclose(decision.output, [0.3, -0.2], atol=0.02)


def test_every_position_command_ends_at_rest() -> None:
    bench = Bench(joint_profile())
    robot = Robot(bench)
    bench.command = np.array([0.9, -0.9])
    for _ in range(60):
        rows = robot.tick().manoeuvre
        assert len(rows) < 20
        steps = np.abs(np.diff(rows, axis=0))
        if len(rows) > 1:
            assert np.all(steps[-1] <= 20.0 * 0.02**2 + 1e-9)
        assert np.all(np.abs(rows) <= 1.0)


class Robot:
    """The joints behind a gate: they trail what it sends by a dead time and a first-order lag.

    A position robot's joints are pulled to the last command that came; ``enabled`` False: they stay
    where they are put. A velocity robot's first joint moves at ``gear`` times the first action.
    """

    def __init__(self, bench: Bench, dead_s: float = 0.0, lag_s: float = 0.0) -> None:
        self.bench, self.lag_s, self.gear, self.enabled = bench, lag_s, 1.0, True
        self.kind = bench.profile.action.kind
        names = bench.profile.joints.names
        twist = self.kind == "twist"
        self.index = [0] if twist else [names.index(n) for n in bench.profile.action.names]
        self.underway: deque[np.ndarray | None] = deque([None] * round(1000 * dead_s / PERIOD_MS))
        self.arrived: np.ndarray | None = None

    def tick(self) -> Decision:
        decision = self.bench.tick()
        self.underway.append(decision.output if decision.send else None)
        arrived = self.underway.popleft()
        self.arrived = self.arrived if arrived is None else arrived
        if not self.enabled:
            self.arrived = None
        before, joints = self.bench.positions, np.array(self.bench.positions)
        period_s = PERIOD_MS / 1000
        if self.arrived is not None:
            if self.kind == "joint_position":
                share = 1 - math.exp(-period_s / self.lag_s) if self.lag_s else 1.0
                joints[self.index] += share * (self.arrived - joints[self.index])
            else:
                moved = self.gear * period_s * self.arrived[: len(self.index)]
                joints[self.index] += moved
        self.bench.positions, self.bench.velocities = joints, (joints - before) / period_s
        return decision

    def run(self, ticks: int) -> Decision:
        for _ in range(ticks):
            decision = self.tick()
        return decision


def holding_positions() -> tuple[Bench, Robot]:
    """Return a position robot that has come to its goal and holds it."""
    bench = Bench(joint_profile())
    robot = Robot(bench, dead_s=0.1)
    bench.command = np.array([0.5, -0.5])
    decision = robot.run(100)
    assert decision.state is State.PASS
    np.testing.assert_allclose(bench.positions[2:], [0.5, -0.5])
    return bench, robot


@pytest.mark.parametrize("reason", [Reason.OK, Reason.NO_GOAL])
def test_an_arm_that_was_moved_by_hand_is_sent_nothing_until_a_reset(reason: Reason) -> None:
    bench, robot = holding_positions()
    bench.reason = reason
    robot.run(20)
    robot.enabled = False  # the hardware's emergency stop
    bench.positions = bench.positions + np.array([0, 0, -0.4, 0])
    decision = robot.run(2)
    assert (decision.state, decision.reason) == (State.HOLD, Reason.TRACKING_LOST)
    assert decision.latched
    assert "elbow at 0.100, commanded 0.500" in decision.detail
    assert not decision.send
    robot.run(20)
    robot.enabled = True
    for _ in range(100):
        assert not robot.tick().send
    assert bench.positions[2] == pytest.approx(0.1)
    bench.gate.reset(publishers=1)
    before = bench.positions
    for _ in range(100):
        decision = robot.tick()
        assert np.abs(bench.positions - before).max() <= 3.0 * PERIOD_MS / 1000 + 1e-9
        before = bench.positions
    assert decision.reason is reason
    assert bench.positions[2] == pytest.approx(0.5 if reason is Reason.OK else 0.1)


def test_an_arm_that_stands_still_while_commanded_brakes_the_gate() -> None:
    bench, robot = holding_positions()
    robot.enabled = False
    bench.command = np.array([-0.9, 0.9])
    decision, _ = bench.until(lambda d: d.state is State.BRAKE)
    assert decision.reason is Reason.TRACKING_LOST
    assert decision.send  # braking is sent, what follows it is not
    decision, _ = bench.until(lambda d: d.state is State.HOLD)
    bench.tick()
    assert not bench.tick().send
    bench.gate.reset(publishers=1)
    bench.reason = Reason.NO_GOAL
    decision = bench.tick()
    assert decision.send
    np.testing.assert_allclose(decision.output, [0.5, -0.5])


def test_an_arm_that_moves_unseen_or_behind_another_reason_is_noticed_too() -> None:
    bench, robot = holding_positions()
    bench.muted.add("joints")
    decision = bench.run(10)
    assert decision.reason is Reason.JOINTS_STALE
    assert not decision.send  # nobody knows where the arm is
    bench.muted.clear()
    assert bench.run(20).state is State.PASS  # it has not moved
    bench.gate.stop()
    robot.run(30)
    bench.positions = bench.positions + np.array([0, 0, -0.4, 0])
    decision = bench.run(2)
    assert (decision.reason, decision.send) == (Reason.OPERATOR_STOP, False)
    bench.gate.reset(publishers=1)
    bench.reason = Reason.NO_GOAL
    np.testing.assert_allclose(bench.tick().output, [0.1, -0.5])


def test_a_joint_in_use_is_no_lost_joint_below_the_bound() -> None:
    bench, robot = holding_positions()
    robot.enabled = False
    # As far as a joint moves between two joint states: 3 rad/s for 0.1 s.
    bench.positions = bench.positions - np.array([0, 0, 0.29, 0])
    assert bench.run(60).state is State.PASS
    bench.positions = bench.positions - np.array([0, 0, 0.02, 0])
    assert bench.run(2).reason is Reason.TRACKING_LOST


@pytest.mark.parametrize(("dead_s", "lag_s"), [(0.1, 0.0), (0.06, 0.14), (0.3, 0.1), (0.1, 0.3)])
def test_ordinary_motion_with_lag_is_no_lost_joint(dead_s: float, lag_s: float) -> None:
    profile = load_profile("g1_bottle")
    lower, upper = np.array(profile.action.lower), np.array(profile.action.upper)
    bench = Bench(profile)
    bench.frame, bench.command = "", lower
    bench.positions, bench.velocities = lower, np.zeros_like(lower)
    robot = Robot(bench, dead_s, lag_s)
    random = np.random.default_rng(1)
    fastest, before = np.zeros_like(lower), robot.run(10).output
    for count in range(1500):
        if count % 80 == 0:  # from end to end as fast as can be, and at random between them
            share = random.random(lower.size) if count % 400 == 0 else count % 160 == 0
            bench.command = lower + share * (upper - lower)
        decision = robot.tick()
        assert decision.state in (State.PASS, State.LIMIT), (decision.reason, decision.detail)
        fastest = np.maximum(fastest, np.abs(decision.output - before) / (PERIOD_MS / 1000))
        before = decision.output
    of_limit = fastest / np.array(profile.joints.max_velocity)
    assert of_limit.max() > 0.99
    assert of_limit.min() > 0.4  # some have too short a way to become any faster


def test_in_shadow_mode_the_robot_need_not_follow() -> None:
    bench = Bench(joint_profile())
    bench.gate = Gate(bench.profile, shadow=True)
    bench.command = np.array([0.9, -0.9])
    assert bench.run(100).state is State.PASS


def test_a_twist_past_a_joint_limit_stops_for_good() -> None:
    bench = Bench()
    robot = Robot(bench, dead_s=0.1)
    robot.gear = 3.0
    bench.positions = np.array([2.5, 0, 0, 0])
    bench.command = np.array([0.2, 0.0])
    robot.run(1500)
    stopped = bench.positions[0]
    assert 2.95 < stopped < 3.1  # the limit, and the dead time at full speed
    for command in ([0.2, 0.0], [-0.2, 0.0]):  # which twist leads back, the gate cannot tell
        bench.command = np.array(command)
        for _ in range(500):
            decision = robot.tick()
            assert (decision.state, decision.reason) == (State.HOLD, Reason.POSITION_LIMIT)
        assert not decision.latched
        assert bench.positions[0] == stopped
    assert "base_yaw" in decision.detail
    bench.positions = np.array([2.9, 0, 0, 0])  # the operator's way out
    assert robot.run(20).state is State.PASS
    assert bench.positions[0] < 2.9


def test_a_joint_velocity_past_a_limit_stops_for_good_and_leads_back() -> None:
    data = load_profile("tabletop").dump()
    data["action"] |= {
        "kind": "joint_velocity",
        "names": ["base_yaw", "elbow"],
        "units": ["rad/s", "rad/s"],
        "lower": [-1.0, -1.0],
        "upper": [1.0, 1.0],
        "max_acceleration": [10.0, 10.0],
        "message": "std_msgs/msg/Float64MultiArray",
        "fields": ["data"],
    }
    bench = Bench(parse_profile(data, "test"))
    robot = Robot(bench, dead_s=0.1)
    bench.positions = np.array([2.5, 0, 0, 0])
    bench.command = np.array([1.0, 0.0])
    robot.run(1000)
    stopped = bench.positions[0]
    assert 2.95 < stopped < 3.1  # the limit, and the dead time at full speed
    decision = robot.run(1000)
    assert (decision.state, decision.reason) == (State.LIMIT, Reason.POSITION_LIMIT)
    assert bench.positions[0] == pytest.approx(stopped, abs=1e-3)
    bench.positions = np.array([3.2, 0, 0, 0])  # far outside: outwards nothing, inwards all
    robot.run(100)
    assert bench.positions[0] == 3.2
    bench.command = np.array([-1.0, 0.0])
    assert robot.run(100).state is State.PASS
    assert bench.positions[0] < 2.5


EVENTS = st.lists(
    st.one_of(
        st.tuples(
            st.just("command"),
            st.floats(allow_nan=True, allow_infinity=True),
            st.integers(-600, 600),
        ),
        st.tuples(st.just("verdict"), st.floats(0, 1), st.integers(0, 0)),
        st.tuples(st.just("heartbeat"), st.floats(0, 0), st.sampled_from(range(len(list(Reason))))),
        st.tuples(st.just("alive"), st.floats(0, 0), st.integers(0, 2)),
        st.tuples(st.just("joints"), st.floats(-9, 9), st.integers(-3, 3)),
        st.tuples(st.just("step"), st.floats(0, 0.2), st.integers(1, 2)),
        st.tuples(st.just("good"), st.floats(-0.3, 0.3), st.integers(1, 30)),
        st.tuples(st.just("stop"), st.floats(0, 0), st.integers(0, 0)),
        st.tuples(st.just("reset"), st.floats(0, 0), st.integers(0, 0)),
    ),
    min_size=1,
    max_size=40,
)


@given(events=EVENTS, joints=st.booleans())
def test_whatever_happens_outputs_stay_finite_and_within_the_limits(
    events: list[tuple[str, float, int]], joints: bool
) -> None:
    bench = Bench(joint_profile() if joints else None)
    gate, reasons = bench.gate, list(Reason)
    before = gate.step(bench.now_s, bench.ros_ns)

    def check(decision: Decision, dt: float) -> None:
        nonlocal before
        assert np.isfinite(decision.output).all()
        assert np.isfinite(decision.manoeuvre).all()
        if joints:
            if decision.send and before.send:
                assert np.all(np.abs(decision.output) <= 9.0)
        else:
            assert np.all(np.abs(decision.output) <= 0.25 + 1e-9)
            change = np.abs(decision.output - before.output)
            assert np.all(change <= 3.0 * min(dt, 0.04) + 1e-9)
            if decision.state in (State.BRAKE, State.HOLD):
                assert np.all(np.abs(decision.output) <= np.abs(before.output))
        if decision.state is State.PASS:
            assert decision.reason is Reason.OK
        if decision.state is State.BRAKE:
            assert decision.reason is not Reason.OK
        assert not (decision.latched and decision.state in (State.PASS, State.LIMIT))
        before = decision

    stamp = 0
    for kind, value, number in events:
        if kind == "command":
            stamp = bench.ros_ns + number * MS
            command = np.array([value, 0.1])
            gate.on_command(stamp, command, "table", bench.now_s, bench.ros_ns)
        elif kind == "verdict":
            gate.on_verdict(Verdict(stamp, {"fell": value, "zone": 0.0}))
        elif kind == "heartbeat":
            gate.on_heartbeat(bench.ms, reasons[number], bench.now_s)
        elif kind == "alive":
            gate.on_liveliness(number)
        elif kind == "joints":
            speeds = np.full(4, float(number))
            gate.on_joints(bench.ros_ns, np.full(4, value), speeds, bench.now_s, bench.ros_ns)
        elif kind == "step":
            bench.ms += round(value * 1000)
            check(gate.step(bench.now_s, bench.ros_ns, number), round(value * 1000) / 1000)
        elif kind == "good":
            bench.command = np.array([value, -value])
            for _ in range(number):
                check(bench.tick(), PERIOD_MS / 1000)
        elif kind == "stop":
            gate.stop()
        elif gate.at_rest:
            gate.on_liveliness(1)
            gate.reset(publishers=1)
            before = gate.step(bench.now_s, bench.ros_ns)
    gate.stop()
    for _ in range(20):
        check(bench.tick(), PERIOD_MS / 1000)
    assert before.state is State.HOLD


def test_ordinary_reasons_do_not_latch() -> None:
    assert not any(reason.latching for reason in ORDINARY)
    assert all(reason.meaning and reason.remedy for reason in Reason)
    assert len({reason.meaning for reason in Reason}) == len(list(Reason))


def test_the_handbook_tells_every_reason_as_the_code_does() -> None:
    text = (Path(__file__).parents[2] / "docs" / "safety.md").read_text(encoding="utf-8")
    for reason in Reason:
        assert f"| `{reason.name}` | {reason.meaning} | {reason.remedy} |" in text
