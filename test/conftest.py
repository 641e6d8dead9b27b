"""The environment of the whole suite, set before anything that reads it is imported."""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path
from typing import TYPE_CHECKING, Any

import pytest
from hypothesis import settings
from hypothesis import strategies as st

if TYPE_CHECKING:  # torch is imported by the tests that need it
    from wm_node.bundle import Bundle
    from wm_node.profile import RobotProfile

# MuJoCo renders without a display; it reads this at its import.
os.environ.setdefault("MUJOCO_GL", "egl")
# Nothing of a test may be heard by, or hear, another machine.
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
# Spinning OpenMP threads of several processes on two cores cost ten times their gain.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# `make verify` looks harder: every property and every fuzz test gets many more examples.
settings.register_profile("test", max_examples=60, deadline=None)
settings.register_profile("verify", max_examples=2000, deadline=None)
settings.load_profile("verify" if os.environ.get("WM_VERIFY") else "test")


@pytest.fixture(scope="session")
def random_bundle_of() -> Callable[[RobotProfile, Path], Bundle]:
    """Writes a small model whose outcomes depend on frames and actions, at random."""

    def write(profile: RobotProfile, path: Path) -> Bundle:
        from wm_node.model.config import ModelConfig
        from wm_node.model.export import untrained_bundle

        small = ModelConfig(
            latent=32,
            encoder_channels=(8, 8, 8),
            encoder_hidden=32,
            width=32,
            layers=1,
            heads=2,
            head_hidden=16,
            value_hidden=16,
            ensemble=2,
            ensemble_dim=8,
            decoder_channels=(8, 8, 8, 8),
        )
        return untrained_bundle(profile, path, config=small, spread=0.2)

    return write


LEAVES = st.one_of(
    st.none(), st.booleans(), st.integers(), st.floats(), st.text(max_size=8), st.just([])
)


@pytest.fixture(scope="session")
def mutate() -> Callable[[st.DataObject, Any], None]:
    """Puts something else in one place of plain data, which may be a whole branch of it."""

    def change(data: st.DataObject, place: Any) -> None:
        while isinstance(place, dict | list) and place:
            keys = list(place) if isinstance(place, dict) else list(range(len(place)))
            key = data.draw(st.sampled_from(keys))
            if isinstance(place[key], dict | list) and place[key] and data.draw(st.booleans()):
                place = place[key]
                continue
            place[key] = data.draw(LEAVES)
            return

    return change


def pytest_sessionfinish() -> None:
    """Free what processes that tests have killed left in shared memory: gigabytes in a few days."""
    from wm_node.cli.shared_memory import remove_stale_segments

    remove_stale_segments()
