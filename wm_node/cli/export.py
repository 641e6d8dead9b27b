"""``wm export``: a bundle's graphs again from its weights, as this version plans."""

from __future__ import annotations

import argparse
from pathlib import Path

from rich.console import Console

EPILOG = """
A bundle never changes. After an update of wm_node that plans with graphs that an older bundle does
not hold, this writes a new one with the same weights: nothing is trained again.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = EPILOG
    parser.add_argument("--bundle", type=Path, required=True, help="what 'wm train' wrote")
    parser.add_argument("--out", type=Path, required=True, help="the new bundle")
    parser.add_argument("--json", type=Path, default=None, help="write the figures here")


def run(args: argparse.Namespace) -> int:
    """Write the new bundle."""
    from wm_node.bundle import load_bundle
    from wm_node.json_file import write_json
    from wm_node.model.export import export_again

    console = Console(stderr=True, highlight=False)
    old = load_bundle(args.bundle)
    with console.status("tracing the graphs"):
        new = export_again(old, args.out)
    console.print(f"{new.path}: {len(new.graphs)} graphs, sha256 {new.sha256[:12]}")
    if args.json is not None:
        figures = {
            "bundle": str(new.path),
            "bundle_sha256": new.sha256,
            "exported_from": old.sha256,
            "graphs": sorted(new.graphs),
        }
        write_json(args.json, figures)
    return 0
