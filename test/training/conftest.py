"""A dataset small enough to train on in seconds."""

from __future__ import annotations

import numpy as np
import pytest

from wm_node.data.dataset import Dataset, DatasetWriter, EpisodeArrays
from wm_node.profile import load_profile, parse_profile


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    data = load_profile("tabletop").dump()
    data["cameras"][0] |= {"model_width": 32, "model_height": 32}
    profile = parse_profile(data, "test")
    path = tmp_path_factory.mktemp("data") / "set"
    random = np.random.default_rng(0)
    with DatasetWriter(path, profile) as writer:
        for number in range(22):
            ticks = 40
            events = np.zeros((ticks, 2), np.uint8)
            events[30:, 0] = number % 2
            events[:, 1] = 255  # never labelled
            writer.append(
                EpisodeArrays(
                    name=f"e{number}",
                    stamps=np.arange(ticks, dtype=np.int64) * 100_000_000,
                    frames={"front": random.integers(0, 256, (ticks, 32, 32, 3), dtype=np.uint8)},
                    frame_valid=np.ones((ticks, 1), np.uint8),
                    joints=np.cumsum(random.normal(scale=0.1, size=(ticks, 4)), 0, np.float32),
                    actions=random.normal(size=(ticks, 2)).astype(np.float32),
                    labels=random.normal(size=(ticks, 4)).astype(np.float32),
                    events=events,
                )
            )
        writer.close(fingerprint="test")
    return Dataset.open(path)
