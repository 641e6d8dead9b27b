"""Fills the figures and the picture of the README from real runs, so that none is typed by hand.

python -m wm_node.reporting.readme --demo wm_demo --suite mpc_state.json mpc_image.json
"""

from __future__ import annotations

import argparse
import json
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import matplotlib
import numpy as np
from numpy.typing import NDArray
from PIL import Image, ImageDraw, ImageFont

from wm_node.bundle import load_bundle
from wm_node.engine import load_engine
from wm_node.errors import WmError
from wm_node.planning.world_model import WorldModel
from wm_node.reporting.hindsight import Moment, look_back
from wm_node.reporting.run_log import NS, RunLog, nearest_stamp, read_frames, read_run
from wm_node.sim.level_names import LEVEL_NAMES

BEGIN, END = "<!-- figures:begin -->", "<!-- figures:end -->"
WIDTH, GAP, LABEL = 1200, 6, 92
STRIP = 6
INK, PAPER = (31, 41, 51), (255, 255, 255)

Picture = NDArray[np.uint8]


def main(argv: Sequence[str] | None = None) -> int:
    """Rewrite the README's figures and draw its picture; 1 with a sentence on a fault."""
    parser = argparse.ArgumentParser(prog="readme", description=main.__doc__)
    parser.add_argument("--demo", type=Path, required=True, help="folder that 'wm demo' wrote")
    parser.add_argument("--bundle", type=Path, help="its bundle, to draw what it imagined")
    parser.add_argument("--suite", type=Path, nargs="*", default=[], help="of 'wm evaluate --json'")
    parser.add_argument("--readme", type=Path, default=Path("README.md"))
    parser.add_argument("--picture", type=Path, default=Path("docs/images/demo.jpg"))
    args = parser.parse_args(argv)
    try:
        summary = _read_json(args.demo / "summary.json")
        suites = [_read_json(path) for path in args.suite]
        replace_figures(args.readme, figures_text(summary, suites))
        if args.bundle is not None:
            draw_picture(args.picture, args.demo / "bag", args.bundle, summary)
    except WmError as error:
        sys.stderr.write(f"readme: {error}\n")
        return 1
    return 0


def _read_json(path: Path) -> dict[str, Any]:
    try:
        data = json.loads(path.read_text(encoding="utf-8"))
    except (OSError, ValueError) as error:
        raise WmError(f"cannot read {path}: {error}.") from error
    if not isinstance(data, dict):
        raise WmError(f"{path} holds no figures.")
    return data


def figures_text(summary: dict[str, Any], suites: Sequence[dict[str, Any]]) -> str:
    """Return the section's Markdown."""
    rows = [
        "| run | success | 95 % interval | falls | zone entries | other violations | "
        "plan p50, p99 |",
        "|---|---|---|---|---|---|---|",
        _row(f"`wm demo --episodes {summary['episodes']} --seed {summary['seed']}`", summary),
    ]
    for suite in suites:
        goal = f"--goal {suite['goal']} " if suite["goal"] else ""
        level = f"--level {suite['level']} " if suite["level"] != LEVEL_NAMES[0] else ""
        command = (
            f"`wm evaluate --suite tabletop {level}--planner {suite['planner']} "
            f"{goal}--episodes {suite['episodes']} --seed {suite['seed']}`"
        )
        played = suite.get("bundle_sha256")
        if played and played != summary["bundle_sha256"]:
            command += f" (bundle `{played[:16]}`)"
        rows.append(_row(command, suite))
    misses, cycles = summary["deadline_misses"], summary["cycles"]
    frame = summary["frame_to_command_ms"]
    return "\n".join(
        [
            f"Simulated robot, bundle `{summary['bundle_sha256'][:16]}` on {summary['backend']}, "
            f"{summary['machine']}, Python {summary['python']}:",
            "",
            *rows,
            "",
            f"In that demo: {summary['control_hz']:.1f} Hz control, {misses} deadline misses in "
            f"{cycles} cycles, frame to command p50 {frame['p50']:.0f} ms and p99 "
            f"{frame['p99']:.0f} ms, {summary['frames_received']} of "
            f"{summary['frames_published']} published frames received.",
        ]
    )


def _row(command: str, figures: dict[str, Any]) -> str:
    low, high = figures["success_wilson95"]
    plan = figures.get("plan_ms") or {}
    latency = (
        f"{plan['p50']:.0f} ms, {plan['p99']:.0f} ms"
        if plan.get("p50") is not None and plan.get("p99") is not None
        else "-"
    )
    falls, entries = figures["falls"], figures["zone_entries"]
    others = figures.get("other_violations")  # of a demo; a suite counts all together
    if others is None:
        others = figures["violations"] - falls - entries
    return (
        f"| {command} | {figures['successes']} of {figures['episodes']} | "
        f"{100 * low:.1f} to {100 * high:.1f} % | {falls} | {entries} | {others} | {latency} |"
    )


def replace_figures(readme: Path, text: str) -> None:
    """Put text between the two markers of a README (WmError: they are missing)."""
    page = readme.read_text(encoding="utf-8")
    before, begin, rest = page.partition(BEGIN)
    _, end, after = rest.partition(END)
    if not begin or not end:
        raise WmError(f"{readme} lacks the markers {BEGIN} and {END}.")
    readme.write_text(f"{before}{BEGIN}\n{text}\n{END}{after}", encoding="utf-8")


def draw_picture(path: Path, bag: Path, bundle_path: Path, summary: dict[str, Any]) -> None:
    """Draw one episode: the camera's frames, and one moment imagined and real.

    Raises:
        WmError: no episode can be shown.
    """
    bundle = load_bundle(bundle_path)
    log = read_run(bag, bundle.profile)
    episodes = summary["episode_list"]
    shown = max(episodes, key=lambda e: (e["success"], e["start_distance"]))
    model = WorldModel(bundle, load_engine(bundle))
    start, end = int(shown["start_ns"]), int(shown["end_ns"])
    at = np.arange(start + round(0.4 * NS), end - round(1.7 * NS), round(0.2 * NS)).tolist()
    moments = look_back(log, model, at)
    if not moments:
        raise WmError(f"{bag} holds no moment that can be shown; run more episodes.")
    lively = max(moments, key=lambda m: float(np.abs(m.real[-1].astype(float) - m.now).mean()))
    canvas = _compose(_strip(log, start, end), lively, bundle.profile.model.step_s)
    path.parent.mkdir(parents=True, exist_ok=True)
    canvas.save(path, quality=88)


def _strip(log: RunLog, start: int, end: int) -> list[tuple[str, Picture]]:
    camera = log.profile.cameras[0].name
    own = log.frames[camera]
    own = own[(own >= start) & (own <= end)]
    stamps = [nearest_stamp(own, int(at), NS // 4) for at in np.linspace(start, end, STRIP)]
    known = [stamp for stamp in stamps if stamp is not None]
    frames = read_frames(log.bag, log.profile, camera, known)
    return [(f"{(stamp - start) / NS:.1f} s", frames[stamp]) for stamp in known]


def _compose(strip: list[tuple[str, Picture]], moment: Moment, step_s: float) -> Image.Image:
    """Lay out three rows: the episode, one moment imagined, the same moment as it was."""
    frame_width = (WIDTH - LABEL - (len(strip) - 1) * GAP) // len(strip)
    frame_height = round(frame_width * strip[0][1].shape[0] / strip[0][1].shape[1])
    tiles = 1 + len(moment.real)
    tile = (WIDTH - LABEL - (tiles - 1) * GAP) // tiles
    # The model's frames are square; people see them in the camera's shape.
    tile_height = round(tile * strip[0][1].shape[0] / strip[0][1].shape[1])
    top = 26
    canvas = Image.new("RGB", (WIDTH, 2 * top + frame_height + 2 * tile_height + 3 * GAP), PAPER)
    draw = ImageDraw.Draw(canvas)
    font = ImageFont.truetype(
        str(Path(matplotlib.get_data_path()) / "fonts" / "ttf" / "DejaVuSans.ttf"), 14
    )

    def put(picture: Picture, x: int, y: int, width: int, height: int) -> None:
        scaled = Image.fromarray(picture).resize((width, height), Image.Resampling.LANCZOS)
        canvas.paste(scaled, (x, y))

    draw.text((0, top + frame_height // 2 - 8), "camera", INK, font)
    for i, (text, frame) in enumerate(strip):
        x = LABEL + i * (frame_width + GAP)
        draw.text((x + frame_width // 2 - 14, 5), text, INK, font)
        put(frame, x, top, frame_width, frame_height)
    y = top + frame_height + GAP
    rows = (("imagined", moment.imagined), ("real", moment.real))
    for i in range(tiles):
        text = "now" if i == 0 else f"+{i * step_s:.1f} s"
        draw.text((LABEL + i * (tile + GAP) + tile // 2 - 18, y + 5), text, INK, font)
    for row, (name, frames) in enumerate(rows):
        at = y + top + row * (tile_height + GAP)
        draw.text((0, at + tile_height // 2 - 8), name, INK, font)
        for i, frame in enumerate([moment.now, *frames]):
            put(frame, LABEL + i * (tile + GAP), at, tile, tile_height)
    return canvas


if __name__ == "__main__":
    sys.exit(main())
