"""``wm ingest``: bags and a robot profile to a dataset."""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.markup import escape
from rich.table import Table

from wm_node.cli.progress import bags_progress
from wm_node.errors import WmError
from wm_node.json_file import write_json
from wm_node.profile import load_profile

SHOWN_SKIPPED = 20


def add_bags(parser: argparse.ArgumentParser) -> None:
    """Declare which bags are read, and of which robot."""
    parser.add_argument(
        "bags",
        metavar="BAGS",
        nargs="+",
        type=Path,
        help="rosbag2 directories, .mcap or .db3 files, or folders that hold them",
    )
    parser.add_argument("--robot", required=True, help="profile: a path or a shipped name")
    parser.add_argument(
        "--namespace", default="", help="where the profile's topics lie in the bags"
    )


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    add_bags(parser)
    parser.add_argument("--out", type=Path, required=True, help="directory of the dataset")
    parser.add_argument(
        "--overlay", type=Path, default=None, help="overlay written by 'wm calibrate --delay'"
    )
    parser.add_argument(
        "--labels", type=Path, default=None, help="events that a person saw, as 'wm label' asks"
    )
    parser.add_argument(
        "--onto",
        metavar="DATASET",
        type=Path,
        default=None,
        help="put the new bags' episodes behind those of this dataset, whose bags need not be read "
        "again; it stays as it is",
    )
    parser.add_argument("--workers", type=int, default=None, help="processes (default: one a CPU)")
    parser.add_argument("--overwrite", action="store_true", help="replace an existing dataset")
    parser.add_argument("--json", type=Path, default=None, help="write the figures here")


def run(args: argparse.Namespace) -> int:
    """Ingest and print a summary; every bag that was skipped is named with the reason."""
    # Imported here: --help must not need the bag and array libraries.
    from wm_node.data.event_labels import load_event_labels
    from wm_node.data.ingest import CONTACT_SHEET, default_workers, ingest
    from wm_node.data.overlay import with_overlay

    profile = with_overlay(load_profile(args.robot), args.overlay)
    workers = default_workers() if args.workers is None else args.workers
    if workers < 1:
        raise WmError("--workers must be at least 1.")
    console = Console()
    began = time.monotonic()
    with bags_progress(console, "ingesting") as progress:
        result = ingest(
            args.bags,
            profile,
            args.out,
            namespace=args.namespace,
            workers=workers,
            overwrite=args.overwrite,
            onto=args.onto,
            labels=None if args.labels is None else load_event_labels(args.labels, profile),
            progress=lambda done, total, report: progress(done, total, report.name),
        )
    figures = {
        **result.summary,
        "dataset": str(result.path),
        "contact_sheet": str(result.path / CONTACT_SHEET),
        "workers": workers,
        "wall_s": round(time.monotonic() - began, 3),
    }
    print_summary(console, figures)
    if args.json is not None:
        write_json(args.json, figures)
    return 0


def print_summary(console: Console, figures: dict[str, Any]) -> None:
    """Print the figures of an ingestion for people."""
    totals = Table(title=f"{figures['dataset']} ({figures['robot']})", show_header=False)
    lost, onto = _counts(figures["ticks_lost"]), figures.get("onto")
    rows = [
        ("bags", f"{figures['bags_used']} of {figures['bags']} used"),
        ("episodes", f"{figures['episodes']}, {figures['hours']:.2f} h, {figures['ticks']} ticks"),
        ("gaps", f"{_counts(figures['gaps'])}; ticks lost: {lost}"),
        *([("onto", f"{onto['episodes']} episodes, {onto['ticks']} ticks")] if onto else []),
        (
            "too short",
            f"{figures['short_segments']} pieces under {figures['minimum_ticks']} ticks dropped",
        ),
        (
            "frames",
            f"missing {_counts(figures['frames_missing'])}; damaged {figures['frames_damaged']}; "
            f"at most {figures['frame_skew_ms']:.1f} ms from their tick",
        ),
        (
            "messages",
            f"{figures['messages_stale']} not newer than the one before, "
            f"{figures['messages_non_finite']} not finite, {figures['messages_unstamped']} "
            "without a stamp",
        ),
        ("contact sheet", figures["contact_sheet"]),
        ("time", f"{figures['wall_s']:.1f} s with {figures['workers']} workers"),
    ]
    for name, text in rows:
        totals.add_row(name, escape(text))
    console.print(totals)
    topics = Table("topic", "type", "messages", "Hz", "bags", title="Topics")
    for name, topic in figures["topics"].items():
        rate = f"{topic['rate_hz']:.1f}"
        topics.add_row(name, topic["type"], str(topic["messages"]), rate, str(topic["bags"]))
    console.print(topics)
    ranges = Table("joint or action", "min", "max", "outside limits", title="Ranges")
    for kind in ("joints", "actions"):
        for name, entry in figures[kind].items():
            outside = "yes" if entry["outside_limits"] else ""
            label = f"{kind[:-1]} {name}"
            ranges.add_row(label, f"{entry['min']:.3f}", f"{entry['max']:.3f}", outside)
    console.print(ranges)
    for name, event in figures["events"].items():
        console.print(f"event {name}: {event['onsets']} times, in {event['bags']} bags")
    for note, count in figures["notes"].items():
        console.print(f"note ({count} bags): {note}", markup=False, soft_wrap=True)
    skipped = list(figures["skipped"].items())
    for name, reason in skipped[:SHOWN_SKIPPED]:
        console.print(f"skipped {name}: {reason}", style="yellow", markup=False, soft_wrap=True)
    if len(skipped) > SHOWN_SKIPPED:
        more = len(skipped) - SHOWN_SKIPPED
        console.print(f"and {more} more skipped; --json FILE names them all", style="yellow")


def _counts(counts: dict[str, int]) -> str:
    parts = [f"{name} {count}" for name, count in counts.items() if count]
    return ", ".join(parts) or "none"
