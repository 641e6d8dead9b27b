"""Policies for the task suite: the planner on a learned model, or on the simulator as oracle."""

from __future__ import annotations

from collections import deque
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Literal

import numpy as np
from numpy.typing import NDArray

from wm_node.bundle import load_bundle
from wm_node.data.images import resize_area
from wm_node.data.resample import to_ns
from wm_node.engine import load_engine
from wm_node.errors import WmError
from wm_node.planning.context import NotReady, ObservationBuffer
from wm_node.planning.demonstration import Guide, guide_to
from wm_node.planning.doubt import (
    SURPRISE_CYCLES,
    densities_of,
    lasting_surprise,
    surprise_at_present,
)
from wm_node.planning.hold import HoldLimits, holds, present_values
from wm_node.planning.objective import Goal, Weights
from wm_node.planning.planner import MpcPlanner, Plan, PlannerConfig, brake_actions
from wm_node.planning.supervision import worst_risk
from wm_node.planning.ways import next_goal, ways_of
from wm_node.planning.world_model import Context, Floats, Frames, WorldModel
from wm_node.profile import RobotProfile
from wm_node.safety.gate import event_over_threshold
from wm_node.safety.reasons import Reason
from wm_node.sim.gated import Told
from wm_node.sim.loop import DEFAULT_LATENCY_S, Observation
from wm_node.sim.oracle import SimulatorModel
from wm_node.sim.suite import demonstration
from wm_node.sim.tabletop import TabletopSim
from wm_node.sim.task import Reading, Task

GOALS = ("state", "image", "clip")
"""How a target may be given: numbers, a picture, or pictures of somebody who does the task."""


@dataclass(frozen=True)
class PlanSettings:
    """How a policy plans; equal to the node's parameters."""

    config: PlannerConfig = field(default_factory=PlannerConfig)
    weights: dict[str, float] = field(default_factory=dict)
    """Overrides of the profile's weights."""
    latency_s: float = DEFAULT_LATENCY_S
    use_proposal: bool = True
    deployed: bool = True
    """Hold at the goal as the node does, and see to safety."""
    safety: Literal["none", "risk", "full"] = "risk"
    """``none``: no plan is stopped; ``risk``: brakes where the gate would for predicted risk;
    ``full``: doubts what it sees as the node does, and tells a gate what it foresees."""
    hold: HoldLimits = field(default_factory=HoldLimits)
    ways: bool = True
    """Go round what must not be entered, where the bundle has a map of it."""
    seed: int = 0


class MpcPolicy:
    """Plans with a bundle's world model, exactly as the ``/mpc_planner`` node does.

    The part of the gate that a model decides, braking for predicted risk, is played too.
    """

    uses_frames = True

    def __init__(
        self,
        bundle: str | Path,
        backend: str,
        goal: str,
        settings: PlanSettings | None = None,
        threads: int = 1,
    ) -> None:
        if goal not in GOALS:
            raise WmError(f"unknown kind of goal '{goal}'; use {', '.join(GOALS)}.")
        self._settings = settings or PlanSettings()
        loaded = load_bundle(bundle)
        self.model = WorldModel(loaded, load_engine(loaded, backend, threads))
        config = self._settings.config
        self.model.prepare((config.candidates,), (config.candidates, config.iterations))
        self._profile = loaded.profile
        self._planner = MpcPlanner(self._profile, self._settings.config, self._settings.seed)
        self._ways = ways_of(loaded) if self._settings.ways else None
        self._buffer = ObservationBuffer(self._profile)
        self._weights = replace(Weights.of(self._profile), **self._settings.weights)
        self._kind = goal
        self._goal = Goal()
        self._guide: Guide | None = None
        self._fresh = True
        self._held = False
        self._commands = 0
        self._densities = densities_of(loaded)
        self._surprises: deque[float] = deque(maxlen=SURPRISE_CYCLES)
        self.told = Told(Reason.NO_COMMAND)
        """What the node would tell the gate of the last tick."""
        self.plan: Plan | None = None
        """Of the last tick; None where the robot held instead."""
        self.reading = Reading()
        """Where mug and target are, as far as the bundle tells from pictures."""

    def reset(self, task: Task, sim: TabletopSim) -> None:
        """Begin an episode; a goal picture is taken of the simulator's own scene."""
        self._planner.reset()
        self._buffer.reset()
        self._surprises.clear()
        self._fresh = True
        self._commands = 0
        self.aim(task, sim)

    def aim(self, task: Task, sim: TabletopSim) -> None:
        """Take the task's goal, in the midst of an episode too."""
        self._held = False
        if self._kind == "state":
            self._goal = Goal(state=np.asarray(task.goal, dtype=np.float32))
        elif self._kind == "image":
            self._goal = self.model.picture_goal(self._seen(sim.render_goal(task.goal)))
        else:
            self._goal = self.model.clip_goal([self._seen(f) for f in demonstration(task, sim)])
        self._guide = guide_to(self._goal)

    @property
    def goal(self) -> Goal:
        """Where the episode's mug should be, as this policy knows it."""
        return self._goal

    def encode(self, frame: NDArray[np.uint8]) -> Floats:
        """Return the latent (latent,) of a frame (H, W, 3) of the camera's own size."""
        return self.model.encode(self._seen(frame))

    def _seen(self, frame: NDArray[np.uint8]) -> Frames:
        return {self._camera: self._resized(frame)}

    @property
    def _camera(self) -> str:
        return self._profile.cameras[0].name

    def _resized(self, frame: NDArray[np.uint8]) -> NDArray[np.uint8]:
        camera = self._profile.cameras[0]
        return resize_area(frame, camera.model_width, camera.model_height)

    def observe(self, observation: Observation) -> Context:
        """Add an observation to the history and return the context that ends at it."""
        if observation.frame is None:
            raise WmError("the planner needs frames.")
        latent = self.encode(observation.frame)
        stamp = observation.stamp_ns
        if self._fresh:
            # The robot stood still before the episode began, so its past looks like its present.
            rates = self._profile.model
            tick = to_ns(rates.tick_s)
            for back in range(rates.context_steps * rates.ticks_per_step, 0, -1):
                self._buffer.add_frame(stamp - back * tick, latent)
                self._buffer.add_joints(stamp - back * tick, observation.joints)
            self._fresh = False
        self._buffer.add_frame(stamp, latent)
        self._buffer.add_joints(stamp, observation.joints)
        for effect, command in observation.applied[self._commands :]:
            self._buffer.add_action(effect, command)
        self._commands = len(observation.applied)
        if observation.planned:
            self._buffer.add_planned(*observation.planned[-1])
        context = self._buffer.context(stamp)
        if isinstance(context, NotReady):
            raise WmError(f"the suite's observations leave a gap in the {context.reason}.")
        return context

    def act(self, observation: Observation) -> NDArray[np.floating]:
        """Plan and return the first action, or the brake."""
        first: Floats = self._actions(observation)[0]
        return first

    def _actions(self, observation: Observation) -> Floats:
        """Actions (T, A) to follow: those of the plan, or the brake where the robot would brake."""
        context = self.observe(observation)
        committed = committed_commands(observation, self._profile)
        settings, goal = self._settings, self._goal
        self.plan, self.reading = None, self._read(None)
        gated = settings.deployed and settings.safety == "full"
        doubt = self._doubt(observation, context) if gated else Reason.OK
        if doubt is not Reason.OK:
            return self._brake(doubt, committed)
        objective, held = self._planner.objective, self._held
        now = present_values(self.model, objective, goal, context)
        self.reading = self._read(now)
        if settings.deployed:
            self._held = holds(self.model, objective, goal, context, now, settings.hold, held)
            if self._held:
                return self._brake(Reason.GOAL_REACHED, committed)
        goal = next_goal(self._ways, goal, now, self._guide)
        plan = self._planner.plan(
            self.model,
            context,
            goal,
            committed,
            settings.latency_s,
            self._weights,
            self.model.propose_for(context, goal) if settings.use_proposal else None,
        )
        self.plan = plan
        risk, safety = worst_risk(plan.outcomes, 0, self._profile), self._profile.safety
        if gated:
            uncertainty = float(plan.outcomes.uncertainty[0].max()) / safety.uncertainty_limit
            surprise = lasting_surprise(self._surprises) / safety.surprise_limit
            self.told = Told(Reason.OK, risk, uncertainty, surprise)
        stops = settings.deployed and settings.safety == "risk"
        if stops and event_over_threshold(risk, safety.risk_threshold) is not None:
            return self._brake(Reason.RISK, committed)  # the gate would not let it through
        return plan.actions

    def _read(self, now: Floats | None) -> Reading:
        """Return what was read off pictures: places on the table, as the suite's goals are."""
        goal = None if self._kind == "state" else self._goal.state
        return Reading(_place(now), _place(goal))

    def _doubt(self, observation: Observation, context: Context) -> Reason:
        """Return why the node would not plan on what it sees, ``OK`` if it would."""
        assert observation.frame is not None
        safety, small = self._profile.safety, self._resized(observation.frame)
        latent = context.latents[-1]
        self._surprises.append(surprise_at_present(self.model, self._buffer, context, latent))
        density = self._densities.get(self._camera)
        if density is not None and density.strangeness(small) > safety.strangeness_limit:
            self._planner.reset()
            return Reason.FRAMES_STRANGE
        surprised = lasting_surprise(self._surprises) > safety.surprise_limit
        return Reason.SURPRISE if surprised else Reason.OK

    def _brake(self, reason: Reason, committed: NDArray[np.float64]) -> Floats:
        self.told = Told(reason)
        return brake_actions(self._profile, committed[-1])


def _place(values: Floats | None) -> tuple[float, float] | None:
    return None if values is None else (float(values[0]), float(values[1]))


class CloningPolicy(MpcPolicy):
    """Does what the data did on the way to such a goal, without a search: behaviour cloning.

    It follows the mean of the bundle's action proposal, a Gaussian that was fitted to the actions
    that led from a state to what followed it (goals by hindsight).
    """

    def act(self, observation: Observation) -> NDArray[np.floating]:
        """Return the proposal's action for the tick in which the command takes effect."""
        context = self.observe(observation)
        self.reading = self._read(None)
        proposal = self.model.propose_for(context, self.goal)
        profile = self.model.profile
        if proposal is None:
            raise WmError("behaviour cloning needs a goal.")
        lag = round(self._settings.latency_s / profile.model.tick_s)
        action = np.clip(proposal[0][lag], profile.action.lower, profile.action.upper)
        return np.asarray(action, dtype=np.float64)


class OraclePolicy:
    """The same planner with the simulator itself as the model: the ceiling."""

    uses_frames = False

    def __init__(self, profile: RobotProfile, settings: PlanSettings | None = None) -> None:
        self._profile = profile
        self._settings = settings or PlanSettings()
        self._planner = MpcPlanner(profile, self._settings.config, self._settings.seed)
        self._weights = replace(Weights.of(profile), **self._settings.weights)
        self._model: SimulatorModel | None = None
        self._goal = Goal()

    def reset(self, task: Task, sim: TabletopSim) -> None:
        """Begin an episode."""
        self._planner.reset()
        if self._model is None:
            self._model = SimulatorModel(sim, self._profile.model.ticks_per_step)
        self._goal = Goal(state=np.asarray(task.goal, dtype=np.float32))

    def act(self, observation: Observation) -> NDArray[np.floating]:
        """Plan on the simulator's true state and return the first action."""
        if self._model is None:
            raise WmError("the policy was asked to act before its episode was reset.")
        rates = self._profile.model
        size = len(self._profile.action.names)
        context = Context(
            observation.stamp_ns,
            np.zeros((rates.context_steps, 0), np.float32),
            np.repeat(observation.joints[None].astype(np.float32), rates.context_steps, 0),
            np.zeros((rates.context_steps, rates.ticks_per_step, size), np.float32),
        )
        plan = self._planner.plan(
            self._model,
            context,
            self._goal,
            committed_commands(observation, self._profile),
            self._settings.latency_s,
            self._weights,
        )
        first: NDArray[np.float32] = plan.actions[0]
        return first


def committed_commands(observation: Observation, profile: RobotProfile) -> NDArray[np.float64]:
    """Return the last commands (K, A), oldest first; zeros where there were none."""
    given = observation.applied if observation.planned is None else observation.planned
    before = [command for _, command in given[-3:]]
    rest = [np.zeros(len(profile.action.names))] * (3 - len(before))
    return np.stack([*rest, *before])
