"""``/safety_gate``: the last hop before the robot.

It depends on nothing upstream being alive, and on neither torch nor the engine. Its logic is the
pure state machine of :mod:`wm_node.safety.gate`; this module is its wiring to ROS.

What a planner must do (any command source that takes the planner's place must do the same)
-------------------------------------------------------------------------------------------
``mpc_planner/heartbeat`` (``std_msgs/Header``, QoS ``HEARTBEAT_QOS`` of ``nodes/common.py``):
    Published at 20 Hz or more (``mpc_planner``: 25 Hz) from a steady timer of the executor, never
    from the inference thread, in the active state, from ``activate`` on.

    - ``stamp``: the stamp of the last completed plan, i.e. of its command; 0 before the first.
      It must stand still while the engine hangs, even if shifted plans are being published.
    - ``frame_id``: the name of a :class:`~wm_node.safety.reasons.Reason`. ``OK``: commands are to
      be followed. Anything else (``NO_GOAL``, ``GOAL_REACHED``, ``FRAMES_STALE``, ...): the gate
      brakes and holds with that reason, and resumes by itself when it turns ``OK``.
    - ``deactivate`` publishes a last heartbeat ``PLANNER_INACTIVE`` and waits for its
      acknowledgement (``publisher.wait_for_all_acked``); then the loss of the heartbeat is no
      fault. The publisher is created in ``configure`` and lives until ``cleanup``.

    The topic's DDS liveliness (lease ``HEARTBEAT_LEASE_S``, renewed by the DDS library itself)
    tells the gate of the death of the process within the lease; it brakes at once if no heartbeat
    contradicts it (``doubt_s``). Two that are alive at once are a fault, until a reset. Apart from
    that it brakes when no heartbeat has come for ``safety.max_heartbeat_age_s``, and when the stamp
    of an ``OK`` heartbeat has not changed for ``safety.max_plan_age_s``. These three latch when
    they last for ``latch_after_s``.

``mpc_planner/verdict`` (``PointCloud2``, ``COMMAND_QOS``), published *before* its command:
    Height 1, width = steps (or 1), ``header.stamp`` equal to the command's to the nanosecond.
    Fields: ``risk_<event>`` for each event of the profile, in 0..1 (NaN: not available, which
    counts as unverified where the profile has a threshold for it), and optionally ``uncertainty``
    and ``surprise``, each as a share of its limit: above 1 is too much. The gate takes the worst
    value over the steps.

``mpc_planner/command`` (the profile's message, ``COMMAND_QOS``):
    Built by ``command_message``. ``header.stamp`` is the ROS time at which it is published (not
    that of the frame), at ``action.rate_hz`` or faster. It is followed until it is
    ``safety.max_command_age_s`` old. Sent only while the heartbeat says ``OK``. Four times as many
    as the profile's rate in a second are a fault while they last.

``lock_topic`` (``std_msgs/Bool``, off by default): a lock as that of ``twist_mux``, or a dead-man's
    switch. ``true`` engages it, and so does silence: commands pass only while ``false`` comes again
    within ``lock_timeout_s``.

What the gate gives
-------------------
``command`` (``action.topic``, the profile's message, ``COMMAND_QOS``): at ``rate_hz`` while active.
``safety_gate/status`` (``DiagnosticStatus``, latched): state and reason at every change, for
recorders and reports: ``message`` is ``<STATE> <REASON>``; see ``status_values``.
``/diagnostics``: the same, and at 1 Hz. ``~/stop`` and ``~/reset`` (``std_srvs/Trigger``).
"""

from __future__ import annotations

import sys
import time
from collections import Counter
from collections.abc import Sequence
from dataclasses import fields
from typing import Any

import numpy as np
from diagnostic_msgs.msg import DiagnosticStatus
from numpy.typing import NDArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.duration import Duration
from rclpy.event_handler import SubscriptionEventCallbacks
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import JointState, PointCloud2
from std_msgs.msg import Bool, Header
from std_srvs.srv import Trigger

from wm_node.data.overlay import with_overlay
from wm_node.errors import WmError
from wm_node.nodes import common
from wm_node.nodes.pointcloud import unpack
from wm_node.nodes.polling import Polled
from wm_node.profile import load_profile
from wm_node.safety.gate import Decision, Gate, GateConfig, State, Verdict
from wm_node.safety.reasons import ORDINARY, Reason
from wm_node.safety.space import space_guard

# Publishers are counted every so many steps; the count is a look into the local graph cache.
_COUNT_EVERY = 5
_MAX_VERDICT_POINTS = 4096
# The newest command counts, but a flood of them must show: so many are read each period.
_COMMANDS_QOS = QoSProfile(depth=20, reliability=ReliabilityPolicy.RELIABLE)
# Waiting for a last message to be acknowledged.
_FLUSH = Duration(nanoseconds=200_000_000)


class SafetyGate(common.ManagedNode):
    """The node: its topics are told above, its parameters in ``config/safety_gate.yaml``."""

    def __init__(self) -> None:
        super().__init__("safety_gate")
        self.declare("robot", "tabletop", "robot profile: path, or name of one that ships")
        self.declare("overlay", "", "what 'wm calibrate' measured of this robot")
        self.declare("rate_hz", 50.0, "rate of decisions", minimum=20.0, maximum=500.0)
        self.declare("shadow", False, "decide everything, command nothing; set before activation")
        self.declare("lock_topic", "", "Bool that must keep saying false for commands to pass")
        defaults = GateConfig()
        for name, text in (
            ("verdict_wait_s", "how long a command may wait for its verdict"),
            ("stamp_ahead_s", "how far in the future a command may be stamped"),
            ("clock_jump_s", "how far ROS and steady clock may part between two decisions"),
            ("doubt_s", "silence of the planner that confirms the middleware's word of its death"),
            ("latch_after_s", "how long the planner may be lost before that latches"),
            ("unverified_scale", "share of the speed limits for unverified commands"),
            ("joint_speed_margin", "measured joint speed over its limit at which to brake"),
            ("lock_timeout_s", "silence of the lock that engages it"),
        ):
            self.declare(name, getattr(defaults, name), text, minimum=0.0, maximum=10.0)
        self.add_on_set_parameters_callback(self._refuse_while_active)
        self._diagnostics = common.Diagnostics(self, "gate")
        self._status = self.create_publisher(DiagnosticStatus, "~/status", common.LATCHED_QOS)
        self._triggers = [
            self.create_service(Trigger, "~/stop", self._on_stop),
            self.create_service(Trigger, "~/reset", self._on_reset),
        ]
        self._inputs: list[Polled] = []
        self._timer: Any = None
        self._recheck: Any = None
        self._gate: Gate | None = None
        self._shown: tuple[State, Reason, bool] | None = None
        self._interventions: Counter[str] = Counter()
        self._publisher_count = 1
        self._steps = 0
        self._report_inactive()

    # transitions

    def configure(self) -> None:
        """Load the profile, check its limits, create publishers and subscriptions."""
        profile = load_profile(self.get_parameter("robot").value)
        self._profile = with_overlay(profile, self.get_parameter("overlay").value)
        names = (field.name for field in fields(GateConfig) if field.name != "period_s")
        values = {name: self.get_parameter(name).value for name in names}
        self._config = GateConfig(period_s=1.0 / self.get_parameter("rate_hz").value, **values)
        self._space = space_guard(
            self._profile, self.get_parameter("robot").value, 2 * self._config.period_s
        )
        self._gate = Gate(self._profile, self._config, space=self._space)
        self._lock_topic = str(self.get_parameter("lock_topic").value)
        action = self._profile.action
        command_type = common.message_class(action.message)
        overrides = common.qos_overrides()
        self._command = self.create_lifecycle_publisher(
            command_type, action.topic, common.COMMAND_QOS, qos_overriding_options=overrides
        )
        self._shadow_command = self.create_lifecycle_publisher(
            command_type, "~/shadow_command", common.COMMAND_QOS
        )
        for kind, topic, callback, qos in (
            (command_type, "mpc_planner/command", self._on_command, _COMMANDS_QOS),
            (PointCloud2, "mpc_planner/verdict", self._on_verdict, common.RELIABLE_QOS),
            (JointState, self._profile.joints.topic, self._on_joints, common.SENSOR_QOS),
        ):
            self._inputs.append(Polled(self, kind, topic, callback, qos))
        if self._lock_topic:
            # Best effort matches every publisher; a lost message only engages the lock.
            lock = Polled(self, Bool, self._lock_topic, self._on_lock, common.SENSOR_QOS)
            self._inputs.append(lock)
        # Not polled: the news of a death is an event that must come at once.
        self._heartbeat = self.create_subscription(
            Header,
            "mpc_planner/heartbeat",
            self._on_heartbeat,
            common.HEARTBEAT_QOS,
            event_callbacks=SubscriptionEventCallbacks(liveliness=self._on_liveliness),
        )

    def activate(self) -> None:
        """Start deciding, with nothing received and nothing latched."""
        self._shadow = bool(self.get_parameter("shadow").value)
        self._publisher_count = self._count_publishers()
        if self._publisher_count > 1:
            raise WmError(
                f"{self._publisher_count - 1} other publisher(s) on '{self._profile.action.topic}' "
                "already command the robot; stop them, or wait 20 s after a gate has crashed, "
                "until the middleware forgets it."
            )
        lockable = bool(self._lock_topic)
        self._gate = Gate(self._profile, self._config, self._shadow, lockable, self._space)
        self._steps = 0
        self._interventions.clear()
        self._timer = self.create_timer(
            self._config.period_s, self._step, clock=common.steady_clock()
        )

    def deactivate(self) -> None:
        """Brake the robot to rest before the publisher is disabled."""
        if self._timer is not None:
            self._drop_recheck()
            self.destroy_timer(self._timer)
            self._timer = None
            self._brake_to_rest()
        self._report_inactive()

    def cleanup(self) -> None:
        """Drop publishers and subscriptions."""
        self.deactivate()
        while self._inputs:
            self._inputs.pop().destroy()
        heartbeat = self.__dict__.pop("_heartbeat", None)
        if heartbeat is not None:
            self.destroy_subscription(heartbeat)
        for name in ("_command", "_shadow_command"):
            publisher = self.__dict__.pop(name, None)
            if publisher is not None:
                self.destroy_lifecycle_publisher(publisher)
        self._gate = None

    def _brake_to_rest(self) -> None:
        gate = self._gate
        if gate is None:
            return
        gate.stop()
        deadline = time.monotonic() + 2 * self._profile.safety.stopping_time_s
        while not gate.at_rest and time.monotonic() < deadline:
            self._send(gate.step(time.monotonic(), self._ros_ns()))
            time.sleep(self._config.period_s)
        self._send(gate.step(time.monotonic(), self._ros_ns()))
        if not self._shadow:
            self._command.wait_for_all_acked(_FLUSH)

    # what arrives

    def _on_command(self, message: Any) -> None:
        if self._gate is None:
            return
        now_s = time.monotonic()
        try:
            stamp_ns, values = common.read_command(self._profile, message)
        except WmError as error:
            self._gate.on_malformed(str(error), now_s)
            return
        frame = common.command_frame(message)
        self._gate.on_command(stamp_ns, values, frame, now_s, self._ros_ns())

    def _on_verdict(self, message: PointCloud2) -> None:
        if self._gate is None:
            return
        try:
            stamp_ns, channels = unpack(message, _MAX_VERDICT_POINTS)
        except WmError as error:
            # Its command stays unverified, which says the rest.
            self.get_logger().warning(f"verdict: {error}", throttle_duration_sec=5.0)
            return
        risk = {
            name.removeprefix("risk_"): _worst(values)
            for name, values in channels.items()
            if name.startswith("risk_")
        }
        nothing = np.full((1, 1), np.nan, dtype=np.float32)
        self._gate.on_verdict(
            Verdict(
                stamp_ns=stamp_ns,
                risk=risk,
                uncertainty=_worst(channels.get("uncertainty", nothing)),
                surprise=_worst(channels.get("surprise", nothing)),
            )
        )

    def _on_heartbeat(self, message: Header) -> None:
        if self._gate is None:
            return
        reason = Reason.__members__.get(message.frame_id)
        if reason is None:
            self.get_logger().error(
                f"heartbeat: '{message.frame_id}' is not the name of a reason.",
                throttle_duration_sec=5.0,
            )
            reason = Reason.ENGINE_ERROR
        self._gate.on_heartbeat(common.stamp_to_ns(message.stamp), reason, time.monotonic())

    def _on_liveliness(self, event: Any) -> None:
        if self._gate is None:
            return
        self._gate.on_liveliness(event.alive_count)
        if self._timer is None:
            return
        self._step()  # brake now, not at the next period
        doubt_ends_s = self._gate.doubt_ends_s()
        wait_s = 0.0 if doubt_ends_s is None else doubt_ends_s - time.monotonic()
        if wait_s > 0 and self._recheck is None:
            self._recheck = self.create_timer(
                wait_s + 0.001, self._on_recheck, clock=common.steady_clock()
            )

    def _on_recheck(self) -> None:
        self._drop_recheck()
        if self._timer is not None:
            self._step()

    def _drop_recheck(self) -> None:
        if self._recheck is not None:
            self.destroy_timer(self._recheck)
            self._recheck = None

    def _on_lock(self, message: Bool) -> None:
        if self._gate is not None:
            self._gate.on_lock(bool(message.data), time.monotonic())

    def _on_joints(self, message: JointState) -> None:
        if self._gate is None:
            return
        names = self._profile.joints.names
        try:
            positions = common.named_values(message, "position", names, "joint state")
            velocities = (
                common.named_values(message, "velocity", names, "joint state")
                if len(message.velocity)
                else None
            )
        except WmError as error:
            self._gate.on_foreign_joints(str(error))
            return
        stamp_ns = common.stamp_to_ns(message.header.stamp)
        self._gate.on_joints(stamp_ns, positions, velocities, time.monotonic(), self._ros_ns())

    def _on_stop(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._gate is None or self._timer is None:
            response.message = "the gate is not active: it commands nothing."
            return response
        self._gate.stop()
        self._step()
        response.success, response.message = True, "braking; call reset to go on."
        return response

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self._gate is None or self._timer is None:
            response.message = "the gate is not active; activate it."
            return response
        self._publisher_count = self._count_publishers()
        try:
            self._gate.reset(self._publisher_count)
        except WmError as error:
            response.message = str(error)
            return response
        self._step()
        response.success, response.message = True, "reset; new commands pass."
        return response

    def _refuse_while_active(self, parameters: Sequence[Any]) -> SetParametersResult:
        own = {"robot", "overlay", "rate_hz", "shadow", "lock_topic"} | {
            field.name for field in fields(GateConfig)
        }
        fixed = sorted(p.name for p in parameters if p.name in own)
        if fixed and self._timer is not None:
            reason = f"{', '.join(fixed)} cannot change while the gate is active; deactivate it"
            return SetParametersResult(successful=False, reason=reason)
        return SetParametersResult(successful=True)

    # what leaves

    def _step(self) -> None:
        if self._gate is None:
            return
        for one in self._inputs:
            one.poll()
        if self._steps % _COUNT_EVERY == 0:
            self._publisher_count = self._count_publishers()
        self._steps += 1
        decision = self._gate.step(time.monotonic(), self._ros_ns(), self._publisher_count)
        self._send(decision)
        self._report(decision)

    def _send(self, decision: Decision) -> None:
        if not decision.send:
            return
        publisher = self._shadow_command if self._shadow else self._command
        publisher.publish(self._message(decision))

    def _message(self, decision: Decision) -> Any:
        if self._profile.action.message == "trajectory_msgs/msg/JointTrajectory":
            action, period_s = decision.manoeuvre, self._config.period_s
            return common.command_message(self._profile, action, self._ros_ns(), period_s)
        return common.command_message(self._profile, decision.output, self._ros_ns())

    def _report(self, decision: Decision) -> None:
        key = (decision.state, decision.reason, decision.latched)
        changed = key != self._shown
        if changed and decision.reason not in ORDINARY:
            before = self._shown[1] if self._shown is not None else Reason.OK
            if decision.reason is not before:
                self._interventions[decision.reason.name] += 1
        self._shown = key
        if changed or self._steps % max(1, round(1.0 / self._config.period_s)) == 0:
            text = f"{decision.state.name} {decision.reason.name}"
            self._diagnostics.report(_level(decision), text, self._values(decision))
        if changed:
            self._status.publish(self._diagnostics.status)
            self._log(decision)

    def _values(self, decision: Decision) -> dict[str, object]:
        values: dict[str, object] = {
            "state": decision.state.name,
            "reason": decision.reason.name,
            "meaning": decision.reason.meaning,
            "remedy": decision.reason.remedy,
            "detail": decision.detail,
            "latched": decision.latched,
            "shadow": self._shadow,
            "stamp_ns": self._ros_ns(),
        }
        return values | {f"interventions.{k}": n for k, n in sorted(self._interventions.items())}

    def _log(self, decision: Decision) -> None:
        if decision.reason in ORDINARY:
            return
        detail = f" ({decision.detail})" if decision.detail else ""
        text = f"{decision.state.name} {decision.reason.name}: {decision.reason.meaning}{detail}."
        if decision.latched:
            self.get_logger().error(f"{text} To do: {decision.reason.remedy}.")
        else:
            self.get_logger().warning(text, throttle_duration_sec=1.0)

    def _report_inactive(self) -> None:
        self._shown = None
        reason = Reason.INACTIVE
        values = {"state": State.HOLD.name, "reason": reason.name, "remedy": reason.remedy}
        if self._diagnostics.report(common.WARN, f"{State.HOLD.name} {reason.name}", values):
            self._status.publish(self._diagnostics.status)

    def _count_publishers(self) -> int:
        """Publishers on the robot's command topic, ours included; ours alone in shadow mode."""
        return 1 if self._shadow else int(self.count_publishers(self._command.topic_name))

    def _ros_ns(self) -> int:
        return int(self.get_clock().now().nanoseconds)


def _worst(values: NDArray[np.float32]) -> float:
    """Return the highest value, NaN if any is NaN: half a verdict is none."""
    return float(values.max()) if values.size else float("nan")


def _level(decision: Decision) -> bytes:
    if decision.latched:
        return common.ERROR
    ordinary = decision.reason in ORDINARY
    return common.OK if ordinary else common.WARN


def main(args: Sequence[str] | None = None) -> int:
    """Run the node until it is told to stop; return the exit status."""
    return common.run_node(SafetyGate, args)


if __name__ == "__main__":
    sys.exit(main())
