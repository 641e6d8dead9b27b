"""Are alarms in time, and are they rare? Foreseen risk against the simulator's own future.

Episodes are played twice with the same seed. *Free*, nothing is stopped: each event is compared
with the last moment at which braking would have prevented it (:mod:`wm_node.sim.preventable`), and
an episode without an event tells how often an alarm is in vain. *Guarded*, the robot is stopped or
slowed as the gate would. What commands the robot is the ``planner`` itself, sent to targets of
which half end in an event, careless of risk, so that its search finds what the model
underestimates; or something ``external``, of which the model sees one command at a time.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wm_node.errors import WmError
from wm_node.planning.planner import brake_actions
from wm_node.planning.supervision import SupervisionConfig, Supervisor, worst_risk
from wm_node.safety.gate import event_over_threshold
from wm_node.sim.behaviours import Behaviour, Scripted
from wm_node.sim.loop import DEFAULT_LATENCY_S, Observation
from wm_node.sim.mix import Mix, make_behaviour
from wm_node.sim.preventable import last_preventable_s, play
from wm_node.sim.processes import in_processes
from wm_node.sim.scene import TABLE_BOUNDS, ZONE_BOUNDS
from wm_node.sim.seeds import ALARM_SEED, evaluation_seeds
from wm_node.sim.tabletop import TabletopSim
from wm_node.sim.task import TICK_S, Task, task_for_seed
from wm_node.training.alarm_figures import AlarmRecord, Event
from wm_node.training.fidelity import require_tabletop
from wm_node.training.policies import MpcPolicy, PlanSettings, committed_commands

SOURCES = ("planner", "external")
STREAMS = Mix({"scripted": 0.3, "aimed": 0.2, "edge": 0.2, "zone": 0.2, "wander": 0.1})
"""What external commands come from."""
RECKLESS = frozenset({"edge", "zone", "astray"})
"""Streams that are out for an event."""
RISKY_SHARE = 0.5
"""Of the planner's targets, those beyond the table's edge or in the zone."""
OPERATOR_NOISE_M_S = 0.03  # on scripted pushes: nobody commands as cleanly as a script


# ---- what commands the robot ---------------------------------------------------------------


@dataclass(frozen=True)
class _Judged:
    """A command, its risk by event, the brake in its place, and how fast it may be followed."""

    command: NDArray[np.floating]
    risk: dict[str, float]
    safe: NDArray[np.floating]
    stopped: bool
    slowed: bool


Judge = Callable[[Observation], _Judged]


def _planner(policy: MpcPolicy, thresholds: dict[str, float]) -> Judge:
    profile = policy.model.profile

    def judge(observation: Observation) -> _Judged:
        command = np.asarray(policy.act(observation), np.float64)
        risk = worst_risk(policy.plan.outcomes, 0, profile) if policy.plan is not None else {}
        stopped = event_over_threshold(risk, thresholds) is not None
        safe = brake_actions(profile, command)[0] if stopped else command
        return _Judged(command, risk, safe, stopped, False)

    return judge


def _external(
    policy: MpcPolicy,
    supervisor: Supervisor,
    act: Callable[[], NDArray[np.floating]],
    thresholds: dict[str, float],
) -> Judge:
    profile = policy.model.profile

    def judge(observation: Observation) -> _Judged:
        context = policy.observe(observation)
        command = act()
        committed = committed_commands(observation, profile)
        seen = supervisor.foresee(context, command, committed, thresholds)
        allowed = worst_risk(seen.outcomes, 0, profile)
        stopped = event_over_threshold(allowed, thresholds) is not None
        safe = (brake_actions(profile, command) if stopped else seen.actions)[0]
        return _Judged(command, seen.full_risk, safe, stopped, seen.speed < 1.0)

    return judge


def risky_task(task: Task, rng: np.random.Generator) -> Task:
    """Move a task's target to where an event is likely, in half of the cases."""
    if rng.random() >= RISKY_SHARE:
        return task
    if rng.random() < 0.5:
        zone = ZONE_BOUNDS
        goal = (rng.uniform(zone.x_min, zone.x_max), rng.uniform(zone.y_min, zone.y_max))
        return replace(task, goal=goal)
    table, (x, y) = TABLE_BOUNDS, task.start
    beyond = rng.uniform(0.0, 0.05)
    # The nearest side, but for the back, over which the tip cannot push the mug.
    sides = {
        x - table.x_min: (table.x_min - beyond, y),
        table.x_max - x: (table.x_max + beyond, y),
        y - table.y_min: (x, table.y_min - beyond),
    }
    return replace(task, goal=sides[min(sides)])


# ---- one episode ---------------------------------------------------------------------------


@dataclass(frozen=True)
class _Job:
    seed: int
    bundle: str
    backend: str
    source: str
    thresholds: tuple[tuple[str, float], ...]
    config: SupervisionConfig
    guarded: bool


@lru_cache(maxsize=1)
def _bench(
    bundle: str, backend: str, config: SupervisionConfig
) -> tuple[MpcPolicy, Supervisor, TabletopSim]:
    """Return this process's model and simulator."""
    careless = PlanSettings(deployed=False, ways=False, weights={"risk": 0.0})
    policy = MpcPolicy(bundle, backend, "state", careless)
    supervisor = Supervisor(policy.model, config, DEFAULT_LATENCY_S)
    policy.model.prepare((supervisor.candidates,))
    camera = policy.model.profile.cameras[0]
    return policy, supervisor, TabletopSim((camera.width, camera.height))


def _run(job: _Job) -> AlarmRecord:
    policy, supervisor, sim = _bench(job.bundle, job.backend, job.config)
    thresholds = dict(job.thresholds)

    def start() -> tuple[str, Judge]:
        """Begin the episode anew; the seed decides everything."""
        task, rng = task_for_seed(sim, job.seed), np.random.default_rng([job.seed, 0xA1A])
        if job.source == "planner":
            aim = risky_task(task, rng)
            policy.reset(aim, sim)
            return "to target" if aim == task else "astray", _planner(policy, thresholds)
        name = STREAMS.draw(rng)
        behaviour: Behaviour = Scripted(task.goal) if name == "scripted" else make_behaviour(name)
        behaviour.reset(sim, rng)
        policy.reset(task, sim)
        noise, deviation = np.zeros(2), OPERATOR_NOISE_M_S if name == "scripted" else 0.0
        limit = np.asarray(policy.model.profile.action.upper)

        def act() -> NDArray[np.floating]:
            noise[:] = 0.7 * noise + rng.normal(0.0, 0.71 * deviation, 2)
            return np.clip(behaviour.act(sim, rng) + noise, -limit, limit)

        return name, _external(policy, supervisor, act, thresholds)

    stream, judge = start()
    judged: list[_Judged] = []

    def follow(observation: Observation) -> NDArray[np.floating]:
        judged.append(judge(observation))
        return judged[-1].command

    free = play(sim, follow, DEFAULT_LATENCY_S)
    events = {
        name: Event(happened_s, last_preventable_s(sim, free, name))
        for name, happened_s in free.events.items()
    }
    risk = {
        name: np.array([one.risk.get(name, 0.0) for one in judged])
        for name in policy.model.profile.event_names
    }
    effect_s = TICK_S * np.arange(len(judged), dtype=np.float64) + DEFAULT_LATENCY_S
    record = AlarmRecord(job.seed, stream, effect_s, risk, events, reckless=stream in RECKLESS)
    if not job.guarded:
        return record
    _, judge = start()
    judged.clear()

    def obey(observation: Observation) -> NDArray[np.floating]:
        judged.append(judge(observation))
        return judged[-1].safe

    guarded = play(sim, obey, DEFAULT_LATENCY_S)
    return replace(
        record,
        guarded_events=tuple(guarded.events),
        stops=sum(one.stopped for one in judged),
        slowed=sum(one.slowed for one in judged),
    )


# ---- all episodes --------------------------------------------------------------------------


def collect_records(
    bundle: Path,
    source: str,
    episodes: int,
    seed: int,
    thresholds: dict[str, float],
    first_seed: int = ALARM_SEED,
    backend: str = "openvino",
    workers: int = 2,
    config: SupervisionConfig | None = None,
    guarded: bool = True,
    advance: Callable[[int, int], None] | None = None,
) -> list[AlarmRecord]:
    """Play the episodes of an evaluation.

    Args:
        bundle: of the simulated table-top robot.
        source: ``planner`` or ``external``.
        episodes: how many.
        seed: of the evaluation.
        thresholds: event -> highest risk that passes.
        first_seed: of the range, so that calibration and evaluation never share an episode.
        backend: of the engine.
        workers: processes.
        config: how external commands are foreseen.
        guarded: play them with the guard too.
        advance: told (episodes done, episodes in all).

    Raises:
        WmError: an unknown source, or a bundle of another robot.
    """
    if source not in SOURCES:
        raise WmError(f"'{source}' is no source of commands; use one of {', '.join(SOURCES)}.")
    require_tabletop(bundle, "alarms are measured in")
    jobs = [
        _Job(
            number,
            str(bundle),
            backend,
            source,
            tuple(sorted(thresholds.items())),
            config or SupervisionConfig(),
            guarded,
        )
        for number in evaluation_seeds(seed, episodes, first_seed)
    ]
    records = []
    for record in in_processes(_run, jobs, workers):
        records.append(record)
        if advance is not None:
            advance(len(records), len(jobs))
    return records
