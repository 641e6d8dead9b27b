"""Do backends choose plans as good as the reference's?

A golden check tells that a graph is computed as it was exported. What a robot sees of a backend's
rounding is another choice of plan: in the states of unseen episodes, with the same noise, a backend
and the reference (torch, fp32) both plan, and the reference says what either plan costs.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wm_node.bundle import load_bundle
from wm_node.engine import load_engine
from wm_node.errors import WmError
from wm_node.planning.objective import Objective, Weights
from wm_node.planning.planner import MpcPlanner, Plan, PlannerConfig
from wm_node.planning.world_model import WorldModel
from wm_node.sim.processes import in_processes
from wm_node.sim.seeds import STATE_SEED, evaluation_seeds
from wm_node.sim.tabletop import TabletopSim
from wm_node.training.fidelity import find_moment, prompt_of, require_tabletop, ticks_seen
from wm_node.training.policies import MpcPolicy, PlanSettings, committed_commands

REFERENCE = "torch"
ALLOWED_EXCESS = 0.01
"""Share of the reference's cost by which a backend's plan may cost more."""

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class _Job:
    seed: int
    bundle: str
    backends: tuple[str, ...]
    goal: str
    threads: int
    config: PlannerConfig


@lru_cache(maxsize=1)
def _bench(
    bundle: str, backends: tuple[str, ...], goal: str, threads: int, config: PlannerConfig
) -> tuple[MpcPolicy, list[WorldModel], TabletopSim]:
    """Return this process's reference, the models to compare, and the simulator."""
    policy = MpcPolicy(bundle, REFERENCE, goal, PlanSettings(config), threads)
    loaded = load_bundle(bundle)
    others = []
    for backend in backends:
        model = WorldModel(loaded, load_engine(loaded, backend, threads))
        model.prepare((config.candidates,), (config.candidates, config.iterations))
        others.append(model)
    camera = loaded.profile.cameras[0]
    return policy, others, TabletopSim((camera.width, camera.height))


def _run(job: _Job) -> Doubles:
    """Return the reference's cost (1 + B,) of its own plan and of each backend's, in one state."""
    policy, others, sim = _bench(job.bundle, job.backends, job.goal, job.threads, job.config)
    reference, settings = policy.model, PlanSettings(job.config)
    profile = reference.profile
    moment = find_moment(sim, job.seed, settings.latency_s, ticks_seen(profile), frames=True)
    prompt = prompt_of(policy, sim, moment, use_proposal=True)
    context, goal = prompt.context, prompt.goal
    committed = committed_commands(moment.observations[-1], profile)
    weights, objective = Weights.of(profile), Objective(profile)

    def chosen(model: WorldModel) -> Plan:
        planner = MpcPlanner(profile, job.config, job.seed)
        return planner.plan(
            model, context, goal, committed, settings.latency_s, weights, prompt.proposal
        )

    costs = []
    for model in (reference, *others):
        actions = chosen(model).applied[None]
        outcomes = reference.rollout(context, actions, goal.latent)
        costs.append(float(objective(outcomes, actions, goal, weights)[0][0]))
    return np.array(costs)


def compare_choices(
    bundle: Path,
    backends: Sequence[str],
    config: PlannerConfig,
    goal: str = "state",
    states: int = 1000,
    seed: int = 0,
    workers: int = 2,
    threads: int = 1,
    advance: Callable[[int, int], None] | None = None,
) -> dict[str, Any]:
    """Let backends and the reference plan in the same states with the same noise.

    Args:
        bundle: of the simulated table-top robot.
        backends: to compare with torch in fp32.
        config: size of the search.
        goal: ``state`` or ``image``.
        states: how many, each of an episode of its own.
        seed: of the evaluation.
        workers, threads: processes, and threads of inference in each.
        advance: told (states done, states in all).

    Returns:
        ``states``, and by backend ``within`` (share of states in which its plan costs at most 1 %
        more than the reference's), ``same`` (share with the same cost to a millionth), and ``mean``
        and ``p99`` of the excess as a share of the reference's cost.

    Raises:
        WmError: the bundle is of another robot, or a number is out of range.
    """
    require_tabletop(bundle, "choices are compared in states of")
    if states < 1:
        raise WmError("give at least one state.")
    jobs = [
        _Job(number, str(bundle), tuple(backends), goal, threads, config)
        for number in evaluation_seeds(seed, states, STATE_SEED)
    ]
    rows = []
    for done, row in enumerate(in_processes(_run, jobs, workers), start=1):
        rows.append(row)
        if advance is not None:
            advance(done, len(jobs))
    costs = np.stack(rows)
    excess = costs[:, 1:] / costs[:, :1] - 1.0
    return {"states": states, "goal": goal, "seed": seed} | {
        backend: {
            "within": float((excess[:, column] <= ALLOWED_EXCESS).mean()),
            "same": float((np.abs(excess[:, column]) <= 1e-6).mean()),
            "mean": float(excess[:, column].mean()),
            "p99": float(np.percentile(excess[:, column], 99)),
        }
        for column, backend in enumerate(backends)
    }
