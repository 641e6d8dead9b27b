"""Model-predictive control: CEM over spline knots, seeded with what is already known to be good.

Source of the method: the cross-entropy method (Rubinstein, 1999) with time-correlated noise and
kept elites (iCEM, Pinneri et al., 2020). Candidates are searched as a few knots of a spline over
the horizon, so that many joints and long horizons stay searchable.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from typing import Any, Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray
from scipy.interpolate import BSpline

from wm_node.bundle import NOT_FINITE, SEARCH_TERMS
from wm_node.errors import WmError
from wm_node.planning.objective import Goal, Objective, Weights
from wm_node.planning.world_model import CompiledSearch, Context, Floats, Futures, Outcomes
from wm_node.profile import RobotProfile


class OutcomeModel(Protocol):
    """Whatever can tell what candidates lead to: the learned model, or a simulator as oracle."""

    def rollout(
        self,
        context: Context,
        actions: Floats,
        goal_latent: Floats | None = None,
        lean: bool = False,
    ) -> Outcomes:
        """See :meth:`wm_node.planning.world_model.WorldModel.rollout`."""
        ...


@runtime_checkable
class SearchModel(OutcomeModel, Protocol):
    """A model that may hold a whole search as one call."""

    def compiled_search(self, candidates: int, iterations: int) -> CompiledSearch | None:
        """See :meth:`wm_node.planning.world_model.WorldModel.compiled_search`."""
        ...

    def run_search(
        self,
        search: CompiledSearch,
        context: Context,
        goal_latent: Floats | None,
        inputs: Mapping[str, NDArray[np.floating]],
    ) -> tuple[dict[str, NDArray[Any]], Outcomes]:
        """See :meth:`wm_node.planning.world_model.WorldModel.run_search`."""
        ...


@runtime_checkable
class FuturesModel(OutcomeModel, Protocol):
    """A model that may tell apart the ways that things may go on."""

    def futures(self, context: Context, actions: Floats) -> Futures | None:
        """See :meth:`wm_node.planning.world_model.WorldModel.futures`."""
        ...


@dataclass(frozen=True)
class PlannerConfig:
    """Search effort."""

    candidates: int = 64
    """Candidates of each iteration."""
    iterations: int = 3
    elite_share: float = 0.12
    """Share of the candidates that the next iteration is fitted to."""
    sigma: float = 0.7
    """First deviation of the knots, in halves of the action's range."""
    sigma_floor: float = 0.08
    """Least deviation, likewise."""

    def __post_init__(self) -> None:
        if not (4 <= self.candidates <= 65536 and 1 <= self.iterations <= 100):
            raise WmError("the planner needs 4 to 65536 candidates and 1 to 100 iterations.")
        if not (0.0 < self.elite_share <= 1.0 and 0.0 <= self.sigma_floor <= self.sigma <= 10.0):
            raise WmError("the planner needs 0 < elite_share <= 1 and 0 <= sigma_floor <= sigma.")

    @property
    def elites(self) -> int:
        """Candidates that the next iteration is fitted to."""
        return max(2, round(self.elite_share * self.candidates))


@dataclass(frozen=True)
class Plan:
    """The chosen candidate and what it is predicted to lead to."""

    stamp_ns: int
    """Stamp of the state that it starts from."""
    actions: Floats
    """(T, A) to command, the first at the planned time of effect."""
    applied: Floats
    """(T, A) as given to the model: what acts in each tick from the state's stamp on."""
    outcomes: Outcomes
    """Of the winner, N = 1."""
    cost: float
    terms: dict[str, float] = field(default_factory=dict)
    source: str = "samples"
    """Where the winner came from: samples, shifted, proposal, brake or constant."""
    futures: Futures | None = None
    """The ways that things may go on under the winner, where the model tells them apart. Its
    outcomes' risk is then the higher of the mean future's and that over these."""


@dataclass(frozen=True)
class _Task:
    """What one search has to solve."""

    context: Context
    goal: Goal
    weights: Weights
    seeds: NDArray[np.float64]  # (M, T, A), the first is the brake
    sources: list[str]  # of the seeds
    mean: NDArray[np.float64]  # (K, A) knots that the search starts from
    shift: NDArray[np.float64]  # (T, T)
    before: NDArray[np.float64]  # (T, A): see apply_delay


def spline_basis(ticks: int, knots: int) -> NDArray[np.float64]:
    """Return the matrix (ticks, knots) of a clamped B-spline, at most cubic; rows sum to 1."""
    degree = min(3, knots - 1)
    inner = np.linspace(0.0, 1.0, knots - degree + 1)
    vector = np.concatenate([np.zeros(degree), inner, np.ones(degree)])
    at = np.linspace(0.0, 1.0, ticks)
    basis = BSpline.design_matrix(np.minimum(at, 1.0 - 1e-12), vector, degree).toarray()
    return np.asarray(basis)


def brake_actions(profile: RobotProfile, present: NDArray[np.floating]) -> Floats:
    """Return the candidate (T, A) that brings the robot to rest: zero velocity, or stay put.

    Args:
        profile: of the robot.
        present: (A,) the position command in force; not read for velocities.
    """
    ticks, size = profile.model.horizon_ticks, len(profile.action.names)
    if profile.action.kind == "joint_position":
        return np.repeat(np.asarray(present, np.float32)[None], ticks, 0)
    return np.zeros((ticks, size), dtype=np.float32)


def rest_action(profile: RobotProfile, context: Context) -> NDArray[np.float64]:
    """Return the action (A,) of a robot that is left alone: zero, or its present position."""
    action = profile.action
    if action.kind != "joint_position":
        return np.zeros(len(action.names))
    index = [profile.joints.names.index(name) for name in action.names]
    return np.asarray(context.joints[-1][index], dtype=np.float64)


def _with_futures(plan: Plan, futures: Futures) -> Plan:
    """Note the winner's futures; they can only make its risk higher."""
    risk = np.maximum(plan.outcomes.risk, futures.risk[None])
    return replace(plan, outcomes=replace(plan.outcomes, risk=risk), futures=futures)


class MpcPlanner:
    """Plans for one robot. Keeps the last plan, which seeds the next search."""

    def __init__(self, profile: RobotProfile, config: PlannerConfig, seed: int = 0) -> None:
        self.profile, self.config = profile, config
        self.objective = Objective(profile)
        self._seed = seed
        self._tick_ns = 1e9 / profile.model.tick_rate_hz
        action = profile.action
        self._low, self._high = np.asarray(action.lower), np.asarray(action.upper)
        self._half = (self._high - self._low) / 2.0
        self._centre = (self._high + self._low) / 2.0
        ticks = profile.model.horizon_ticks
        self._basis = spline_basis(ticks, profile.basis.knots)
        self._fit = np.linalg.pinv(self._basis)
        self._constants = self._constant_candidates()
        self.reset()

    def reset(self) -> None:
        """Forget the last plan and draw the seed's random numbers from their beginning again."""
        self._previous: tuple[int, NDArray[np.float64]] | None = None
        self._random = np.random.default_rng(self._seed)

    def resize(self, config: PlannerConfig) -> None:
        """Search with another size from the next plan on; the last plan is kept."""
        if config != self.config:
            self.config = config
            self._constants = self._constant_candidates()

    def _constant_candidates(self) -> NDArray[np.float64]:
        """Straight motions (M, A): each axis both ways, and for planar actions the diagonals."""
        size = self._half.size
        directions = np.concatenate([np.eye(size), -np.eye(size)])
        if size == 2:
            corners = np.array([[1, 1], [1, -1], [-1, 1], [-1, -1]]) * np.sqrt(0.5)
            directions = np.concatenate([directions, corners])
        if self.profile.action.kind == "joint_position":
            return np.zeros((0, size))  # a constant far position is a jump, not a motion
        # With many joints these would crowd out the samples.
        room = self.config.candidates // 4
        candidates: NDArray[np.float64] = self._centre + 0.8 * self._half * directions[:room]
        return candidates

    def shifted(self, stamp_ns: int) -> NDArray[np.float64] | None:
        """Return the previous plan (T, A) moved on to a later stamp; its last action is held.

        Returns None without a previous plan, or when it is older than its own horizon.
        """
        if self._previous is None:
            return None
        before, actions = self._previous
        shift = round((stamp_ns - before) / self._tick_ns)
        if not 0 <= shift < len(actions):
            return None
        return np.concatenate([actions[shift:], np.repeat(actions[-1:], shift, 0)])

    def plan(
        self,
        model: OutcomeModel,
        context: Context,
        goal: Goal,
        committed: NDArray[np.floating],
        delay_s: float,
        weights: Weights | None = None,
        proposal: tuple[Floats, Floats] | None = None,
    ) -> Plan:
        """Search the actions that lead to the goal at least cost.

        Args:
            model: predicts the outcomes of candidates.
            context: the prompt; the state that the plan starts from.
            goal: where to go.
            committed: (K, A), oldest first, the commands that act before this plan can; the last
                one is in force until the plan takes effect. K >= 1.
            delay_s: from the context's stamp to the plan's effect.
            weights: of the objective; the profile's where not given.
            proposal: mean and deviation (T, A) of a learned proposal.

        Returns:
            The plan; its first action takes effect ``delay_s`` after the context's stamp.

        Raises:
            WmError: every candidate's outcome is not finite.
        """
        weights = weights or Weights.of(self.profile)
        rates = self.profile.model
        seeds, sources = self._seeds(context, committed, proposal)
        task = _Task(
            context,
            goal,
            weights,
            seeds,
            sources,
            self.knots(seeds[sources.index("shifted") if "shifted" in sources else 0]),
            *delay_matrices(committed, delay_s, rates.tick_s, rates.horizon_ticks),
        )
        timeless = weights.value == 0.0 or goal.latent is None
        lean = timeless and weights.uncertainty == 0.0
        compiled = None
        if timeless and isinstance(model, SearchModel):
            compiled = model.compiled_search(self.config.candidates, self.config.iterations)
        # A graph has its number of elites built in: another share is searched by rollouts.
        if compiled is not None and compiled.size.elites == self.config.elites:
            plan = self._search_in_one_call(cast(SearchModel, model), compiled, task)
        else:
            plan = self._search_by_rollouts(model, task, lean)
        if not (np.isfinite(plan.cost) and np.isfinite(plan.outcomes.latents).all()):
            raise WmError("the model's predictions are not finite for any candidate.")
        self._previous = (context.stamp_ns, plan.actions.astype(np.float64))
        if isinstance(model, FuturesModel):
            futures = model.futures(context, plan.applied[None])
            if futures is not None:
                plan = _with_futures(plan, futures)
        return plan

    def _seeds(
        self,
        context: Context,
        committed: NDArray[np.floating],
        proposal: tuple[Floats, Floats] | None,
    ) -> tuple[NDArray[np.float64], list[str]]:
        """Candidates (M, T, A) that are known to be good or safe, and where they come from."""
        brake = brake_actions(self.profile, committed[-1]).astype(np.float64)
        seeds, sources = [brake], ["brake"]
        shifted = self.shifted(context.stamp_ns)
        if shifted is not None:
            seeds.append(shifted)
            sources.append("shifted")
        if proposal is not None:
            seeds.append(np.clip(proposal[0], self._low, self._high))
            sources.append("proposal")
        for constant in self._constants:
            seeds.append(np.repeat(constant[None], len(brake), 0))
            sources.append("constant")
        return np.stack(seeds), sources

    def _search_by_rollouts(self, model: OutcomeModel, task: _Task, lean: bool) -> Plan:
        """Search with one call of the model an iteration."""
        config, mean = self.config, task.mean
        sigma = np.repeat((config.sigma * self._half)[None], len(mean), 0)
        best: tuple[float, NDArray[np.float64], str] | None = None
        winner: Plan | None = None
        extra, labels = task.seeds, task.sources
        for _ in range(config.iterations):
            count = config.candidates - len(extra)
            actions = np.concatenate([extra, self.sample(mean, sigma, count)])
            origin = [*labels, *["samples"] * count]
            applied = apply_delay(actions, task.shift, task.before)
            outcomes = model.rollout(task.context, applied, task.goal.latent, lean)
            cost, terms = self.objective(outcomes, applied, task.goal, task.weights)
            order = np.argsort(cost)
            top = int(order[0])
            if best is None or cost[top] < best[0]:
                best = (float(cost[top]), actions[top], origin[top])
                winner = Plan(
                    stamp_ns=task.context.stamp_ns,
                    actions=actions[top].astype(np.float32),
                    applied=applied[top].copy(),
                    outcomes=outcomes.pick(top),
                    cost=float(cost[top]),
                    terms={name: float(term[top]) for name, term in terms.items()},
                    source=origin[top],
                )
            if not np.isfinite(best[0]):
                break
            kept = [index for index in order[: config.elites] if np.isfinite(cost[index])]
            fitted = np.einsum("kt,nta->nka", self._fit, actions[kept])
            mean = fitted.mean(0)
            sigma = np.maximum(fitted.std(0), config.sigma_floor * self._half)
            # The best so far and the centre of the search compete in the next iteration.
            centre = np.clip(self._basis @ mean, self._low, self._high)
            extra, labels = np.stack([best[1], centre]), [best[2], "samples"]
        assert winner is not None
        # Whole outcomes of the winner alone: what the search left out, and in memory of their own.
        whole = model.rollout(task.context, winner.applied[None], task.goal.latent)
        return replace(winner, outcomes=whole)

    def _search_in_one_call(self, model: SearchModel, search: CompiledSearch, task: _Task) -> Plan:
        """Search with one call of a graph that holds the whole search."""
        size, weights, goal = search.size, task.weights, task.goal
        seeds, sources = task.seeds[: size.seeds], task.sources[: size.seeds]
        # A graph has room for a fixed number of seeds: the brake fills what is missing.
        missing = size.seeds - len(seeds)
        seeds = np.concatenate([seeds, np.repeat(seeds[:1], missing, 0)])
        knots, actions = task.mean.shape
        noise = np.zeros((size.iterations, size.candidates, knots, actions))
        for iteration in range(size.iterations):
            count = size.candidates - (size.seeds if iteration == 0 else 2)
            noise[iteration, :count] = self._correlated_noise(count, knots, actions)
        has_goal = goal.state is not None and self.objective.has_goal
        config = self.config
        out, outcomes = model.run_search(
            search,
            task.context,
            goal.latent,
            {
                "goal_state": np.zeros((1, self.objective.goal_size))
                if goal.state is None
                else np.asarray(goal.state)[None],
                "weights": np.array(
                    [
                        weights.goal if has_goal else 0.0,
                        weights.push if has_goal else 0.0,
                        weights.risk,
                        weights.smoothness,
                        weights.uncertainty,
                    ]
                ),
                "scales": np.array([self.objective.tolerance, self.objective.standoff]),
                "seeds": seeds,
                "mean": task.mean,
                "noise": noise,
                "basis": self._basis,
                "fit": self._fit,
                "limits": np.stack(
                    [
                        self._low,
                        self._high,
                        config.sigma * self._half,
                        config.sigma_floor * self._half,
                    ]
                ),
                "shift": task.shift,
                "before": task.before,
            },
        )
        cost, won = float(out["cost"][0]), int(out["source"][0])
        return Plan(
            stamp_ns=task.context.stamp_ns,
            actions=out["actions"][0],
            applied=out["applied"][0],
            outcomes=outcomes,
            cost=cost if abs(cost) < NOT_FINITE else np.inf,
            terms=dict(zip(SEARCH_TERMS, map(float, out["terms"][0]), strict=True)),
            source=(sources[won] if won < len(sources) else "brake") if won >= 0 else "samples",
        )

    def knots(self, actions: NDArray[np.floating]) -> NDArray[np.float64]:
        """Return the knots (knots, A) of the spline nearest to actions (T, A)."""
        nearest: NDArray[np.float64] = self._fit @ actions
        return nearest

    def sample(
        self, mean: NDArray[np.float64], sigma: NDArray[np.float64], count: int
    ) -> NDArray[np.float64]:
        """Draw candidates around a spline, with noise that is correlated in time.

        Args:
            mean: (knots, A) of the spline.
            sigma: (knots, A) deviations, in the action's units.
            count: how many.

        Returns:
            (count, T, A) within the action's limits.
        """
        noise = self._correlated_noise(count, *mean.shape)
        samples = np.einsum("tk,nka->nta", self._basis, mean + noise * sigma)
        inside: NDArray[np.float64] = np.clip(samples, self._low, self._high)
        return inside

    def _correlated_noise(self, count: int, knots: int, size: int) -> NDArray[np.float64]:
        """Unit-variance AR(1) noise along the knots (count, knots, A)."""
        rho = self.profile.basis.noise_correlation
        noise = self._random.standard_normal((count, knots, size))
        for knot in range(1, knots):
            noise[:, knot] = rho * noise[:, knot - 1] + np.sqrt(1.0 - rho**2) * noise[:, knot]
        return noise


def delay_matrices(
    committed: NDArray[np.floating], delay_s: float, tick_s: float, horizon: int
) -> tuple[NDArray[np.float64], NDArray[np.float64]]:
    """Return how commands turn into what acts in each tick from the state's stamp on.

    What acts in a tick is the mean of the commands in force, weighted by time.

    Args:
        committed: (K, A) commands before those to be planned, oldest first; the oldest held
            further back.
        delay_s: from the state's stamp to the effect of the first planned command.
        tick_s: length of a tick.
        horizon: T, ticks.

    Returns:
        ``shift`` (T, T) and ``before`` (T, A) for :func:`apply_delay`.
    """
    ticks = delay_s / tick_s
    whole = int(np.floor(ticks + 1e-9))
    share = max(ticks - whole, 0.0)
    commands = np.asarray(committed, dtype=np.float64)
    shift, before = np.zeros((horizon, horizon)), np.zeros((horizon, commands.shape[1]))
    for late, weight in ((whole, 1.0 - share), (whole + 1, share)):
        for tick in range(horizon):
            source = tick - late
            if source >= 0:
                shift[tick, source] += weight
            else:
                before[tick] += weight * commands[max(len(commands) + source, 0)]
    return shift, before


def delayed(
    actions: NDArray[np.floating], committed: NDArray[np.floating], delay_s: float, tick_s: float
) -> Floats:
    """Commands (N, T, A) -> what acts in each tick (N, T, A); as :func:`delay_matrices`."""
    return apply_delay(actions, *delay_matrices(committed, delay_s, tick_s, actions.shape[1]))


def apply_delay(
    actions: NDArray[np.floating], shift: NDArray[np.float64], before: NDArray[np.float64]
) -> Floats:
    """Commands (N, T, A) -> what acts in each tick (N, T, A); see :func:`delay_matrices`."""
    return np.asarray(shift @ actions + before, dtype=np.float32)
