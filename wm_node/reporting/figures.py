"""Pictures and charts as text that can stand inside an HTML page."""

from __future__ import annotations

import base64
import io
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from matplotlib.axes import Axes
from matplotlib.backends.backend_svg import FigureCanvasSVG
from matplotlib.figure import Figure
from numpy.typing import NDArray
from PIL import Image

from wm_node.errors import WmError
from wm_node.reporting.hindsight import Moment, StepScores
from wm_node.reporting.run_log import Series

INK = "#1f2933"
MUTED = "#8a97a6"
GRID = "#e6ebf0"
BLUE = "#2f6fdb"
RED = "#d64545"
AMBER = "#e8a33d"
GREEN = "#2f9e6b"
VIOLET = "#7a5cc4"
RISK_COLOURS = (RED, AMBER, VIOLET, BLUE, GREEN)

# Colour of each kind of gate state; anything else is drawn as a hold.
STATE_COLOURS = {"PASS": GREEN, "LIMIT": AMBER, "BRAKE": RED, "HOLD": MUTED}

STYLE = {
    "font.family": ["DejaVu Sans"],
    "font.size": 8.5,
    "axes.edgecolor": "#c3ccd6",
    "axes.labelcolor": INK,
    "axes.titlesize": 9,
    "axes.grid": True,
    "axes.axisbelow": True,
    "axes.spines.top": False,
    "axes.spines.right": False,
    "grid.color": GRID,
    "text.color": INK,
    "xtick.color": MUTED,
    "ytick.color": MUTED,
    "svg.fonttype": "none",
    "svg.hashsalt": "wm_node",
    "legend.frameon": False,
}


def save_png(figure: Figure, path: Path) -> Path:
    """Write a figure, its folder too if that is missing, and return the path.

    Raises:
        WmError: it cannot be written.
    """
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        figure.savefig(path, dpi=130, metadata={"Software": None})
    except OSError as error:
        raise WmError(f"cannot write {path}: {error.strerror or error}.") from error
    return path


def _chart(width: float, height: float, rows: int = 1, **options: Any) -> tuple[Figure, list[Axes]]:
    """Make a figure without pyplot: no global state, no display."""
    import matplotlib

    with matplotlib.rc_context(STYLE):
        figure = Figure(figsize=(width, height), layout="constrained")
        FigureCanvasSVG(figure)
        axes = figure.subplots(rows, 1, squeeze=False, sharex=rows > 1, **options)
    return figure, [row[0] for row in axes]


def _svg(figure: Figure) -> str:
    import matplotlib

    buffer = io.StringIO()
    with matplotlib.rc_context(STYLE):
        figure.savefig(buffer, format="svg", transparent=True, metadata={"Date": None})
    text = buffer.getvalue()
    return text[text.index("<svg") :]


def picture(
    image: NDArray[np.uint8], width: int, quality: int = 82, aspect: float | None = None
) -> str:
    """Return RGB pixels as a ``data:`` URI of a JPEG.

    Args:
        image: uint8 (H, W, 3).
        width: in pixels, to scale to.
        quality: of the JPEG.
        aspect: width over height to stretch to; None keeps the image's own.
    """
    frame = Image.fromarray(image)
    height = round(width / (aspect or frame.width / frame.height))
    if (width, height) != frame.size:
        frame = frame.resize((width, height), Image.Resampling.LANCZOS)
    buffer = io.BytesIO()
    frame.save(buffer, format="JPEG", quality=quality)
    return "data:image/jpeg;base64," + base64.b64encode(buffer.getvalue()).decode("ascii")


Rectangle = tuple[float, float, float, float]  # x_min, x_max, y_min, y_max


def table_map(
    table: Rectangle,
    zone: Rectangle | None,
    goal: tuple[float, float],
    tolerance: float,
    path: Series,
    tip: Series | None,
) -> str:
    """Draw the table from above: the object's path, the tool's path, target and no-go zone.

    Args:
        table, zone: rectangles in m; goal: (x, y) in m; tolerance: m.
        path: object positions (N, 2); tip: tool positions (M, 2) or None.

    Returns:
        SVG text.
    """
    margin = 0.05
    low_x, high_x, low_y, high_y = table
    view = (low_x - margin, -(high_y + margin), high_x - low_x + 2 * margin, 0.0)
    height = high_y - low_y + 2 * margin
    parts = [
        f'<svg viewBox="{view[0]:.3f} {view[1]:.3f} {view[2]:.3f} {height:.3f}" '
        'class="map" role="img" aria-label="table from above">',
        _rectangle(table, "#efe7da", "#cbbfa9"),
    ]
    if zone is not None:
        parts.append(_rectangle(zone, "#f3c4c4", RED))
    parts.append(
        f'<circle cx="{goal[0]:.4f}" cy="{-goal[1]:.4f}" r="{tolerance:.4f}" fill="{GREEN}33" '
        f'stroke="{GREEN}" stroke-width="0.004"/>'
    )
    if tip is not None and tip.stamps.size:
        parts.append(_polyline(tip.values, MUTED, 0.0025, dashed=True))
    if path.stamps.size:
        parts.append(_polyline(path.values, BLUE, 0.006))
        for (x, y), fill in ((path.values[0], "#ffffff"), (path.values[-1], BLUE)):
            parts.append(
                f'<circle cx="{x:.4f}" cy="{-y:.4f}" r="0.012" fill="{fill}" '
                f'stroke="{BLUE}" stroke-width="0.005"/>'
            )
    parts.append("</svg>")
    return "".join(parts)


def _rectangle(bounds: Rectangle, fill: str, stroke: str) -> str:
    low_x, high_x, low_y, high_y = bounds
    return (
        f'<rect x="{low_x:.4f}" y="{-high_y:.4f}" width="{high_x - low_x:.4f}" '
        f'height="{high_y - low_y:.4f}" rx="0.006" fill="{fill}" stroke="{stroke}" '
        'stroke-width="0.003"/>'
    )


def _polyline(points: NDArray[np.float64], colour: str, width: float, dashed: bool = False) -> str:
    shown = points[:: max(1, len(points) // 200)]
    text = " ".join(f"{x:.4f},{-y:.4f}" for x, y in shown)
    dash = ' stroke-dasharray="0.008 0.006"' if dashed else ""
    return (
        f'<polyline points="{text}" fill="none" stroke="{colour}" stroke-width="{width}" '
        f'stroke-linejoin="round" stroke-linecap="round"{dash}/>'
    )


def distance_and_risk(
    zero_ns: int,
    seconds: float,
    distance: Series,
    tolerance: float,
    risks: dict[str, Series],
    thresholds: dict[str, float],
) -> str:
    """Chart one episode: distance to the target above, predicted risk below."""
    rows = 2 if risks else 1
    figure, axes = _chart(8.6, 2.3 if risks else 1.4, rows)
    top = axes[0]
    top.axhspan(0, 100 * tolerance, color=GREEN, alpha=0.15, lw=0)
    top.plot(distance.seconds(zero_ns), 100 * distance.values[:, 0], color=BLUE, lw=1.6)
    top.set(ylabel="to target, cm", xlim=(0, seconds), ylim=(0, None))
    if risks:
        _risk_lines(axes[1], zero_ns, risks, thresholds)
        axes[1].legend(loc="upper right", ncols=3, fontsize=7.5)
    axes[-1].set_xlabel("s")
    return _svg(figure)


def _risk_lines(
    axes: Axes, zero_ns: int, risks: dict[str, Series], thresholds: dict[str, float]
) -> None:
    for colour, (name, risk) in zip(RISK_COLOURS, risks.items(), strict=False):
        axes.plot(risk.seconds(zero_ns), risk.values[:, 0], color=colour, lw=1.2, label=name)
        if name in thresholds:
            axes.axhline(thresholds[name], color=colour, lw=0.8, ls=":")
    axes.set(ylabel="risk", ylim=(-0.02, 1.02))


def timeline(
    zero_ns: int,
    seconds: float,
    gate: Sequence[tuple[float, float, str]],
    risks: dict[str, Series],
    thresholds: dict[str, float],
    shares: dict[str, Series],
    episodes: Sequence[tuple[float, float, str]],
) -> str:
    """Chart the whole run: the gate's state as a band, risk, surprise and uncertainty.

    Args:
        zero_ns: stamp of second 0.
        seconds: length of the run.
        gate: (from_s, to_s, state) spans.
        risks: by event; thresholds likewise.
        shares: surprise and uncertainty, as shares of their limits.
        episodes: (from_s, to_s, colour) spans.
    """
    heights = [0.4] * bool(gate) + [1.0] * (bool(risks) + bool(shares))
    figure, axes = _chart(
        10.4, 0.35 + 1.25 * sum(heights), len(heights), gridspec_kw={"height_ratios": heights}
    )
    left = list(axes)
    if gate:
        band = left.pop(0)
        for start, end, state in gate:
            band.barh(0, end - start, left=start, height=1.0, color=STATE_COLOURS.get(state, MUTED))
        band.set(yticks=[], ylim=(-0.5, 0.5), ylabel="gate")
        band.grid(visible=False)
    charts = list(left)
    if risks:
        chart = left.pop(0)
        _risk_lines(chart, zero_ns, risks, thresholds)
        chart.legend(loc="upper right", ncols=5, fontsize=7.5)
    if shares:
        chart = left.pop(0)
        for (name, share), colour in zip(shares.items(), (VIOLET, BLUE), strict=False):
            chart.plot(share.seconds(zero_ns), share.values[:, 0], color=colour, lw=1.0, label=name)
        chart.axhline(1.0, color=MUTED, lw=0.8, ls=":")
        chart.set(ylabel="share of limit", ylim=(0, None))
        chart.legend(loc="upper right", ncols=5, fontsize=7.5)
    for start, end, colour in episodes:
        for axis in charts:
            axis.axvspan(start, end, color=colour, alpha=0.07, lw=0)
    axes[-1].set(xlabel="s", xlim=(0, max(seconds, 0.1)))
    return _svg(figure)


def histogram(samples: dict[str, NDArray[np.float64]], deadline_ms: float | None) -> str:
    """Chart distributions of durations in ms, with a vertical line at the deadline."""
    figure, (axes,) = _chart(5.0, 2.3)
    largest = max(float(np.percentile(values, 99.8)) for values in samples.values())
    edges = np.linspace(0.0, max(1.15 * largest, 1.0), 48)
    for colour, (name, values) in zip((BLUE, AMBER, VIOLET), samples.items(), strict=False):
        axes.hist(
            np.minimum(values, edges[-1]), edges.tolist(), color=colour, alpha=0.65, label=name
        )
    if deadline_ms is not None and deadline_ms < 1.6 * edges[-1]:
        axes.axvline(deadline_ms, color=RED, lw=1.0, ls="--", label="deadline")
    axes.set(xlabel="ms", ylabel="cycles", xlim=(0, None))
    axes.legend(loc="upper right", fontsize=7.5)
    return _svg(figure)


def step_scores(scores: StepScores, unit: str) -> str:
    """Chart prediction errors by time ahead beside their floors."""
    figure, axes = _chart(5.0, 3.3, 2)
    joints, frames = axes
    joints.plot(scores.seconds, scores.joint_rmse_hold, color=MUTED, ls="--", label="hold last")
    joints.plot(scores.seconds, scores.joint_rmse, color=BLUE, marker="o", ms=3, label="model")
    joints.set(ylabel=f"joint RMSE, {unit}", ylim=(0, None))
    joints.legend(fontsize=7.5)
    frames.plot(scores.seconds, scores.psnr_copy, color=MUTED, ls="--", label="copy last")
    frames.plot(scores.seconds, scores.psnr, color=BLUE, marker="o", ms=3, label="model")
    frames.set(ylabel="PSNR, dB", xlabel="s ahead")
    frames.legend(fontsize=7.5)
    return _svg(figure)


def joint_traces(moment: Moment, names: Sequence[str], step_s: float, unit: str) -> str:
    """Chart the most moving joints of one moment: predicted against real."""
    moved = np.ptp(np.vstack([moment.joints_now[None], moment.joints_real]), axis=0)
    chosen = np.argsort(-moved)[:3]
    seconds = step_s * np.arange(moment.joints_real.shape[0] + 1)
    figure, (axes,) = _chart(5.0, 2.3)
    for colour, joint in zip((BLUE, AMBER, VIOLET), chosen, strict=False):
        real = [moment.joints_now[joint], *moment.joints_real[:, joint]]
        imagined = [moment.joints_now[joint], *moment.joints_predicted[:, joint]]
        axes.plot(seconds, real, color=colour, lw=1.6, label=names[joint])
        axes.plot(seconds, imagined, color=colour, lw=1.2, ls="--")
    axes.set(xlabel="s ahead (dashed: imagined)", ylabel=unit)
    axes.legend(fontsize=7.5)
    return _svg(figure)
