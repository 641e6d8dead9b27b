"""Goals by a clip: the object is led along the way that a demonstration shows."""

from __future__ import annotations

import numpy as np
import pytest

from wm_node.planning.demonstration import AHEAD_M, Guide, guide_to
from wm_node.planning.world_model import Goal

END = np.array([0.2, 0.2], np.float32)


def goal(via: np.ndarray) -> Goal:
    return Goal(state=END, latent=np.zeros(3, np.float32), via=via.astype(np.float32))


def corner(noise: float = 0.0) -> np.ndarray:
    """Readings (N, 2) of a rest at the origin, a way of 20 cm in x, then one in y, then a rest."""
    ticks = np.linspace(0.0, 0.2, 12)
    rest = np.zeros(8)
    x = np.concatenate([rest, ticks, np.full(12 + 8, 0.2)])
    y = np.concatenate([rest, np.zeros(12), ticks, np.full(8, 0.2)])
    random = np.random.default_rng(0)
    return np.stack([x, y], axis=1) + noise * random.normal(size=(len(x), 2))


def walk(guide: Guide, start: tuple[float, float] = (0.0, 0.0)) -> tuple[np.ndarray, Goal]:
    """Go straight to each next place in steps of 1 cm; return the way (K, 2) and the last goal."""
    at, way = np.array(start), []
    for _ in range(200):
        to = guide.next(at.astype(np.float32))
        assert to.state is not None
        step = to.state - at
        if np.linalg.norm(END - at) < 0.011:
            return np.array(way), to
        at = at + step * min(1.0, 0.01 / max(float(np.linalg.norm(step)), 1e-9))
        way.append(at)
    raise AssertionError(f"it never arrived: stands at {at}")


@pytest.mark.parametrize("noise", [0.0, 0.004])
def test_it_leads_along_the_corner_and_ends_at_the_goal_itself(noise: float) -> None:
    wanted = goal(corner(noise))
    way, last = walk(Guide(wanted))
    assert last is wanted, "the picture of the goal is part of it"
    off = np.minimum(np.abs(way[:, 1]), np.abs(way[:, 0] - 0.2))
    assert off.max() < AHEAD_M, "it cut the corner"
    assert way[:, 0].max() < 0.22


def test_some_pictures_in_which_the_object_is_hidden_do_no_harm() -> None:
    readings = corner()
    readings[[3, 15, 16]] += 0.3
    way, _ = walk(Guide(goal(readings)))
    assert np.abs(way).max() < 0.23


def test_a_way_that_crosses_itself_is_followed_whole() -> None:
    turn = np.linspace(-np.pi / 2, 1.5 * np.pi, 60)
    loop = np.stack([0.1 * np.cos(turn), 0.1 + 0.1 * np.sin(turn)], axis=1)  # back to the origin
    way, _ = walk(Guide(goal(np.concatenate([loop, [[0.1, 0.1]]]))))
    assert way[:, 1].max() > 0.17
    assert way[:, 0].min() < -0.07


def test_who_was_pushed_off_the_way_is_led_back_to_it() -> None:
    guide = Guide(goal(corner()))
    guide.next(np.array([0.0, 0.0], np.float32))
    to = guide.next(np.array([0.05, -0.06], np.float32)).state
    assert to is not None
    np.testing.assert_allclose(to, [0.05 + AHEAD_M, 0.0], atol=0.01)


def test_a_demonstration_in_which_nothing_moves_is_its_end() -> None:
    wanted = goal(np.tile(END, (10, 1)))
    assert Guide(wanted).next(np.array([0.1, 0.1], np.float32)) is wanted


def test_other_goals_have_no_guide() -> None:
    assert guide_to(None) is None
    assert guide_to(Goal(state=END)) is None
    assert isinstance(guide_to(goal(corner())), Guide)
