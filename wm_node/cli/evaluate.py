"""``wm evaluate``: score a bundle on the simulated task suite, or on recorded bags."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress

from wm_node.cli.fidelity import add_fidelity_arguments, run_fidelity
from wm_node.errors import WmError
from wm_node.json_file import write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    from wm_node.training.bag_evaluation import add_bag_arguments

    parser.epilog = (
        "Examples: wm evaluate --bundle bundles/tabletop --suite tabletop --goal image; "
        "wm evaluate --suite tabletop --planner scripted; "
        "wm evaluate --bundle B --bags DIR."
    )
    parser.add_argument("--bundle", type=Path, default=None, help="what 'wm train' wrote")
    parser.add_argument("--backend", default="openvino", help="openvino or torch")
    parser.add_argument("--threads", type=int, default=1, help="of inference, each process")
    parser.add_argument("--json", type=Path, default=None, help="write the figures here")
    parser.add_argument("--bags", type=Path, default=None, help="folder of left-out recordings")
    parser.add_argument("--suite", choices=["tabletop"], default=None, help="a simulated suite")
    parser.add_argument("--episodes", type=int, default=200, help="how many to run")
    parser.add_argument(
        "--planner",
        default="mpc",
        help="mpc; floors: still, random, scripted; oracle: the simulator itself as the model",
    )
    parser.add_argument(
        "--goal",
        choices=["state", "image"],
        default="state",
        help="give the target as numbers or as a picture of the goal",
    )
    parser.add_argument("--seed", type=int, default=0, help="of the evaluation; not used to train")
    parser.add_argument("--workers", type=int, default=2, help="parallel processes")
    parser.add_argument(
        "--candidates",
        type=int,
        default=None,
        help="of each search iteration (default: the planner's)",
    )
    parser.add_argument(
        "--iterations", type=int, default=None, help="of the search (default: the planner's)"
    )
    parser.add_argument(
        "--latency-s",
        type=float,
        help="from a frame to its command's effect (default: the suite's)",
    )
    parser.add_argument(
        "--weight",
        action="append",
        default=[],
        metavar="NAME=VALUE",
        help="override a weight of the objective; may be repeated",
    )
    add_bag_arguments(parser)
    add_fidelity_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluate and print a table."""
    if args.bags and args.suite:
        raise WmError("give either --suite or --bags, not both.")
    if args.bags:
        if args.bundle is None:
            raise WmError("--bags needs the --bundle to evaluate.")
        from wm_node.training.bag_evaluation import run_bags

        return run_bags(args)
    if args.fidelity:
        if args.suite:
            raise WmError("give either --suite or --fidelity, not both.")
        return run_fidelity(args, _settings(args))
    if not args.suite:
        raise WmError("say what to evaluate: --suite tabletop, --bags DIR or --fidelity.")
    return _run_suite(args)


def _run_suite(args: argparse.Namespace) -> int:
    from wm_node.training.suite_evaluation import evaluate_suite

    console = Console(stderr=True)
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task(f"{args.planner}, goal by {args.goal}", total=args.episodes)
        figures = evaluate_suite(
            args.planner,
            args.goal,
            args.bundle,
            args.backend,
            args.episodes,
            args.seed,
            workers=args.workers,
            settings=_settings(args),
            on_score=lambda score: progress.advance(task),
        )
    low, high = figures["success_wilson95"]
    Console().print(
        f"{figures['planner']}, goal by {figures['goal']}, seed {figures['seed']}: "
        f"{figures['successes']}/{figures['episodes']} succeeded "
        f"({100 * figures['success']:.1f} %, 95 % interval {100 * low:.1f} to {100 * high:.1f}), "
        f"{figures['falls']} falls, {figures['zone_entries']} zone entries, "
        f"plan p50 {figures['plan_ms']['p50']} ms, p99 {figures['plan_ms']['p99']} ms",
        soft_wrap=True,
    )
    if args.json is not None:
        write_json(args.json, figures)
    return 0


def _settings(args: argparse.Namespace) -> Any:
    from dataclasses import fields, replace

    from wm_node.planning.objective import Weights
    from wm_node.planning.planner import PlannerConfig
    from wm_node.training.policies import PlanSettings

    config = PlannerConfig()
    if args.candidates is not None:
        config = replace(config, candidates=args.candidates)
    if args.iterations is not None:
        config = replace(config, iterations=args.iterations)
    known = {item.name for item in fields(Weights)}
    weights = {}
    for text in args.weight:
        name, _, value = text.partition("=")
        try:
            weights[name] = float(value)
        except ValueError:
            name = ""
        if name not in known:
            raise WmError(f"--weight {text}: use NAME=NUMBER with one of {sorted(known)}.")
    settings = PlanSettings(config=config, weights=weights)
    if args.latency_s is not None:
        settings = replace(settings, latency_s=args.latency_s)
    return settings
