"""``wm recover``: repair a bag whose recorder was killed."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn

from wm_node.cli.progress import progress_bar
from wm_node.json_file import write_json
from wm_node.recording.recover import RecoverReport, recover


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "bag", metavar="BAG", type=Path, help="folder of an MCAP bag, or one .mcap file"
    )
    parser.add_argument(
        "--out", metavar="DIR", type=Path, help="folder to write (default: BAG_recovered beside it)"
    )
    parser.add_argument(
        "--in-place", action="store_true", help="replace the damaged files instead of copying"
    )
    parser.add_argument("--json", metavar="FILE", type=Path, help="write the figures as JSON")


def run(args: argparse.Namespace) -> int:
    """Repair the bag and say what was saved; 0 also for a bag that was healthy."""
    columns = (TextColumn("recovering"), BarColumn(), TimeRemainingColumn())
    with progress_bar(Console(stderr=True), columns, None) as update:
        report = recover(
            args.bag,
            args.out,
            args.in_place,
            lambda done, total: update(completed=done, total=total),
        )
    sys.stdout.write(text(report))
    if args.json is not None:
        write_json(args.json, report.document())
    return 0


def text(report: RecoverReport) -> str:
    """Return the report for people."""
    total = sum(report.saved.values())
    if report.healthy:
        return f"{report.bag} is healthy: {total} messages, nothing to repair.\n"
    lines = []
    for file in report.files:
        if file.action != "kept":
            lines.append(f"{file.name}: {file.action}: {'; '.join(file.problems)}")
    if report.metadata_problem is not None:
        lines.append(f"metadata rebuilt: {report.metadata_problem}")
    lines.append(f"saved {total} messages into {report.out}:")
    width = max(len(topic) for topic in report.saved)
    for topic, count in report.saved.items():
        missing = report.missing.get(topic, 0)
        note = f"   ({missing} more were recorded and are lost)" if missing else ""
        lines.append(f"  {topic:<{width}}  {count:>8}{note}")
    lines.append(_lost(report))
    return "\n".join(lines) + "\n"


def _lost(report: RecoverReport) -> str:
    known = f"lost {report.lost_s:.2f} s within the recording"
    if report.open_chunk_s is None:
        return f"{known}, and what the recorder held in memory when it ended"
    if report.open_chunk_s > 0:
        return f"{known}, and at most {report.open_chunk_s:g} s still in memory at its end"
    return known
