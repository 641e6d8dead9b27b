"""What the bundles that ship promise about themselves."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wm_node.bundle import load_bundle
from wm_node.planning.effort import ladder
from wm_node.planning.planner import PlannerConfig
from wm_node.planning.ways import ways_of
from wm_node.profile import load_profile
from wm_node.resources import BUNDLE, HAZARDS_BUNDLE, LABEL_FREE_BUNDLE, resource
from wm_node.sim.levels import LEVELS, bundle_for
from wm_node.sim.scene import TABLE_BOUNDS, ZONE_BOUNDS

GOALS = ("state", "image")
SHIPPED = sorted(path.parent for path in resource("bundles").glob("*/manifest.yaml"))


def lineage(path: Path) -> Iterator[Mapping[str, Any]]:
    """The recipes of every round of training that a bundle comes from, the last one first."""
    training = load_bundle(path).manifest["training"]
    while training is not None:
        yield training["recipe"]
        training = (training.get("start_from") or {}).get("training")


def test_all_of_them_ship() -> None:
    named = (BUNDLE, LABEL_FREE_BUNDLE, HAZARDS_BUNDLE)
    assert {path.name for path in SHIPPED} == {Path(name).name for name in named}


def test_levels_are_played_with_the_bundle_that_knows_them() -> None:
    played = [name for name, level in LEVELS.items() if not level.scattered]
    state, image = ({name: bundle_for(name, goal) for name in played} for goal in GOALS)
    hazards = resource(HAZARDS_BUNDLE)
    added = {state.pop(name) for name in ("clutter", "moving_hand", "careless_hand")}
    assert added == {hazards}
    assert set(state.values()) == {resource(BUNDLE)}
    assert image.pop("basic") == resource(LABEL_FREE_BUNDLE)
    assert set(image.values()) == {hazards}
    assert "hit" in load_bundle(hazards).profile.event_names


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_it_is_small_and_of_the_profile_that_ships(path: Path) -> None:
    assert sum(file.stat().st_size for file in path.iterdir()) < 15e6
    trained = load_bundle(path).profile
    robot = load_profile(trained.name)
    # Where the robot may be is the gate's to know: no training depends on it.
    safety = trained.safety.model_copy(update={"space": robot.safety.space})
    assert trained.model_copy(update={"safety": safety}) == robot


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_a_slow_machine_can_step_down_to_a_third_of_the_search(path: Path) -> None:
    compiled = [
        (spec.search.candidates, spec.search.iterations)
        for spec in load_bundle(path).graphs.values()
        if spec.search is not None
    ]
    sizes = [one.candidates * one.iterations for one in ladder(PlannerConfig(), compiled)]
    assert 3 * sizes[-1] <= sizes[0]


def test_no_round_of_the_label_free_one_saw_a_label() -> None:
    rounds = list(lineage(resource(LABEL_FREE_BUNDLE)))
    assert len(rounds) == 3
    assert all(recipe["label_weight"] == recipe["label_gradient"] == 0.0 for recipe in rounds)
    # A check that cannot fail would be none: the other one did see them.
    assert all(recipe["label_gradient"] > 0.0 for recipe in lineage(resource(BUNDLE)))


@pytest.mark.parametrize("path", SHIPPED, ids=lambda path: path.name)
def test_its_map_of_places_knows_zone_and_table(path: Path) -> None:
    """Nobody told it of either: it is where the mug stood in the data without an event."""
    ways = ways_of(load_bundle(path))
    assert ways is not None
    zone, table = ZONE_BOUNDS, TABLE_BOUNDS
    within = [
        (x, y)
        for x in np.linspace(zone.x_min + 0.01, zone.x_max - 0.01, 8)
        for y in np.linspace(zone.y_min + 0.01, zone.y_max - 0.01, 8)
    ]
    assert (ways.clearance(np.array(within)) == 0.0).all()
    beside = [(-0.2, -0.15), (0.0, 0.0), (0.2, -0.1), (0.0, 0.1), (-0.15, 0.15)]
    assert (ways.clearance(np.array(beside)) > 0.04).all()
    beyond = [(table.x_min - 0.03, 0.0), (table.x_max + 0.03, 0.0), (0.0, table.y_min - 0.03)]
    assert (ways.clearance(np.array(beyond)) <= 0.01).all()
    # Round the zone, not through it.
    assert ways.towards((0.0, 0.1), (0.25, 0.1)) != (0.25, 0.1)
