"""Ways round what is not free: which point a search is given in place of the goal."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st
from safetensors.numpy import load_file, save_file

from wm_node.errors import WmError
from wm_node.planning.ways import (
    AHEAD_M,
    PlaceMap,
    Ways,
    has_places,
    load_places,
    next_goal,
    save_places,
)
from wm_node.planning.world_model import Goal
from wm_node.profile import load_profile

SIDE = 61  # cells of 1 cm
ORIGIN = (-0.3, -0.3)


def table(*blocked: tuple[float, float, float, float]) -> PlaceMap:
    """A square table of 60 cm, with rectangles (x0, x1, y0, y1) that are not free."""
    x, y = np.meshgrid(ORIGIN[0] + 0.01 * np.arange(SIDE), ORIGIN[1] + 0.01 * np.arange(SIDE))
    free = np.ones((SIDE, SIDE), bool)
    for x0, x1, y0, y1 in blocked:
        free &= ~((x >= x0) & (x <= x1) & (y >= y0) & (y <= y1)).T
    return PlaceMap(free, ORIGIN, 0.01)


ZONE = (0.0, 0.1, -0.05, 0.05)


def walk(ways: Ways, here: tuple[float, float], goal: tuple[float, float]) -> np.ndarray:
    """Go straight to each next point in steps of 1 cm until the goal is there."""
    at, path = np.array(here), [np.array(here)]
    for _ in range(300):
        to = np.array(ways.towards((float(at[0]), float(at[1])), goal))
        step = to - at
        if np.linalg.norm(np.array(goal) - at) < 0.011:
            return np.array(path)
        at = at + step * min(1.0, 0.01 / max(float(np.linalg.norm(step)), 1e-9))
        path.append(at)
    raise AssertionError(f"no way from {here} to {goal}: stands at {at}")


def test_a_free_line_is_taken_as_it_is():
    ways = Ways(table(ZONE))
    assert ways.towards((-0.2, -0.2), (0.2, -0.2)) == (0.2, -0.2)
    assert Ways(table()).towards((-0.2, 0.0), (0.2, 0.0)) == (0.2, 0.0)


@pytest.mark.parametrize(
    ("here", "goal"),
    [
        ((-0.1, 0.0), (0.2, 0.01)),
        ((-0.02, 0.04), (0.12, -0.06)),  # close to it
        ((0.05, 0.08), (0.05, -0.08)),
        ((0.05, -0.25), (0.06, 0.25)),
    ],
)
def test_ways_lead_round_and_end_at_the_goal(here, goal):
    places = table(ZONE)
    ways = Ways(places)
    first = ways.towards(here, goal)
    assert first != goal
    assert np.hypot(first[0] - here[0], first[1] - here[1]) <= AHEAD_M + 0.02
    path = walk(ways, here, goal)
    assert ways.clearance(path).min() >= min(0.01, ways.clearance(np.array(here)))
    # Not much longer than a string that is pulled tight round it.
    length = np.linalg.norm(np.diff(path, axis=0), axis=1).sum()
    assert length < 1.6 * np.hypot(goal[0] - here[0], goal[1] - here[1]) + 0.1


def test_from_within_what_is_not_free_the_way_leads_out():
    ways = Ways(table(ZONE))
    path = walk(ways, (0.02, 0.0), (-0.2, 0.0))
    assert ways.clearance(path[-1]) > 0.0
    assert (ways.clearance(path[5:]) > 0.0).all()


def test_a_goal_that_is_not_free_is_led_to_as_near_as_it_is_free():
    ways = Ways(table(ZONE))
    near = ways.towards((-0.06, 0.0), (0.03, 0.0))
    assert near[0] == pytest.approx(-0.01, abs=0.011)
    assert ways.towards(near, (0.03, 0.0)) == pytest.approx(near)  # and stays there


def test_where_there_is_no_way_the_goal_stays():
    ways = Ways(table((-0.02, 0.02, -0.31, 0.31)))  # a wall from side to side
    assert ways.towards((-0.2, 0.0), (0.2, 0.0)) == (0.2, 0.0)


@given(
    st.tuples(*[st.floats(-2, 2) for _ in range(4)]),
    st.integers(0, 2**32 - 1),
    st.floats(0.0, 0.95),
)
def test_every_pair_of_places_has_an_answer(ends, seed, share):
    free = np.random.default_rng(seed).random((9, 7)) >= share
    free[4, 3] = True
    ways = Ways(PlaceMap(free, (-0.5, -0.5), 0.15))
    found = ways.towards((ends[0], ends[1]), (ends[2], ends[3]))
    assert np.isfinite(found).all()
    cells = np.argwhere(free) * 0.15 - 0.5
    at_goal = found == (ends[2], ends[3])
    assert at_goal or np.linalg.norm(cells - found, axis=1).min() < 1e-9  # never into a wall


def test_only_what_is_out_of_view_changes_the_goal_that_is_searched():
    ways = Ways(table(ZONE))
    goal = Goal(np.array([0.2, 0.0], np.float32), np.ones(3, np.float32))
    assert next_goal(ways, goal, np.array([0.15, 0.1], np.float32)) is goal
    changed = next_goal(ways, goal, np.array([-0.1, 0.0], np.float32))
    assert changed.latent is None  # the picture shows the true goal, not this point
    assert changed.state is not None
    assert ways.clearance(changed.state) > 0.01
    picture = Goal(None, np.ones(3, np.float32))
    assert next_goal(ways, picture, np.array([-0.1, 0.0], np.float32)) is picture
    assert next_goal(ways, goal, np.array([np.nan, 0.0], np.float32)) is goal


def test_only_robots_that_push_in_a_plane_have_places():
    assert has_places(load_profile("tabletop"))
    assert not has_places(load_profile("g1_bottle"))


def test_a_map_is_kept_as_plain_arrays(tmp_path: Path):
    file, places = tmp_path / "places.safetensors", table(ZONE)
    save_places(places, file)
    read = load_places(file)
    np.testing.assert_array_equal(read.free, places.free)
    assert (read.origin, read.cell) == (places.origin, places.cell)
    file.write_bytes(file.read_bytes()[:300])
    with pytest.raises(WmError, match="no map of places"):
        load_places(file)


@pytest.mark.parametrize(
    ("name", "value"),
    [
        ("free", np.zeros((5, 5), np.uint8)),
        ("free", np.ones(25, np.uint8)),
        ("free", np.ones((600, 600), np.uint8)),
        ("cell", np.array([0.0])),
        ("cell", np.array([np.nan])),
        ("origin", np.array([0.1])),
        ("origin", np.array([np.inf, 0.0])),
    ],
)
def test_maps_that_are_wrong_are_refused(tmp_path: Path, name: str, value: np.ndarray):
    file = tmp_path / "places.safetensors"
    save_places(table(), file)
    save_file(dict(load_file(file)) | {name: value}, file)
    with pytest.raises(WmError, match="no map of places"):
        load_places(file)
