"""Success of a LeWM-style model beside ours: same data, same seeds, goals by picture.

    python test/benchmark/lewm_success.py --dataset out/second.zarr --minutes 60 --out out/lewm \\
        --bundle bundles/tabletop_label_free --episodes 50 --json lewm_success.json

Trains the model of ``lewm_model.py`` for ``--minutes`` of all its threads, so that what else runs
on the machine takes nothing from it (a model that is in ``--out`` is taken as it is), then plays
episodes of the task suite with it and with ours. In its favour: its plans take effect at once, as
if they took no time, and are searched in the fastest way found. Two numbers of executed steps a
plan are played: all five, its default, and one.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Iterator
from functools import partial
from math import cos, pi
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lewm_model import BLOCK_TICKS, STEPS, TOKENS, LeWm, plan, rollouts
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from wm_node.data.dataset import Dataset
from wm_node.data.images import resize_area
from wm_node.json_file import write_json
from wm_node.profile import RobotProfile, load_profile
from wm_node.sim.loop import Observation
from wm_node.sim.seeds import evaluation_seeds
from wm_node.sim.suite import run_suite
from wm_node.sim.tabletop import TabletopSim
from wm_node.sim.task import EpisodeScore, Task
from wm_node.statistics import wilson95
from wm_node.training.data import TrainingData, is_left_out, prefetch
from wm_node.training.policies import MpcPolicy

FILE = "lewm.safetensors"
BATCH, RATE, DECAY, CLIP = 64, 3e-4, 1e-3, 1.0
"""Theirs: 128 sequences a step at 5e-5 for 100 epochs; a short run needs more and larger steps."""
WARM_UP = 0.01  # share of the time
CHECK_S = 60.0


def batches(data: TrainingData, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches: four frames, half a second apart, and the actions that leave three."""
    span = TOKENS * BLOCK_TICKS
    starts = np.concatenate(
        [
            np.arange(episode.start, episode.start + episode.length - span)
            for number, episode in enumerate(data.dataset.episodes)
            if not is_left_out(number) and episode.length > span
        ]
    )
    mean, std = data.statistics()["actions"]
    random = np.random.default_rng(seed)
    while True:
        at = torch.from_numpy(random.choice(starts, BATCH)).unsqueeze(1)
        frames = data.frames(at + BLOCK_TICKS * torch.arange(TOKENS + 1))[:, :, 0]
        actions = (data.actions[at + torch.arange(span)] - mean) / std
        yield frames, actions.view(BATCH, TOKENS, -1)


def train(data: TrainingData, minutes: float, out: Path, seed: int) -> dict[str, Any]:
    """Train for a time, cosine schedule over that time, and write the weights."""
    torch.manual_seed(seed)
    side = data.profile.cameras[0].model_width
    net = LeWm(side, BLOCK_TICKS * len(data.profile.action.names))
    optimiser = torch.optim.AdamW(net.parameters(), RATE, weight_decay=DECAY, fused=True)
    threads = torch.get_num_threads()
    step, told, total = 0, 0.0, 60.0 * minutes * threads
    began_s, began_cpu_s = time.monotonic(), time.process_time()
    narrow = torch.autocast("cpu", torch.bfloat16, enabled=torch.cpu._is_amx_tile_supported())
    losses: dict[str, float] = {}
    for frames, actions in prefetch(batches(data, seed)):
        share = (time.process_time() - began_cpu_s) / total
        if share >= 1.0:
            break
        rate = RATE * (share / WARM_UP if share < WARM_UP else 0.5 + 0.5 * cos(pi * share))
        for group in optimiser.param_groups:
            group["lr"] = rate
        with narrow:
            parts = net.losses(frames, actions)
            loss = torch.stack(list(parts.values())).sum()
        optimiser.zero_grad()
        loss.backward()
        torch.nn.utils.clip_grad_norm_(net.parameters(), CLIP)
        optimiser.step()
        step += 1
        losses = {name: float(part.detach()) for name, part in parts.items()}
        if time.monotonic() - told > CHECK_S:
            told = time.monotonic()
            text = " ".join(f"{name} {value:.4f}" for name, value in losses.items())
            print(f"{100 * share:5.1f} %, step {step}: {text}", flush=True)
    out.mkdir(parents=True, exist_ok=True)
    mean, std = data.statistics()["actions"]
    weights = {k: v.contiguous() for k, v in net.state_dict().items()}
    save_file(weights | {"action_mean": mean, "action_std": std}, out / FILE)
    figures = {
        "steps": step,
        "sequences": step * BATCH,
        "minutes": minutes,
        "threads": threads,
        "wall_s": round(time.monotonic() - began_s, 1),
        "losses": losses,
    }
    write_json(out / "training.json", figures)
    return figures


class LeWmPolicy:
    """Plans to the goal picture's latent and executes the first steps of each plan."""

    uses_frames = True

    def __init__(self, weights: Path, profile: RobotProfile, steps: int, threads: int) -> None:
        self._camera, self._steps = profile.cameras[0], steps
        self._limit = np.asarray(profile.action.upper)
        size = BLOCK_TICKS * len(profile.action.names)
        self._net = LeWm(self._camera.model_width, size)
        state = load_file(weights)
        self._mean, self._std = (state.pop(f"action_{k}").numpy() for k in ("mean", "std"))
        self._net.load_state_dict(state)
        self._net.eval()
        ways = rollouts(self._net.predictor, threads, size)
        self._rollout = ways.get("openvino-bf16", ways["openvino-f32"])
        self._shape = (STEPS, size)
        self.plan_s: list[float] = []

    def _encode(self, frame: NDArray[np.uint8]) -> NDArray[np.float32]:
        small = resize_area(frame, self._camera.model_width, self._camera.model_height)
        with torch.inference_mode():
            return self._net.encode(torch.from_numpy(small)[None]).numpy()

    def reset(self, task: Task, sim: TabletopSim) -> None:
        self._random = np.random.default_rng(task.seed)
        self._goal = self._encode(sim.render_goal(task.goal))
        self._queue: list[NDArray[np.float64]] = []
        self._start = np.zeros(self._shape)

    def act(self, observation: Observation) -> NDArray[np.floating]:
        if not self._queue:
            assert observation.frame is not None
            present = self._encode(observation.frame)
            began = time.perf_counter()
            found = plan(self._rollout, present, self._goal, self._start, self._random)
            self.plan_s.append(time.perf_counter() - began)
            # What is left of the plan is where the next search starts.
            self._start = np.zeros(self._shape)
            self._start[: STEPS - self._steps] = found[self._steps :]
            ticks = found[: self._steps].reshape(-1, len(self._limit)) * self._std + self._mean
            self._queue = list(np.clip(ticks, -self._limit, self._limit))
        return self._queue.pop(0)


def figures_of(scores: list[EpisodeScore]) -> dict[str, Any]:
    """Success, its interval, falls and zone entries."""
    won = sum(score.success for score in scores)
    return {
        "episodes": len(scores),
        "successes": won,
        "wilson95": list(wilson95(won, len(scores))),
        "falls": sum(score.fell for score in scores),
        "zone_entries": sum(score.zone for score in scores),
        "final_distance_cm": round(100 * float(np.mean([s.final_distance for s in scores])), 2),
    }


def main() -> None:
    """Train, play, print the table."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--dataset", type=Path, default=None, help="what ours was trained on")
    parser.add_argument("--minutes", type=float, default=60.0, help="of training")
    parser.add_argument("--out", type=Path, required=True, help="folder of the weights")
    parser.add_argument("--bundle", type=Path, default=Path("bundles/tabletop_label_free"))
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--steps", default="5,1", help="executed a plan, one run for each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--memory-gb", type=float, default=8.0)
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    if not (args.out / FILE).exists():
        if args.dataset is None:
            parser.error(f"{args.out} holds no weights yet: give the --dataset to train on.")
        dataset = Dataset.open(args.dataset)
        data = TrainingData(dataset, torch.device("cpu"), int(args.memory_gb * 2**30))
        train(data, args.minutes, args.out, args.seed)
    seeds = evaluation_seeds(args.seed, args.episodes)
    rows: dict[str, Any] = {}

    def show(name: str, scores: list[EpisodeScore], plan_s: float) -> None:
        rows[name] = figures_of(scores) | {"plan_s_p50": plan_s}
        low, high = rows[name]["wilson95"]
        print(
            f"{name}: {rows[name]['successes']} of {len(scores)} ({100 * low:.0f} to "
            f"{100 * high:.0f} %), {rows[name]['falls']} falls, a plan {plan_s:.4f} s",
            flush=True,
        )

    ours = run_suite(partial(MpcPolicy, args.bundle, "openvino", "image"), seeds, workers=2)
    acts = [ms for score in ours for ms in score.act_ms]
    show("ours", ours, float(np.median(acts)) / 1e3)
    for steps in map(int, args.steps.split(",")):
        policy = LeWmPolicy(args.out / FILE, load_profile("tabletop"), steps, args.threads)

        def progress(score: EpisodeScore) -> None:
            print(f"  seed {score.seed}: {'success' if score.success else 'no'}", flush=True)

        scores = run_suite(lambda p=policy: p, seeds, latency_s=0.0, on_score=progress)
        show(f"LeWM-style, {steps} steps a plan", scores, float(np.median(policy.plan_s)))
    if args.json is not None:
        machine = platform.processor() or platform.machine()
        write_json(args.json, {"machine": machine, "threads": args.threads, "rows": rows})


if __name__ == "__main__":
    main()
