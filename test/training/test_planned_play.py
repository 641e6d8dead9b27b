"""Episodes that the planner plays, for the data that its own mistakes are."""

from __future__ import annotations

import json
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path

import numpy as np
import pytest

from wm_node.bundle import Bundle
from wm_node.cli.main import main as wm
from wm_node.profile import RobotProfile, load_profile
from wm_node.sim.episode import record_episode
from wm_node.sim.mix import CARELESS, PLANNED, PLANNER, Mix
from wm_node.sim.scene import TABLE_BOUNDS
from wm_node.sim.tabletop import TabletopSim
from wm_node.sim.task import EDGE_MARGIN_M
from wm_node.training.planned_play import PlannedPlay, behaviours_with_planner, draw_target
from wm_node.training.policies import MpcPolicy

MIX = Mix({PLANNER: 1.0})
SIZE = (160, 120)


@pytest.fixture(scope="module")
def bundle(
    random_bundle_of: Callable[[RobotProfile, Path], Bundle],
    tmp_path_factory: pytest.TempPathFactory,
) -> Bundle:
    return random_bundle_of(load_profile("tabletop"), tmp_path_factory.mktemp("play") / "bundle")


@pytest.fixture(scope="module")
def sim() -> TabletopSim:
    return TabletopSim(SIZE)


def test_the_planner_acts_a_tick_after_its_frame_and_is_repeatable(
    bundle: Bundle, sim: TabletopSim
) -> None:
    record = partial(record_episode, sim, 5, MIX, None, 1.5, behaviours_with_planner(bundle.path))
    first, again = record(), record()
    assert first.behaviour == PLANNER
    np.testing.assert_array_equal(first.commands, again.commands)
    assert first.commands.shape == (15, 2)
    assert np.isfinite(first.commands).all()
    assert np.ptp(first.commands[1:], axis=0).max() > 0.01  # it does act


def test_half_of_the_targets_lie_where_a_mistake_ends_in_a_fall(sim: TabletopSim) -> None:
    rng = np.random.default_rng(0)
    clearances = []
    for seed in range(60):
        sim.reset(seed)
        clearances.append(TABLE_BOUNDS.clearance(*draw_target(sim, rng).goal))
    near = np.mean(np.array(clearances) < 0.08)
    assert 0.25 < near < 0.7  # 0.1 as the task draws them
    assert min(clearances) >= EDGE_MARGIN_M  # as the task has them


def test_a_target_that_is_reached_is_followed_by_another(
    bundle: Bundle, sim: TabletopSim, monkeypatch: pytest.MonkeyPatch
) -> None:
    aims: list[tuple[float, float]] = []
    aim = MpcPolicy.aim
    monkeypatch.setattr(
        MpcPolicy, "aim", lambda self, task, sim: (aims.append(task.goal), aim(self, task, sim))
    )
    play = PlannedPlay(MpcPolicy(bundle.path, "openvino", "state"))
    rng = np.random.default_rng(0)
    sim.reset(7)
    play.reset(sim, rng)
    monkeypatch.setattr(sim, "mug_pose", lambda: (*aims[-1], 0.0, 0.0))
    play.act(sim, rng)
    assert len(aims) == 2
    assert aims[0] != aims[1]


def test_a_place_that_no_target_can_be_reached_from_ends_nothing(
    bundle: Bundle, sim: TabletopSim, monkeypatch: pytest.MonkeyPatch
) -> None:
    play = PlannedPlay(MpcPolicy(bundle.path, "openvino", "state"))
    rng = np.random.default_rng(0)
    sim.reset(7)
    play.reset(sim, rng)
    beside_the_zone = (0.2, 0.015)  # every straight path from there is within the zone's margin
    monkeypatch.setattr(sim, "mug_pose", lambda: (*beside_the_zone, 0.0, 0.0))
    monkeypatch.setattr("wm_node.training.planned_play.NEAR_M", 10.0)  # it has arrived
    assert np.isfinite(play.act(sim, rng)).all()


@pytest.mark.parametrize("name", PLANNED)
def test_bags_say_which_bundle_played(bundle: Bundle, tmp_path: Path, name: str) -> None:
    out, figures = tmp_path / "bags", tmp_path / "figures.json"
    words = ["--episodes", "1", "--workers", "1", "--camera-rate", "10", "--image-size", "160x120"]
    words += ["--behaviours", name, "--bundle", str(bundle.path), "--json", str(figures)]
    assert wm(["collect", "--out", str(out), *words]) == 0
    assert json.loads(figures.read_text())["behaviours"] == {name: 1}
    settings = json.loads((out / "collect.jsonl").read_text().splitlines()[0])
    assert settings["bundle_sha256"] == bundle.sha256


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--behaviours", "wander=0.5,planner=0.5"], "needs a --bundle"),
        (["--bundle", "anything"], "give one a share"),
        (["--behaviours", "careless"], "'careless' needs a --bundle"),
        (["--behaviours", "planner", "--bundle", "nowhere"], "nowhere"),
    ],
)
def test_planner_and_bundle_go_together(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], words: list[str], told: str
) -> None:
    assert wm(["collect", "--out", str(tmp_path / "bags"), *words]) == 1
    assert told in capsys.readouterr().err


def test_where_no_target_is_fit_the_planner_plays_all_the_same(
    bundle: Bundle, sim: TabletopSim
) -> None:
    rng = np.random.default_rng(0)
    play = PlannedPlay(MpcPolicy(bundle.path, "openvino", "state"))
    sim.reset(5)
    sim.setup = replace(sim.setup, accepts=lambda start, goal: False)
    play.reset(sim, rng)
    assert np.isfinite([play.act(sim, rng) for _ in range(3)]).all()


def test_the_careless_one_does_not_mind_risk(bundle: Bundle) -> None:
    make = behaviours_with_planner(bundle.path)
    careless, planner = make(CARELESS), make(PLANNER)
    assert isinstance(careless, PlannedPlay)
    assert isinstance(planner, PlannedPlay)
    assert careless._policy._weights.risk == 0.0
    assert planner._policy._weights.risk > 0.0
