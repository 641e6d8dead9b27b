"""``wm evaluate``: score a bundle on the simulated task suite, or on recorded bags."""

from __future__ import annotations

import argparse
from functools import partial
from itertools import product
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import Progress, TaskID
from rich.table import Table

from wm_node.cli.alarms import add_alarm_arguments, run_alarms
from wm_node.cli.fidelity import add_fidelity_arguments, run_fidelity
from wm_node.cli.progress import table_console
from wm_node.errors import WmError
from wm_node.json_file import write_json
from wm_node.resources import BUNDLE, resource
from wm_node.sim.level_names import PLAYED_TEXT


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    from wm_node.training.bag_evaluation import add_bag_arguments

    parser.epilog = (
        "Examples: wm evaluate --suite tabletop --goal image; "
        "wm evaluate --suite tabletop --level edge,clutter --planner still,random,scripted; "
        "wm evaluate --bundle B --bags DIR."
    )
    parser.add_argument(
        "--bundle",
        type=Path,
        default=None,
        help="what 'wm train' wrote (default: bundles/tabletop; for the suite's goals by picture "
        "bundles/tabletop_label_free, whose encoder and rollout never saw a label; for clutter, "
        "moving_hand and, by picture, all levels but basic bundles/tabletop_hazards)",
    )
    parser.add_argument("--backend", default="openvino", help="openvino or torch")
    parser.add_argument("--threads", type=int, default=1, help="of inference, each process")
    parser.add_argument("--json", type=Path, default=None, help="write the figures here")
    parser.add_argument("--bags", type=Path, default=None, help="folder of left-out recordings")
    parser.add_argument("--suite", choices=["tabletop"], default=None, help="a simulated suite")
    parser.add_argument(
        "--level",
        default="basic",
        help=f"of the suite: {PLAYED_TEXT}; several, separated by commas, give one table",
    )
    parser.add_argument(
        "--pictures",
        type=Path,
        default=None,
        help="folder for example pictures; of the suite: every failure and the first successes",
    )
    parser.add_argument("--episodes", type=int, default=200, help="how many to run")
    parser.add_argument(
        "--planner",
        default="mpc",
        help="mpc; floors: still, random, scripted, and cloning, which follows the proposal of the "
        "bundle without a search; oracle: the simulator itself as the model; "
        "several, separated by commas, give one table",
    )
    parser.add_argument(
        "--goal",
        choices=["state", "image", "clip"],
        default="state",
        help="give the target as numbers, as a picture of the goal, or as a clip of the scripted "
        "reference that does the same task",
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
    parser.add_argument(
        "--safety",
        choices=("none", "risk", "full"),
        default="risk",
        help="of planner mpc: no plan is stopped; it brakes for predicted risk, as the gate would; "
        "or the whole gate, with its limits, and doubt stand between it and the robot "
        "(default: risk)",
    )
    add_bag_arguments(parser)
    add_fidelity_arguments(parser)
    add_alarm_arguments(parser)


def run(args: argparse.Namespace) -> int:
    """Evaluate, print the figures, and write them where asked."""
    if args.bags and args.suite:
        raise WmError("give either --suite or --bags, not both.")
    if args.bags:
        if args.bundle is None:
            raise WmError("--bags needs the --bundle to evaluate.")
        from wm_node.training.bag_evaluation import run_bags

        return run_bags(args)
    if args.bundle is None and not args.suite:
        args.bundle = resource(BUNDLE)
    if sum(map(bool, (args.suite, args.fidelity, args.alarms))) > 1:
        raise WmError("give one of --suite, --fidelity and --alarms.")
    if args.fidelity:
        return run_fidelity(args, _settings(args))
    if args.alarms:
        return run_alarms(args)
    if not args.suite:
        raise WmError("say what to evaluate: --suite tabletop, --bags DIR, --fidelity or --alarms.")
    return _run_suite(args)


def _run_suite(args: argparse.Namespace) -> int:
    from wm_node.sim.levels import bundle_for
    from wm_node.training.suite_evaluation import check_planners, evaluate_suite

    planners, levels = args.planner.split(","), args.level.split(",")
    settings = _settings(args)
    bundles = {level: args.bundle or bundle_for(level, args.goal) for level in levels}
    for level in levels:
        check_planners(planners, level, args.goal, bundles[level], args.backend, settings)
    console = Console(stderr=True)
    rows = []
    with Progress(console=console, disable=not console.is_terminal) as progress:
        for level, planner in product(levels, planners):
            task = progress.add_task(f"{planner}, level {level}", total=args.episodes)
            figures = evaluate_suite(
                planner,
                args.goal,
                bundles[level],
                args.backend,
                args.episodes,
                args.seed,
                workers=args.workers,
                settings=settings,
                on_score=partial(_advance, progress, task),
                level=level,
                pictures=args.pictures,
            )
            rows.append(figures)
    if len(rows) == 1:
        Console().print(_line(rows[0]), soft_wrap=True)
    else:
        table_console().print(_table(rows))
    if args.json is not None:
        several = {"level": args.level, "seed": args.seed, "planners": rows}
        figures = rows[0] if len(rows) == 1 else several
        write_json(args.json, figures)
    return 0


def _advance(progress: Progress, task: TaskID, score: object) -> None:
    progress.advance(task)


def _success(figures: dict[str, Any]) -> str:
    low, high = figures["success_wilson95"]
    return f"{100 * figures['success']:.1f} %, 95 % interval {100 * low:.1f} to {100 * high:.1f}"


def _line(figures: dict[str, Any]) -> str:
    return (
        f"{figures['planner']}, level {figures['level']}, goal by {figures['goal']}, "
        f"seed {figures['seed']}: "
        f"{figures['successes']}/{figures['episodes']} succeeded ({_success(figures)}), "
        f"{figures['violations']} violations, "
        f"{figures['falls']} falls, {figures['zone_entries']} zone entries, "
        f"plan p50 {figures['plan_ms']['p50']} ms, p99 {figures['plan_ms']['p99']} ms"
        + _misread(figures)
        + _stops(figures["gate_stops"])
    )


def _misread(figures: dict[str, Any]) -> str:
    texts = [
        f"the {name} was read {found['median_cm']:.1f} cm off (median; further off than success "
        f"allows in {found['beyond_tolerance']} episodes)"
        for name in ("mug", "goal")
        if (found := figures.get(f"{name}_misread"))
    ]
    return "".join(f"; {text}" for text in texts)


def _stops(seconds: dict[str, float]) -> str:
    if not seconds:
        return ""
    texts = (f"{name} {value:.2f} s" for name, value in seconds.items())
    return f"; an episode's mean time at the gate without a command: {', '.join(texts)}"


def _table(rows: list[dict[str, Any]]) -> Table:
    first = rows[0]
    table = Table(
        title=f"goal by {first['goal']}, seed {first['seed']}, {first['episodes']} episodes each"
    )
    table.add_column("level")
    table.add_column("planner")
    for name in ("succeeded", "95 %", "violations", "falls", "zone", "ticks", "plan p50 ms"):
        table.add_column(name, justify="right")
    for figures in rows:
        low, high = figures["success_wilson95"]
        table.add_row(
            figures["level"],
            figures["planner"],
            str(figures["successes"]),
            f"{100 * low:.1f} to {100 * high:.1f}",
            str(figures["violations"]),
            str(figures["falls"]),
            str(figures["zone_entries"]),
            str(figures["ticks_mean"]),
            str(figures["plan_ms"]["p50"]),
        )
    return table


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
    settings = PlanSettings(config=config, weights=weights, safety=args.safety)
    if args.latency_s is not None:
        settings = replace(settings, latency_s=args.latency_s)
    return settings
