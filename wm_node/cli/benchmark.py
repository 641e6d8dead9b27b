"""``wm benchmark``: how long plans take here, and how that stands to the machine's floor."""

from __future__ import annotations

import argparse
import tempfile
from collections.abc import Mapping
from dataclasses import replace
from itertools import count
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeRemainingColumn
from rich.table import Table

from wm_node.bundle import PRESETS, Bundle, load_bundle
from wm_node.cli.progress import progress_bar
from wm_node.errors import WmError
from wm_node.json_file import write_json
from wm_node.machine import machine_name
from wm_node.resources import BUNDLE, resource

if TYPE_CHECKING:
    from wm_node.planning.planner import PlannerConfig
    from wm_node.profile import RobotProfile

SEARCHES = {name.removeprefix("plan_"): size for name, size in PRESETS.items()}
"""Searches that bundles hold as one graph each."""

EPILOG = """
The floor of a call is the longer of two times: its matrix products and convolutions at the rate of
one large product in the engine's precision, and its weights at the rate of one large copy. Both are
measured in the same run, with the same threads. Time on an idle machine; what else runs shows in
p99.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.epilog = EPILOG
    parser.add_argument("--bundle", type=Path, default=resource(BUNDLE), help="what plans")
    parser.add_argument("--backend", default="openvino", help="as 'wm evaluate --backend'")
    parser.add_argument("--threads", type=int, default=1, help="of inference")
    parser.add_argument(
        "--preset",
        action="append",
        choices=list(SEARCHES),
        help="size of the search; may be repeated (default: fast and normal)",
    )
    parser.add_argument("--plans", type=int, default=500, help="timed calls of each")
    parser.add_argument(
        "--growth",
        type=Path,
        default=None,
        metavar="DIR",
        help="also time other sizes (candidates, horizon, image, robots, tokens of a frame) and "
        "draw them there",
    )
    parser.add_argument(
        "--parity",
        type=int,
        default=0,
        metavar="STATES",
        help="also plan in so many states of the simulated table-top, with the same noise as torch "
        "in fp32, and say how much more the backend's plans cost",
    )
    parser.add_argument("--json", type=Path, default=None, help="write the figures here")


def run(args: argparse.Namespace) -> int:
    """Time the bundle and print a table."""
    from wm_node.planning.planner import PlannerConfig
    from wm_node.planning.timing import WARM_UP, time_bundle

    if not 1 <= args.plans <= 1_000_000:
        raise WmError("--plans must lie within 1 and 1000000.")
    if not 1 <= args.threads <= 1024:
        raise WmError("--threads must lie within 1 and 1024.")
    if not 0 <= args.parity <= 100_000:
        raise WmError("--parity must lie within 0 and 100000 states.")
    bundle = load_bundle(args.bundle)
    presets = {
        name: PlannerConfig(SEARCHES[name].candidates, SEARCHES[name].iterations)
        for name in args.preset or ("fast", "normal")
    }
    total, done = (1 + len(presets)) * (1 + WARM_UP + args.plans), count(1)
    columns = (TextColumn("timing"), BarColumn(), TimeRemainingColumn())
    with progress_bar(Console(stderr=True), columns, total) as update:
        figures = time_bundle(
            bundle,
            args.backend,
            args.threads,
            presets,
            args.plans,
            lambda: update(completed=next(done)),
        )
    if args.growth is not None:
        figures["growth"] = _growth(args, bundle)
    if args.parity:
        figures["parity"] = {
            name: _parity(args, bundle, config) for name, config in presets.items()
        }
    figures |= {
        "bundle": str(bundle.path),
        "bundle_sha256": bundle.sha256,
        "machine": machine_name(),
    }
    shown = Console(width=110)
    shown.print(_table(figures))
    for name, parity in figures.get("parity", {}).items():
        compared = parity[args.backend]
        shown.print(
            f"plan {name}: of {parity['states']} states, {100 * compared['within']:.1f} % of its "
            f"plans cost at most 1 % more than those of torch in fp32; mean excess "
            f"{100 * compared['mean']:.2f} %."
        )
    if args.json is not None:
        write_json(args.json, figures)
    return 0


def _parity(args: argparse.Namespace, bundle: Bundle, config: PlannerConfig) -> dict[str, Any]:
    from wm_node.training.parity import compare_choices

    columns = (TextColumn("comparing choices"), BarColumn(), TimeRemainingColumn())
    with progress_bar(Console(stderr=True), columns, args.parity) as update:
        return compare_choices(
            bundle.path,
            [args.backend],
            config,
            states=args.parity,
            advance=lambda done, total: update(completed=done),
        )


def _growth(args: argparse.Namespace, bundle: Bundle) -> dict[str, Any]:
    from wm_node.model.export import untrained_bundle
    from wm_node.planning.timing import SIZES, time_growth
    from wm_node.reporting.benchmark import draw_growth

    def variant(profile: RobotProfile, path: Path, tokens: int | None = None) -> Bundle:
        config = bundle.model
        if tokens is None:
            return untrained_bundle(profile, path, config=config, searches={})
        config = replace(config, tokens=tokens, latent=tokens * config.latent // config.tokens)
        search = {"plan_fast": PRESETS["plan_fast"]}
        return untrained_bundle(profile, path, config=config, searches=search)

    columns = (TextColumn("growing"), BarColumn(), TimeRemainingColumn())
    done = count(1)
    with (
        tempfile.TemporaryDirectory() as folder,
        progress_bar(Console(stderr=True), columns, SIZES) as update,
    ):
        growth: dict[str, Any] = dict(
            time_growth(
                bundle,
                args.backend,
                args.threads,
                variant,
                Path(folder),
                lambda: update(completed=next(done)),
            )
        )
    growth["picture"] = str(draw_growth(args.growth, growth))
    return growth


def _table(figures: Mapping[str, Any]) -> Table:
    table = Table(
        title=f"{figures['backend']}, {figures['threads']} thread(s); "
        f"{figures['gemm_flop_s'] / 1e9:.0f} GFLOP/s, {figures['copy_bytes_s'] / 1e9:.1f} GB/s"
    )
    for name in ("", "MFLOP", "floor ms", "p50 ms", "p99 ms", "first ms", "p50 / floor"):
        table.add_column(name, justify="right" if name else "left")
    rows = {"encode": figures["encode"]}
    for name, plan in figures["plans"].items():
        how = "one call" if plan["one_call"] else "by rollouts"
        rows[f"plan {name}, {plan['candidates']} x {plan['iterations']}, {how}"] = plan
    for name, row in rows.items():
        table.add_row(
            name,
            f"{row['flop'] / 1e6:.0f}",
            f"{row['floor_ms']:.2f}",
            f"{row['p50_ms']:.1f}",
            f"{row['p99_ms']:.1f}",
            f"{row['first_ms']:.1f}",
            f"{row['over_floor']:.1f}",
        )
    return table
