"""``wm calibrate --delay``: how long commands take to act and frames to arrive, from bags."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table

from wm_node.cli.progress import bags_progress
from wm_node.errors import WmError
from wm_node.json_file import write_json
from wm_node.profile import load_profile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--delay",
        metavar="BAGS",
        nargs="+",
        type=Path,
        required=True,
        help="estimate delays from these bags or folders of bags, in which the robot moves",
    )
    parser.add_argument("--robot", required=True, help="profile: a path or a shipped name")
    parser.add_argument(
        "--namespace", default="", help="where the profile's topics lie in the bags"
    )
    parser.add_argument("--max-delay", type=float, default=1.0, help="longest delay searched, in s")
    parser.add_argument(
        "--out", type=Path, default=None, help="overlay to write, for '--delays' and the nodes"
    )
    parser.add_argument(
        "--bundle", type=Path, default=None, help="key the overlay to this bundle as well"
    )
    parser.add_argument("--json", type=Path, default=None, help="write the figures here")


def run(args: argparse.Namespace) -> int:
    """Measure, print a table, and write the overlay where asked."""
    # Imported here: --help must not need the bag and array libraries.
    from wm_node.data.calibration import calibrate_delays
    from wm_node.data.overlay import write_overlay

    if not 0.1 <= args.max_delay <= 2.0:
        raise WmError("--max-delay must lie between 0.1 and 2 seconds.")
    profile = load_profile(args.robot)
    console = Console()
    with bags_progress(console, "reading") as progress:
        result = calibrate_delays(args.delay, profile, args.namespace, args.max_delay, progress)
    _print(console, result, profile.joints.rate_hz)
    if args.out is not None:
        write_overlay(args.out, profile.name, result.overlay(_bundle_hash(args.bundle)))
        console.print(f"written to {args.out}", highlight=False, soft_wrap=True)
    if args.json is not None:
        write_json(args.json, result.document())
    return 0


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
