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
import time
from pathlib import Path

import numpy as np
import torch
from lewm_model import (
    DEPTH,
    HEAD,
    HEADS,
    ITERATIONS,
    MLP,
    SAMPLES,
    STEPS,
    TOKENS,
    WIDTH,
    Predictor,
    Rollout,
    plan,
    rollouts,
)

from wm_node.bundle import PRESETS, load_bundle
from wm_node.json_file import write_json
from wm_node.machine import machine_name
from wm_node.planning.planner import PlannerConfig
from wm_node.planning.timing import time_bundle

ACTION = 10  # two numbers for each of five ticks


def plan_flop() -> int:
    """Operations of a plan's products, two a multiply-add."""
    token = DEPTH * (4 * WIDTH * HEADS * HEAD + 2 * WIDTH * MLP + 6 * WIDTH * WIDTH)
    token += 2 * WIDTH * MLP
    tokens = [min(1 + step, TOKENS) for step in range(STEPS)]
    attention = DEPTH * 2 * HEADS * HEAD * sum(count**2 for count in tokens)
    embed = STEPS * (ACTION * ACTION + ACTION * 4 * WIDTH + 4 * WIDTH * WIDTH)
    return 2 * SAMPLES * ITERATIONS * (sum(tokens) * token + attention + embed)


def plan_s(rollout: Rollout) -> float:
    """Seconds of one CEM plan."""
    random = np.random.default_rng(0)
    present, goal = random.standard_normal((2, 1, WIDTH)).astype(np.float32)
    began = time.perf_counter()
    plan(rollout, present, goal, np.zeros((STEPS, ACTION)), random)
    return time.perf_counter() - began


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
    net = Predictor(ACTION).eval()
    theirs = {}
    for name, rollout in rollouts(net, args.threads, ACTION).items():
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
        "machine": machine_name(),
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
