"""Faults on real processes: the simulated robot, the gate, and a stand-in for the planner.

Times are read from the stamps of the gate's commands and of the robot's joint states, both on the
machine's clock, on which the process is killed.
"""

from __future__ import annotations

import itertools
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from geometry_msgs.msg import TwistStamped
from rosgraph_msgs.msg import Clock
from std_msgs.msg import Bool

from wm_node.errors import WmError
from wm_node.nodes.common import set_stamp
from wm_node.nodes.lifecycle import bring_up
from wm_node.profile import load_profile
from wm_node.sim.arm import JOINT_NAMES, tip_for_joints

Note = Callable[[str, float], None]

# From the death of the planner's process to the first decelerating command.
ONSET_S = 0.100
DISCOVERY_S = 0.5  # until a new publisher is known


@pytest.fixture(scope="module")
def robot(bench: Any) -> Any:
    bench.start_robot()
    return bench


@pytest.fixture
def upstream(robot: Any) -> Any:
    """A gate that is active and not latched, and a planner that is well and stands still."""
    if "gate" not in robot.processes:
        robot.start_gate()
    if "upstream" not in robot.processes:
        robot.start_upstream()
    robot.tell(values=[0.0, 0.0])
    robot.wait(robot.passes, "the gate does not pass commands")
    return robot


def braked(bench: Any, began_s: float, limit_s: float, measure: Note) -> None:
    """Note and check when braking begins after a fault, and when the robot then stands.

    Times in which the machine did not run the robot's process either are not charged.
    """
    onset_s = bench.braking_onset()
    still_s = bench.standstill()
    measure("onset_ms", 1e3 * (onset_s - began_s))
    measure("standstill_ms", 1e3 * (still_s - onset_s))
    assert bench.ran_s(began_s, onset_s) <= limit_s + ONSET_S
    assert bench.ran_s(onset_s, still_s) <= bench.profile.safety.stopping_time_s


@pytest.mark.parametrize("turn", range(2))
def test_kill_9_of_the_planner_brakes_within_100_ms(
    upstream: Any, turn: int, measure: Note
) -> None:
    upstream.moving()
    killed_s = upstream.kill("upstream")
    braked(upstream, killed_s, 0.0, measure)
    upstream.wait_for_reason("HEARTBEAT_LOST")
    upstream.wait(upstream.latched, "the gate did not latch")

    # A planner that comes back does not move the robot until an operator resets the gate.
    upstream.start_upstream()
    upstream.tell(values=[0.0, 0.1])
    upstream.planned = 0
    upstream.wait(lambda: upstream.planned > 10, "the new planner sends no commands")
    assert upstream.commands[-1].value == 0.0
    assert upstream.trigger("safety_gate/reset").success
    upstream.wait(lambda: upstream.commands[-1].value > 0.09, "the arm did not move after a reset")


@pytest.mark.parametrize(
    ("told", "reason", "limit_s"),
    [
        ({"not_finite": True}, "COMMAND_NOT_FINITE", 0.2),
        ({"risk": 0.9}, "RISK", 0.2),
        ({"risk": float("nan")}, "UNVERIFIED", 0.2),
        ({"mute": ["verdict"]}, "UNVERIFIED", 0.3),
        ({"mute": ["command"]}, "COMMAND_STALE", 0.5),
        ({"mute": ["heartbeat"]}, "HEARTBEAT_LOST", 0.5),
        ({"hang": True}, "PLAN_STALE", 0.8),
        ({"stamp_shift_s": 1.0}, "COMMAND_FUTURE", 0.2),
        ({"stamp_shift_s": -1.0}, "COMMAND_OLD", 0.2),
        ({"frame_id": "map"}, "COMMAND_FOREIGN_FRAME", 0.2),
        ({"flood": 30}, "COMMAND_FLOOD", 0.2),
        ({"reason": "NO_GOAL"}, "NO_GOAL", 0.2),
    ],
)
def test_a_planner_that_misbehaves_is_stopped_with_the_reason(
    upstream: Any, told: dict[str, Any], reason: str, limit_s: float, measure: Note
) -> None:
    values = upstream.moving()
    began_s = time.time()
    upstream.tell(values=values, **told)
    braked(upstream, began_s, limit_s, measure)
    upstream.wait_for_reason(reason)


def test_a_planner_whose_participant_leaves_while_its_process_lives_stops_the_robot(
    upstream: Any, measure: Note
) -> None:
    values = upstream.moving()
    began_s = time.time()
    upstream.tell(values=values, leave=True)
    braked(upstream, began_s, 0.3, measure)  # leaving takes a while: it speaks until then
    upstream.wait_for_reason("HEARTBEAT_LOST")
    upstream.wait(upstream.latched, "the gate did not latch")
    assert upstream.processes["upstream"].poll() is None
    upstream.kill("upstream")


def test_a_machine_without_time_to_spare_leaves_no_motion_without_commands(
    upstream: Any, measure: Note
) -> None:
    """Four busy processes a core, all with the same right to run as those of the robot."""
    upstream.moving()
    upstream.speeds.clear()
    upstream.commands.clear()
    loop = [sys.executable, "-c", "while True: pass"]
    busy = [subprocess.Popen(loop) for _ in range(4 * (os.cpu_count() or 1))]
    try:
        upstream.spin(4.0)
    finally:
        for process in busy:
            process.kill()
            process.wait(10)
    upstream.tell(values=[0.0, 0.0])
    upstream.standstill()
    stamps = np.array([command.stamp_s for command in upstream.commands])
    measure("longest_silence_ms", 1e3 * float(np.diff(stamps).max()))
    # The driver brakes by itself when commands stay away; nothing moves on the last one for long.
    allowed_s = 0.2 + upstream.profile.safety.stopping_time_s + 0.05
    for before_s, after_s in itertools.pairwise(stamps):
        late = [s for s in upstream.speeds if before_s + allowed_s < s.stamp_s < after_s]
        assert all(speed.value < upstream.STILL for speed in late)
    upstream.wait(upstream.passes, "the gate does not pass commands again")


def test_stale_joint_states_stop_the_robot(upstream: Any, measure: Note) -> None:
    upstream.moving()
    upstream.processes["robot"].send_signal(signal.SIGSTOP)
    try:
        onset_s = upstream.braking_onset()
        upstream.wait_for_reason("JOINTS_STALE")
        measure("onset_ms", 1e3 * (onset_s - upstream.speeds[-1].stamp_s))
        assert onset_s - upstream.speeds[-1].stamp_s <= 0.1 + ONSET_S
    finally:
        upstream.processes["robot"].send_signal(signal.SIGCONT)
    upstream.wait(lambda: upstream.statuses[-1] == "PASS OK", "the gate did not go on")


def test_a_second_publisher_on_the_command_topic_is_a_fault(upstream: Any, measure: Note) -> None:
    upstream.moving()
    began_s = time.time()
    intruder = upstream.node.create_publisher(TwistStamped, "command", 1)
    braked(upstream, began_s, DISCOVERY_S, measure)
    upstream.wait_for_reason("SECOND_PUBLISHER")
    answer = upstream.trigger("safety_gate/reset")
    assert not answer.success
    assert "another node" in answer.message
    upstream.node.destroy_publisher(intruder)
    upstream.wait(lambda: upstream.trigger("safety_gate/reset").success, "no reset")
    upstream.wait(lambda: upstream.statuses[-1] == "PASS OK", "the gate did not go on")


def test_two_planners_at_once_are_a_fault(upstream: Any) -> None:
    upstream.moving()
    upstream.start("second", str(Path(__file__).with_name("upstream.py")), "tabletop")
    upstream.braking_onset()
    upstream.wait_for_reason("SECOND_PLANNER")
    answer = upstream.trigger("safety_gate/reset")
    assert not answer.success
    assert "2 planners are alive" in answer.message
    upstream.kill("second")
    upstream.tell(values=[0.0, 0.0])
    upstream.wait(lambda: upstream.trigger("safety_gate/reset").success, "no reset")
    upstream.wait(lambda: upstream.statuses[-1] == "PASS OK", "the gate did not go on")


def test_the_operator_stops_and_resets(upstream: Any, measure: Note) -> None:
    upstream.moving()
    began_s = time.time()
    assert upstream.trigger("safety_gate/stop").success
    braked(upstream, began_s, 0.0, measure)
    upstream.wait_for_reason("OPERATOR_STOP")
    assert upstream.trigger("safety_gate/reset").success
    upstream.wait(lambda: upstream.statuses[-1] == "PASS OK", "the gate did not go on")


def test_deactivation_and_sigterm_make_the_robot_safe_first(upstream: Any) -> None:
    upstream.moving()
    upstream.caller.change("/safety_gate", "deactivate")
    assert upstream.braking_onset() > 0  # the last command that left is zero
    upstream.standstill()
    upstream.wait(lambda: upstream.statuses[-1] == "HOLD INACTIVE", "no HOLD INACTIVE")
    upstream.caller.change("/safety_gate", "activate")
    upstream.moving()
    assert upstream.end("gate") == 0
    assert upstream.commands[-1].value == 0.0 or upstream.braking_onset() > 0
    upstream.standstill()


def test_kill_9_of_the_gate_lets_the_robot_come_to_rest(upstream: Any, measure: Note) -> None:
    upstream.moving()
    killed_s = upstream.kill("gate")
    still_s = upstream.standstill()
    measure("standstill_ms", 1e3 * (still_s - killed_s))
    timeout_s = upstream.profile.action.command_timeout_s
    assert upstream.ran_s(killed_s, still_s) <= timeout_s + upstream.profile.safety.stopping_time_s


def test_a_gate_that_is_started_again_waits_for_its_operator(upstream: Any) -> None:
    upstream.moving()
    upstream.kill("gate")
    upstream.standstill()
    upstream.start("gate", "-m", "wm_node.nodes.safety_gate", "--ros-args")
    upstream.wait(
        lambda: upstream.caller.state("/safety_gate") == "unconfigured", "no gate came up"
    )
    upstream.commands.clear()
    planned = upstream.planned
    # The planner goes on commanding motion; a gate that nobody has activated passes nothing.
    upstream.wait(lambda: upstream.planned > planned + 10, "the planner fell silent")
    assert upstream.commands == []
    bring_up(upstream.caller, ["/safety_gate"])
    upstream.moving()


def test_in_shadow_nothing_is_commanded(robot: Any) -> None:
    for name in {"gate", "upstream"} & set(robot.processes):
        robot.kill(name)
    robot.start_gate("-p", "shadow:=true")
    robot.start_upstream()
    robot.commands.clear()
    robot.statuses.clear()
    robot.tell(values=[0.0, 0.1])
    robot.wait(lambda: robot.statuses[-1:] == ["PASS OK"], "the shadow gate decides nothing")
    assert not robot.commands
    assert robot.end("gate") == 0
    assert robot.end("upstream") == 0


@pytest.fixture
def joint_profile(tmp_path: Path) -> Path:
    """Write a profile of the same arm that is driven by joint positions; return its path."""
    data = load_profile("tabletop").dump()
    names = data["joints"]["names"]
    data["action"] = {
        "kind": "joint_position",
        "names": names,
        "units": ["rad"] * len(names),
        "lower": data["joints"]["lower"],
        "upper": data["joints"]["upper"],
        "max_acceleration": [10.0] * len(names),
        "rate_hz": 10,
        "topic": "command_trajectory",
        "message": "trajectory_msgs/msg/JointTrajectory",
        "fields": ["positions"],
        "readback": {
            "topic": "joint_states",
            "message": "sensor_msgs/msg/JointState",
            "fields": ["position"],
        },
    }
    data["joints"]["max_velocity"] = [1.0] * len(names)
    del data["safety"]["space"]  # these arms turn far out of the table-top's workspace
    file = tmp_path / "joints.yaml"
    file.write_text(yaml.safe_dump(data), encoding="utf-8")
    return file


def _start_with(robot: Any, profile: Path) -> None:
    """Start gate and upstream anew with another profile, on a robot in its first pose."""
    for name in {"gate", "upstream"} & set(robot.processes):
        robot.kill(name)
    robot.trigger("sim_robot/reset")
    robot.start_gate("-p", f"robot:={profile}")
    robot.start_upstream(str(profile))


@pytest.mark.parametrize("victim", ["gate", "upstream"])
def test_joint_trajectories_end_at_rest_whoever_is_killed(
    robot: Any, joint_profile: Path, victim: str, measure: Note
) -> None:
    _start_with(robot, joint_profile)
    robot.statuses.clear()
    target = [robot.positions[name] for name in robot.profile.joints.names]
    target[0] += 1.5
    robot.tell(values=target)
    robot.wait(lambda: robot.speeds[-1].value > 0.9, "the arm did not move")
    assert "LIMIT VELOCITY_LIMIT" in robot.statuses
    killed_s = robot.kill(victim)
    still_s = robot.standstill()
    measure("standstill_ms", 1e3 * (still_s - killed_s))
    assert robot.ran_s(killed_s, still_s) <= ONSET_S + robot.profile.safety.stopping_time_s
    assert robot.positions["base_yaw"] < target[0] - 0.5  # it was stopped, it did not arrive


def test_a_driver_that_comes_back_elsewhere_is_not_pulled_to_the_old_position(
    robot: Any, joint_profile: Path
) -> None:
    _start_with(robot, joint_profile)
    target = [robot.positions[name] for name in robot.profile.joints.names]
    target[0] += 1.0
    robot.tell(values=target)
    robot.wait(lambda: robot.positions["base_yaw"] > target[0] - 0.02, "the arm did not arrive")
    robot.kill("robot")
    robot.wait_for_reason("JOINTS_STALE")
    robot.start_robot()  # its arm is where every episode starts
    robot.wait_for_reason("TRACKING_LOST")
    assert robot.latched()
    home = robot.positions["base_yaw"]
    assert home < target[0] - 0.3
    robot.spin(1.0)
    assert abs(robot.positions["base_yaw"] - home) < 0.02
    robot.speeds.clear()
    assert robot.trigger("safety_gate/reset").success
    robot.wait(lambda: robot.positions["base_yaw"] > target[0] - 0.02, "the arm did not go on")
    assert max(speed.value for speed in robot.speeds) < 1.3  # not a jump: max_velocity is 1 rad/s
    robot.kill("upstream")
    robot.kill("gate")


def test_a_jump_of_the_ros_clock_stops_the_robot(robot: Any) -> None:
    for name in {"gate", "upstream"} & set(robot.processes):
        robot.kill(name)
    jump_ns = 0
    publisher = robot.node.create_publisher(Clock, "/clock", 10)
    over = threading.Event()

    def tick() -> None:
        while not over.wait(0.01):
            message = Clock()
            set_stamp(message.clock, time.time_ns() + jump_ns)
            publisher.publish(message)

    # A thread of its own: the bench's node is busy with what it receives.
    clock = threading.Thread(target=tick, daemon=True)
    clock.start()
    # A loaded machine may keep the clock waiting, which is no jump that this test is about.
    words = ("use_sim_time:=true", "stamp_ahead_s:=0.5", "clock_jump_s:=1.5")
    robot.start_gate(*(word for given in words for word in ("-p", given)))
    robot.start_upstream()
    robot.moving()
    jump_ns = 3_000_000_000
    robot.braking_onset()
    robot.wait_for_reason("CLOCK_JUMP")
    assert robot.latched()
    over.set()
    clock.join(5)
    robot.node.destroy_publisher(publisher)
    robot.kill("upstream")
    robot.kill("gate")


def test_the_death_of_who_holds_the_lock_open_stops_the_robot(robot: Any, measure: Note) -> None:
    for name in {"gate", "upstream"} & set(robot.processes):
        robot.kill(name)
    lock = robot.node.create_publisher(Bool, "lock", 1)
    timer = robot.node.create_timer(0.05, lambda: lock.publish(Bool(data=False)))
    robot.start_gate("-p", "lock_topic:=lock")
    robot.start_upstream()
    robot.moving()
    began_s = time.time()
    robot.node.destroy_timer(timer)
    braked(robot, began_s, 0.3, measure)  # lock_timeout_s, since its last word
    robot.wait_for_reason("LOCKED")
    assert not robot.latched()
    timer = robot.node.create_timer(0.05, lambda: lock.publish(Bool(data=False)))
    robot.wait(lambda: robot.statuses[-1] == "PASS OK", "the gate did not go on")
    robot.node.destroy_timer(timer)
    robot.node.destroy_publisher(lock)
    robot.kill("upstream")
    robot.kill("gate")


def test_the_tip_stops_in_front_of_a_volume_that_is_kept_free(robot: Any, tmp_path: Path) -> None:
    for name in {"gate", "upstream"} & set(robot.processes):
        robot.kill(name)
    robot.trigger("sim_robot/reset")
    robot.spin(0.2)

    def tip_y() -> float:
        return tip_for_joints([robot.positions[name] for name in JOINT_NAMES])[1]

    border, radius = tip_y() + 0.12, 0.016
    data = load_profile("tabletop").dump()
    data["safety"]["space"]["keep_out"] = [
        {"name": "wall", "lower": [-1.0, border, 0.0], "upper": [1.0, border + 0.2, 0.5]}
    ]
    profile = tmp_path / "walled.yaml"
    profile.write_text(yaml.safe_dump(data), encoding="utf-8")
    robot.start_gate("-p", f"robot:={profile}")
    robot.start_upstream()
    robot.tell(values=[0.0, 0.2])  # straight at it, and no risk foreseen
    robot.wait_for_reason("KEEP_OUT")
    robot.standstill()
    assert border - 0.06 < tip_y() + radius < border
    robot.tell(values=[0.0, -0.2])
    robot.wait(lambda: tip_y() + radius < border - 0.08, "the way back did not pass")
    robot.kill("upstream")
    robot.kill("gate")


@pytest.mark.parametrize(
    ("state", "number"),
    [
        ("unconfigured", signal.SIGTERM),
        ("inactive", signal.SIGTERM),
        ("active", signal.SIGTERM),
        ("active", signal.SIGINT),
        ("deactivated", signal.SIGTERM),
    ],
)
def test_a_signal_ends_the_gate_cleanly_in_every_state(bench: Any, state: str, number: int) -> None:
    bench.start("gate", "-m", "wm_node.nodes.safety_gate")
    assert bench.caller.state("/safety_gate") == "unconfigured"
    if state != "unconfigured":
        bench.caller.change("/safety_gate", "configure")
    if state in ("active", "deactivated"):
        bench.caller.change("/safety_gate", "activate")
    if state == "deactivated":
        bench.caller.change("/safety_gate", "deactivate")
    assert bench.end("gate", number) == 0


def test_a_bad_profile_fails_configure_with_a_sentence(bench: Any) -> None:
    words = ("-m", "wm_node.nodes.safety_gate", "--ros-args", "-p", "robot:=nowhere.yaml")
    bench.start("gate", *words)
    with pytest.raises(WmError, match="refused to configure"):
        bring_up(bench.caller, ["/safety_gate"])
    assert bench.end("gate") == 0
    said = (bench.folder / "gate.log").read_text()
    assert "configure failed: cannot read the robot profile nowhere.yaml" in said
