"""One control cycle, in the inference thread: from an observation to a decision.

A cycle plans from the frame of its tick, for commands that take effect a fixed latency later, so
that the plan starts where the robot will be. Every way in which it ends without a command has the
name of a :class:`~wm_node.safety.reasons.Reason`. Nothing here knows ROS.
"""

from __future__ import annotations

import threading
import time
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass, field

import numpy as np
from numpy.typing import NDArray

from wm_node.errors import WmError
from wm_node.nodes.foresight import Cycle, Foresight, Observation, Tick, take
from wm_node.nodes.inference import Samples
from wm_node.planning.context import NotReady
from wm_node.planning.demonstration import Guide, guide_to
from wm_node.planning.doubt import SURPRISE_CYCLES
from wm_node.planning.hold import HoldLimits, holds, present_values
from wm_node.planning.objective import Goal, Objective, Weights
from wm_node.planning.planner import MpcPlanner, Plan, PlannerConfig, rest_action
from wm_node.planning.supervision import SupervisionConfig, Supervisor
from wm_node.planning.ways import next_goal, ways_of
from wm_node.planning.world_model import Context, Futures, Outcomes
from wm_node.safety.reasons import Reason

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class Decision:
    """What a cycle ends with.

    Attributes:
        tick: the tick that it is about.
        reason: ``OK``: follow the actions; anything else: brake and hold, for that reason.
        detail: more about the reason, for people; may be empty.
        actions: (T, A) to command, the first at the planned time of effect; None without a plan.
        outcomes: N = 1, of the plan, or of going on as now while there is no goal.
        futures: of the plan, where the model tells them apart.
        surprise: see :class:`Observation`.
        plan_ms: duration of the search; NaN without one.
        cost: of the plan; NaN without one.
        goal: that the plan is for.
        speed: share of its speed at which an external command is followed.
        way_point: (2,) that the plan leads to where the goal itself is not in view, or on the way
            that a demonstration shows.
    """

    tick: Tick
    reason: Reason
    detail: str = ""
    actions: Floats | None = None
    outcomes: Outcomes | None = None
    futures: Futures | None = None
    surprise: float = float("nan")
    plan_ms: float = float("nan")
    cost: float = float("nan")
    goal: Goal | None = None
    speed: float = 1.0
    way_point: Floats | None = None


@dataclass(frozen=True)
class ExternalCommand:
    """The newest command of something other than the planner.

    Attributes:
        received_ns: when it came, steady clock.
        values: (A,) in the profile's units; not to be followed unless ``reason`` is ``OK``.
        reason: ``OK``, or why it cannot be followed.
        detail: more about the reason, for people.
    """

    received_ns: int
    values: Doubles
    reason: Reason = Reason.OK
    detail: str = ""


class FrozenWatch:
    """Notices a camera that repeats a picture with fresh stamps while the robot moves.

    The noise of a real camera never gives the same picture twice; a simulated one may, but only
    where nothing moves at all.

    Args:
        seconds: how long a picture may stay the same while the robot moves.
        moved: of a joint, in its unit, from which the robot has moved.
    """

    def __init__(self, seconds: float, moved: float = 0.02) -> None:
        self._span_ns, self._moved = round(seconds * 1e9), moved
        self._first: dict[str, tuple[NDArray[np.uint8], int, Floats]] = {}

    def frozen(self, observation: Observation, joints: Floats) -> str:
        """Return the name of a camera that is frozen, empty if none is.

        Args:
            observation: the newest.
            joints: (J,) measured at its stamp.
        """
        stamp_ns, found = observation.tick.stamp_ns, ""
        for name, frame in observation.frames.items():
            first = self._first.get(name)
            if first is None or stamp_ns < first[1] or not np.array_equal(first[0], frame):
                self._first[name] = (frame, stamp_ns, joints)
            elif stamp_ns - first[1] > self._span_ns and (
                float(np.abs(joints - first[2]).max(initial=0.0)) > self._moved
            ):
                found = name
        return found


class CommandSchedule:
    """The commands sent or decided, and from when each is in force. Thread-safe.

    Args:
        timeout_ns: the driver brakes this long after a command; None: it holds the last one.
    """

    def __init__(self, timeout_ns: int | None, capacity: int = 64) -> None:
        self._timeout_ns = timeout_ns
        self._entries: deque[tuple[int, Doubles]] = deque(maxlen=capacity)
        self._lock = threading.Lock()

    def put(self, effect_ns: int, action: NDArray[np.floating]) -> None:
        """Let a command (A,) be in force from ``effect_ns`` on, in place of any later one."""
        with self._lock:
            while self._entries and self._entries[-1][0] >= effect_ns:
                self._entries.pop()
            self._entries.append((effect_ns, np.asarray(action, dtype=np.float64)))

    def clear(self) -> None:
        """Forget all commands: the robot rests."""
        with self._lock:
            self._entries.clear()

    def committed(self, effect_ns: int, count: int, tick_ns: int, rest: Doubles) -> Doubles:
        """Return (count, A): the command in force in each tick before ``effect_ns``, oldest first.

        Args:
            effect_ns: when the next plan takes effect.
            count: ticks to look back.
            tick_ns: length of a tick.
            rest: (A,) what acts where no command is in force.
        """
        with self._lock:
            entries = list(self._entries)
        middle = effect_ns - tick_ns // 2
        rows = []
        for back in range(count - 1, -1, -1):
            at = middle - back * tick_ns
            row = rest
            for start, action in reversed(entries):
                if start <= at:
                    expired = self._timeout_ns is not None and at - start > self._timeout_ns
                    row = rest if expired else action
                    break
            rows.append(row)
        return np.stack(rows)


@dataclass(frozen=True)
class Limits:
    """Limits of the cycle.

    Attributes:
        surprise: above this the model is surprised; 1 is usual.
        surprise_cycles: so many surprised cycles in a row are a reason to brake.
        strangeness: a frame above this is like nothing in the training data.
        hold: how near the goal is near enough.
    """

    surprise: float = 5.0
    surprise_cycles: int = SURPRISE_CYCLES
    strangeness: float = 4.0
    hold: HoldLimits = field(default_factory=HoldLimits)


@dataclass
class _GoalState:
    goal: Goal | None = None
    guide: Guide | None = None
    reached: bool = False


class ControlCycle:
    """Plans in the inference thread, or supervises commands of others (``supervising``).

    Goal, weights, limits, ``use_proposal``, ``use_ways``, ``search``, the size of the search,
    ``supervising`` and ``external``, the newest command of others, may be set from any thread at
    any time; they count from the next cycle.

    Args:
        foresight: model, context and thread.
        config: search effort.
        latency_s: from a frame's stamp to the effect of the command planned from it.
        decided: called in the inference thread with each decision.
        seed: of the search.
        supervision: how commands of others are foreseen.
    """

    def __init__(
        self,
        foresight: Foresight,
        config: PlannerConfig,
        latency_s: float,
        decided: Callable[[Decision], None],
        seed: int = 0,
        supervision: SupervisionConfig | None = None,
    ) -> None:
        profile = foresight.profile
        self.profile = profile
        self.search = config
        self.planner = MpcPlanner(profile, config, seed)
        self.objective = Objective(profile)
        self.weights = Weights.of(profile)
        self.limits = Limits()
        self.use_proposal = True
        self.use_ways = True
        self.supervising = False
        self.external: ExternalCommand | None = None
        self.supervisor = Supervisor(foresight.model, supervision or SupervisionConfig(), latency_s)
        self.latency_s = latency_s
        self.latency_ns = round(latency_s * 1e9)
        self.plan_ms = Samples()
        timeout = profile.action.command_timeout_s
        self.schedule = CommandSchedule(None if timeout is None else round(timeout * 1e9))
        self._foresight = foresight
        self._decided = decided
        self._goal = _GoalState()
        self._surprised = 0
        self._ways = ways_of(foresight.bundle)
        self._frozen = FrozenWatch(profile.safety.max_frame_age_s)
        self._tick_ns = round(profile.model.tick_s * 1e9)
        self._committed_count = int(np.floor(latency_s / profile.model.tick_s + 1e-9)) + 1

    @property
    def hooks(self) -> Cycle:
        """What hangs this cycle into the inference thread."""
        return Cycle(run=self.run, failed=self.failed, cost=self.cost)

    @property
    def goal(self) -> Goal | None:
        """The present goal."""
        return self._goal.goal

    def set_goal(self, goal: Goal | None) -> None:
        """Set or cancel the goal.

        Raises:
            WmError: the number of values does not fit the profile's objective.
        """
        if goal is not None and goal.state is not None:
            spec = self.profile.objective
            names = spec.goal if spec else ()
            if goal.state.shape != (len(names),) or not np.isfinite(goal.state).all():
                raise WmError(
                    f"a goal of {goal.state.size} values is refused; the profile "
                    f"'{self.profile.name}' takes {len(names)} finite ones: {', '.join(names)}."
                )
        self._goal = _GoalState(goal, guide_to(goal))

    def cost(self, outcomes: Outcomes, actions: Floats) -> Doubles | None:
        """Cost (N,) of outcomes for the present goal; None without one."""
        goal = self._goal.goal
        if goal is None:
            return None
        return self.objective(outcomes, actions, goal, self.weights)[0]

    def failed(self, tick: Tick, error: Exception) -> None:
        """A tick gave no observation: its frame is unusable, or the engine failed."""
        reason = Reason.FRAMES_STALE if isinstance(error, WmError) else Reason.ENGINE_ERROR
        self._decided(Decision(tick, reason, str(error)))

    def run(self, observation: Observation) -> None:
        """Plan from an observation and tell the decision; nothing escapes but bugs."""
        try:
            decision = self._decide(observation)
        except Exception as error:
            self._decided(
                Decision(observation.tick, Reason.ENGINE_ERROR, str(error) or repr(error))
            )
            if not isinstance(error, WmError):
                raise
            return
        self._decided(decision)
        if decision.outcomes is not None:
            cost = None if np.isnan(decision.cost) else np.array([decision.cost])
            self._foresight.share(observation, decision.outcomes, cost, decision.futures)

    def _decide(self, observation: Observation) -> Decision:
        tick, context = observation.tick, observation.context
        if isinstance(context, NotReady):
            self.planner.reset()
            self._surprised = 0
            missing = f"the context lacks {context.reason}"
            if context.reason == "actions":
                missing += f": nothing is read back on '{self.profile.action.readback.topic}'"
            return Decision(tick, Reason.CONTEXT_EMPTY, missing, surprise=observation.surprise)
        camera = self._frozen.frozen(observation, context.joints[-1])
        if camera:
            self.planner.reset()
            detail = f"camera '{camera}' sends the same picture while the robot moves"
            return self._going_on(observation, context, Reason.FRAMES_FROZEN, detail=detail)
        strangeness, camera = observation.strangeness
        if strangeness > self.limits.strangeness:
            self.planner.reset()
            detail = f"camera '{camera}': {strangeness:.1f} times the strangest usual frame"
            return self._going_on(observation, context, Reason.FRAMES_STRANGE, detail=detail)
        if self.supervising:
            return self._supervise(observation, context)
        state = self._goal
        if state.goal is None:
            self.planner.reset()
            return self._going_on(observation, context, Reason.NO_GOAL)
        model, near = self._foresight.model, self.limits.hold
        now = present_values(model, self.objective, state.goal, context)
        state.reached = holds(model, self.objective, state.goal, context, now, near, state.reached)
        if state.reached:
            return self._going_on(observation, context, Reason.GOAL_REACHED, state.goal)
        start = time.perf_counter()
        self.planner.resize(self.search)
        goal = next_goal(self._ways if self.use_ways else None, state.goal, now, state.guide)
        plan = self._plan(context, goal)
        plan_ms = 1e3 * (time.perf_counter() - start)
        self.plan_ms.add(plan_ms)
        if not (np.isfinite(plan.actions).all() and np.isfinite(plan.outcomes.latents).all()):
            raise WmError("the plan holds NaN or infinity.")
        return Decision(
            tick,
            self._follow(observation, plan.actions),
            actions=plan.actions,
            outcomes=plan.outcomes,
            futures=plan.futures,
            surprise=observation.surprise,
            plan_ms=plan_ms,
            cost=plan.cost,
            goal=state.goal,
            way_point=None if goal is state.goal else goal.state,
        )

    def _supervise(self, observation: Observation, context: Context) -> Decision:
        """Foresee what the newest command of others would lead to."""
        command = self.external
        if command is None:
            return self._going_on(observation, context, Reason.NO_COMMAND)
        age_s = 1e-9 * (time.monotonic_ns() - command.received_ns)
        if age_s > self.profile.safety.max_command_age_s:
            detail = f"the last external command came {age_s:.3f} s ago"
            return self._going_on(observation, context, Reason.COMMAND_STALE, detail=detail)
        if command.reason is not Reason.OK:
            return self._going_on(observation, context, command.reason, detail=command.detail)
        start = time.perf_counter()
        seen = self.supervisor.foresee(
            context,
            command.values,
            self._committed(context),
            self.profile.safety.risk_threshold,
        )
        plan_ms = 1e3 * (time.perf_counter() - start)
        if not np.isfinite(seen.outcomes.latents).all():
            raise WmError("the future of the external command holds NaN or infinity.")
        self.plan_ms.add(plan_ms)
        return Decision(
            observation.tick,
            self._follow(observation, seen.actions),
            actions=seen.actions,
            outcomes=take(seen.outcomes, 1),
            surprise=observation.surprise,
            plan_ms=plan_ms,
            speed=seen.speed,
        )

    def _follow(self, observation: Observation, actions: Floats) -> Reason:
        """Note the first of the actions (T, A) as in force, unless surprise speaks against it."""
        reason = self._judge(observation.surprise)
        if reason is Reason.OK:
            self.put(observation.tick.stamp_ns + self.latency_ns, actions[0])
        return reason

    def put(self, effect_ns: int, action: Floats) -> None:
        """Let a command (A,) be in force from ``effect_ns`` on, in place of any later one."""
        self.schedule.put(effect_ns, action)
        self._foresight.buffer.add_planned(effect_ns, action)

    def clear(self) -> None:
        """Forget all commands: the robot rests, and nothing is to be read back."""
        self.schedule.clear()
        self._foresight.buffer.forget_planned()
        self._foresight.buffer.forget_commands()

    def _committed(self, context: Context) -> Doubles:
        """Commands (K, A) in force before the one that is decided now, oldest first."""
        return self.schedule.committed(
            context.stamp_ns + self.latency_ns,
            self._committed_count,
            self._tick_ns,
            rest_action(self.profile, context),
        )

    def _plan(self, context: Context, goal: Goal) -> Plan:
        model = self._foresight.model
        return self.planner.plan(
            model,
            context,
            goal,
            self._committed(context),
            self.latency_s,
            self.weights,
            model.propose_for(context, goal) if self.use_proposal else None,
        )

    def _going_on(
        self,
        observation: Observation,
        context: Context,
        reason: Reason,
        goal: Goal | None = None,
        detail: str = "",
    ) -> Decision:
        """Without a plan: foresee what follows if the robot goes on as it does."""
        ticks = self.profile.model.horizon_ticks
        actions = np.repeat(context.actions[-1][-1:], ticks, 0)
        outcomes = take(self._foresight.model.rollout(context, actions[None]), 1)
        return Decision(
            observation.tick,
            reason,
            detail,
            outcomes=outcomes,
            surprise=observation.surprise,
            goal=goal,
        )

    def _judge(self, surprise: float) -> Reason:
        self._surprised = self._surprised + 1 if surprise > self.limits.surprise else 0
        enough = self._surprised >= self.limits.surprise_cycles
        return Reason.SURPRISE if enough else Reason.OK
