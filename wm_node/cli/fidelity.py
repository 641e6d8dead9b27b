"""The part of ``wm evaluate`` that ``--fidelity`` selects: its arguments and its table."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.table import Table

from wm_node.cli.progress import counted_progress, table_console
from wm_node.errors import WmError
from wm_node.json_file import write_json

if TYPE_CHECKING:
    from wm_node.training.policies import PlanSettings

STEPS = (1, 4, 8, 16)
"""Model steps ahead that the table shows."""


def add_fidelity_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments that only ``--fidelity`` uses."""
    group = parser.add_argument_group("with --fidelity")
    group.add_argument(
        "--fidelity",
        action="store_true",
        help="compare imagined futures with the simulator's, in states of unseen episodes",
    )
    group.add_argument("--states", type=int, default=200, help="how many")
    group.add_argument("--sequences", type=int, default=64, help="of actions, in each state")
    group.add_argument(
        "--uncertainty-weight",
        type=float,
        default=0.1,
        help="of the plans that are compared with those that do not mind uncertainty",
    )


def run_fidelity(args: argparse.Namespace, plan: PlanSettings) -> int:
    """Run ``wm evaluate --bundle B --fidelity`` and print the table."""
    from wm_node.training.fidelity import Settings, evaluate_fidelity

    if args.goal == "clip":
        raise WmError("--fidelity compares futures by one goal: use --goal state or image.")
    console = Console(stderr=True)
    with counted_progress(console, "comparing with the simulator") as advance:
        result = evaluate_fidelity(
            args.bundle,
            args.backend,
            args.goal,
            args.states,
            args.seed,
            args.workers,
            args.threads,
            Settings(args.sequences, args.uncertainty_weight, plan),
            advance=advance,
        )
    figures = dict(result.figures)
    if args.pictures is not None:
        import numpy as np

        from wm_node.reporting.fidelity import draw_fidelity

        figures["picture"] = str(
            draw_fidelity(
                args.pictures,
                figures,
                np.concatenate([record.shared for record in result.records]),
                np.concatenate([record.cost.true for record in result.records]),
            )
        )
    table_console().print(fidelity_table(figures))
    if args.json is not None:
        write_json(args.json, figures)
    return 0


def fidelity_table(figures: Mapping[str, Any]) -> Table:
    """Lay the figures out as one table."""
    table = Table(
        title=f"{figures['states']} states x {figures['sequences']} sequences, goal by "
        f"{figures['goal']}, seed {figures['seed']}: imagined against simulated",
        title_justify="left",
    )
    table.add_column("", no_wrap=True)
    for title in ("value", "beside", "n"):
        table.add_column(title, justify="right", no_wrap=True)
    ranks = figures["spearman"]
    for key, title in (
        ("cost", "rank correlation of cost, median"),
        ("goal_where_mug_moved", "  of its goal term, where the mug moves"),
    ):
        part = ranks[key]
        beside = "" if part["median"] is None else "({:.3f} to {:.3f})".format(*part["quartiles"])
        table.add_row(title, _text(part["median"], 3), beside, str(part["states"]))
    table.add_section()
    errors = figures["mug_error_cm"]
    reading = errors["reading_now"]
    table.add_row(
        "mug error now, as read (median), cm", *_centimetres(reading), str(figures["states"])
    )
    steps = {entry["step"]: entry for entry in errors["steps"]}
    for step in STEPS:
        entry = steps.get(step)
        if entry is None:
            table.add_row(f"mug error after {step} steps", "not measured", "", "")
            continue
        for title, part, count in (
            (f"mug error after {step} steps, cm; copy-last", entry, entry["sequences"]),
            ("  where the mug moved", entry["moved"], entry["moved"]["sequences"]),
        ):
            model, copied = (_centimetres(part[name])[0] for name in ("model", "copy_last"))
            table.add_row(title, model, copied, str(count))
    table.add_section()
    for name, event in figures["risk"].items():
        if event is None:
            table.add_row(f"risk of {name}", "not measured", "", "")
            continue
        positives = f"{event['positives']} of {event['cases']}"
        states = f"in {event['positive_states']} states"
        base = f"{event['brier_base_rate']:.4f} base rate"
        table.add_row(f"risk of {name}: calibration error", _text(event["ece"], 4), "", positives)
        table.add_row("  Brier score", _text(event["brier"], 4), base, "")
        table.add_row("  AUROC", _text(event["auroc"], 3), "", states)
    table.add_section()
    exploited = figures["exploitation"]
    table.add_row(
        "true less predicted cost: sampled",
        *_with_interval(exploited["sampled_gap"]),
        str(figures["states"]),
    )
    for item in exploited["chosen"]:
        weight = item["uncertainty_weight"]
        table.add_row(
            f"  chosen plans, uncertainty weight {weight:g}",
            *_with_interval(item["gap"]),
            str(figures["states"]),
        )
        table.add_row("    true cost", *_with_interval(item["true_cost"]), "")
        table.add_row(
            "    mug to goal, cm; predicted",
            _text(item["true_distance_cm"]["mean"], 2),
            _text(item["predicted_distance_cm"]["mean"], 2),
            "",
        )
    table.add_section()
    recovery = figures["action_recovery"]
    if recovery is None:
        table.add_row("actions recovered, R2", "not measured", "", "")
    else:
        table.add_row(
            "actions from imagined latents, R2; observed",
            _text(recovery["imagined_r2"], 3),
            _text(recovery["observed_r2"], 3),
            str(recovery["transitions"]),
        )
    return table


def _text(value: float | None, digits: int) -> str:
    return "-" if value is None else f"{value:.{digits}f}"


def _centimetres(part: Mapping[str, Any] | None) -> tuple[str, str]:
    if part is None:
        return "-", ""
    return _text(part["mean"], 2), f"({_text(part['median'], 2)})"


def _with_interval(part: Mapping[str, Any]) -> tuple[str, str]:
    interval = part["mean_95"]
    return _text(part["mean"], 3), "" if interval is None else "{:.3f} to {:.3f}".format(*interval)
