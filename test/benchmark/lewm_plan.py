"""Time our plan beside LeWM's default plan, on this machine and in one run.

    python test/benchmark/lewm_plan.py --bundle bundles/tabletop --threads 2 --json lewm.json

LeWM (Maes et al., 2026; ``galilai-group/stable-worldmodel``) plans with CEM: 300 samples, 30
iterations, 5 steps, a predictor of 6 AdaLN blocks with 16 heads of 64 on up to 3 tokens of width
192, one call a step. What is timed here has these shapes, random weights and our own code, with
attention as plain products: in torch and in OpenVINO, in fp32 and, where the processor multiplies
it natively, in bf16. The fastest counts. Encoding of the frame is left out on both sides; LeWM's
image and cost are thus free.
"""

from __future__ import annotations

import argparse
import platform
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import openvino as ov
import torch
from torch import Tensor, nn

from wm_node.bundle import PRESETS, load_bundle
from wm_node.json_file import write_json
from wm_node.planning.planner import PlannerConfig
from wm_node.planning.timing import time_bundle

WIDTH, HEADS, HEAD, MLP, DEPTH, TOKENS = 192, 16, 64, 2048, 6, 3
SAMPLES, ITERATIONS, STEPS, ELITES, ACTION = 300, 30, 5, 30, 10


class Block(nn.Module):
    """AdaLN-zero block: attention and perceptron, both modulated by the action."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(
            [nn.LayerNorm(WIDTH, elementwise_affine=False) for _ in range(2)]
        )
        self.inner = nn.ModuleList([nn.LayerNorm(WIDTH) for _ in range(2)])
        self.qkv = nn.Linear(WIDTH, 3 * HEADS * HEAD, bias=False)
        self.out = nn.Linear(HEADS * HEAD, WIDTH)
        self.mlp = nn.Sequential(nn.Linear(WIDTH, MLP), nn.GELU(), nn.Linear(MLP, WIDTH))
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 6 * WIDTH))

    def forward(self, x: Tensor, action: Tensor, mask: Tensor) -> Tensor:
        shift, scale, gate, shift2, scale2, gate2 = self.modulation(action).chunk(6, -1)
        x = x + gate * self.attend(self.inner[0](self.norms[0](x) * (1 + scale) + shift), mask)
        return x + gate2 * self.mlp(self.inner[1](self.norms[1](x) * (1 + scale2) + shift2))

    def attend(self, x: Tensor, mask: Tensor) -> Tensor:
        count, tokens, _ = x.shape
        q, k, v = (
            part.view(count, tokens, HEADS, HEAD).transpose(1, 2)
            for part in self.qkv(x).chunk(3, -1)
        )
        weights = (q @ k.transpose(-1, -2) * HEAD**-0.5 + mask).softmax(-1)
        return self.out((weights @ v).transpose(1, 2).flatten(2))


class LeWmShape(nn.Module):
    """One token a frame: (1, W) present and (N, steps, A) actions -> (N, W) at the end."""

    def __init__(self) -> None:
        super().__init__()
        self.embed = nn.Sequential(
            nn.Linear(ACTION, ACTION),
            nn.Linear(ACTION, 4 * WIDTH),
            nn.SiLU(),
            nn.Linear(4 * WIDTH, WIDTH),
        )
        self.place = nn.Parameter(torch.randn(1, TOKENS, WIDTH))
        self.blocks = nn.ModuleList([Block() for _ in range(DEPTH)])
        self.norm = nn.LayerNorm(WIDTH)
        self.project = nn.Sequential(  # BatchNorm folds into the layer before it
            nn.Linear(WIDTH, MLP), nn.GELU(), nn.Linear(MLP, WIDTH)
        )
        self.register_buffer("mask", torch.full((TOKENS, TOKENS), -1e4).triu(1))

    def forward(self, present: Tensor, actions: Tensor) -> Tensor:
        embedded = self.embed(actions)
        frames = [present.expand(actions.shape[0], -1)]
        for step in range(STEPS):
            first = max(0, 1 + step - TOKENS)
            x = torch.stack(frames[first:], 1)
            tokens = x.shape[1]
            x = x + self.place[:, :tokens]
            for block in self.blocks:
                x = block(x, embedded[:, first : step + 1], self.mask[:tokens, :tokens])
            frames.append(self.project(self.norm(x))[:, -1])
        return frames[-1]


def plan_flop() -> int:
    """Operations of a plan's products, two a multiply-add."""
    token = DEPTH * (4 * WIDTH * HEADS * HEAD + 2 * WIDTH * MLP + 6 * WIDTH * WIDTH)
    token += 2 * WIDTH * MLP
    tokens = [min(1 + step, TOKENS) for step in range(STEPS)]
    attention = DEPTH * 2 * HEADS * HEAD * sum(count**2 for count in tokens)
    embed = STEPS * (ACTION * ACTION + ACTION * 4 * WIDTH + 4 * WIDTH * WIDTH)
    return 2 * SAMPLES * ITERATIONS * (sum(tokens) * token + attention + embed)


def plan_s(rollout: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> float:
    """Seconds of one CEM plan by a rollout (1, W), (N, steps, A) -> (N, W)."""
    random = np.random.default_rng(0)
    present, goal = random.standard_normal((2, 1, WIDTH)).astype(np.float32)
    mean, deviation = np.zeros((STEPS, ACTION)), np.ones((STEPS, ACTION))
    began = time.perf_counter()
    for _ in range(ITERATIONS):
        drawn = mean + deviation * random.standard_normal((SAMPLES, STEPS, ACTION))
        drawn[0] = mean
        cost = ((rollout(present, drawn.astype(np.float32)) - goal) ** 2).mean(-1)
        best = drawn[np.argpartition(cost, ELITES)[:ELITES]]
        mean, deviation = best.mean(0), best.std(0)
    return time.perf_counter() - began


def ways(net: LeWmShape, threads: int) -> dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]]:
    """Every way to run the rollout here."""
    native = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    kinds = ["f32", "bf16"] if "BF16" in native else ["f32"]
    example = (torch.zeros(1, WIDTH), torch.zeros(SAMPLES, STEPS, ACTION))
    model = ov.convert_model(net, example_input=example)
    inputs = zip(model.inputs, example, strict=True)
    model.reshape({port: list(one.shape) for port, one in inputs})
    found: dict[str, Callable[[np.ndarray, np.ndarray], np.ndarray]] = {}
    for kind in kinds:
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": kind,
        }
        request = ov.Core().compile_model(model, "CPU", options).create_infer_request()
        found[f"openvino-{kind}"] = lambda x, a, request=request: request.infer([x, a])[0]

        def torch_rollout(x: np.ndarray, a: np.ndarray, kind: str = kind) -> np.ndarray:
            narrow = torch.autocast("cpu", torch.bfloat16, enabled=kind == "bf16")
            with torch.inference_mode(), narrow:
                return net(torch.from_numpy(x), torch.from_numpy(a)).float().numpy()

        found[f"torch-{kind}"] = torch_rollout
    return found


def main() -> None:
    """Time both and print the ratio."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--bundle", type=Path, default=Path("bundles/tabletop"))
    parser.add_argument("--threads", type=int, default=2)
    parser.add_argument("--plans", type=int, default=200, help="of ours; two of each of theirs")
    parser.add_argument("--json", type=Path, default=None)
    args = parser.parse_args()
    torch.set_num_threads(args.threads)
    torch.manual_seed(0)
    sizes = {
        name.removeprefix("plan_"): PlannerConfig(size.candidates, size.iterations)
        for name, size in PRESETS.items()
        if name != "plan_thorough"
    }
    ours = time_bundle(load_bundle(args.bundle), "openvino", args.threads, sizes, args.plans)
    net = LeWmShape().eval()
    theirs = {}
    for name, rollout in ways(net, args.threads).items():
        rollout(np.zeros((1, WIDTH), np.float32), np.zeros((SAMPLES, STEPS, ACTION), np.float32))
        theirs[name] = min(plan_s(rollout) for _ in range(2))
        print(f"LeWM's default plan, {name}: {theirs[name]:.2f} s", flush=True)
    fastest = min(theirs, key=theirs.__getitem__)
    ratios = {
        name: round(1e3 * theirs[fastest] / plan["p50_ms"], 1)
        for name, plan in ours["plans"].items()
    }
    for name, ratio in ratios.items():
        plan = ours["plans"][name]
        print(
            f"ours, {name} ({plan['candidates']} x {plan['iterations']}): {plan['p50_ms']:.1f} ms, "
            f"{ratio:.0f} times as fast as {fastest}"
        )
    figures = {
        "machine": platform.processor() or platform.machine(),
        "threads": args.threads,
        "lewm_flop": plan_flop(),
        "lewm_plan_s": {name: round(value, 3) for name, value in theirs.items()},
        "lewm_over_floor": round(theirs[fastest] * ours["gemm_flop_s"] / plan_flop(), 2),
        "fastest": fastest,
        "ratio": ratios,
        "ours": ours,
    }
    if args.json is not None:
        write_json(args.json, figures)


if __name__ == "__main__":
    main()
