"""``wm evaluate --fidelity``: imagined futures against those of the simulator.

States are met on episodes of unseen seeds, played by a mixture of behaviours. In each, sequences of
actions as the planner samples them are rolled out twice: by the model from its own context, and by
the simulator from the state itself. ``fidelity_figures`` counts what comes of it.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field, replace
from functools import lru_cache
from math import cos, pi, sin
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wm_node.bundle import load_bundle
from wm_node.errors import WmError
from wm_node.planning.objective import Goal, Objective, Weights
from wm_node.planning.planner import MpcPlanner, OutcomeModel, Plan, delayed
from wm_node.planning.world_model import Context, Floats, Outcomes, WorldModel
from wm_node.profile import RobotProfile
from wm_node.sim.behaviours import CONTACT_M, Behaviour, Scripted
from wm_node.sim.behaviours import push_velocity as push
from wm_node.sim.events import EVENTS
from wm_node.sim.loop import ClosedLoop, Observation
from wm_node.sim.mix import Mix, make_behaviour
from wm_node.sim.oracle import LABELS, SimulatorModel
from wm_node.sim.processes import in_processes
from wm_node.sim.seeds import INVERSE_SEED, STATE_SEED, evaluation_seeds
from wm_node.sim.tabletop import State, TabletopSim
from wm_node.sim.task import TICK_S, Task, task_for_seed
from wm_node.training.fidelity_figures import (
    MOVED_M,
    Choice,
    Doubles,
    Pair,
    StateRecord,
    Transitions,
    figures_of,
)
from wm_node.training.policies import MpcPolicy, PlanSettings, committed_commands

LAST_TICK = 35
"""States are met up to this tick of an episode."""
BEHAVIOURS = Mix({"scripted": 0.4, "aimed": 0.2, "edge": 0.2, "zone": 0.1, "wander": 0.1})
ROLLED_ON = 8
"""Sequences of a state that the model rolls on from its own predictions."""
AIMED_SHARE = 0.5
"""Of the sequences; without aim most would never touch the mug."""
SEQUENCES_TO_FIT = 6
SEQUENCES_TO_RECOVER = 2
FEWEST_TO_FIT = 4

Encode = Callable[[NDArray[np.uint8]], Floats]


@dataclass(frozen=True)
class Moment:
    """A state of an episode, and what a policy has seen on the way to it."""

    task: Task
    behaviour: str
    tick: int
    snapshot: State
    observations: tuple[Observation, ...]
    """The last ones, oldest first; the newest is of the state itself."""


@dataclass(frozen=True)
class Settings:
    """What is measured, and how the planner plans."""

    sequences: int = 64
    uncertainty_weight: float = 0.1
    plan: PlanSettings = field(default_factory=PlanSettings)

    def __post_init__(self) -> None:
        if not ROLLED_ON < self.sequences <= 4096:
            raise WmError(
                f"{self.sequences} sequences a state do not do; use {ROLLED_ON + 1} to 4096."
            )
        if not 0.0 < self.uncertainty_weight < float("inf"):
            raise WmError("--uncertainty-weight must be above 0; weight 0 is always measured too.")


# ---- states --------------------------------------------------------------------------------


def find_moment(sim: TabletopSim, seed: int, latency_s: float, seen: int, frames: bool) -> Moment:
    """Play the episode ``seed`` up to a state that the seed decides.

    Args:
        sim: the simulator; it is reset, and left in that state.
        seed: of the episode.
        latency_s: from a frame to the effect of its command.
        seen: how many ticks' observations to keep.
        frames: whether they hold frames.

    Returns:
        The moment. The mug has neither fallen nor been in the zone before.
    """
    rng = np.random.default_rng([seed, 0xF1DE])
    wanted, lead = int(rng.integers(0, LAST_TICK + 1)), int(rng.integers(2, 13))
    found = _play(sim, seed, wanted, latency_s, seen, frames)
    if isinstance(found, int):  # the tick of a violation: go back to some time before it
        found = _play(sim, seed, max(0, found - lead), latency_s, seen, frames)
    assert isinstance(found, Moment)
    return found


def _play(
    sim: TabletopSim, seed: int, until: int, latency_s: float, seen: int, frames: bool
) -> Moment | int:
    """Return the moment at tick ``until``, or the tick before it at which a violation was seen."""
    task = task_for_seed(sim, seed)
    rng = np.random.default_rng([seed, 0xBE4A])
    name = BEHAVIOURS.draw(rng)
    behaviour: Behaviour = Scripted(task.goal) if name == "scripted" else make_behaviour(name)
    behaviour.reset(sim, rng)
    # A person's or a planner's pushes are not as clean as the script's.
    noise, scale = np.zeros(2), 0.04 if name == "scripted" else 0.0
    observations: list[Observation] = []
    loop = ClosedLoop(sim, latency_s)
    for tick in range(until + 1):
        if sim.fell() or sim.in_zone():
            return tick
        if tick > until - seen:
            observations.append(loop.observe(frames))
        if tick < until:
            noise = 0.7 * noise + rng.normal(0.0, 0.71 * scale, 2)
            command = np.clip(behaviour.act(sim, rng) + noise, -0.25, 0.25)
            loop.command(command)
            sim.advance(TICK_S)
    return Moment(task, name, until, sim.save(), tuple(observations))


# ---- actions -------------------------------------------------------------------------------


def draw_sequences(
    planner: MpcPlanner,
    rng: np.random.Generator,
    count: int,
    tip: NDArray[np.floating],
    mug: NDArray[np.floating],
    goal: NDArray[np.floating],
) -> NDArray[np.float64]:
    """Draw actions as the planner samples them, at first and when its search has found the mug.

    Args:
        planner: samples the splines.
        rng: decides where the pushes are aimed.
        count: of sequences.
        tip, mug, goal: (2,) in m.

    Returns:
        (count, T, 2): first those around standing still, then those around pushes of the mug, in
        turn to the goal and elsewhere.
    """
    profile, config = planner.profile, planner.config
    ticks, knots = profile.model.horizon_ticks, profile.basis.knots
    half = (np.asarray(profile.action.upper) - np.asarray(profile.action.lower)) / 2.0
    wide = np.repeat((config.sigma * half)[None], knots, 0)
    aimed = round(AIMED_SHARE * count)
    parts = [planner.sample(np.zeros_like(wide), wide, count - aimed)]
    for number in range(aimed):
        target = goal
        if number % 2:
            angle, distance = rng.uniform(-pi, pi), rng.uniform(0.05, 0.30)
            target = mug + distance * np.array([cos(angle), sin(angle)])
        speed, offset = rng.uniform(0.10, 0.25), rng.normal(0.0, 0.2)
        centre = planner.knots(_aimed_push(tip, mug, target, speed, offset, ticks))
        narrow = rng.choice([config.sigma_floor, 0.25]) * half
        parts.append(planner.sample(centre, np.repeat(narrow[None], knots, 0), 1))
    return np.concatenate(parts)


def _aimed_push(
    tip: NDArray[np.floating],
    mug: NDArray[np.floating],
    target: NDArray[np.floating],
    speed: float,
    offset: float,
    ticks: int,
) -> NDArray[np.float64]:
    """Actions (T, 2) that push the mug to a target, if it slides just ahead of the tip."""
    actions = np.zeros((ticks, 2))
    tip, mug = np.array(tip, np.float64), np.array(mug, np.float64)
    for tick in range(ticks):
        actions[tick] = push(_xy(tip), _xy(mug), _xy(target), speed, offset)
        tip += TICK_S * actions[tick]
        away = mug - tip
        distance = max(float(np.linalg.norm(away)), 1e-6)
        if distance < CONTACT_M:
            mug = tip + CONTACT_M / distance * away
    return actions


def _xy(point: NDArray[np.floating]) -> tuple[float, float]:
    return float(point[0]), float(point[1])


# ---- one state -----------------------------------------------------------------------------


@dataclass(frozen=True)
class Prompt:
    """What the model is given in a state."""

    context: Context
    goal: Goal
    proposal: tuple[Floats, Floats] | None = None


def prompt_of(policy: MpcPolicy, sim: TabletopSim, moment: Moment, use_proposal: bool) -> Prompt:
    """Show a policy what was seen on the way to a state, with frames; the simulator is reset."""
    policy.reset(task_for_seed(sim, moment.task.seed), sim)  # its picture is of the start
    for observation in moment.observations:
        context = policy.observe(observation)
    proposal = policy.model.propose_for(context, policy.goal) if use_proposal else None
    return Prompt(context, policy.goal, proposal)


def ticks_seen(profile: RobotProfile) -> int:
    """Return how many ticks' observations fill a context."""
    return profile.model.context_steps * profile.model.ticks_per_step + 1


def require_tabletop(bundle: Path, what: str) -> RobotProfile:
    """Return a bundle's profile if it is of the simulated table-top, which ``what`` needs.

    Raises:
        WmError: it is of another robot.
    """
    profile = load_bundle(bundle).profile
    # What else stands on the table may be labelled after them.
    labelled = profile.label_names[: len(LABELS)] == LABELS
    if not labelled or profile.event_names not in (EVENTS, EVENTS[:2]):
        raise WmError(
            f"{what} the simulated table-top; the bundle {bundle} is of "
            f"robot '{profile.name}' with other labels or events."
        )
    return profile


class _Judge:
    """Costs of predicted and of true futures, with one task's goal."""

    def __init__(self, profile: RobotProfile, weights: Weights, goal: Goal, task: Task) -> None:
        self.objective = Objective(profile)
        self.weights = weights
        # The truth has neither doubt nor a learned distance; a planner that relies on those alone
        # is judged by the distance of the labels.
        self.shared = replace(
            weights,
            uncertainty=0.0,
            value=0.0,
            goal=weights.goal or Weights.goal,
            push=weights.push or Weights.push,
        )
        self.believed = goal
        self.true_goal = Goal(state=np.asarray(task.goal, dtype=np.float32))

    def own(self, outcomes: Outcomes, actions: Floats) -> tuple[Doubles, Doubles]:
        """(N,) cost as the planner counts it, and (N,) its terms of the distance to the goal."""
        cost, terms = self.objective(outcomes, actions, self.believed, self.weights)
        away = [terms[name] for name in ("goal", "value") if name in terms]
        return cost, np.sum(away, axis=0) if away else np.zeros(len(cost))

    def comparable(self, outcomes: Outcomes, actions: Floats) -> Doubles:
        """(N,) cost of predicted futures in the terms that the truth has too."""
        return self.objective(outcomes, actions, self.believed, self.shared)[0]

    def true(self, outcomes: Outcomes, actions: Floats) -> tuple[Doubles, Doubles]:
        """(N,) cost of true futures, and (N,) its term of the distance to the goal."""
        cost, terms = self.objective(outcomes, actions, self.true_goal, self.shared)
        return cost, terms["goal"]

    def choice(self, plan: Plan, oracle: SimulatorModel) -> Choice:
        """Judge the planner's choice by what it really leads to from the present state."""
        actions = plan.applied[None]
        truth = _outcomes(*_futures(oracle, actions))
        return Choice(
            predicted_cost=float(self.comparable(plan.outcomes, actions)[0]),
            true_cost=float(self.true(truth, actions)[0][0]),
            predicted_distance_m=self._last_distance(plan.outcomes, self.believed),
            true_distance_m=self._last_distance(truth, self.true_goal),
        )

    def _last_distance(self, outcomes: Outcomes, goal: Goal) -> float:
        if goal.state is None or not outcomes.state.shape[-1]:
            return float("nan")
        place = self.objective.goal_values(outcomes.state[0, -1])
        return float(np.linalg.norm(place - goal.state))


def measure(
    moment: Moment,
    prompt: Prompt,
    model: OutcomeModel,
    sim: TabletopSim,
    oracle: SimulatorModel,
    profile: RobotProfile,
    settings: Settings,
    encode: Encode | None = None,
) -> StateRecord:
    """Compare the model with the simulator in one state.

    Args:
        moment: the state.
        prompt: the model's view of it.
        model: to be measured.
        sim: is put into the state, and left elsewhere; it renders where ``encode`` is given.
        oracle: of the same simulator.
        profile: of the robot.
        settings: what to measure.
        encode: (H, W, 3) of the camera's size -> latent, for the recovery of actions.
    """
    plan, context, ticks = settings.plan, prompt.context, profile.model.ticks_per_step
    weights = replace(Weights.of(profile), **plan.weights)
    judge = _Judge(profile, weights, prompt.goal, moment.task)
    committed = committed_commands(moment.observations[-1], profile)
    actions = _sequences(moment, sim, profile, settings, committed)
    mug_now = np.array(sim.mug_pose()[:2], dtype=np.float32)

    outcomes = model.rollout(context, actions, prompt.goal.latent)
    rows = _spread(len(actions), ROLLED_ON)
    rest = actions[np.roll(rows, 1)]  # any other actions
    later = _roll_on(model, context, outcomes, actions, rows, rest, ticks)
    state, risk = _futures(oracle, actions, *((rows, rest) if later is not None else ()))
    choices = {}
    for weight in (0.0, settings.uncertainty_weight):
        best = MpcPlanner(profile, plan.config, moment.task.seed).plan(
            model,
            context,
            prompt.goal,
            committed,
            plan.latency_s,
            replace(weights, uncertainty=weight),
            prompt.proposal,
        )
        choices[weight] = judge.choice(best, oracle)
    observed = imagined = NO_TRANSITIONS
    if encode is not None:
        picked = _spread(len(actions), SEQUENCES_TO_RECOVER)
        seen = [watch(sim, moment.snapshot, actions[row], ticks, encode) for row in picked]
        # The first step starts from an observed latent in either: it is left out.
        observed = transitions(np.stack(seen), actions[picked, ticks:])
        imagined = transitions(outcomes.latents[picked], actions[picked, ticks:])

    horizon = profile.model.horizon_steps
    truth = _outcomes(state[:, :horizon], risk[:, :horizon])
    cost, away = judge.own(outcomes, actions)
    true_cost, true_away = judge.true(truth, actions)
    predicted_mug = np.full((*state.shape[:2], mug_now.size), np.nan, np.float32)
    if outcomes.state.shape[-1]:
        predicted_mug[:, :horizon] = judge.objective.goal_values(outcomes.state)
        if later is not None:
            predicted_mug[rows, horizon:] = judge.objective.goal_values(later)
    true_mug = judge.objective.goal_values(state)
    moved = np.linalg.norm(true_mug[:, horizon - 1] - mug_now, axis=-1) > MOVED_M
    fallen = risk[..., profile.event_names.index("fell")] > 0.5
    return StateRecord(
        seed=moment.task.seed,
        behaviour=moment.behaviour,
        tick=moment.tick,
        cost=Pair(cost, true_cost),
        shared=judge.comparable(outcomes, actions),
        distance=Pair(away, true_away),
        moved=moved,
        mug=Pair(predicted_mug, np.where(fallen[..., None], np.nan, true_mug)),
        mug_now=mug_now,
        mug_read=_reading(model, context, judge.objective),
        fallen=fallen.sum(0),
        risk=Pair(outcomes.risk[:, -1], truth.risk[:, -1]),
        choices=choices,
        observed=observed,
        imagined=imagined,
    )


def _sequences(
    moment: Moment,
    sim: TabletopSim,
    profile: RobotProfile,
    settings: Settings,
    committed: NDArray[np.floating],
) -> Floats:
    """Put the simulator into the state and draw what acts in each tick from there (N, T, A)."""
    sim.restore(moment.snapshot)
    drawn = draw_sequences(
        MpcPlanner(profile, settings.plan.config, moment.task.seed),
        np.random.default_rng([moment.task.seed, 0x5E9]),
        settings.sequences,
        sim.tip(),
        np.array(sim.mug_pose()[:2]),
        np.asarray(moment.task.goal),
    )
    return delayed(drawn, committed, settings.plan.latency_s, profile.model.tick_s)


def _spread(count: int, wanted: int) -> NDArray[np.int64]:
    """Return up to ``wanted`` indices, evenly from first to last."""
    return np.unique(np.linspace(0, count - 1, wanted).astype(np.int64))


def _roll_on(
    model: OutcomeModel,
    context: Context,
    outcomes: Outcomes,
    actions: Floats,
    rows: NDArray[np.int64],
    rest: Floats,
    ticks: int,
) -> Floats | None:
    """Predict a second horizon from the end of the first: (len(rows), H, S), None if it cannot."""
    steps = len(context.latents)
    if not isinstance(model, WorldModel) or outcomes.latents.shape[1] < steps:
        return None
    later = []
    for row, following in zip(rows, rest, strict=True):
        end = Context(
            stamp_ns=context.stamp_ns,
            latents=outcomes.latents[row, -steps:],
            joints=outcomes.joints[row, -steps:],
            actions=actions[row].reshape(-1, ticks, actions.shape[-1])[-steps:],
        )
        later.append(model.rollout(end, following[None], lean=True).state[0])
    return np.stack(later)


def _futures(
    oracle: SimulatorModel,
    actions: Floats,
    rows: NDArray[np.int64] | None = None,
    rest: Floats | None = None,
) -> tuple[Floats, Floats]:
    """Simulate sequences, and those of ``rows`` with the actions ``rest`` after them.

    Returns:
        State (N, H, S) and events (N, H, E), or of 2 * H steps, NaN where not simulated.
    """
    if rows is None or rest is None:
        out = oracle.outcomes(actions)
        return out["state"], out["risk"]
    others = np.setdiff1d(np.arange(len(actions)), rows)
    far = oracle.outcomes(np.concatenate([actions[rows], rest], axis=1))
    near = oracle.outcomes(actions[others])
    state, risk = (
        np.full((len(actions), *far[name].shape[1:]), np.nan, np.float32)
        for name in ("state", "risk")
    )
    horizon = near["state"].shape[1]
    state[rows], risk[rows] = far["state"], far["risk"]
    state[others, :horizon], risk[others, :horizon] = near["state"], near["risk"]
    return state, risk


def _outcomes(state: Floats, risk: Floats) -> Outcomes:
    """Make outcomes of what was simulated; there are no latents, joints or doubts."""
    unknown = np.full(state.shape[:2], np.nan, np.float32)
    nothing = np.zeros((*state.shape[:2], 0), np.float32)
    return Outcomes(nothing, nothing, state, risk, unknown, unknown)


def _reading(model: OutcomeModel, context: Context, objective: Objective) -> Floats:
    labels = model.read(context.latents[-1]) if isinstance(model, WorldModel) else np.zeros(0)
    if not labels.size:
        return np.full(2, np.nan, np.float32)
    return objective.goal_values(np.asarray(labels, np.float32))


# ---- recovery of actions -------------------------------------------------------------------


def watch(
    sim: TabletopSim, snapshot: State, actions: Floats, ticks_per_step: int, encode: Encode
) -> Floats:
    """Play actions (T, A) from a state; return the latents (H, latent) seen at the steps' ends."""
    sim.restore(snapshot)
    sim.driver = replace(sim.driver, pending=())  # what is on its way is part of the actions
    latents = []
    for tick, action in enumerate(actions, start=1):
        sim.command_tip_velocity(action)
        sim.advance(TICK_S)
        if tick % ticks_per_step == 0:
            latents.append(encode(sim.render()))
    return np.stack(latents)


def transitions(latents: Floats, actions: Floats) -> Transitions:
    """Pair neighbouring latents (N, H, latent) with what acted between them (N, T, A)."""
    count, steps, _ = latents.shape
    acted = actions.reshape(count, steps - 1, -1, actions.shape[-1]).mean(2)
    pairs = np.concatenate([latents[:, :-1], np.diff(latents, axis=1)], axis=-1)
    return Transitions(pairs.reshape(-1, pairs.shape[-1]), acted.reshape(-1, acted.shape[-1]))


NO_TRANSITIONS = Transitions(np.zeros((0, 0), np.float32), np.zeros((0, 0), np.float32))


# ---- all states, in processes --------------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    seed: int
    fit: bool
    """Whether the state is for fitting the inverse model."""
    bundle: str
    backend: str
    goal: str
    threads: int
    settings: Settings


@lru_cache(maxsize=1)
def _bench(
    bundle: str, backend: str, goal: str, threads: int
) -> tuple[MpcPolicy, TabletopSim, SimulatorModel]:
    """Return this process's model and simulator."""
    policy = MpcPolicy(bundle, backend, goal, threads=threads)
    camera = policy.model.profile.cameras[0]
    sim = TabletopSim((camera.width, camera.height))
    profile = policy.model.profile
    oracle = SimulatorModel(sim, profile.model.ticks_per_step, events=profile.event_names)
    return policy, sim, oracle


def _run(job: _Job) -> StateRecord | Transitions:
    policy, sim, oracle = _bench(job.bundle, job.backend, job.goal, job.threads)
    settings, model = job.settings, policy.model
    profile, latency_s = model.profile, settings.plan.latency_s
    moment = find_moment(sim, job.seed, latency_s, ticks_seen(profile), frames=not job.fit)
    if job.fit:
        committed = committed_commands(moment.observations[-1], profile)
        actions = _sequences(moment, sim, profile, settings, committed)
        actions = actions[_spread(len(actions), SEQUENCES_TO_FIT)]
        ticks = profile.model.ticks_per_step
        watched = [watch(sim, moment.snapshot, one, ticks, policy.encode) for one in actions]
        return transitions(np.stack(watched), actions[:, ticks:])
    prompt = prompt_of(policy, sim, moment, settings.plan.use_proposal)
    return measure(moment, prompt, model, sim, oracle, profile, settings, policy.encode)


@dataclass(frozen=True)
class Fidelity:
    """Figures as plain data, and what they were counted from."""

    figures: dict[str, Any]
    records: tuple[StateRecord, ...]


def evaluate_fidelity(
    bundle: Path,
    backend: str = "openvino",
    goal: str = "state",
    states: int = 200,
    seed: int = 0,
    workers: int = 2,
    threads: int = 1,
    settings: Settings | None = None,
    advance: Callable[[int, int], None] | None = None,
) -> Fidelity:
    """Measure how faithful a bundle's imagined futures are.

    Args:
        bundle: of the simulated table-top robot.
        backend: of the engine.
        goal: ``state`` or ``image``: what the planner is given.
        states: how many, each of its own episode.
        seed: of the evaluation; the figures follow from it.
        workers: processes; they change nothing but the time.
        threads: of inference, each process.
        settings: what is measured in a state.
        advance: told (states done, states in all).

    Raises:
        WmError: the bundle is of another robot, or a number is out of range.
    """
    settings = settings or Settings()
    profile = require_tabletop(bundle, "fidelity is measured against")
    if states < 2:
        raise WmError(f"{states} states are too few; use 2 or more.")
    # The inverse model's states come first: they are fewer, and any worker can take them.
    fitting = max(FEWEST_TO_FIT, states // 2)
    seeds = [(number, True) for number in evaluation_seeds(seed, fitting, INVERSE_SEED)]
    seeds += [(number, False) for number in evaluation_seeds(seed, states, STATE_SEED)]
    jobs = [
        _Job(number, fit, str(bundle), backend, goal, threads, settings) for number, fit in seeds
    ]
    records: list[StateRecord] = []
    fitted_on: list[Transitions] = []
    for done, result in enumerate(in_processes(_run, jobs, workers), start=1):
        if isinstance(result, StateRecord):
            records.append(result)
        else:
            fitted_on.append(result)
        if advance is not None:
            advance(done, len(jobs))
    together = Transitions(
        np.concatenate([part.latents for part in fitted_on]),
        np.concatenate([part.actions for part in fitted_on]),
    )
    groups = np.repeat(np.arange(len(fitted_on)), [len(part.actions) for part in fitted_on])
    figures = {
        "bundle": str(bundle),
        "bundle_sha256": load_bundle(bundle).sha256,
        "backend": backend,
        "goal": goal,
        "seed": seed,
        "states": states,
        "sequences": settings.sequences,
        **figures_of(records, together, groups, profile.event_names, profile.model.step_s),
    }
    return Fidelity(figures, tuple(records))
