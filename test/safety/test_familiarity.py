"""Frames like those of the training data, and frames like nothing in it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file, save_file

from wm_node.errors import WmError
from wm_node.safety.familiarity import FrameDensity, fit_density, load_densities, save_densities


def scene(rng: np.random.Generator) -> np.ndarray:
    """A table with a cup somewhere on it, in one of many lights."""
    frame = np.zeros((48, 64, 3))
    frame[:20], frame[20:] = (90, 110, 130), (160, 140, 110)
    y, x = rng.integers(22, 40), rng.integers(4, 52)
    frame[y : y + 8, x : x + 8] = (200, 60, 60)
    light = rng.uniform(0.7, 1.2)
    return np.clip(frame * light + rng.normal(0, 2, frame.shape), 0, 255).astype(np.uint8)


@pytest.fixture(scope="module")
def density() -> FrameDensity:
    rng = np.random.default_rng(0)
    frames = np.stack([scene(rng) for _ in range(900)])
    return fit_density(frames[:600], frames[600:])


def test_unseen_frames_of_the_same_scene_are_familiar(density):
    rng = np.random.default_rng(1)
    strangeness = [density.strangeness(scene(rng)) for _ in range(300)]
    assert np.median(strangeness) < 0.95
    assert max(strangeness) < 1.3


STRANGE = {
    "no light": lambda frame: np.zeros_like(frame),
    "a lens in the dark": lambda frame: (frame * 0.05).astype(np.uint8),
    "blinded": lambda frame: np.full_like(frame, 255),
    "half covered": lambda frame: np.where(np.arange(64)[:, None] < 32, 0, frame),
    "upside down": lambda frame: frame[::-1],
    "red and blue exchanged": lambda frame: frame[..., ::-1],
    "noise": lambda frame: np.random.default_rng(2).integers(0, 256, frame.shape),
}


@pytest.mark.parametrize("name", STRANGE)
def test_frames_like_nothing_seen_are_strange(density, name):
    rng = np.random.default_rng(3)
    for _ in range(20):
        assert density.strangeness(STRANGE[name](scene(rng)).astype(np.uint8)) > 2.0


def test_a_camera_that_never_moved_is_not_strange_for_a_grey_level(density):
    frame = scene(np.random.default_rng(4))
    still = fit_density(np.repeat(frame[None], 20, 0), frame[None])
    assert still.strangeness(np.clip(frame.astype(int) + 1, 0, 255).astype(np.uint8)) < 2.0
    assert still.strangeness(frame) <= 1.0


def test_it_is_kept_as_plain_arrays(density, tmp_path: Path):
    file = tmp_path / "familiar.safetensors"
    save_densities({"front": density}, file)
    frame = scene(np.random.default_rng(5))
    read = load_densities(file, ("front",))["front"]
    assert read.strangeness(frame) == pytest.approx(density.strangeness(frame), rel=1e-3)
    assert file.stat().st_size < 300_000
    with pytest.raises(WmError, match="wrist"):
        load_densities(file, ("front", "wrist"))
    file.write_bytes(file.read_bytes()[:1000])
    with pytest.raises(WmError, match="does not tell which frames are familiar"):
        load_densities(file, ("front",))


@pytest.mark.parametrize("change", ["shape", "nan", "negative"])
def test_arrays_that_are_wrong_are_refused(density, tmp_path: Path, change: str):
    file = tmp_path / "familiar.safetensors"
    save_densities({"front": density}, file)
    arrays = dict(load_file(file))
    if change == "shape":
        arrays["front/mean"] = arrays["front/mean"][:5]
    elif change == "nan":
        arrays["front/axes"][0, 0] = np.nan
    else:
        arrays["front/variance"][0] = -1.0
    save_file(arrays, file)
    with pytest.raises(WmError):
        load_densities(file, ("front",))


def test_too_few_frames_are_refused():
    with pytest.raises(WmError, match="too few frames"):
        fit_density(np.zeros((1, 8, 8, 3), np.uint8), np.zeros((1, 8, 8, 3), np.uint8))
