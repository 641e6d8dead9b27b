"""The last moment at which braking would have prevented a fall or an entry into the zone."""

from __future__ import annotations

import numpy as np
import pytest

from wm_node.sim.behaviours import push_velocity
from wm_node.sim.loop import Observation
from wm_node.sim.preventable import Played, last_preventable_s, play, prevented
from wm_node.sim.scene import TABLE_BOUNDS, ZONE_BOUNDS
from wm_node.sim.tabletop import TabletopSim

LATENCY_S = 0.1


@pytest.fixture(scope="module")
def sim() -> TabletopSim:
    return TabletopSim(render=False)


def push_to(sim: TabletopSim, seed: int, goal: tuple[float, float]) -> Played:
    sim.reset(seed)

    def act(observation: Observation) -> np.ndarray:
        tip_x, tip_y = sim.tip().tolist()
        return push_velocity((tip_x, tip_y), sim.mug_pose()[:2], goal)

    return play(sim, act, LATENCY_S, frames=False)


def over_the_edge(sim: TabletopSim, seed: int) -> Played:
    sim.reset(seed)
    return push_to(sim, seed, (sim.mug_pose()[0], TABLE_BOUNDS.y_min - 0.08))


def test_braking_helps_up_to_that_moment_and_not_after_it(sim: TabletopSim):
    found = 0
    for seed in range(12):
        played = over_the_edge(sim, seed)
        if "fell" not in played.events:
            continue
        found += 1
        last_s = last_preventable_s(sim, played, "fell")
        assert last_s is not None
        assert 0.0 < played.events["fell"] - last_s < 1.0
        assert prevented(sim, played, "fell", last_s)
        assert not prevented(sim, played, "fell", last_s + 0.01)
    assert found >= 4


def test_the_zone_has_its_own_moment(sim: TabletopSim):
    centre = (ZONE_BOUNDS.x_min + 0.07, ZONE_BOUNDS.y_min + 0.06)
    played = next(one for seed in range(30) if "zone" in (one := push_to(sim, seed, centre)).events)
    last_s = last_preventable_s(sim, played, "zone")
    assert last_s is not None
    assert 0.0 < played.events["zone"] - last_s < 0.5


def test_without_a_brake_the_event_happens_again_where_it_happened(sim: TabletopSim):
    """What is simulated again is what was played: else no moment would mean anything."""
    played = next(one for seed in range(12) if "fell" in (one := over_the_edge(sim, seed)).events)
    assert not prevented(sim, played, "fell", played.events["fell"] - 0.01)
    sim.restore(played.states[-1])
    while not sim.fell():
        sim.advance(0.01)
    assert sim.time_s == pytest.approx(played.events["fell"])
