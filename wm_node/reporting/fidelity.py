"""The picture of ``wm evaluate --fidelity``: reliability, costs, errors over time."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure
from numpy.typing import NDArray

from wm_node.reporting.figures import BLUE, INK, MUTED, RISK_COLOURS, STYLE, save_png

POINTS = 4000  # of the scatter
FILE = "fidelity.png"


def draw_fidelity(
    folder: Path,
    figures: Mapping[str, Any],
    predicted_cost: NDArray[np.floating],
    true_cost: NDArray[np.floating],
) -> Path:
    """Write ``fidelity.png`` and return its path.

    Args:
        folder: is made if it is missing.
        figures: of :func:`wm_node.training.fidelity.evaluate_fidelity`.
        predicted_cost: (N,) of all sequences, and true_cost: (N,).

    Raises:
        WmError: the folder cannot be written.
    """
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(13.0, 4.2), layout="constrained")
        FigureCanvasAgg(figure)
        left, middle, right = figure.subplots(1, 3)
        _reliability(left, figures["risk"])
        _costs(middle, predicted_cost, true_cost)
        _errors(right, figures["mug_error_cm"])
        return save_png(figure, folder / FILE)


def _reliability(axes: Axes, risk: Mapping[str, Any]) -> None:
    axes.plot([0, 1], [0, 1], color=MUTED, ls="--", lw=1)
    for colour, (name, event) in zip(RISK_COLOURS, risk.items(), strict=False):
        if event is None:
            continue
        filled = [item for item in event["bins"] if item["count"]]
        axes.plot(
            [item["predicted"] for item in filled],
            [item["true"] for item in filled],
            color=colour,
            marker="o",
            ms=4,
            label=f"{name}: ECE {event['ece']:.3f}, {event['positives']} of {event['cases']}",
        )
        for item in filled:
            at = (item["predicted"], item["true"])
            axes.annotate(
                str(item["count"]), at, (3, 4), textcoords="offset points", fontsize=6, color=colour
            )
    axes.set(xlabel="predicted risk", ylabel="share that happened", title="Reliability of risk")
    axes.set(xlim=(-0.02, 1.02), ylim=(-0.02, 1.02))
    if axes.get_legend_handles_labels()[0]:
        axes.legend(loc="upper left", fontsize=7)


def _costs(axes: Axes, predicted: NDArray[np.floating], true: NDArray[np.floating]) -> None:
    sound = np.isfinite(predicted) & np.isfinite(true)
    predicted, true = predicted[sound], true[sound]
    step = max(1, -(-len(true) // POINTS))
    axes.scatter(true[::step], predicted[::step], s=3, alpha=0.25, color=BLUE, lw=0)
    axes.set(xlabel="true cost", ylabel="predicted cost", title="Cost of sequences, all states")
    if len(true):
        ends = [float(min(true.min(), predicted.min())), float(max(true.max(), predicted.max()))]
        axes.plot(ends, ends, color=MUTED, ls="--", lw=1)


def _errors(axes: Axes, errors: Mapping[str, Any]) -> None:
    entries: Sequence[Mapping[str, Any]] = errors["steps"]
    for parts, style, of in (
        (entries, "--", "all"),
        ([entry["moved"] for entry in entries], "-", "mug moved"),
    ):
        for name, colour in (("model", BLUE), ("copy_last", INK)):
            known = [
                (entry["seconds"], part[name]["mean"])
                for entry, part in zip(entries, parts, strict=True)
                if part[name] is not None and part[name]["mean"] is not None
            ]
            if known:
                label = f"{name.replace('_', ' ')}, {of}"
                axes.plot(*zip(*known, strict=True), color=colour, ls=style, lw=1.4, label=label)
    reading = errors["reading_now"]
    if reading is not None and reading["mean"] is not None:
        axes.axhline(reading["mean"], color=MUTED, lw=1, ls=":", label="reading of the present")
    axes.set(xlabel="s ahead", ylabel="cm", title="Error of the mug, mean", ylim=(0, None))
    axes.legend(loc="upper left", fontsize=7)
