"""Success of a LeWM-style model beside ours: same data, same seeds, goals by picture.

    python test/benchmark/lewm_success.py --dataset out/second.zarr --minutes 60 --out out/lewm \\
        --bundle bundles/tabletop_label_free --episodes 50 --json lewm_success.json

    python test/benchmark/lewm_success.py --device cuda --dataset out/second.zarr --minutes 8 \\
        --memory-gb 60 --out out/lewm --bundle bundles/tabletop_label_free --backend torch \\
        --episodes 50 --workers 14 --threads 16 --compile --json lewm_success_cuda.json

Trains the model of ``lewm_model.py`` for ``--minutes`` of all its threads, so that what else runs
on the machine takes nothing from it, or of a GPU's time (a model that is in ``--out`` is taken as
it is), then plays episodes of the task suite with it and with ours. In its favour: its plans take
effect at once, as if they took no time, and are searched in the fastest way found. Two numbers of
executed steps a plan are played: all five, its default, and one. The time of a plan is measured
after that, with nothing else of this at work.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable, Iterator
from functools import partial
from math import cos, pi
from pathlib import Path
from typing import Any

import numpy as np
import torch
from lewm_model import (
    BLOCK_TICKS,
    STEPS,
    TOKENS,
    WAYS,
    DeviceSearch,
    HostSearch,
    LeWm,
    Search,
    rollouts,
)
from numpy.typing import NDArray
from safetensors.torch import load_file, save_file
from torch import Tensor

from wm_node.data.dataset import Dataset
from wm_node.data.images import resize_area
from wm_node.errors import WmError
from wm_node.json_file import write_json
from wm_node.machine import machine_name
from wm_node.profile import RobotProfile, load_profile
from wm_node.sim.loop import Observation
from wm_node.sim.seeds import evaluation_seeds
from wm_node.sim.suite import run_suite
from wm_node.sim.tabletop import TabletopSim
from wm_node.sim.task import EpisodeScore, Task, task_for_seed
from wm_node.statistics import wilson95
from wm_node.training.data import TrainingData, is_left_out, read_ahead
from wm_node.training.loop import find_device
from wm_node.training.policies import MpcPolicy

FILE = "lewm.safetensors"
BATCH = {"cpu": 64, "cuda": 128}
RATE, DECAY, CLIP = 3e-4, 1e-3, 1.0
"""Theirs: 128 sequences a step at 5e-5 for 100 epochs; a short run needs more and larger steps."""
WARM_UP = 0.01  # share of the time
CHECK_S = 10.0
PLANS = {"cpu": 2, "cuda": 20}  # timed


def batches(data: TrainingData, size: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Endless batches: four frames, half a second apart, and the actions that leave three."""
    span = TOKENS * BLOCK_TICKS
    starts = np.concatenate(
        [
            np.arange(episode.start, episode.start + episode.length - span)
            for number, episode in enumerate(data.dataset.episodes)
            if not is_left_out(number) and episode.length > span
        ]
    )
    mean, std = (value.to(data.device) for value in data.statistics()["actions"])
    random = np.random.default_rng(seed)
    while True:
        at = torch.from_numpy(random.choice(starts, size)).unsqueeze(1).to(data.device)
        ticks = torch.arange(span + 1, device=data.device)
        frames = data.frames(at + ticks[::BLOCK_TICKS])[:, :, 0]
        actions = (data.actions[at + ticks[:span]] - mean) / std
        yield frames, actions.view(size, TOKENS, -1)


def clock(device: torch.device) -> Callable[[], float]:
    """What training's time is counted with: a thread's seconds, or on a GPU those of the wall."""
    if device.type == "cuda":
        return time.monotonic
    threads = torch.get_num_threads()
    return lambda: time.process_time() / threads


def train(data: TrainingData, minutes: float, batch: int, out: Path, seed: int) -> dict[str, Any]:
    """Train for a time, cosine schedule over that time, and write the weights."""
    torch.manual_seed(seed)
    device, side = data.device, data.profile.cameras[0].model_width
    net = LeWm(side, BLOCK_TICKS * len(data.profile.action.names)).to(device)
    optimiser = torch.optim.AdamW(net.parameters(), RATE, weight_decay=DECAY, fused=True)
    step, told, now_s = 0, 0.0, clock(device)
    native = device.type == "cuda" or torch.cpu._is_amx_tile_supported()
    narrow = torch.autocast(device.type, torch.bfloat16, enabled=native)
    items = read_ahead(batches(data, batch, seed), data.in_memory and device.type != "cpu")
    began_s, began_wall_s = now_s(), time.monotonic()
    parts: dict[str, Tensor] = {}
    for frames, actions in items:
        share = (now_s() - began_s) / (60.0 * minutes)
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
        if time.monotonic() - told > CHECK_S:
            told = time.monotonic()
            text = " ".join(f"{name} {float(part.detach()):.4f}" for name, part in parts.items())
            print(f"{100 * share:5.1f} %, step {step}: {text}", flush=True)
    losses = {name: float(part.detach()) for name, part in parts.items()}
    wall_s = time.monotonic() - began_wall_s
    out.mkdir(parents=True, exist_ok=True)
    mean, std = data.statistics()["actions"]
    weights = {k: v.cpu().contiguous() for k, v in net.state_dict().items()}
    save_file(weights | {"action_mean": mean, "action_std": std}, out / FILE)
    figures = {
        "device": name_of(device),
        "steps": step,
        "batch": batch,
        "sequences": step * batch,
        "rate": RATE,
        "minutes": minutes,
        "threads": torch.get_num_threads(),
        "wall_s": round(wall_s, 1),
        "losses": losses,
    }
    write_json(out / "training.json", figures)
    return figures


def name_of(device: torch.device) -> str:
    """What a device is called."""
    if device.type == "cuda":
        return str(torch.cuda.get_device_name(device))
    return machine_name()


class LeWmPolicy:
    """Plans to the goal picture's latent and executes the first steps of each plan."""

    uses_frames = True

    def __init__(
        self,
        weights: Path,
        profile: RobotProfile,
        steps: int,
        threads: int,
        device: torch.device,
        way: str = WAYS[0],
    ) -> None:
        torch.set_num_threads(threads)
        self._camera, self._steps, self._device = profile.cameras[0], steps, device
        self._limit = np.asarray(profile.action.upper)
        size = BLOCK_TICKS * len(profile.action.names)
        net = LeWm(self._camera.model_width, size)
        state = load_file(weights)
        self._mean, self._std = (state.pop(f"action_{k}").numpy() for k in ("mean", "std"))
        net.load_state_dict(state)
        self._net = net.eval().to(device)
        self._search: Search
        if device.type == "cuda":
            self._search = DeviceSearch(net.predictor, size, device, way)
        else:
            ways = rollouts(net.predictor, threads, size)
            self._search = HostSearch(ways.get("openvino-bf16", ways["openvino-f32"]))
        self._shape = (STEPS, size)

    def _encode(self, frame: NDArray[np.uint8]) -> Tensor:
        small = resize_area(frame, self._camera.model_width, self._camera.model_height)
        with torch.inference_mode():
            return self._net.encode(torch.from_numpy(small)[None].to(self._device))

    def reset(self, task: Task, sim: TabletopSim) -> None:
        self._search.reset(task.seed)
        self._goal = self._encode(sim.render_goal(task.goal))
        self._queue: list[NDArray[np.float64]] = []
        self._start = np.zeros(self._shape)

    def act(self, observation: Observation) -> NDArray[np.floating]:
        if not self._queue:
            assert observation.frame is not None
            found = self._search(self._encode(observation.frame), self._goal, self._start)
            # What is left of the plan is where the next search starts.
            self._start = np.zeros(self._shape)
            self._start[: STEPS - self._steps] = found[self._steps :]
            ticks = found[: self._steps].reshape(-1, len(self._limit)) * self._std + self._mean
            self._queue = list(np.clip(ticks, -self._limit, self._limit))
        return self._queue.pop(0)

    def plan_times(self, seed: int, count: int) -> list[float]:
        """Seconds of each of some plans from the beginning of an episode, after one to warm up."""
        sim = TabletopSim()
        self.reset(task_for_seed(sim, seed), sim)
        present = self._encode(sim.render())
        sim.close()
        return [
            _taken_s(lambda: self._search(present, self._goal, self._start))
            for _ in range(1 + count)
        ][1:]


def _taken_s(call: Callable[[], object]) -> float:
    began = time.perf_counter()
    call()
    return time.perf_counter() - began


def plans_s(
    make: Callable[..., LeWmPolicy], seed: int, args: argparse.Namespace
) -> dict[str, float]:
    """Median seconds of a plan by way of computing it; one that fails here is told and left out."""
    ways = [way for way in WAYS if args.compile or not way.startswith("compiled-")]
    found = {}
    for way in ways if args.device == "cuda" else ["openvino"]:
        try:
            policy = make(way=way) if args.device == "cuda" else make()
            found[way] = float(np.median(policy.plan_times(seed, args.plans)))
        except Exception as error:  # a compiler, or a kernel, may be missing
            print(f"  plans by {way} fail: {type(error).__name__}: {error}", flush=True)
            continue
        print(f"  a plan by {way}: {found[way]:.4f} s", flush=True)
    return found


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


def parse() -> argparse.Namespace:
    """What was asked for, with what follows from the device filled in."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    parser.add_argument("--dataset", type=Path, default=None, help="what ours was trained on")
    parser.add_argument("--minutes", type=float, default=60.0, help="of training")
    parser.add_argument("--batch", type=int, default=None, help="default: 64; 128 on CUDA")
    parser.add_argument("--out", type=Path, required=True, help="folder of the weights")
    parser.add_argument("--bundle", type=Path, default=Path("bundles/tabletop_label_free"))
    parser.add_argument("--backend", default="openvino", help="that ours is played with")
    parser.add_argument("--skip-ours", action="store_true", help="play theirs alone")
    parser.add_argument("--episodes", type=int, default=50)
    parser.add_argument("--steps", default="5,1", help="executed a plan, one run for each")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--workers", type=int, default=2, help="processes that play")
    parser.add_argument("--plans", type=int, default=None, help="timed; default: 2; 20 on CUDA")
    parser.add_argument("--compile", action="store_true", help="time torch.compile too, on CUDA")
    parser.add_argument("--way", choices=WAYS, default=WAYS[0], help="theirs is played, on CUDA")
    parser.add_argument("--memory-gb", type=float, default=8.0, help="for frames, on the device")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    try:
        args.device = find_device(args.device)
    except WmError as error:
        parser.error(str(error))
    if not (args.out / FILE).exists() and args.dataset is None:
        parser.error(f"{args.out} holds no weights yet: give the --dataset to train on.")
    args.batch = args.batch or BATCH[args.device]
    args.plans = args.plans or PLANS[args.device]
    return args


def main() -> None:
    """Train, play, print the table."""
    args = parse()
    device = torch.device(args.device)
    torch.set_num_threads(args.threads)
    if not (args.out / FILE).exists():
        data = TrainingData(Dataset.open(args.dataset), device, int(args.memory_gb * 2**30))
        train(data, args.minutes, args.batch, args.out, args.seed)
        del data  # its frames would stay on the GPU
    training = args.out / "training.json"
    figures: dict[str, Any] = {
        "machine": name_of(torch.device("cpu")),
        "device": name_of(device),
        "torch": torch.__version__,
        "threads": args.threads,
        "settings": {k: str(v) if isinstance(v, Path) else v for k, v in vars(args).items()},
        "training": json.loads(training.read_text()) if training.exists() else None,
        "rows": {},
    }
    seeds = evaluation_seeds(args.seed, args.episodes)

    def show(name: str, scores: list[EpisodeScore], plan_s: float | None) -> None:
        row = figures["rows"][name] = figures_of(scores) | {"plan_s_p50": plan_s}
        low, high = row["wilson95"]
        taken = "not timed" if plan_s is None else f"{plan_s:.4f} s"
        print(
            f"{name}: {row['successes']} of {len(scores)} ({100 * low:.0f} to {100 * high:.0f} %), "
            f"{row['falls']} falls, a plan {taken}",
            flush=True,
        )
        if args.json is not None:
            write_json(args.json, figures)

    def progress(score: EpisodeScore) -> None:
        print(f"  seed {score.seed}: {'success' if score.success else 'no'}", flush=True)

    if not args.skip_ours:
        make_ours = partial(MpcPolicy, args.bundle, args.backend, "image")
        scores = run_suite(make_ours, seeds, args.workers, on_score=progress)
        (alone,) = run_suite(make_ours, seeds[:1])  # a tick, with the frame's encoding
        show("ours", scores, float(np.median(alone.act_ms)) / 1e3)
        torch.set_num_threads(args.threads)  # the torch backend sets its own
    profile = load_profile("tabletop")
    share = max(1, args.threads // args.workers)
    for steps in [int(text) for text in args.steps.split(",") if text]:
        make = partial(LeWmPolicy, args.out / FILE, profile, steps)
        factory = partial(make, share, device, args.way)
        scores = run_suite(factory, seeds, args.workers, 0.0, on_score=progress)
        if "plan_s" not in figures:  # the same for any number of executed steps
            figures["plan_s"] = plans_s(partial(make, args.threads, device), seeds[0], args)
        fastest = min(figures["plan_s"].values(), default=None)
        show(f"LeWM-style, {steps} steps a plan", scores, fastest)


if __name__ == "__main__":
    main()
