"""``/mpc_planner``: one command a control tick, at a fixed latency after its frame.

It lives in the process of ``/world_model``, whose inference thread does the planning
(:mod:`wm_node.nodes.cycle`). A cycle begins with the frame of its tick. Its command is published
when it is to take effect, ``latency_s`` after the frame, neither earlier nor later, so that the
model's assumption about delay holds. A cycle that is late is bridged by the shifted previous plan,
marked ``late`` in its verdict; while several are, a smaller search is used
(:mod:`wm_node.planning.effort`). What the planner owes the gate is told in
:mod:`wm_node.nodes.safety_gate`.

With the parameter ``source`` at ``external`` it plans nothing: it foresees what each command on
``external_command`` (the profile's message: teleoperation, a policy, another planner) leads to if
it goes on for ``external_hold_s`` and the robot brakes then, and hands it to the gate with that
verdict, slower where only that is safe (:mod:`wm_node.planning.supervision`). The source changes at
rest only.

Goals: the parameter ``goal_state`` (labelled values; empty: no goal), a picture on ``goal_image``
(an empty one, 0 x 0: no goal; one that cannot be used: no goal either), or the parameter
``goal_clip``, a recorded bag whose camera shows somebody do the task (empty: no goal; one that
cannot be used: no goal either): then the object is pushed along the places where the clip shows it,
to where it stands at the end (:mod:`wm_node.planning.demonstration`). The newest counts. Without a
goal, and at it, the robot holds.

Publishes ``~/command``, ``~/verdict`` (with ``plan_ms``, ``frame_to_command_ms`` and ``late`` of
the cycle), ``~/heartbeat``; ``~/plan`` (Path of the tool, or JointTrajectory for joint actions) and
``~/markers`` (predicted paths and the goal) while somebody listens; ``/diagnostics``.
"""

from __future__ import annotations

import math
import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from functools import partial
from typing import TYPE_CHECKING, Any

import numpy as np
from nav_msgs.msg import Path
from numpy.typing import NDArray
from rcl_interfaces.msg import SetParametersResult
from rclpy.duration import Duration
from rclpy.parameter import Parameter
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image, PointCloud2
from std_msgs.msg import Header
from trajectory_msgs.msg import JointTrajectory
from visualization_msgs.msg import MarkerArray

from wm_node.data.clip import read_clip
from wm_node.errors import WmError
from wm_node.nodes.common import (
    COMMAND_QOS,
    ERROR,
    HEARTBEAT_QOS,
    OK,
    QUIET,
    RELIABLE_QOS,
    WARN,
    Diagnostics,
    ManagedNode,
    command_frame,
    command_message,
    message_class,
    qos_overrides,
    read_command,
    set_stamp,
    steady_clock,
)
from wm_node.nodes.cycle import ControlCycle, Decision, ExternalCommand, Limits
from wm_node.nodes.drawing import plan_markers, plan_path, plan_trajectory
from wm_node.nodes.foresight import Foresight, Tick
from wm_node.nodes.handover import CallbackWatch, Outbox
from wm_node.nodes.inference import Samples
from wm_node.nodes.pointcloud import pack
from wm_node.planning.doubt import SURPRISE_CYCLES, lasting_surprise
from wm_node.planning.effort import Effort, ladder
from wm_node.planning.hold import HoldLimits
from wm_node.planning.objective import Goal, Weights
from wm_node.planning.planner import PlannerConfig
from wm_node.planning.supervision import SupervisionConfig
from wm_node.profile import RobotProfile
from wm_node.safety.gate import GateConfig, judge_command
from wm_node.safety.reasons import ORDINARY, Reason

if TYPE_CHECKING:
    from wm_node.nodes.world_model import WorldModelNode

HEARTBEAT_PERIOD_S = 0.04  # the gate asks for 20 Hz or more
COUNT_EVERY = 5  # heartbeats: a look into the local graph cache
LATE_WINDOW = 10  # cycles over which late ones are counted
FLUSH = Duration(seconds=0, nanoseconds=200_000_000)
FIXED = (
    "candidates",
    "iterations",
    "step_down",
    "seed",
    "latency_s",
    "hand_over_s",
    "external_hold_s",
)
SOURCES = ("planner", "external")
# The newest command counts, and best effort matches every publisher.
EXTERNAL_QOS = QoSProfile(depth=1, reliability=ReliabilityPolicy.BEST_EFFORT)


@dataclass(frozen=True)
class _Due:
    """A cycle whose command is to be published at ``due_ns`` of the steady clock."""

    tick: Tick
    due_ns: int


class MpcPlannerNode(ManagedNode):
    """The ROS side of :class:`~wm_node.nodes.cycle.ControlCycle`."""

    def __init__(self, world: WorldModelNode, **options: Any) -> None:
        # A launch file may rename the process's nodes all at once; this one keeps its own name.
        name = ["--ros-args", "-r", "__node:=mpc_planner"]
        super().__init__("mpc_planner", cli_args=name, **options)
        self._world = world
        self._cycle: ControlCycle | None = None
        self._foresight: Foresight | None = None
        self._ladder = [PlannerConfig()]  # sizes of the search
        self._choice = 0  # of a goal, or of none: the newest choice counts
        self._parts: list[Callable[[], None]] = []
        self._watch = CallbackWatch()
        self._diagnostics = Diagnostics(self, "control")
        self.add_on_set_parameters_callback(self._accept)
        self.add_post_set_parameters_callback(self._apply)
        self._start_anew()

    def _start_anew(self) -> None:
        self._due: deque[_Due] = deque()
        self._decisions: dict[int, Decision] = {}
        self._latest: Decision | None = None
        self._said_reason: Reason | None = None
        self._cycle_reason, self._detail = Reason.CONTEXT_EMPTY, ""
        self._plan_stamp_ns = 0
        self._beats = self._senders = 0  # heartbeats; nodes that send external commands
        self._moved_ns = 0  # when a command that moves the robot was last sent, steady clock
        self._effort = Effort(self._ladder)
        self._late: deque[bool] = deque(maxlen=LATE_WINDOW)
        self._late_mode = False
        self._surprises: deque[float] = deque(maxlen=SURPRISE_CYCLES)
        self._frame_to_command_ms, self._ready_ms = Samples(), Samples()
        self._counts = {
            "cycles": 0,
            "deadline_misses": 0,
            "plans": 0,
            "plans_late": 0,
            "commands": 0,
            "goals": 0,
            "goals_refused": 0,
            "external_commands": 0,
            "external_refused": 0,
            "external_slowed": 0,
        }

    # Lifecycle.

    def configure(self) -> None:
        """Take model and thread from ``/world_model``, set up search, topics and parameters."""
        foresight = self._world.foresight
        if foresight is None:
            raise WmError(f"configure '{self._world.get_name()}' first: it holds the model.")
        profile = foresight.profile
        config = self._declare_search()
        latency_s = self.declare(
            "latency_s",
            0.1,
            "from a frame's stamp to the effect of the command planned from it, s",
            minimum=0.01,
            maximum=1.0,
        )
        self.declare(
            "hand_over_s",
            0.012,
            "from sending a command to its effect through the gate, s; so much earlier it is sent",
            minimum=0.0,
            maximum=0.5,
        )
        hold_s = self.declare(
            "external_hold_s",
            SupervisionConfig.hold_s,
            "how long an external command is thought to go on before the robot brakes, s",
            minimum=0.05,
            maximum=2.0,
        )
        shadow = self.declare("shadow", False, "run everything, command nothing")
        if profile.action.rate_hz < 0.99 * profile.model.tick_rate_hz and not shadow:
            raise WmError(
                f"profile '{profile.name}' commands at {profile.action.rate_hz:g} Hz, but its "
                f"model plans at {profile.model.tick_rate_hz:g} Hz; command at that rate or faster."
            )
        topic = profile.action.topic
        if self.resolve_topic_name(topic) == self.resolve_topic_name("~/command"):
            raise WmError(
                f"profile '{profile.name}' commands the robot on '{topic}', where the planner "
                "commands the gate; give the robot a topic of its own."
            )
        self._start_anew()
        self._outbox = outbox = Outbox(self)
        self._parts.append(outbox.close)
        cycle = ControlCycle(
            foresight,
            config,
            latency_s,
            lambda decision: outbox.post(partial(self._watch(self._on_decision), decision)),
            seed=int(self.get_parameter("seed").value),
            supervision=SupervisionConfig(hold_s=hold_s),
        )
        self._declare_live(profile)
        self._ladder = self._prepare(foresight, config, cycle.supervisor.candidates)
        self._effort = Effort(self._ladder)
        self._foresight, self._cycle = foresight, cycle
        self._open_topics(profile)
        self._apply([])
        goal = self.declare_vector(
            "goal_state", [], f"goal values of {_goal_names(profile)}; empty: no goal, hold"
        )
        clip = self.declare("goal_clip", "", "bag whose camera shows the task done; empty: no goal")
        # Being declared counts as being set: the clip, declared last, is being read by now, and an
        # empty one has cancelled the values.
        if goal.size or not clip:
            self._set_goal_state(goal)
        self._world.on_tick = self._on_tick
        self._parts.append(self._let_go)

    def _prepare(
        self, foresight: Foresight, config: PlannerConfig, supervised: int
    ) -> list[PlannerConfig]:
        """Compile every search that may be used; return their sizes, the largest first."""
        searches = foresight.model.compiled_searches()
        compiled = [(one.size.candidates, one.size.iterations) for one in searches]
        sizes = ladder(config, compiled if self.get_parameter("step_down").value else [])
        foresight.prepare(
            (supervised, *(size.candidates for size in sizes)),
            *((size.candidates, size.iterations) for size in sizes),
        )
        return sizes

    def _declare_search(self) -> PlannerConfig:
        default, most = PlannerConfig(), 65536
        self.declare("seed", 0, "of the search's random numbers", minimum=0)
        self.declare("step_down", True, "search less while plans come late, if the bundle can")
        return replace(
            default,
            candidates=self.declare(
                "candidates", default.candidates, "candidates an iteration", minimum=4, maximum=most
            ),
            iterations=self.declare(
                "iterations", default.iterations, "refinements of a plan", minimum=1, maximum=100
            ),
        )

    def _declare_live(self, profile: RobotProfile) -> None:
        """Declare what may change while the node runs; bounds are in the descriptors."""
        self.declare(
            "source", SOURCES[0], "whose commands the gate gets; changes at rest", choices=SOURCES
        )
        self.declare("use_proposal", True, "let the learned proposal be among the candidates")
        self.declare("use_ways", True, "push round places that the bundle's map says are not free")
        default, safety = Limits(), profile.safety
        for name, value, text in (
            ("surprise_limit", safety.surprise_limit, "surprise that is too much; 1 is usual"),
            ("uncertainty_limit", safety.uncertainty_limit, "too much uncertainty; 1 is usual"),
            ("strangeness_limit", safety.strangeness_limit, "frames too strange; 1 is unusual"),
            ("goal_reached", default.hold.reached, "hold within so many tolerances of the goal"),
            ("goal_resume", default.hold.resume, "move again beyond so many tolerances"),
            ("goal_reached_steps", default.hold.steps, "hold so few model steps from a picture"),
        ):
            self.declare(name, value, text, minimum=1e-3, maximum=1e6)
        for name, least, text in (
            ("surprise_cycles", default.surprise_cycles, "surprised cycles in a row that brake"),
            ("late_limit", 4, f"late cycles of the last {LATE_WINDOW} that brake"),
        ):
            self.declare(name, least, text, minimum=1, maximum=LATE_WINDOW)
        weights = Weights.of(profile)
        for field in fields(Weights):
            self.declare(
                f"weights.{field.name}",
                float(getattr(weights, field.name)),
                f"weight of the objective's term '{field.name}'",
                minimum=0.0,
                maximum=1e6,
            )

    def _open_topics(self, profile: RobotProfile) -> None:
        options: dict[str, Any] = {"qos_overriding_options": qos_overrides()}
        joints = profile.action.kind != "twist"

        def publisher(kind: type, topic: str, qos: Any, **more: Any) -> Any:
            made = self.create_lifecycle_publisher(kind, topic, qos, event_callbacks=QUIET, **more)
            self._parts.append(partial(self.destroy_lifecycle_publisher, made))
            return made

        command = message_class(profile.action.message)
        self._command_topic = publisher(command, "~/command", COMMAND_QOS, **options)
        self._verdict_topic = publisher(PointCloud2, "~/verdict", COMMAND_QOS)
        self._heartbeat_topic = publisher(Header, "~/heartbeat", HEARTBEAT_QOS)
        self._plan_topic = publisher(JointTrajectory if joints else Path, "~/plan", RELIABLE_QOS)
        self._marker_topic = publisher(MarkerArray, "~/markers", RELIABLE_QOS)
        goals = self.create_subscription(
            Image, "goal_image", self._watch(self._on_goal_image), RELIABLE_QOS, **options
        )
        self._parts.append(partial(self.destroy_subscription, goals))
        external = self.create_subscription(
            command,
            "external_command",
            self._watch(self._on_external),
            EXTERNAL_QOS,
            **options,
        )
        self._parts.append(partial(self.destroy_subscription, external))
        clock = steady_clock()
        for period_s, call, autostart in (
            (HEARTBEAT_PERIOD_S, self._beat, True),
            (1.0, self._report, True),
        ):
            timer = self.create_timer(period_s, self._watch(call), clock=clock, autostart=autostart)
            self._parts.append(partial(self.destroy_timer, timer))
        self._external = self.resolve_topic_name("external_command")
        self._readback = self.resolve_topic_name(profile.action.readback.topic)
        self._alarm = self.create_timer(
            1.0, self._watch(self._on_alarm), clock=clock, autostart=False
        )
        self._parts.append(partial(self.destroy_timer, self._alarm))

    def activate(self) -> None:
        """Start to plan; the first heartbeat follows at once."""
        if self._foresight is None or self._foresight is not self._world.foresight:
            raise WmError(
                f"'{self._world.get_name()}' was configured anew; clean up and configure "
                f"'{self.get_name()}' again."
            )
        self._start_anew()
        assert self._cycle is not None
        self._cycle.search = self._effort.config
        self._cycle.clear()
        self._foresight.cycle = self._cycle.hooks

    def deactivate(self) -> None:
        """Tell the gate that commands end, and wait until it knows."""
        if self._cycle is None or self._foresight is None:
            return
        self._foresight.cycle = None
        self._due.clear()
        self._alarm.cancel()
        self._heartbeat(Reason.PLANNER_INACTIVE)
        self._heartbeat_topic.wait_for_all_acked(FLUSH)
        self._report()

    def cleanup(self) -> None:
        """Let go of the model; drop topics and timers."""
        while self._parts:
            self._parts.pop()()
        self._cycle = None
        self._foresight = None

    def _let_go(self) -> None:
        self._world.on_tick = None
        if self._foresight is not None:
            self._foresight.cycle = None

    # Parameters and goals.

    def _accept(self, parameters: list[Parameter]) -> SetParametersResult:
        if self._cycle is None:
            return SetParametersResult(successful=True)
        for parameter in parameters:
            if parameter.name in FIXED:
                reason = f"'{parameter.name}' is fixed once configured; clean up, then set it"
                return SetParametersResult(successful=False, reason=reason)
            known = parameter.name == "source" and parameter.value in SOURCES
            if known and not self._rests(parameter.value):
                reason = "'source' changes at rest only; cancel the goal or stop the commands first"
                return SetParametersResult(successful=False, reason=reason)
            if parameter.name == "goal_state" and len(parameter.value or ()):
                names = _goal_names(self._cycle.profile)
                if len(parameter.value) != len(names):
                    reason = f"'goal_state' needs {len(names)} values ({', '.join(names)}) or none"
                    return SetParametersResult(successful=False, reason=reason)
        return SetParametersResult(successful=True)

    def _apply(self, parameters: list[Parameter]) -> None:
        if self._cycle is None:
            return

        def value(name: str) -> Any:
            return self.get_parameter(name).value

        names = [field.name for field in fields(Weights)]
        self._cycle.weights = Weights(**{name: value(f"weights.{name}") for name in names})
        self._cycle.use_proposal = value("use_proposal")
        self._cycle.use_ways = value("use_ways")
        self._cycle.limits = Limits(
            surprise=value("surprise_limit"),
            surprise_cycles=value("surprise_cycles"),
            strangeness=value("strangeness_limit"),
            hold=HoldLimits(
                reached=value("goal_reached"),
                resume=max(value("goal_resume"), value("goal_reached")),
                steps=value("goal_reached_steps"),
            ),
        )
        self._surprises = deque(self._surprises, maxlen=value("surprise_cycles"))
        if any(parameter.name == "goal_state" for parameter in parameters):
            self._set_goal_state(self.vector("goal_state"))
        if any(parameter.name == "goal_clip" for parameter in parameters):
            self._set_goal_clip(value("goal_clip"))
        self._select(value("source") == "external")

    def _rests(self, source: str) -> bool:
        """Whether commands may come from another source: the robot has long been told to rest."""
        if source == self.get_parameter("source").value or not self.is_active:
            return True
        safety = self._profile.safety
        settled_s = safety.max_command_age_s + safety.stopping_time_s
        return 1e-9 * (time.monotonic_ns() - self._moved_ns) > settled_s

    def _select(self, supervising: bool) -> None:
        """Take commands from the planner or from others; what the last source wanted is void."""
        assert self._cycle is not None
        if supervising == self._cycle.supervising:
            return
        self._cycle.external = None
        self._cycle.supervising = supervising
        self._cycle_reason, self._detail = Reason.NO_COMMAND, ""
        self._latest = None
        self._decisions.clear()

    def _set_goal_state(self, values: NDArray[np.float64]) -> None:
        goal = Goal(state=values.astype(np.float32)) if values.size else None
        self._set_goal(goal)

    def _set_goal(self, goal: Goal | None) -> None:
        """Choose a goal or none, in place of the present one and of pictures on their way."""
        if self._cycle is None:
            return
        self._choice += 1
        self._cycle.set_goal(goal)
        self._counts["goals"] += goal is not None
        if goal is None:
            self._cycle_reason, self._detail = Reason.NO_GOAL, ""

    def _set_goal_clip(self, path: str) -> None:
        """Have a demonstration read, in a thread of its own, and then encoded."""
        if not path:
            self._set_goal(None)
            return
        self._choice += 1
        choice, profile, outbox = self._choice, self._profile, self._outbox

        def read() -> None:
            try:
                pictures, problem = read_clip(path, profile), ""
            except WmError as error:
                pictures, problem = [], str(error)
            outbox.post(partial(self._watch(self._on_clip), choice, pictures, problem))

        threading.Thread(target=read, name="goal clip", daemon=True).start()

    def _on_clip(self, choice: int, pictures: list[NDArray[np.uint8]], problem: str) -> None:
        """A demonstration has been read, or cannot be."""
        if problem:
            self.get_logger().error(f"the goal clip is refused: {problem}")
            self._on_picture(choice, None)
        elif choice == self._choice and self._foresight is not None:
            take, outbox = self._watch(partial(self._on_picture, choice)), self._outbox
            self._foresight.submit_clip(pictures, lambda goal: outbox.post(partial(take, goal)))

    def _on_goal_image(self, message: Image) -> None:
        if self._foresight is None or self._cycle is None:
            return
        if message.width == 0 or message.height == 0:
            self._set_goal(None)
            return
        self._choice += 1
        take = self._watch(partial(self._on_picture, self._choice))
        outbox = self._outbox
        self._foresight.submit_goal(message, lambda goal: outbox.post(partial(take, goal)))

    def _on_picture(self, choice: int, goal: Goal | None) -> None:
        """A goal picture has been encoded, or refused (None): hold, for another goal was wanted."""
        self._counts["goals_refused"] += goal is None
        if choice == self._choice:  # else something newer was chosen while it was on its way
            self._set_goal(goal)

    def _on_external(self, message: Any) -> None:
        """Keep the newest external command; one that cannot be followed is a reason to brake."""
        if self._cycle is None:
            return
        self._counts["external_commands"] += 1
        received_ns, values = time.monotonic_ns(), np.zeros(len(self._profile.action.names))
        try:
            stamp_ns, values = read_command(self._profile, message)
            age_s = 1e-9 * (self._now_ns() - stamp_ns) if stamp_ns else 0.0
            reason, detail = judge_command(
                self._profile, values, command_frame(message), age_s, GateConfig.stamp_ahead_s
            )
        except WmError as error:
            reason, detail = Reason.COMMAND_MALFORMED, str(error)
        self._counts["external_refused"] += reason is not Reason.OK
        self._cycle.external = ExternalCommand(received_ns, values, reason, detail)

    # The cycle.

    def _on_tick(self, tick: Tick) -> None:
        if not self.is_active or self._cycle is None:
            return
        now_ns = time.monotonic_ns()
        age_ns = self._now_ns() - tick.stamp_ns
        hand_over_s = float(self.get_parameter("hand_over_s").value)
        wait_ns = self._cycle.latency_ns - age_ns - round(hand_over_s * 1e9)
        self._due.append(_Due(tick, now_ns + wait_ns))
        self._set_alarm()

    def _set_alarm(self) -> None:
        if not self._due:
            self._alarm.cancel()
            return
        wait_ns = self._due[0].due_ns - time.monotonic_ns()
        self._alarm.timer_period_ns = max(wait_ns, 10_000)
        self._alarm.reset()

    def _on_alarm(self) -> None:
        while self._due and self._due[0].due_ns <= time.monotonic_ns() + 100_000:
            self._finish(self._due.popleft().tick)
        self._set_alarm()

    def _on_decision(self, decision: Decision) -> None:
        """Keep a decision until it is due; one that comes too late still counts as a plan."""
        if self._cycle is None or not self.is_active:
            return
        stamp_ns = decision.tick.stamp_ns
        self._counts["plans"] += decision.actions is not None
        ready_ms = 1e-6 * (self._now_ns() - stamp_ns)
        self._ready_ms.add(ready_ms)
        if decision.actions is not None and not self._cycle.supervising:
            self._set_effort(ready_ms, decision.plan_ms)
        if any(due.tick.stamp_ns == stamp_ns for due in self._due):
            self._decisions[stamp_ns] = decision
            return
        if decision.actions is not None:
            self._counts["plans_late"] += 1
            self._keep(decision)

    def _set_effort(self, ready_ms: float, plan_ms: float) -> None:
        """Choose the size of the next searches by how this one stood to its deadline."""
        assert self._cycle is not None
        hand_over_s = float(self.get_parameter("hand_over_s").value)
        before = self._effort.config
        self._effort.note(1e-3 * ready_ms, 1e-3 * plan_ms, self._cycle.latency_s - hand_over_s)
        config = self._effort.config
        if config == before:
            return
        self._cycle.search = config
        self.get_logger().info(
            f"plans are searched with {config.candidates} x {config.iterations} candidates now: "
            f"the last was ready {ready_ms:.0f} ms after its frame."
        )

    def _keep(self, decision: Decision) -> None:
        self._cycle_reason, self._detail = decision.reason, decision.detail
        if decision.actions is not None:
            self._latest = decision
            self._plan_stamp_ns = self._now_ns()
        else:
            self._latest = None

    def _finish(self, tick: Tick) -> None:
        """A cycle's command is due: send it, or the shifted last one, or say why there is none."""
        assert self._foresight is not None
        assert self._cycle is not None
        buffer = self._foresight.buffer
        # Told by the middleware, not by the messages: a gate in shadow mode sends none.
        buffer.readback_exists = self.count_publishers(self._readback) > 0
        self._counts["cycles"] += 1
        decision = self._decisions.pop(tick.stamp_ns, None)
        self._note_late(decision is None)
        shift = 0
        if decision is None:
            decision, shift = self._shifted(tick)
        else:
            self._keep(decision)
            self._surprises.append(decision.surprise)
        reason = self._reason()
        if reason is not Reason.OK:  # the gate is to brake before anything else
            self._tell(reason)
        if decision is not None and decision.outcomes is not None:
            self._publish(tick, decision, shift, reason)
        # After its command: told first, the gate would wonder at the last one's age.
        self._tell(reason)

    def _publish(self, tick: Tick, decision: Decision, shift: int, reason: Reason) -> None:
        """Send verdict and command of a cycle whose time it is."""
        assert self._foresight is not None
        assert self._cycle is not None
        stamp_ns = self._now_ns()
        latency_ms = 1e-6 * (stamp_ns - tick.stamp_ns)
        if decision.actions is not None:
            self._frame_to_command_ms.add(latency_ms)
        self._verdict_topic.publish(self._verdict(decision, stamp_ns, latency_ms, shift))
        if reason is Reason.OK and decision.actions is not None:
            action = decision.actions[shift]
            self._command_topic.publish(command_message(self._profile, action, stamp_ns))
            self._counts["commands"] += 1
            self._counts["external_slowed"] += decision.speed < 1.0
            if action.any() or self._profile.action.kind == "joint_position":
                self._moved_ns = time.monotonic_ns()
            if action.any():
                self._foresight.buffer.expect_readback(tick.stamp_ns + self._cycle.latency_ns)
        if shift == 0:
            self._show(decision)

    def _note_late(self, late: bool) -> None:
        self._counts["deadline_misses"] += late
        self._late.append(late)
        if sum(self._late) >= int(self.get_parameter("late_limit").value):
            self._late_mode = True
        elif not any(list(self._late)[-LATE_WINDOW // 2 :]):
            self._late_mode = False

    def _shifted(self, tick: Tick) -> tuple[Decision | None, int]:
        """The last plan and how many ticks it is to be moved on; None when it does not reach."""
        latest = self._latest
        if latest is None or latest.actions is None or self._cycle is None:
            return None, 0
        ticks = (tick.stamp_ns - latest.tick.stamp_ns) / (self._profile.model.tick_s * 1e9)
        shift = round(ticks)
        if not 0 < shift < len(latest.actions):
            return None, 0
        effect_ns = tick.stamp_ns + self._cycle.latency_ns
        self._cycle.put(effect_ns, latest.actions[shift])
        return latest, shift

    def _reason(self) -> Reason:
        """The first reason that keeps commands from being sent, ``OK`` if there is none."""
        world, safety = self._world, self._profile.safety
        now_ns = time.monotonic_ns()
        if world.joints_fault is not Reason.OK:
            return world.joints_fault
        if world.frames_fault is not Reason.OK:
            return world.frames_fault
        if (now_ns - world.last_frame_ns) * 1e-9 > safety.max_frame_age_s:
            return Reason.FRAMES_STALE
        if (now_ns - world.last_joints_ns) * 1e-9 > safety.max_joint_age_s:
            return Reason.JOINTS_STALE
        if self._senders > 1:
            return Reason.SECOND_SOURCE
        if self._cycle is None or (self._cycle.goal is None and not self._cycle.supervising):
            return Reason.NO_GOAL if self._cycle_reason is Reason.OK else self._cycle_reason
        if self._late_mode:  # before the cycle's reason, which is out of date then
            return Reason.PLAN_LATE
        if self._cycle_reason is not Reason.OK:
            return self._cycle_reason
        return Reason.SHADOW if self.get_parameter("shadow").value else Reason.OK

    # What goes out.

    def _beat(self) -> None:
        if self._cycle is None or not self.is_active:
            return
        self._world.poll()
        self._beats += 1
        if self._beats % COUNT_EVERY == 0:
            supervising = self._cycle.supervising
            self._senders = self.count_publishers(self._external) if supervising else 0
        reason = self._reason()
        self._heartbeat(reason)
        self._tell(reason, beat=False)

    def _heartbeat(self, reason: Reason) -> None:
        message = Header(frame_id=reason.name)
        set_stamp(message.stamp, self._plan_stamp_ns)
        self._heartbeat_topic.publish(message)

    def _tell(self, reason: Reason, beat: bool = True) -> None:
        """On a change of reason, tell the gate at once, and people."""
        if reason is self._said_reason:
            return
        self._said_reason = reason
        if beat:
            self._heartbeat(reason)
        if reason not in ORDINARY:
            detail = f" ({self._detail})" if self._detail else ""
            self.get_logger().warning(
                f"{reason.name}: {reason.meaning}{detail}; {reason.remedy}.",
                throttle_duration_sec=1.0,
            )
        self._report()

    def _verdict(
        self, decision: Decision, stamp_ns: int, latency_ms: float, late: int
    ) -> PointCloud2:
        """The fields that the gate reads, then figures of this cycle for reports."""
        outcomes = decision.outcomes
        assert outcomes is not None
        assert self._cycle is not None
        named: dict[str, NDArray[np.floating]] = {
            f"risk_{name}": outcomes.risk[:1, :, index]
            for index, name in enumerate(self._profile.event_names)
        }
        limit = float(self.get_parameter("uncertainty_limit").value)
        named["uncertainty"] = outcomes.uncertainty[:1] / limit
        # One surprised frame may be a glint; the gate hears of what lasts.
        lasting = lasting_surprise(self._surprises)
        for name, value in (
            ("surprise", lasting / self._cycle.limits.surprise),
            ("surprise_now", decision.surprise / self._cycle.limits.surprise),
            ("cost", decision.cost),
            ("plan_ms", math.nan if late else decision.plan_ms),
            ("frame_to_command_ms", latency_ms),
            ("late", float(late)),
        ):
            named[name] = np.full(outcomes.uncertainty[:1].shape, value)
        return pack(named, stamp_ns, self._profile.action.frame_id)

    def _show(self, decision: Decision) -> None:
        """Publish what tools draw, for those that listen."""
        profile, stamp_ns, outcomes = self._profile, decision.tick.stamp_ns, decision.outcomes
        if outcomes is None:
            return
        if self._plan_topic.get_subscription_count() > 0:
            message = None
            if profile.action.kind == "twist":
                message = plan_path(profile, outcomes, stamp_ns)
            elif decision.actions is not None:
                message = plan_trajectory(profile, decision.actions, stamp_ns)
            if message is not None:
                self._plan_topic.publish(message)
        if self._marker_topic.get_subscription_count() > 0:
            markers = plan_markers(profile, outcomes, decision.goal, stamp_ns)
            self._marker_topic.publish(markers)

    def _report(self) -> None:
        if self._cycle is None or self._foresight is None:
            return
        reason = self._said_reason or Reason.CONTEXT_EMPTY
        if not self.is_active:
            reason = Reason.PLANNER_INACTIVE
        level = OK if reason in ORDINARY else WARN
        if reason is Reason.ENGINE_ERROR:
            level = ERROR
        detail = f" ({self._detail})" if self._detail else ""
        text = f"{reason.name}: {reason.meaning}{detail}"
        self._diagnostics.report(level, text, self._figures(reason))

    def _figures(self, reason: Reason) -> dict[str, object]:
        """Key/values of ``mpc_planner: control`` on ``/diagnostics``; counts since activation."""
        assert self._cycle is not None
        assert self._foresight is not None
        cycle, foresight = self._cycle, self._foresight
        first = self._profile.cameras[0].name
        return {
            "reason": reason.name,
            "remedy": reason.remedy,
            "detail": self._detail,
            "bundle_sha256": foresight.bundle.sha256,
            "backend": foresight.model.engine.name,
            "frames_received": self._world.frames_received[first],
            **self._counts,
            "candidates": self._effort.config.candidates,
            "iterations": self._effort.config.iterations,
            "steps_down": self._effort.steps_down,
            "plan_ms_p50": cycle.plan_ms.percentile(50),
            "plan_ms_p99": cycle.plan_ms.percentile(99),
            "frame_to_plan_ms_p50": self._ready_ms.percentile(50),
            "frame_to_plan_ms_p99": self._ready_ms.percentile(99),
            "frame_to_command_ms_p50": self._frame_to_command_ms.percentile(50),
            "frame_to_command_ms_p99": self._frame_to_command_ms.percentile(99),
            "surprise": foresight.surprise,
            "cost": self._latest.cost if self._latest is not None else math.nan,
            "way_point": _places(self._latest.way_point) if self._latest is not None else "",
            "latency_s": cycle.latency_s,
            "shadow": bool(self.get_parameter("shadow").value),
            "source": self.get_parameter("source").value,
            "speed": self._latest.speed if self._latest is not None else math.nan,
            "callback_ms_p99": self._watch.ms.percentile(99),
            "callback_ms_max": self._watch.worst_ms,
        }

    @property
    def _profile(self) -> RobotProfile:
        assert self._cycle is not None
        return self._cycle.profile

    def _now_ns(self) -> int:
        return int(self.get_clock().now().nanoseconds)


def _goal_names(profile: RobotProfile) -> tuple[str, ...]:
    return profile.objective.goal if profile.objective else ()


def _places(point: NDArray[np.float32] | None) -> str:
    """A point as diagnostics show it; empty without one."""
    return "" if point is None else " ".join(f"{value:.3f}" for value in point.tolist())
