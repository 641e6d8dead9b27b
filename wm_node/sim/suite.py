"""The task suite: a policy's score over seeded episodes, in parallel processes.

A frame is taken at every tick of 0.1 s; the command that it leads to takes effect ``latency_s``
later, as it does on a robot whose perception and planning take time.
"""

from __future__ import annotations

import multiprocessing
import time
import traceback
from collections.abc import Callable, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from multiprocessing.connection import Connection, wait
from typing import Protocol, cast, runtime_checkable

import numpy as np
from numpy.typing import NDArray

from wm_node.errors import WmError
from wm_node.profile import RobotProfile
from wm_node.sim.behaviours import Behaviour, Scripted, Still, Wander
from wm_node.sim.careful import Careful
from wm_node.sim.gated import GatedLoop, Told, gate_of
from wm_node.sim.levels import find_played_level
from wm_node.sim.loop import DEFAULT_LATENCY_S, ClosedLoop, Observation
from wm_node.sim.processes import follow_parent
from wm_node.sim.strips import Trace
from wm_node.sim.tabletop import TabletopSim
from wm_node.sim.task import TICK_S, EpisodeScore, Reading, ScoreKeeper, Task, task_for_seed


class Policy(Protocol):
    """What the suite runs. ``uses_frames`` False saves the rendering."""

    uses_frames: bool

    def reset(self, task: Task, sim: TabletopSim) -> None:
        """Begin an episode. ``sim`` is for goal pictures, and for references on true state."""

    def act(self, observation: Observation) -> NDArray[np.floating]:
        """Return the tip velocity (2,) in m/s to command next."""


class GatedPolicy(Policy, Protocol):
    """One that a gate can judge."""

    told: Told
    """What it tells the gate of the command that it returned last."""


@runtime_checkable
class ReadingPolicy(Policy, Protocol):
    """One that finds mug and target in pictures."""

    reading: Reading
    """Of the observation that it acted on last."""


PolicyFactory = Callable[[], Policy]


@dataclass
class BehaviourPolicy:
    """Runs a behaviour of :mod:`wm_node.sim.behaviours` as a policy on the true state."""

    make: Callable[[Task, TabletopSim], Behaviour]
    uses_frames: bool = False
    _sim: TabletopSim | None = field(default=None, repr=False)

    def reset(self, task: Task, sim: TabletopSim) -> None:
        """Build the behaviour for the task's goal."""
        self._sim = sim
        self._rng = np.random.default_rng([task.seed, 0xAC7])
        self._behaviour = self.make(task, sim)
        self._behaviour.reset(sim, self._rng)

    def act(self, observation: Observation) -> NDArray[np.floating]:
        """Ask the behaviour."""
        if self._sim is None:
            raise WmError("the policy was asked to act before its episode was reset.")
        return self._behaviour.act(self._sim, self._rng)


def _still(task: Task, sim: TabletopSim) -> Behaviour:
    return Still()


def _random(task: Task, sim: TabletopSim) -> Behaviour:
    return Wander()


def _scripted(task: Task, sim: TabletopSim) -> Behaviour:
    return Careful(task.goal) if sim.level.hazards else Scripted(task.goal)


_REFERENCES: dict[str, Callable[[Task, TabletopSim], Behaviour]] = {
    "still": _still,
    "random": _random,
    "scripted": _scripted,
}
REFERENCE_POLICIES = tuple(_REFERENCES)


def reference_policy(name: str) -> PolicyFactory:
    """Return the factory of a built-in policy: still, random or scripted (on the true state).

    Raises:
        WmError: there is no such policy.
    """
    if name not in _REFERENCES:
        known = ", ".join(_REFERENCES)
        raise WmError(f"there is no built-in policy '{name}'; use one of {known}.")
    return partial(BehaviourPolicy, _REFERENCES[name])


def _reading(policy: Policy) -> Reading:
    return policy.reading if isinstance(policy, ReadingPolicy) else Reading()


def run_episode(
    sim: TabletopSim,
    seed: int,
    policy: Policy,
    latency_s: float = DEFAULT_LATENCY_S,
    on_tick: Callable[[Observation, NDArray[np.float64]], None] | None = None,
    profile: RobotProfile | None = None,
) -> EpisodeScore:
    """Run the task of ``seed`` until its outcome is decided.

    Args:
        sim: the simulator; it is reset.
        seed: of the episode; scene and target follow from it.
        policy: what acts.
        latency_s: from a frame to the effect of its command.
        on_tick: called with each observation and the command that it led to.
        profile: of the robot whose safety gate stands between the policy, a :class:`GatedPolicy`,
            and the simulator; None: nothing does.
    """
    task = task_for_seed(sim, seed)
    policy.reset(task, sim)
    keeper = ScoreKeeper(task)
    loop = (
        ClosedLoop(sim, latency_s)
        if profile is None
        else GatedLoop(sim, latency_s, gate_of(profile), profile.action.frame_id)
    )
    act_ms: list[float] = []
    while not keeper.done:
        observation = loop.observe(policy.uses_frames)
        mug_x, mug_y, _, _ = sim.mug_pose()
        began = time.perf_counter()
        command = np.asarray(policy.act(observation), dtype=np.float64)
        act_ms.append(1e3 * (time.perf_counter() - began))
        keeper.note(_reading(policy), (mug_x, mug_y))
        if on_tick is not None:
            on_tick(observation, command)
        if isinstance(loop, GatedLoop):
            loop.command(command, cast(GatedPolicy, policy).told)
        else:
            loop.command(command)
        _tick(sim, loop, keeper)
    score = keeper.score(act_ms)
    if isinstance(loop, GatedLoop):
        score = replace(score, stops=tuple(sorted(loop.stops.items())))
    return score


def demonstration(task: Task, sim: TabletopSim) -> list[NDArray[np.uint8]]:
    """Let the scripted reference do a task, and return what the camera saw of it.

    It may come to rest anywhere within the tolerance, so the last picture is that of the goal, as
    for goals by picture.

    Args:
        task: at whose beginning the simulator is; afterwards it is there again.
        sim: with a camera.

    Returns:
        Frames (H, W, 3) of the camera's size, every second tick of 0.1 s, and the goal's.
    """
    before = sim.save()
    policy = reference_policy("scripted")()
    policy.reset(task, sim)
    keeper, loop = ScoreKeeper(task), ClosedLoop(sim, DEFAULT_LATENCY_S)
    frames = []
    while not keeper.done:
        if keeper.ticks % 2 == 0:
            frames.append(sim.render())
        loop.command(np.asarray(policy.act(loop.observe(False)), dtype=np.float64))
        _tick(sim, loop, keeper)
    sim.restore(before)
    return [*frames, sim.render_goal(task.goal)]


def _tick(sim: TabletopSim, loop: ClosedLoop | GatedLoop, keeper: ScoreKeeper) -> None:
    """Let a tick pass, and have it counted."""
    fell, zone, broken, step_s = False, False, "", 0.01
    for _ in range(round(TICK_S / step_s)):
        loop.advance(step_s)
        fell |= sim.fell()
        zone |= sim.in_zone()
        broken = broken or sim.violation()
    x, y, _, _ = sim.mug_pose()
    keeper.update((x, y), fell, zone, broken)


@dataclass(frozen=True)
class _Settings:
    """What all workers of a suite have in common."""

    level: str
    latency_s: float
    camera_size: tuple[int, int]
    delay_s: float
    traced: bool
    profile: RobotProfile | None

    def simulator(self, policy: Policy) -> TabletopSim:
        level = find_played_level(self.level)
        return TabletopSim(self.camera_size, policy.uses_frames, self.delay_s, level=level)

    def run(self, sim: TabletopSim, seed: int, policy: Policy) -> tuple[EpisodeScore, Trace | None]:
        if not self.traced:
            return run_episode(sim, seed, policy, self.latency_s, None, self.profile), None
        poses: list[NDArray[np.float64]] = []
        times: list[float] = []
        readings: list[Reading] = []

        def note(reading: Reading) -> None:
            poses.append(sim.pose())
            times.append(sim.time_s)
            readings.append(reading)

        def on_tick(*_: object) -> None:
            note(_reading(policy))

        score = run_episode(sim, seed, policy, self.latency_s, on_tick, self.profile)
        note(Reading())  # how it ended
        return score, Trace(np.array(poses), np.array(times), tuple(readings))


def _work(
    pipe: Connection,
    factory: PolicyFactory,
    seeds: Sequence[int],
    settings: _Settings,
) -> None:
    """Run in a worker process: one simulator, one policy, episode after episode."""
    follow_parent()
    try:
        policy = factory()
        sim = settings.simulator(policy)
        for seed in seeds:
            pipe.send(settings.run(sim, seed, policy))
    except WmError as error:
        pipe.send(error)
    except Exception:
        pipe.send(RuntimeError(f"a worker of the suite failed:\n{traceback.format_exc()}"))


def run_suite(
    policy_factory: PolicyFactory,
    seeds: Sequence[int],
    workers: int = 1,
    latency_s: float = DEFAULT_LATENCY_S,
    camera_size: tuple[int, int] = (320, 240),
    actuation_delay_s: float = 0.0,
    on_score: Callable[[EpisodeScore], None] | None = None,
    level: str = "basic",
    on_trace: Callable[[EpisodeScore, Trace], None] | None = None,
    profile: RobotProfile | None = None,
) -> list[EpisodeScore]:
    """Score a policy on the tasks of ``seeds``.

    Args:
        policy_factory: builds the policy, once a process; with several workers it must be
            importable by name (a function, a class, or a ``functools.partial`` of one).
        seeds: one an episode.
        workers: processes.
        latency_s: from a frame to the effect of its command.
        camera_size: width and height of the frames.
        actuation_delay_s: of the robot itself, on top of the latency.
        on_score: called after each episode, in the order of their ends, for progress.
        level: name of the suite's level, see :mod:`wm_node.sim.levels`.
        on_trace: called after each episode with what it looked like, for picture strips.
        profile: see :func:`run_episode`.

    Returns:
        One score a seed, in their order; the same for any number of workers, but for ``act_ms``.
    """
    if workers < 1:
        raise WmError("the suite needs at least one worker.")
    find_played_level(level)
    traced = on_trace is not None
    settings = _Settings(level, latency_s, camera_size, actuation_delay_s, traced, profile)
    by_seed: dict[int, EpisodeScore] = {}

    def ended(score: EpisodeScore, trace: Trace | None) -> None:
        by_seed[score.seed] = score
        if on_trace is not None and trace is not None:
            on_trace(score, trace)
        if on_score is not None:
            on_score(score)

    if workers == 1 or len(seeds) == 1:
        policy = policy_factory()
        sim = settings.simulator(policy)
        for seed in seeds:
            ended(*settings.run(sim, seed, policy))
        sim.close()
    else:
        shares = [list(seeds[worker::workers]) for worker in range(min(workers, len(seeds)))]
        _in_processes(policy_factory, shares, settings, ended)
    return [by_seed[seed] for seed in seeds]


def _in_processes(
    factory: PolicyFactory,
    shares: list[list[int]],
    settings: _Settings,
    ended: Callable[[EpisodeScore, Trace | None], None],
) -> None:
    # spawn: a process that has an OpenGL context or threads must not be forked.
    context = multiprocessing.get_context("spawn")
    missing: dict[Connection, int] = {}
    processes = []
    try:
        for share in shares:
            mine, theirs = context.Pipe(duplex=False)
            process = context.Process(
                target=_work, args=(theirs, factory, share, settings), daemon=True
            )
            process.start()
            theirs.close()
            processes.append(process)
            missing[mine] = len(share)
        while missing:
            for pipe in cast(list[Connection], wait(list(missing))):
                try:
                    message: tuple[EpisodeScore, Trace | None] | BaseException = pipe.recv()
                except EOFError:
                    raise WmError("a worker process of the suite died; see its output.") from None
                if isinstance(message, BaseException):
                    raise message
                ended(*message)
                missing[pipe] -= 1
                if not missing[pipe]:
                    del missing[pipe]
    finally:
        for process in processes:
            if missing:
                process.terminate()
            process.join()
