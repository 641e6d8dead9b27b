"""A bench of real processes: simulated robot, safety gate, and a stand-in for the planner."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus
from geometry_msgs.msg import TwistStamped
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import JointState
from std_srvs.srv import Trigger

from wm_node.cli.processes import node_environment, private_domain
from wm_node.errors import WmError
from wm_node.nodes import common
from wm_node.nodes.conductor import AFTER_A_KILL_S
from wm_node.nodes.lifecycle import Caller, bring_up
from wm_node.profile import load_profile

GATE, ROBOT = "/safety_gate", "/sim_robot"


@dataclass(frozen=True)
class Timed:
    """A value with the stamp that its header says, in seconds since the epoch."""

    stamp_s: float
    value: Any


def _seconds(header: Any) -> float:
    return common.stamp_to_ns(header.stamp) / 1e9


class Bench:
    """Starts and ends the processes, and keeps what they publish."""

    # Joint speeds in rad/s: below the first the arm stands still, above the second it moves.
    STILL, MOVES = 0.03, 0.1
    # Without joint states, which come every 0.01 s: the machine ran nobody, or others.
    STALL_S = 0.05

    def __init__(self, domain: int, folder: Path) -> None:
        self.environment = node_environment(domain, folder)
        self.folder = folder
        self.profile = load_profile("tabletop")
        self.processes: dict[str, subprocess.Popen[str]] = {}
        self._killed_s = -math.inf
        self.node = rclpy.create_node("bench")
        self.caller = Caller(self.node)
        self.speeds: list[Timed] = []
        self.stalls: list[tuple[float, float]] = []
        """When the simulated robot itself did not run, in its own clock: a busy machine."""
        self._joints_s = math.inf
        self.commands: list[Timed] = []
        self.statuses: list[str] = []
        self.diagnostics: list[Timed] = []
        self.last_status = DiagnosticStatus()
        self.planned = 0
        many = QoSProfile(depth=1000, reliability=ReliabilityPolicy.RELIABLE)
        subscribe = self.node.create_subscription
        subscribe(JointState, "joint_states", self._on_joints, many)
        subscribe(TwistStamped, "command", self._on_command, many)
        subscribe(TwistStamped, "mpc_planner/command", self._on_planned, many)
        subscribe(DiagnosticStatus, f"{GATE}/status", self._on_status, common.LATCHED_QOS)
        subscribe(DiagnosticArray, "/diagnostics", self._on_diagnostics, many)

    def _on_joints(self, message: JointState) -> None:
        if not len(message.name) == len(message.position) == len(message.velocity) > 0:
            return  # a test's own, which the gate is to refuse
        stamp_s = _seconds(message.header)
        if stamp_s - self._joints_s > self.STALL_S:
            self.stalls.append((self._joints_s, stamp_s))
        self._joints_s = stamp_s
        self.speeds.append(Timed(stamp_s, float(np.max(np.abs(message.velocity)))))
        self.positions = dict(zip(message.name, message.position, strict=True))

    def _on_command(self, message: TwistStamped) -> None:
        linear = message.twist.linear
        self.commands.append(Timed(_seconds(message.header), float(np.hypot(linear.x, linear.y))))

    def _on_planned(self, message: TwistStamped) -> None:
        self.planned += 1

    def _on_status(self, message: DiagnosticStatus) -> None:
        self.last_status = message
        self.statuses.append(message.message)

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name == "safety_gate: gate":
                self.diagnostics.append(Timed(_seconds(message.header), status))

    # processes

    def start(self, name: str, *words: str) -> None:
        if name in self.processes:  # a test that failed left it
            self.kill(name)
        log = (self.folder / f"{name}.log").open("a")
        with log:
            self.processes[name] = subprocess.Popen(
                [sys.executable, *words],
                env=self.environment,
                stdin=subprocess.PIPE,
                stdout=log,
                stderr=log,
                text=True,
                cwd=Path(__file__).parents[2],
            )

    def start_robot(self, camera_rate: float = 1.0) -> None:
        # Few frames where nobody looks: software rendering takes a share of a core.
        words = ("--ros-args", "-p", f"camera_rate:={camera_rate}")
        self.start("robot", "-m", "wm_node.nodes.sim_robot", *words)
        bring_up(self.caller, [ROBOT])

    def start_gate(self, *words: str) -> None:
        self.start("gate", "-m", "wm_node.nodes.safety_gate", "--ros-args", *words)
        bring_up(self.caller, [GATE])

    def start_model(self, bundle: Path, *parameters: str) -> None:
        """Start the model's process with parameters ``name:=value`` and bring its nodes up."""
        # A shared test machine may be slow.
        given = (f"bundle:={bundle}", "late_limit:=10", "latency_s:=0.15", *parameters)
        arguments = [word for parameter in given for word in ("-p", parameter)]
        self.start("world_model", "-m", "wm_node.nodes.world_model", "--ros-args", *arguments)
        bring_up(self.caller, ["/world_model", "/mpc_planner"])

    def start_upstream(self, robot: str = "tabletop") -> None:
        self.start("upstream", str(Path(__file__).with_name("upstream.py")), robot)

    def tell(self, **told: Any) -> None:
        pipe = self.processes["upstream"].stdin
        assert pipe is not None
        pipe.write(json.dumps(told) + "\n")
        pipe.flush()

    def kill(self, name: str) -> float:
        """Kill a process with SIGKILL; return when, in seconds since the epoch."""
        process = self.processes.pop(name)
        when = time.time()
        process.kill()
        process.wait(10)
        self._killed_s = time.monotonic()
        return when

    def end(self, name: str, number: int = signal.SIGTERM) -> int:
        """End a process; return its exit status."""
        process = self.processes.pop(name)
        process.send_signal(number)
        return process.wait(20)

    def close(self) -> None:
        # The bench's participant goes first, and not right after a kill: see AFTER_A_KILL_S.
        self.spin(self._killed_s + AFTER_A_KILL_S - time.monotonic())
        self.caller.close()
        self.node.destroy_node()
        for process in self.processes.values():
            process.kill()
            process.wait(10)

    # observation

    def wait(self, done: Callable[[], bool], what: str, timeout_s: float = 15.0) -> None:
        try:
            self.caller.spin_until(done, timeout_s, f"{what}; statuses {self.statuses[-5:]}")
        except WmError as error:
            raise WmError("\n".join([str(error), *self._ends_of_logs()])) from error

    def _ends_of_logs(self, lines: int = 8) -> Iterator[str]:
        for log in sorted(self.folder.glob("*.log")):
            yield f"--- the end of {log.name}:"
            yield from log.read_text(errors="replace").splitlines()[-lines:]

    def spin(self, seconds: float) -> None:
        self.caller.spin_for(seconds)

    def trigger(self, name: str) -> Trigger.Response:
        return self.caller.call(Trigger, name, Trigger.Request(), resend_s=3.0)

    def moving(self, speed: float = 0.15) -> list[float]:
        """Have the arm move steadily towards the middle of its range; return the command.

        It moves for three seconds, then it is at the border: where the machine did not run this
        process meanwhile, it is sent from the near side again.
        """
        velocity = [0.0, speed]
        for attempt in range(3):
            self.tell(values=[0.0, 0.0])
            self.trigger("sim_robot/reset")
            self.spin(0.1)
            self.tell(values=velocity)  # every episode starts on the near side
            self.diagnostics.clear()
            try:
                self.wait(partial(self._moves, speed), "the arm did not move", 6.0)
                break
            except WmError as error:
                if attempt == 2:
                    raise WmError(f"{error}\n{self._heard()}") from error
        return velocity

    def _moves(self, speed: float) -> bool:
        return (
            len(self.commands) > 15
            and all(abs(c.value - speed) < 1e-6 for c in self.commands[-15:])
            and self.speeds[-1].value > self.MOVES
        )

    def _heard(self) -> str:
        """What tells a robot that hears no commands from one that stands at its border."""
        topics = ("command", "mpc_planner/command")
        ends = [
            f"'{name}' has {self.node.count_publishers(name)} publishers and "
            f"{self.node.count_subscribers(name)} subscribers"
            for name in topics
        ]
        return (
            f"{len(self.commands)} commands of the gate, the last {self.commands[-3:]}; "
            f"{self.planned} of the planner; speed {self.speeds[-1:]}; joints {self.positions}; "
            f"{'; '.join(ends)}."
        )

    def braking_onset(self, speed: float = 0.15) -> float:
        """Wait for the first command slower than ``speed`` since the last full one; its stamp."""
        self.wait(lambda: self.commands[-1].value < 1e-6, "the gate did not brake")
        full = max(i for i, c in enumerate(self.commands) if abs(c.value - speed) < 1e-6)
        return self.commands[full + 1].stamp_s

    def standstill(self) -> float:
        """Wait until the arm has stood still for 0.2 s; return since when, in the robot's clock."""
        self.wait(
            lambda: all(s.value < self.STILL for s in self.speeds[-20:]), "the arm did not stop"
        )
        last = max(i for i, s in enumerate(self.speeds) if s.value >= self.STILL)
        return self.speeds[last + 1].stamp_s

    def stalled_s(self, first_s: float, last_s: float) -> float:
        """Return how much of a time the robot did not run."""
        return sum(max(min(end, last_s) - max(start, first_s), 0.0) for start, end in self.stalls)

    def ran_s(self, first_s: float, last_s: float) -> float:
        """Return how much of a time the robot ran: nobody can brake it while neither runs."""
        return last_s - first_s - self.stalled_s(first_s, last_s)

    def passes(self) -> bool:
        """Whether the gate passes commands; resets it where it is latched."""
        if self.latched():
            self.trigger("safety_gate/reset")
        return self.statuses[-1:] == ["PASS OK"]

    def latched(self) -> bool:
        """Whether the gate holds until a reset."""
        pairs = {pair.key: pair.value for pair in self.last_status.values}
        return pairs.get("latched") == "True"

    def wait_for_reason(self, reason: str) -> None:
        self.wait(lambda: self.statuses[-1:] == [f"HOLD {reason}"], f"no HOLD {reason}")
        self.wait(
            lambda: any(d.value.message.endswith(reason) for d in self.diagnostics),
            f"no {reason} on /diagnostics",
        )


@pytest.fixture(scope="module")
def domain() -> Iterator[int]:
    with private_domain() as number:
        yield number


@pytest.fixture(scope="module")
def bench(domain: int, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Bench]:
    patch = pytest.MonkeyPatch()
    one: Bench | None = None
    folder = tmp_path_factory.mktemp("faults")
    for key, value in node_environment(domain, folder).items():
        patch.setenv(key, value)
    rclpy.init(domain_id=domain)
    try:
        one = Bench(domain, folder)
        yield one
    finally:
        if one is not None:
            one.close()
        rclpy.shutdown()
        patch.undo()


@pytest.fixture
def measure(request: pytest.FixtureRequest) -> Callable[[str, float], None]:
    """Note a figure in the report that ``WM_FIGURES`` names, a JSON line each."""

    def note(name: str, value: float) -> None:
        file = os.environ.get("WM_FIGURES")
        if file:
            with Path(file).open("a") as stream:
                stream.write(json.dumps({"test": request.node.name, name: value}) + "\n")

    return note
