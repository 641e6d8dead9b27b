"""How strange frames are to a bundle: those of the levels, and those of faults of a camera.

    python test/benchmark/strange_frames.py --bundle bundles/tabletop

Prints the table of docs/safety.md: median, least and greatest strangeness over the episodes of the
suite's seed 0, where 1 is the border of what training left out.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Iterator
from pathlib import Path

import cv2
import numpy as np
from numpy.typing import NDArray

from wm_node.bundle import load_bundle
from wm_node.data.images import resize_area
from wm_node.safety.familiarity import FILE, load_densities
from wm_node.sim.levels import LEVELS, find_level
from wm_node.sim.seeds import evaluation_seeds
from wm_node.sim.tabletop import TabletopSim

Frame = NDArray[np.uint8]
SEEN_S = 1.5  # into the episode; a hand has reached in by then

FAULTS: dict[str, Callable[[Frame], NDArray[np.generic]]] = {
    "no light": lambda frame: np.zeros_like(frame),
    "a tenth of the light": lambda frame: frame * 0.1,
    "a third of the light": lambda frame: frame * 0.33,
    "blinded": lambda frame: np.full_like(frame, 255),
    "half of the lens covered": lambda frame: np.where(np.arange(64)[:, None] < 32, 20, frame),
    "a patch of 24 x 24 on the lens": lambda frame: _patched(frame),
    "out of focus (blur of 4 pixels)": lambda frame: cv2.GaussianBlur(frame, (0, 0), 4),
    "turned by 4 pixels": lambda frame: np.roll(frame, 4, 1),
    "turned by 8 pixels": lambda frame: np.roll(frame, 8, 1),
    "upside down": lambda frame: frame[::-1],
    "red and blue exchanged": lambda frame: frame[..., ::-1],
    "noise": lambda frame: np.random.default_rng(0).integers(0, 256, frame.shape),
}


def _patched(frame: Frame) -> Frame:
    patched = frame.copy()
    patched[16:40, 16:40] = 90
    return patched


def _frames(level: str, episodes: int, width: int, height: int) -> Iterator[Frame]:
    sim = TabletopSim((320, 240), level=find_level(level))
    for seed in evaluation_seeds(0, episodes):
        sim.reset(seed)
        sim.advance(SEEN_S)
        yield resize_area(sim.render(), width, height)
    sim.close()


def main() -> None:
    """Print the table."""
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--bundle", type=Path, required=True)
    parser.add_argument("--episodes", type=int, default=100)
    args = parser.parse_args()
    bundle = load_bundle(args.bundle)
    camera = bundle.profile.cameras[0]
    density = load_densities(bundle.checked_file(FILE), (camera.name,))[camera.name]
    size = camera.model_width, camera.model_height

    def row(name: str, frames: list[Frame]) -> None:
        values = [density.strangeness(np.ascontiguousarray(frame, np.uint8)) for frame in frames]
        middle, least, most = np.median(values), min(values), max(values)
        print(f"| {name} | {middle:.2f} | {least:.2f} | {most:.2f} |")

    print("| frames | median | least | most |\n|---|---|---|---|")
    for level in LEVELS:
        row(f"level `{level}`", list(_frames(level, args.episodes, *size)))
    basic = list(_frames("basic", args.episodes, *size))
    for name, fault in FAULTS.items():
        row(name, [fault(frame).astype(np.uint8) for frame in basic])


if __name__ == "__main__":
    main()
