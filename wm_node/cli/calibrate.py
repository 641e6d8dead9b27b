"""``wm calibrate``: delays of a robot, thresholds of foreseen risk, limits of doubt."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from wm_node.cli.progress import bags_progress, counted_progress
from wm_node.errors import WmError
from wm_node.json_file import write_json
from wm_node.profile import load_profile
from wm_node.resources import BUNDLE, resource

if TYPE_CHECKING:
    from wm_node.data.overlay import RobotOverlay


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = (
        "Examples: wm calibrate --delay BAGS --robot my_robot.yaml --out overlay.yaml; "
        "wm calibrate --risk BAGS --bundle B --out overlay.yaml; "
        "wm calibrate --risk --source external --out overlay.yaml; "
        "wm calibrate --doubt BAGS --bundle B --out overlay.yaml."
    )
    what = parser.add_mutually_exclusive_group(required=True)
    what.add_argument(
        "--delay",
        metavar="BAGS",
        nargs="+",
        type=Path,
        help="estimate delays from these bags or folders of bags, in which the robot moves",
    )
    what.add_argument(
        "--risk",
        metavar="BAGS",
        nargs="*",
        type=Path,
        help="find the risk from which the gate stops, so that of the events to come at most "
        "--miss-rate are alarmed too late; from these bags, in which events happened, or without "
        "any from episodes of the simulated table-top",
    )
    what.add_argument(
        "--doubt",
        metavar="BAGS",
        nargs="+",
        type=Path,
        help="find the surprise and the uncertainty from which the robot stops, so that ordinary "
        "work, recorded in these bags, is stopped at most --false-alarms times an hour; what is "
        "usual is kept beside, and the world model says when it holds no more",
    )
    parser.add_argument("--robot", help="of --delay: profile, a path or a shipped name")
    parser.add_argument(
        "--namespace", default="", help="where the profile's topics lie in the bags"
    )
    parser.add_argument("--max-delay", type=float, default=1.0, help="longest delay searched, in s")
    parser.add_argument(
        "--out", type=Path, default=None, help="overlay to write, for '--overlay' and the nodes"
    )
    parser.add_argument(
        "--bundle",
        type=Path,
        default=None,
        help="of --risk and --doubt: whose (default: bundles/tabletop); of --delay: only for this",
    )
    parser.add_argument(
        "--false-alarms", type=float, default=6.0, metavar="N", help="of --doubt: an hour, at most"
    )
    parser.add_argument("--backend", default="openvino", help="openvino or torch")
    risk = parser.add_argument_group("with --risk")
    risk.add_argument(
        "--source",
        choices=("planner", "external"),
        default="planner",
        help="of simulated episodes: the planner commands the robot, or others that it supervises",
    )
    risk.add_argument(
        "--labels", type=Path, default=None, help="of bags: events that a person saw ('wm label')"
    )
    risk.add_argument("--episodes", type=int, default=600, help="to simulate")
    risk.add_argument("--seed", type=int, default=0, help="of the episodes")
    risk.add_argument(
        "--latency-s",
        type=float,
        default=0.1,
        help="of bags: from a frame to its command's effect, as mpc_planner's parameter latency_s",
    )
    risk.add_argument("--miss-rate", type=float, default=0.05, help="share of each event's")
    risk.add_argument("--workers", type=int, default=2, help="parallel processes")
    parser.add_argument("--json", type=Path, default=None, help="write the figures here")


def run(args: argparse.Namespace) -> int:
    """Measure, print a table, and write the overlay where asked."""
    if args.doubt is not None:
        return _run_doubt(args)
    return _run_delay(args) if args.risk is None else _run_risk(args)


def _run_doubt(args: argparse.Namespace) -> int:
    from wm_node.bundle import load_bundle
    from wm_node.data.overlay import RobotOverlay
    from wm_node.training.doubt import calibrate_doubt, stretches_of_bags

    if not 0.0 < args.false_alarms < 1e6:
        raise WmError("--false-alarms must be a positive number.")
    bundle = load_bundle(args.bundle or resource(BUNDLE))
    profile, console = bundle.profile, Console()
    with counted_progress(console, "episodes") as advance:
        stretches = stretches_of_bags(
            bundle.path, args.doubt, args.backend, args.namespace, advance=advance
        )
    found = calibrate_doubt(stretches, bundle.sha256, profile.model.tick_s, args.false_alarms)
    table = Table(
        "signal",
        "stops above",
        "p50",
        "p99",
        "highest",
        title=f"{60 * found.measured['hours']:.1f} minutes of ordinary work; at most "
        f"{args.false_alarms:g} false alarms an hour, with {100 * found.confidence:g} % confidence",
    )
    for name, limit in (
        ("surprise", found.surprise_limit),
        ("uncertainty", found.uncertainty_limit),
    ):
        usual = found.measured[name]
        table.add_row(name, f"{limit:.2f}", *(f"{usual[key]:.2f}" for key in ("p50", "p99", "max")))
    console.print(table)
    _write(args, console, profile.name, RobotOverlay(doubt=found), found.model_dump(mode="json"))
    return 0


def _run_risk(args: argparse.Namespace) -> int:
    from wm_node.bundle import load_bundle
    from wm_node.data.overlay import RiskCalibration, RobotOverlay
    from wm_node.safety.conformal import CONFIDENCE
    from wm_node.training.alarm_figures import conformal_thresholds, thresholds_of

    if not 0.0 < args.miss_rate < 1.0:
        raise WmError("--miss-rate must lie between 0 and 1.")
    if not 0.0 < args.latency_s <= 1.0:
        raise WmError("--latency-s must lie between 0 and 1.")
    bundle = load_bundle(args.bundle or resource(BUNDLE))
    profile, console = bundle.profile, Console()
    thresholds = thresholds_of(profile)
    with counted_progress(console, "episodes") as advance:
        if args.risk:
            from wm_node.training.bag_alarms import records_of_bags

            records = records_of_bags(
                bundle.path,
                args.risk,
                args.latency_s,
                args.backend,
                args.namespace,
                args.labels,
                advance=advance,
            )
        else:
            from wm_node.sim.seeds import CALIBRATION_SEED
            from wm_node.training.alarms import collect_records

            records = collect_records(
                bundle.path,
                args.source,
                args.episodes,
                args.seed,
                thresholds,
                CALIBRATION_SEED,
                args.backend,
                args.workers,
                guarded=False,
                advance=advance,
            )
    source = "bags" if args.risk else args.source
    chosen = conformal_thresholds(records, tuple(thresholds), args.miss_rate)
    table = Table(
        "event",
        "stops above",
        "events",
        "harmless episodes",
        "of these alarmed",
        title=f"Commands of {source}; at most {100 * args.miss_rate:g} % alarmed too late, with "
        f"{100 * CONFIDENCE:g} % confidence",
    )
    for event, figures in chosen.items():
        table.add_row(
            event,
            f"{figures['threshold']:.3f}",
            str(figures["events"]),
            str(figures["calm_episodes"]),
            str(figures["calm_alarmed"]),
        )
    console.print(table)
    calibration = RiskCalibration(
        bundle=bundle.sha256,
        threshold={event: figures["threshold"] for event, figures in chosen.items()},
        miss_rate=args.miss_rate,
        confidence=CONFIDENCE,
        measured={"source": source, "episodes": len(records), "events": chosen},
    )
    _write(
        args,
        console,
        profile.name,
        RobotOverlay(risk=calibration),
        calibration.model_dump(mode="json"),
    )
    return 0


def _run_delay(args: argparse.Namespace) -> int:
    # Imported here: --help must not need the bag and array libraries.
    from wm_node.data.calibration import calibrate_delays

    if not 0.1 <= args.max_delay <= 2.0:
        raise WmError("--max-delay must lie between 0.1 and 2 seconds.")
    if args.robot is None:
        raise WmError("--delay needs the --robot whose bags these are.")
    profile = load_profile(args.robot)
    console = Console()
    with bags_progress(console, "reading") as progress:
        result = calibrate_delays(args.delay, profile, args.namespace, args.max_delay, progress)
    _print(console, result, profile.joints.rate_hz)
    _write(
        args, console, profile.name, result.overlay(_bundle_hash(args.bundle)), result.document()
    )
    return 0


def _write(
    args: argparse.Namespace, console: Console, robot: str, entry: RobotOverlay, document: Any
) -> None:
    """Write the robot's entry of the overlay and the figures, where asked."""
    from wm_node.data.overlay import write_overlay

    if args.out is not None:
        write_overlay(args.out, robot, entry)
        console.print(f"written to {args.out}", highlight=False, soft_wrap=True)
    if args.json is not None:
        write_json(args.json, document)


def _bundle_hash(path: Path | None) -> str | None:
    if path is None:
        return None
    from wm_node.bundle import load_bundle

    return load_bundle(path).sha256


def _print(console: Console, result: Any, rate_hz: float) -> None:
    table = Table(
        "channel",
        "lag s",
        "90 % interval",
        f"frames at {rate_hz:g} Hz",
        "fit",
        "dead time s",
        "time constant s",
        "used as delay s",
        title=f"Delays of {result.robot}: {result.bags} bags, {result.seconds:.0f} s",
    )
    for item in result.channels:
        clear = item.reason is None
        table.add_row(
            item.name,
            f"{item.lag_s:.3f}",
            f"{item.low_s:.3f} to {item.high_s:.3f}",
            f"{item.lag_s * rate_hz:.1f}",
            f"{item.fit:.2f}",
            f"{item.dead_time_s:.3f}" if clear else "",
            f"{item.time_constant_s:.3f}" if clear else "",
            f"{result.delays_s[item.name]:.3f}" if item.name in result.delays_s else "",
            style=None if clear else "dim",
        )
    console.print(table)
    for item in result.channels:
        if item.reason is not None:
            used = f"{result.delays_s[item.name]:.3f} s" if result.delays_s else "nothing"
            console.print(
                f"{item.name}: not identifiable ({item.reason}); the median is used: {used}",
                markup=False,
                soft_wrap=True,
            )
    for item in result.cameras:
        if item.reason is not None:
            text = f"not identifiable ({item.reason})"
        elif item.lag_s < 0:
            text = f"{item.lag_s:.3f} s: frames are stamped after the joints' motion; left at 0"
        else:
            text = f"{item.lag_s:.3f} s ({item.low_s:.3f} to {item.high_s:.3f})"
        console.print(f"latency of camera {item.name}: {text}", markup=False, soft_wrap=True)
    for name, reason in result.skipped.items():
        console.print(f"skipped {name}: {reason}", style="yellow", markup=False, soft_wrap=True)
