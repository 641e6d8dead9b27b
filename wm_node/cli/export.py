"""``wm export``: a bundle's graphs again from its weights, as this version plans."""

from __future__ import annotations

import argparse
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING

from rich.console import Console

if TYPE_CHECKING:
    from wm_node.bundle import Bundle

EPILOG = """
A bundle never changes. After an update of wm_node that plans with graphs that an older bundle does
not hold, this writes a new one with the same weights: nothing is trained again.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = EPILOG
    parser.add_argument("--bundle", type=Path, required=True, help="what 'wm train' wrote")
    parser.add_argument("--out", type=Path, required=True, help="the new bundle")
    parser.add_argument(
        "--dataset",
        type=Path,
        default=None,
        help="what it was trained on ('wm ingest'): fit anew which frames are familiar, "
        "and where the pushed object may be",
    )
    parser.add_argument("--json", type=Path, default=None, help="write the figures here")


def _attachments(dataset: Path | None, bundle: Bundle) -> dict[str, Callable[[Path], None]]:
    """Fit what is fitted to a dataset and not trained."""
    if dataset is None:
        return {}
    from wm_node.data.dataset import Dataset
    from wm_node.errors import WmError
    from wm_node.training.fitted import fitted_files

    opened = Dataset.open(dataset)
    trained = bundle.manifest.get("data", {}).get("fingerprint")
    if opened.fingerprint != trained:
        raise WmError(f"{dataset} is not what the bundle {bundle.path} was trained on.")
    return fitted_files(opened)


def run(args: argparse.Namespace) -> int:
    """Write the new bundle."""
    from wm_node.bundle import load_bundle
    from wm_node.json_file import write_json
    from wm_node.model.export import export_again

    console = Console(stderr=True, highlight=False)
    old = load_bundle(args.bundle)
    with console.status("tracing the graphs"):
        new = export_again(old, args.out, _attachments(args.dataset, old))
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
