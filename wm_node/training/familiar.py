"""Which frames are familiar: fitted on training episodes, judged on those that were left out."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wm_node.data.dataset import Dataset, Episode
from wm_node.safety.familiarity import FrameDensity, fit_density
from wm_node.training.data import is_left_out

EPISODES = 300  # of either kind, spread evenly over the dataset
FRAMES = 20  # of each


def fit_familiarity(dataset: Dataset) -> dict[str, FrameDensity]:
    """Fit the density of each camera's frames, by the camera's name.

    Raises:
        WmError: a camera gave no frames in the episodes of either kind.
    """
    kinds: tuple[list[Episode], list[Episode]] = ([], [])
    for number, episode in enumerate(dataset.episodes):
        kinds[is_left_out(number)].append(episode)
    return {
        camera.name: fit_density(*(_frames(dataset, index, camera.name, kind) for kind in kinds))
        for index, camera in enumerate(dataset.profile.cameras)
    }


def _frames(
    dataset: Dataset, index: int, camera: str, episodes: list[Episode]
) -> NDArray[np.uint8]:
    """Return frames (N, H, W, 3) of episodes, a few of each."""
    source, parts = dataset.frames(camera), []
    for number in np.unique(np.linspace(0, len(episodes) - 1, EPISODES).astype(int)):
        episode = episodes[number]
        valid = np.flatnonzero(
            dataset.frame_valid[episode.start : episode.start + episode.length, index]
        )
        if len(valid):
            chosen = valid[np.unique(np.linspace(0, len(valid) - 1, FRAMES).astype(int))]
            parts.append(source[episode.start : episode.start + episode.length][chosen])
    if not parts:
        return np.zeros((0, 1, 1, 3), np.uint8)
    return np.concatenate(parts)
