"""The closed loop with the robot's safety gate in it, in simulated time.

The gate is the one that runs on a robot (:mod:`wm_node.safety.gate`), stepped at its own rate: it
hears what the planner's node would tell it, and what it decides is what the simulated robot gets.
"""

from __future__ import annotations

from collections import Counter, deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from wm_node.profile import RobotProfile
from wm_node.safety.gate import Gate, GateConfig, State, Verdict
from wm_node.safety.reasons import Reason
from wm_node.safety.space import space_guard
from wm_node.sim.loop import NS, START_NS, Observation
from wm_node.sim.tabletop import TabletopSim

Values = NDArray[np.float64]


@dataclass(frozen=True)
class Told:
    """What a planner tells the gate of a command.

    Attributes:
        reason: ``OK``, or why there is no command.
        risk: event -> highest risk of the plan.
        uncertainty: of the plan, in shares of its limit.
        surprise: that lasts, in shares of its limit; NaN: not known.
    """

    reason: Reason
    risk: Mapping[str, float] = field(default_factory=dict)
    uncertainty: float = float("nan")
    surprise: float = float("nan")


MakeGate = Callable[[], Gate]


def gate_of(profile: RobotProfile) -> Gate:
    """Return the gate that the profile sets up, as ``/safety_gate`` builds it.

    Raises:
        WmError: the profile's limits contradict each other, or its URDF does not fit.
    """
    return Gate(profile, space=space_guard(profile, profile.name, 2 * GateConfig.period_s))


class GatedLoop:
    """A :class:`wm_node.sim.loop.ClosedLoop` whose commands go through a gate.

    Args:
        sim: reset to the episode.
        latency_s: from a frame to when the gate hears the command.
        gate: new, or at rest.
        frame_id: of the commands.
    """

    def __init__(self, sim: TabletopSim, latency_s: float, gate: Gate, frame_id: str) -> None:
        self._sim, self._latency_s = sim, latency_s
        self._gate, self._frame_id = gate, frame_id
        self._due: deque[tuple[float, int, Values, Told]] = deque()
        self._planned: list[tuple[int, Values]] = []
        self._applied: list[tuple[int, Values]] = []
        self._next_step_s = sim.time_s
        self.stops: Counter[str] = Counter()
        """Steps of the gate in which it did not let a command pass, by reason."""

    def observe(self, frames: bool) -> Observation:
        """Return what there is to see now; ``frames`` False saves the rendering."""
        sim = self._sim
        frame = sim.render() if frames else None
        applied, planned = tuple(self._applied), tuple(self._planned)
        return Observation(self._stamp_ns(), frame, sim.joint_positions(), applied, planned)

    def command(self, velocity: Values, told: Told) -> None:
        """Send the gate a tip velocity (2,) in m/s, and what is foreseen of it."""
        due_s = self._sim.time_s + self._latency_s
        self._due.append((due_s, self._stamp_ns(), velocity, told))
        self._planned.append((START_NS + round(due_s * NS), velocity))

    def advance(self, seconds: float) -> None:
        """Let a moment pass; the gate steps first if it is its time."""
        if self._sim.time_s >= self._next_step_s - 1e-6:
            self._next_step_s += GateConfig.period_s
            self._step()
        self._sim.advance(seconds)

    def _step(self) -> None:
        sim, gate, now_s, stamp_ns = self._sim, self._gate, self._sim.time_s, self._stamp_ns()
        joints = sim.joint_positions(), sim.joint_velocities()
        gate.on_joints(stamp_ns, *joints, now_s, stamp_ns)
        while self._due and self._due[0][0] <= now_s + 1e-6:
            _, frame_ns, velocity, told = self._due.popleft()
            gate.on_heartbeat(frame_ns, told.reason, now_s)
            if told.reason is Reason.OK:
                gate.on_verdict(Verdict(stamp_ns, told.risk, told.uncertainty, told.surprise))
                gate.on_command(stamp_ns, velocity, self._frame_id, now_s, stamp_ns)
        decision = gate.step(now_s, stamp_ns)
        if decision.state in (State.BRAKE, State.HOLD):
            self.stops[decision.reason.name] += 1
        sim.command_tip_velocity(decision.output)
        effect_ns = stamp_ns + round(sim.actuation_delay_s * NS)
        self._applied.append((effect_ns, decision.output))

    def _stamp_ns(self) -> int:
        return START_NS + round(self._sim.time_s * NS)
