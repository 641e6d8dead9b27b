"""Push-T, the public task of the peers, with our model and planner.

    pip install 'pymunk<7' pygame shapely gymnasium && pip install --no-deps gym-pusht
    python test/benchmark/pusht.py collect --episodes 6000 --out out/pusht.zarr
    wm train --dataset out/pusht.zarr --recipe test/benchmark/pusht_recipe.yaml \\
        --planning-episodes 0 --memory-gb 9 --out out/pusht
    python test/benchmark/pusht.py evaluate --bundle out/pusht --episodes 200 --seeds 0,1,2

Data are our own scripted play: pushes of the T from all sides, off its centre too, and wandering.
An evaluation takes a moment of play of its own seeds and asks for the state 25 steps later, given
as a picture, within 50 steps. Success is that of stable-worldmodel: agent and T together within 20
pixels, and the T within 20 degrees. Floors: not to move, random play, and behaviour cloning (the
bundle's proposal without a search). The peers' protocol differs in its data: theirs are recorded by
experts, and so are their goals.
"""

from __future__ import annotations

import argparse
import math
import time
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from functools import lru_cache
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from rich.console import Console

from wm_node.bundle import load_bundle
from wm_node.cli.progress import counted_progress
from wm_node.data.dataset import DatasetWriter, EpisodeArrays
from wm_node.data.images import resize_area
from wm_node.engine import load_engine
from wm_node.json_file import write_json
from wm_node.planning.objective import Weights
from wm_node.planning.planner import MpcPlanner, PlannerConfig
from wm_node.planning.world_model import Context, Goal, WorldModel
from wm_node.profile import RobotProfile, load_profile
from wm_node.sim.processes import in_processes
from wm_node.statistics import wilson95

PROFILE = Path(__file__).with_name("pusht.yaml")
SIDE = 512.0
ANGLE_RADIUS = 0.11
TICKS = 100  # of an episode of play
AHEAD, BUDGET = 25, 50
WITHIN, WITHIN_ANGLE = 20.0 / SIDE, math.pi / 9
EVALUATION_SEED = 10_000_000
TICK_NS = 100_000_000

Floats = NDArray[np.float32]
Doubles = NDArray[np.float64]


class PushT:
    """The environment by its state: agent x, y, block x, y in shares of the side, and its angle."""

    def __init__(self) -> None:
        import gym_pusht  # noqa: F401
        import gymnasium

        self._env = gymnasium.make(
            "gym_pusht/PushT-v0", obs_type="state", render_mode="rgb_array", max_episode_steps=10**6
        ).unwrapped

    def reset(self, state: Doubles) -> None:
        """Put agent and block there, at rest."""
        scaled = np.array([*(SIDE * state[:4]), state[4]])
        self._env.reset(options={"reset_to_state": scaled})

    @property
    def state(self) -> Doubles:
        """Where agent and block are."""
        agent, block = self._env.agent.position, self._env.block
        place = np.array([agent.x, agent.y, block.position.x, block.position.y]) / SIDE
        return np.array([*place, block.angle % (2 * math.pi)])

    def step(self, target: Doubles) -> None:
        """Let the agent's controller pull it to a target (2,) for a tick."""
        self._env.step(SIDE * np.clip(target, 0.0, 1.0))

    def picture(self, size: int = 64) -> NDArray[np.uint8]:
        """Return the camera's picture."""
        return resize_area(np.ascontiguousarray(self._env._render()), size, size)


def random_state(random: np.random.Generator) -> Doubles:
    """Draw a state as the environment's reset does."""
    agent, block = random.uniform(50, 450, 2), random.uniform(100, 400, 2)
    return np.array([*agent / SIDE, *block / SIDE, random.uniform(0, 2 * math.pi)])


class Play:
    """Scripted play: walks round the T, pushes it from there, pauses, wanders."""

    def __init__(self, random: np.random.Generator) -> None:
        self._random = random
        self._left = 0
        self._mode = ""
        self._aim = np.zeros(2)
        self._pace = 0.02

    def act(self, state: Doubles) -> Doubles:
        """Return the target (2,) for the next tick."""
        random, agent, block = self._random, state[:2], state[2:4]
        self._left -= 1
        if self._left <= 0:
            pushes = self._mode == "approach"
            self._mode = (
                "push" if pushes else str(random.choice(["approach", "wander"], p=[0.8, 0.2]))
            )
            self._left = int(random.integers(6, 20))
            self._pace = float(random.uniform(0.012, 0.045))
            offset = random.normal(0.0, 0.06, 2)
            if self._mode == "approach":
                # From where a push leads into the table, so that not all of play is at the walls.
                inwards = random.uniform(0.2, 0.8, 2) - block
                angle = math.atan2(inwards[1], inwards[0]) + random.normal(0.0, 0.5)
                far = random.uniform(0.14, 0.24)
                self._aim = block - far * np.array([math.cos(angle), math.sin(angle)])
            elif self._mode == "push":
                through = block + offset - agent
                self._aim = agent + through * (1.0 + 0.25 / max(np.linalg.norm(through), 1e-3))
            else:
                self._aim = random.uniform(0.08, 0.92, 2)
        way = self._aim - agent
        if self._mode == "approach":  # round the T, not through it
            away = agent - block
            near = max(float(np.linalg.norm(away)), 1e-3)
            if near < 0.16 and float(way @ away) < 0.0:
                side = np.array([-away[1], away[0]]) / near
                way = side * math.copysign(1.0, float(side @ way)) + 0.5 * away / near
        step = way * min(1.0, self._pace / max(float(np.linalg.norm(way)), 1e-6))
        # The controller lags: a target this far ahead keeps the pace.
        return np.clip(agent + 5.0 * step + random.normal(0.0, 0.004, 2), 0.03, 0.97)


def labels_of(states: Doubles) -> Floats:
    """(..., 5) states -> (..., 6) values of the profile's labels."""
    angle = states[..., 4]
    turned = ANGLE_RADIUS * np.stack([np.cos(angle), np.sin(angle)], axis=-1)
    return np.concatenate([states[..., 2:4], turned, states[..., :2]], -1).astype(np.float32)


@lru_cache(maxsize=1)
def shared() -> PushT:
    """This process's environment."""
    return PushT()


def played(seed: int, pictures: bool = True) -> tuple[Doubles, Doubles, list[NDArray[np.uint8]]]:
    """Play an episode: states (T, 5), targets (T, 2) that act from each, and pictures."""
    random = np.random.default_rng([seed, 0x7])
    env, play = shared(), Play(random)
    env.reset(random_state(random))
    states, targets, frames = [], [], []
    for _ in range(TICKS):
        states.append(env.state)
        if pictures:
            frames.append(env.picture())
        targets.append(play.act(states[-1]))
        env.step(targets[-1])
    return np.array(states), np.array(targets), frames


def episode_of(seed: int) -> EpisodeArrays:
    """Return an episode of play as training data."""
    states, targets, frames = played(seed)
    return EpisodeArrays(
        name=f"play_{seed:07d}",
        stamps=1_700_000_000_000_000_000 + seed * 60_000_000_000 + TICK_NS * np.arange(TICKS),
        frames={"top": np.stack(frames)},
        frame_valid=np.ones((TICKS, 1), np.uint8),
        joints=states[:, :2].astype(np.float32),
        actions=targets.astype(np.float32),
        labels=labels_of(states),
        events=np.zeros((TICKS, 0), np.uint8),
    )


def collect(args: argparse.Namespace) -> None:
    """Write a dataset of scripted play."""
    profile = load_profile(PROFILE)
    with (
        DatasetWriter(args.out, profile, False) as writer,
        counted_progress(Console(), "episodes") as advance,
    ):
        for number, episode in enumerate(in_processes(episode_of, range(args.episodes), 2), 1):
            writer.append(episode)
            advance(number, args.episodes)
        writer.finish(f"pusht-{args.episodes}", {"robot": profile.name})
        writer.commit()


# ---- evaluation ----------------------------------------------------------------------------


@dataclass(frozen=True)
class Task:
    """From a moment of play to what was seen 25 steps later."""

    start: Doubles
    goal: Doubles
    picture: NDArray[np.uint8]
    seed: int


def task_of(seed: int) -> Task:
    """Draw the task of a seed, from play that nothing was trained on."""
    states, _, _ = played(seed, pictures=False)
    at = int(np.random.default_rng([seed, 0xA]).integers(0, TICKS - AHEAD))
    env = shared()
    env.reset(states[at + AHEAD])
    return Task(states[at], states[at + AHEAD], env.picture(), seed)


def reached(state: Doubles, goal: Doubles) -> bool:
    """Whether stable-worldmodel would call it success."""
    turn = abs(state[4] - goal[4]) % (2 * math.pi)
    near = float(np.linalg.norm(state[:4] - goal[:4])) < WITHIN
    return near and min(turn, 2 * math.pi - turn) < WITHIN_ANGLE


class Planner:
    """Plans every tick to a goal picture; ``cloning`` follows the proposal instead."""

    def __init__(self, bundle: Path, config: PlannerConfig, cloning: bool) -> None:
        loaded = load_bundle(bundle)
        self.model = WorldModel(loaded, load_engine(loaded, "openvino", 1))
        self.model.prepare((config.candidates,), (config.candidates, config.iterations))
        self._profile: RobotProfile = loaded.profile
        self._config, self._cloning = config, cloning

    def reset(self, task: Task) -> None:
        """Take the goal, and forget."""
        self._planner = MpcPlanner(self._profile, self._config, task.seed)
        self._goal: Goal = self.model.picture_goal({"top": task.picture})
        self._latents: list[Floats] = []
        self._joints: list[Doubles] = []
        self._actions: list[Doubles] = []

    def act(self, picture: NDArray[np.uint8], state: Doubles) -> Doubles:
        """Return the target (2,) for the next tick."""
        rates = self._profile.model
        steps, span = rates.context_steps, rates.ticks_per_step
        latent = self.model.encode({"top": picture})
        if not self._latents:  # it stood there before
            self._latents = [latent] * (steps * span)
            self._joints = [state[:2]] * (steps * span)
            self._actions = [state[:2]] * (steps * span)
        self._latents.append(latent)
        self._joints.append(state[:2])
        at = [-1 - span * back for back in range(steps - 1, -1, -1)]
        context = Context(
            0,
            np.stack([self._latents[k] for k in at]),
            np.array([self._joints[k] for k in at], np.float32),
            np.array(self._actions[-steps * span :], np.float32).reshape(steps, span, 2),
        )
        proposal = self.model.propose_for(context, self._goal)
        assert proposal is not None
        if self._cloning:
            target = np.clip(proposal[0][0], 0.0, 1.0).astype(np.float64)
        else:
            plan = self._planner.plan(
                self.model,
                context,
                self._goal,
                np.array(self._actions[-3:]),
                0.0,
                Weights.of(self._profile),
                proposal,
            )
            target = plan.actions[0].astype(np.float64)
        self._actions.append(target)
        return target


@dataclass(frozen=True)
class Job:
    """An episode to play."""

    seed: int
    kind: str
    bundle: str
    config: PlannerConfig


@lru_cache(maxsize=1)
def planner_of(bundle: str, config: PlannerConfig, cloning: bool) -> Planner:
    """This process's planner."""
    return Planner(Path(bundle), config, cloning)


def play_task(job: Job) -> tuple[bool, float]:
    """Play; return success and the median time of a decision in ms."""
    task, env = task_of(job.seed), shared()
    act: Callable[[NDArray[np.uint8], Doubles], Doubles]
    if job.kind == "still":
        act = lambda picture, state: state[:2]  # noqa: E731
    elif job.kind == "random":
        script = Play(np.random.default_rng([job.seed, 0xF]))
        act = lambda picture, state: script.act(state)  # noqa: E731
    else:
        planner = planner_of(job.bundle, job.config, job.kind == "cloning")
        planner.reset(task)
        act = planner.act
    env.reset(task.start)
    times = []
    for _ in range(BUDGET):
        picture, state = env.picture(), env.state
        began = time.perf_counter()
        target = act(picture, state)
        times.append(1e3 * (time.perf_counter() - began))
        env.step(target)
        if reached(env.state, task.goal):
            return True, float(np.median(times))
    return False, float(np.median(times))


def evaluate(args: argparse.Namespace) -> None:
    """Play all kinds on all seeds and print the table."""
    config = replace(PlannerConfig(), candidates=args.candidates, iterations=args.iterations)
    rows: dict[str, Any] = {}
    for kind in args.planner.split(","):
        counts, times = [], []
        for seed in map(int, args.seeds.split(",")):
            jobs: Iterator[Job] = (
                Job(EVALUATION_SEED + 100_000 * seed + k, kind, str(args.bundle), config)
                for k in range(args.episodes)
            )
            found = list(in_processes(play_task, jobs, 2))
            counts.append(sum(success for success, _ in found))
            times += [ms for _, ms in found]
        total = args.episodes * len(counts)
        low, high = wilson95(sum(counts), total)
        rows[kind] = {
            "successes": counts,
            "episodes": args.episodes,
            "success": sum(counts) / total,
            "wilson95": [low, high],
            "decision_ms_p50": float(np.median(times)),
        }
        print(
            f"{kind}: {counts} of {args.episodes} each, {100 * sum(counts) / total:.1f} % "
            f"({100 * low:.1f} to {100 * high:.1f}), {np.median(times):.1f} ms",
            flush=True,
        )
    if args.json is not None:
        write_json(args.json, rows)


def main() -> None:
    """Collect, or evaluate."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    data = commands.add_parser("collect", help="scripted play as a dataset")
    data.add_argument("--episodes", type=int, default=6000)
    data.add_argument("--out", type=Path, required=True)
    data.set_defaults(do=collect)
    score = commands.add_parser("evaluate", help="goals 25 steps ahead, 50 steps to reach them")
    score.add_argument("--bundle", type=Path, required=True)
    score.add_argument("--episodes", type=int, default=200)
    score.add_argument("--seeds", default="0,1,2")
    score.add_argument("--planner", default="still,random,cloning,mpc")
    score.add_argument("--candidates", type=int, default=64)
    score.add_argument("--iterations", type=int, default=3)
    score.add_argument("--json", type=Path, default=None)
    score.set_defaults(do=evaluate)
    args = parser.parse_args()
    args.do(args)


if __name__ == "__main__":
    main()
