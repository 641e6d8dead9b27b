"""The picture of ``wm benchmark --growth``: how times grow with sizes."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path

from matplotlib.backends.backend_agg import FigureCanvasAgg
from matplotlib.figure import Figure

from wm_node.reporting.figures import BLUE, STYLE, save_png

AXES = {
    "candidates": "one rollout, by candidates",
    "horizon_steps": "rollout of 32, by model steps",
    "image_side": "encoding, by pixels a side",
    "robots": "plans of 64 x 3 in turn, by robots",
    "tokens": "plan of 64 x 3, by tokens of a frame",
}
FILE = "growth.png"


def draw_growth(folder: Path, growth: Mapping[str, Sequence[Mapping[str, float]]]) -> Path:
    """Write ``growth.png`` of what :func:`wm_node.planning.timing.time_growth` returns.

    Raises:
        WmError: the folder cannot be written.
    """
    import matplotlib

    with matplotlib.rc_context(STYLE):
        known = {name: title for name, title in AXES.items() if name in growth}
        figure = Figure(figsize=(3.0 * len(known), 3.2), layout="constrained")
        FigureCanvasAgg(figure)
        for axes, (name, title) in zip(figure.subplots(1, len(known)), known.items(), strict=True):
            sizes = [point["size"] for point in growth[name]]
            axes.loglog(sizes, [point["ms"] for point in growth[name]], "o-", color=BLUE, ms=4)
            for point in growth[name]:  # an axis within one decade has no number of its own
                axes.annotate(
                    f"{point['ms']:.3g}",
                    (point["size"], point["ms"]),
                    textcoords="offset points",
                    xytext=(0, 6),
                    ha="center",
                    fontsize=7,
                )
            axes.set_xticks(sizes, [f"{size:g}" for size in sizes])
            axes.minorticks_off()
            axes.set_title(title)
            axes.set_ylabel("ms")
        return save_png(figure, folder / FILE)
