"""``wm label``: pictures of recordings and a file to fill in, for events that no topic told."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

from wm_node.cli.ingest import add_bags
from wm_node.cli.progress import bags_progress
from wm_node.errors import WmError
from wm_node.json_file import write_json
from wm_node.profile import load_profile


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = (
        "Look at the pictures and fill in OUT/labels.csv: from and to in seconds as the pictures "
        "show, nothing where nothing happened; leave the '?' of what you did not look at. Then: "
        "wm ingest BAGS --labels OUT/labels.csv ..."
    )
    add_bags(parser)
    parser.add_argument("--out", type=Path, required=True, help="folder of pictures and labels")
    parser.add_argument(
        "--event",
        action="append",
        default=[],
        metavar="NAME",
        help="of the profile; may be repeated (default: those that the bags do not tell)",
    )
    parser.add_argument("--every", type=float, default=0.5, help="seconds between pictures")
    parser.add_argument("--json", type=Path, default=None, help="write the figures here")


def run(args: argparse.Namespace) -> int:
    """Write a sheet of pictures for each episode, and the file of labels to fill in."""
    # Imported here: --help must not need the bag and array libraries.
    from wm_node.data.contact_sheet import write_time_sheet
    from wm_node.data.event_labels import FILE, write_template
    from wm_node.data.ingest import temporary_dataset
    from wm_node.data.resample import NO_LABEL

    profile = load_profile(args.robot)
    if not profile.events:
        raise WmError(f"the profile '{profile.name}' names no events; add them under 'events'.")
    if unknown := sorted(set(args.event) - set(profile.event_names)):
        known = ", ".join(profile.event_names)
        raise WmError(f"the profile '{profile.name}' has no event '{unknown[0]}', only: {known}.")
    if not 0.05 <= args.every <= 60.0:
        raise WmError("--every must lie between 0.05 and 60 seconds.")
    console = Console()
    try:
        args.out.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise WmError(f"cannot write to {args.out}: {error.strerror}.") from error
    file = args.out / FILE
    if file.exists():
        raise WmError(f"{file} exists already and is kept; choose another --out.")
    with (
        bags_progress(console, "reading") as progress,
        temporary_dataset(
            args.bags,
            profile,
            args.namespace,
            progress=lambda done, total, report: progress(done, total, report.name),
        ) as (dataset, result),
    ):
        begins = {report.name: report.first_frame_ns for report in result.reports}
        told: set[tuple[str, str]] = set()
        for episode in dataset.episodes:
            bag = episode.name.rsplit("#", 1)[0]
            known = dataset.events[episode.start : episode.start + episode.length] != NO_LABEL
            told |= {
                (bag, name)
                for name, there in zip(profile.event_names, known.any(axis=0), strict=True)
                if there
            }
            picture = args.out / f"{episode.name.replace('/', '_')}.png"
            write_time_sheet(dataset, episode, begins[bag], args.every, picture)
        rows = [
            (report.name, name)
            for report in result.reports
            if report.skipped is None
            for name in args.event or profile.event_names
            if args.event or (report.name, name) not in told
        ]
    if not rows:
        raise WmError("the bags tell all events of the profile; name some with --event.")
    write_template(file, rows)
    console.print(
        f"{args.out}: pictures of {len(dataset.episodes)} episodes; fill in {file}, "
        f"then 'wm ingest BAGS --labels {file} ...'",
        soft_wrap=True,
        highlight=False,
    )
    if args.json is not None:
        figures = {"episodes": len(dataset.episodes), "to_label": len(rows), "labels": str(file)}
        write_json(args.json, figures)
    return 0
