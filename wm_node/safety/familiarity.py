"""Is a frame like those of the training data? A density of small frames, and a check for darkness.

The frame, shrunk to 16 x 16, is scored by probabilistic principal components (Tipping and Bishop,
1999): how far it lies from the mean, in deviations, within the directions in which frames vary and
across the rest, which is what the components cannot reconstruct. A lens that is covered or has no
light gives a frame that is near the mean of dark scenes, so a second number is the contrast.

It costs some tens of microseconds and asks nothing of the model, so it tells of a frame that the
model has no way to doubt. What it cannot tell is a scene that is foreign in what it shows and
ordinary in its colours: that is for surprise and uncertainty (docs/safety.md, "Strange frames").
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, fields
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from safetensors import SafetensorError
from safetensors.numpy import load_file, save_file

from wm_node.data.images import resize_area
from wm_node.errors import WmError

FILE = "familiar.safetensors"
"""In a bundle."""
GRID = 16
COMPONENTS = 48
USUAL = 0.999
"""Share of the left-out frames that are less strange than 1."""
STRANGEST = 1e3
MAX_BYTES = 16_000_000

Floats = NDArray[np.float64]
Frames = NDArray[np.uint8]


@dataclass(frozen=True)
class FrameDensity:
    """Density of one camera's frames; D = 3 * GRID ** 2 values in 0..1."""

    mean: Floats
    """(D,)."""
    axes: Floats
    """(K, D) directions in which frames vary, orthonormal."""
    variance: Floats
    """(K,) along them."""
    rest: float
    """Variance of each direction that is left."""
    usual: float
    """Score that all but a thousandth of the left-out frames stay below, and 1 or more."""
    contrast: float
    """Contrast that all but a thousandth of them stay above."""

    def strangeness(self, frame: Frames) -> float:
        """Return how unlike the training data a frame (H, W, 3) is: 1 is at the border of usual."""
        small = _small(frame)
        low = self.contrast / max(float(small.std()), self.contrast / STRANGEST)
        return max(self._score(small) / self.usual, low)

    def _score(self, small: Floats) -> float:
        off = small - self.mean
        along = self.axes @ off
        across = max(float(off @ off - along @ along), 0.0)
        return float(np.sqrt(((along**2 / self.variance).sum() + across / self.rest) / off.size))


def fit_density(frames: Frames, left_out: Frames) -> FrameDensity:
    """Fit the density of training frames (N, H, W, 3); left-out ones (M, ...) say what is usual.

    Raises:
        WmError: fewer than two training frames, or none left out.
    """
    if len(frames) < 2 or not len(left_out):
        raise WmError("too few frames to tell which are familiar.")
    small = np.stack([_small(frame) for frame in frames])
    mean = small.mean(0)
    # Singular values of few frames are exact where their covariance would be singular.
    _, singular, axes = np.linalg.svd(small - mean, full_matrices=False)
    variance = singular**2 / (len(small) - 1)
    count = min(COMPONENTS, len(variance) - 1)
    # A camera that never moved has directions without any variance: a grey level is its noise.
    least = (1.0 / 255.0) ** 2
    rest = max(float(variance[count:].sum()) / (mean.size - count), least)
    fitted = FrameDensity(mean, axes[:count], np.maximum(variance[:count], least), rest, 1.0, 0.0)
    judged = [_small(frame) for frame in left_out]
    scores = [fitted._score(one) for one in judged]
    return FrameDensity(
        fitted.mean,
        fitted.axes,
        fitted.variance,
        fitted.rest,
        max(float(np.quantile(scores, USUAL)), 1.0),
        float(np.quantile([one.std() for one in judged], 1 - USUAL)),
    )


def _small(frame: Frames) -> Floats:
    return resize_area(frame, GRID, GRID).reshape(-1) / 255.0


def save_densities(densities: Mapping[str, FrameDensity], path: Path) -> None:
    """Write the densities of cameras by name, as plain arrays."""
    arrays = {
        f"{camera}/{field.name}": np.atleast_1d(
            np.asarray(getattr(density, field.name), np.float32)
        )
        for camera, density in densities.items()
        for field in fields(FrameDensity)
    }
    save_file(arrays, path)


def load_densities(path: Path, cameras: tuple[str, ...]) -> dict[str, FrameDensity]:
    """Read what :func:`save_densities` wrote.

    Raises:
        WmError: damaged, of other cameras or of another size.
    """
    try:
        if path.stat().st_size > MAX_BYTES:
            raise WmError(f"{path} is too large to tell which frames are familiar.")
        data = load_file(path)
        return {camera: _read(data, camera) for camera in cameras}
    except (OSError, KeyError, ValueError, TypeError, SafetensorError) as error:
        raise WmError(f"{path} does not tell which frames are familiar: {error}.") from error


def _read(data: Mapping[str, NDArray[Any]], camera: str) -> FrameDensity:
    mean, axes, variance = (
        np.asarray(data[f"{camera}/{name}"], np.float64) for name in ("mean", "axes", "variance")
    )
    rest, usual, contrast = (
        float(data[f"{camera}/{name}"].item()) for name in ("rest", "usual", "contrast")
    )
    size = 3 * GRID**2
    if mean.shape != (size,) or axes.shape != (len(variance), size) or variance.ndim != 1:
        raise ValueError("arrays of another size")
    finite = all(np.isfinite(x).all() for x in (mean, axes, variance, rest, usual, contrast))
    if not finite or not (variance > 0).all() or min(rest, usual) <= 0 or contrast < 0:
        raise ValueError("values out of range")
    return FrameDensity(mean, axes, variance, rest, usual, contrast)
