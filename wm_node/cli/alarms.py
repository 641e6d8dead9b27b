"""The part of ``wm evaluate`` that ``--alarms`` selects: its arguments and its table."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import Any

from rich.console import Console
from rich.table import Table

from wm_node.cli.progress import counted_progress, table_console
from wm_node.json_file import write_json


def add_alarm_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments that only ``--alarms`` uses."""
    group = parser.add_argument_group("with --alarms")
    group.add_argument(
        "--alarms",
        action="store_true",
        help="are alarms of foreseen risk in time, and rare? Against the last moment at which "
        "braking would have prevented the event, in the simulator",
    )
    group.add_argument(
        "--source",
        choices=("planner", "external"),
        default="planner",
        help="what commands the robot: a planner careless of risk, half of whose targets lie "
        "beyond the edge or in the zone; or others that the model supervises",
    )
    group.add_argument(
        "--overlay", default=None, help="thresholds of 'wm calibrate --risk' (default: profile's)"
    )


def run_alarms(args: argparse.Namespace) -> int:
    """Run ``wm evaluate --bundle B --alarms`` and print the table."""
    from wm_node.bundle import load_bundle
    from wm_node.data.overlay import with_overlay
    from wm_node.training.alarm_figures import figures_of, thresholds_of
    from wm_node.training.alarms import collect_records

    bundle = load_bundle(args.bundle)
    thresholds = thresholds_of(with_overlay(bundle.profile, args.overlay, bundle.sha256))
    console = Console(stderr=True)
    with counted_progress(console, f"episodes, commands of {args.source}") as advance:
        records = collect_records(
            bundle.path,
            args.source,
            args.episodes,
            args.seed,
            thresholds,
            backend=args.backend,
            workers=args.workers,
            advance=advance,
        )
    figures = {
        "bundle_sha256": bundle.sha256,
        "source": args.source,
        "seed": args.seed,
        **figures_of(records, thresholds),
    }
    table_console().print(alarm_table(figures))
    if args.json is not None:
        write_json(args.json, figures)
    return 0


def alarm_table(figures: Mapping[str, Any]) -> Table:
    """Lay the figures out as one table."""
    table = Table(
        title=f"{figures['episodes']} episodes, commands of {figures['source']}, seed "
        f"{figures['seed']}: alarms against the last moment that braking would have helped",
        title_justify="left",
    )
    table.add_column("", no_wrap=True)
    for title in ("value", "95 %", "n"):
        table.add_column(title, justify="right", no_wrap=True)
    for event, part in figures["events"].items():
        threshold = figures["thresholds"][event]
        title = f"{event}: alarmed {figures['lead_s']:g} s before, risk over {threshold:.3f}"
        table.add_row(title, *_shares(part["in_time"]))
        hopeless = part["happened"] - part["preventable"]
        table.add_row("  not preventable, left out", str(hopeless), "", str(part["happened"]))
        if part["lead_s"] is not None:
            low, middle, high = part["lead_s"]
            table.add_row(
                "  first alarm before it, s: median", f"{middle:.2f}", f"{low:.2f} to {high:.2f}*"
            )
    table.add_section()
    table.add_row("harmless episodes without event: alarmed", *_shares(figures["calm"]))
    table.add_row("  reckless ones that ended well: alarmed", *_shares(figures["reckless_calm"]))
    table.add_section()
    guarded = figures["guarded"]
    table.add_row("with the guard: event all the same", *_shares(guarded["still_happened"]))
    table.add_row("  harmless episodes: stopped or slowed", *_shares(guarded["calm_touched"]))
    table.add_row("  harmless episodes with an event then", str(guarded["calm_violated"]), "", "")
    table.caption = "* 10 and 90 % quantile"
    return table


def _shares(part: Mapping[str, Any]) -> tuple[str, str, str]:
    if part["share"] is None:
        return "not measured", "", "0"
    low, high = part["wilson95"]
    return (
        f"{100 * part['share']:.1f} %",
        f"{100 * low:.1f} to {100 * high:.1f}",
        f"{part['count']} of {part['of']}",
    )
