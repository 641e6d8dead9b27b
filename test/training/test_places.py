"""The map of places: where the object stood in the data, but for where events happened."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from wm_node.data.dataset import Dataset, DatasetWriter, EpisodeArrays
from wm_node.planning.ways import PlaceMap, Ways
from wm_node.profile import RobotProfile, load_profile, parse_profile
from wm_node.training.places import LEAST_EPISODES, fit_places

TICKS = 40


def dataset_of(path: Path, profile: RobotProfile, episodes: int) -> Dataset:
    """Walks of a mug on a table of 40 cm: a zone in its middle, and a hit now and then anywhere."""
    rng = np.random.default_rng(0)
    with DatasetWriter(path, profile) as writer:
        for number in range(episodes):
            at = rng.uniform(-0.2, 0.2, 2) + np.cumsum(rng.normal(0, 0.01, (TICKS, 2)), axis=0)
            at = np.clip(at, -0.2, 0.2)
            tip = rng.uniform(-0.2, 0.2, (TICKS, 2))
            labels = np.full((TICKS, len(profile.labels)), np.nan)
            labels[:, :4] = np.concatenate([at, tip], axis=1)
            labels[rng.random(TICKS) < 0.05, :2] = np.nan  # not seen
            zone = (np.abs(at) < 0.06).all(-1)
            hit = rng.random(TICKS) < 0.1
            events = np.stack([np.zeros(TICKS), zone, hit], axis=1)[:, : len(profile.events)]
            writer.append(
                EpisodeArrays(
                    name=f"walk_{number}",
                    stamps=np.int64(number * 10**11 + 10**8 * np.arange(TICKS)),
                    frames={"front": np.zeros((TICKS, 64, 64, 3), np.uint8)},
                    frame_valid=np.zeros((TICKS, 1), np.uint8),
                    joints=np.zeros((TICKS, 4), np.float32),
                    actions=np.zeros((TICKS, 2), np.float32),
                    labels=labels.astype(np.float32),
                    events=events.astype(np.uint8),
                )
            )
        writer.close()
    return Dataset.open(path)


@pytest.fixture(scope="module")
def places(tmp_path_factory: pytest.TempPathFactory) -> PlaceMap:
    path = tmp_path_factory.mktemp("places") / "d.zarr"
    found = fit_places(dataset_of(path, load_profile("tabletop_hazards"), 600))
    assert found is not None
    return found


def test_the_zone_is_found_and_hits_anywhere_are_not(places):
    ways = Ways(places)
    within = np.random.default_rng(1).uniform(-0.045, 0.045, (50, 2))
    assert (ways.clearance(within) == 0.0).all()
    ring = np.array([[0.1, 0.0], [0.0, 0.12], [-0.13, -0.13], [0.15, 0.1]])
    assert (ways.clearance(ring) > 0.015).all()
    assert ways.towards((-0.12, 0.0), (0.12, 0.0)) != (0.12, 0.0)
    assert ways.towards((-0.12, -0.12), (0.12, -0.12)) == (0.12, -0.12)


def test_where_it_never_stood_is_not_free(places):
    away = np.array([[0.26, 0.0], [0.0, -0.27], [0.5, 0.5]])
    low = np.array(places.origin)
    high = low + places.cell * (np.array(places.free.shape) - 1)
    assert (high < 0.23).all()
    assert (low > -0.23).all()
    assert Ways(places).clearance(away).max() <= 0.02  # the border of the map


def test_few_episodes_and_other_robots_have_no_map(tmp_path: Path):
    profile = load_profile("tabletop")
    assert fit_places(dataset_of(tmp_path / "few.zarr", profile, LEAST_EPISODES - 1)) is None
    enough = dataset_of(tmp_path / "enough.zarr", profile, LEAST_EPISODES)
    assert fit_places(enough) is not None
    data = profile.dump()
    data["objective"]["push"] = None  # nothing is pushed: a goal is no place of an object
    other = parse_profile(data, "other")
    assert fit_places(dataset_of(tmp_path / "other.zarr", other, LEAST_EPISODES)) is None
