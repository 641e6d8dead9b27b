"""Fidelity: known answers for the figures, a perfect model, and the shipped bundle."""

from __future__ import annotations

import json
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from wm_node.cli.main import main
from wm_node.model.config import ModelConfig
from wm_node.model.export import untrained_bundle
from wm_node.planning.planner import MpcPlanner, PlannerConfig
from wm_node.planning.world_model import Context, Floats, Goal, Outcomes
from wm_node.profile import load_profile
from wm_node.resources import resource
from wm_node.sim.oracle import SimulatorModel
from wm_node.sim.seeds import STATE_SEED
from wm_node.sim.tabletop import TabletopSim
from wm_node.training.fidelity import (
    Prompt,
    Settings,
    draw_sequences,
    find_moment,
    measure,
    require_tabletop,
    transitions,
    watch,
)
from wm_node.training.fidelity_figures import (
    Pair,
    StateRecord,
    Transitions,
    auroc,
    figures_of,
    r_squared,
    reliability,
    spearman,
)
from wm_node.training.policies import PlanSettings

PROFILE = load_profile("tabletop")
SEEDS = range(STATE_SEED, STATE_SEED + 3)
NOTHING = Transitions(np.zeros((0, 0), np.float32), np.zeros((0, 0), np.float32))


# ---- figures with known answers ------------------------------------------------------------


def test_rank_correlation_of_known_orders() -> None:
    values = np.array([3.0, 1.0, 2.0, 9.0])
    assert spearman(values, np.exp(values)) == pytest.approx(1.0)
    assert spearman(values, -values) == pytest.approx(-1.0)
    assert spearman(np.array([1, 2, 3, np.inf]), values[[1, 2, 0, 3]]) == pytest.approx(1.0)
    assert spearman(np.array([1.0, 2.0, 3.0]), np.array([1.0, 3.0, 2.0])) == pytest.approx(0.5)
    assert np.isnan(spearman(values, np.ones(4)))


def test_calibration_error_of_a_known_set() -> None:
    # Ten cases at 0.25 of which five happen, thirty at 1.0 of which all happen.
    predicted = np.concatenate([np.full(10, 0.25), np.ones(30)])
    happened = np.concatenate([np.arange(10) < 5, np.ones(30, bool)])
    found = reliability(predicted, happened)
    assert found["ece"] == pytest.approx(10 / 40 * 0.25)
    assert found["brier"] == pytest.approx((5 * 0.75**2 + 5 * 0.25**2) / 40)
    assert found["brier_base_rate"] == pytest.approx(35 / 40 * 5 / 40)
    assert (found["cases"], found["positives"]) == (40, 35)
    assert [item["count"] for item in found["bins"]] == [0, 0, 10, 0, 0, 0, 0, 0, 0, 30]
    assert (found["bins"][2]["predicted"], found["bins"][2]["true"]) == (0.25, 0.5)
    assert found["bins"][0]["true"] is None
    rng = np.random.default_rng(0)
    risk = rng.random(200_000)
    assert reliability(risk, rng.random(200_000) < risk)["ece"] < 0.01


def test_auroc_of_known_rankings() -> None:
    happened = np.arange(20) >= 10
    assert auroc(np.arange(20.0), happened) == 1.0
    assert auroc(-np.arange(20.0), happened) == 0.0
    assert auroc(np.zeros(20), happened) == 0.5
    assert auroc(np.arange(20.0), np.arange(20) >= 16) is None


def test_r_squared_of_known_predictions() -> None:
    true = np.random.default_rng(0).normal(size=(50, 2))
    assert r_squared(true, true) == 1.0
    assert r_squared(np.repeat(true.mean(0)[None], 50, 0), true) == pytest.approx(0.0)
    assert r_squared(-true, true) < -2.0


# ---- states and actions --------------------------------------------------------------------


@pytest.fixture(scope="module")
def blind() -> TabletopSim:
    return TabletopSim(render=False)


def test_states_follow_from_the_seed_and_come_before_any_violation(blind: TabletopSim) -> None:
    behaviours, ticks = set(), set()
    for seed in range(STATE_SEED, STATE_SEED + 25):
        moment = find_moment(blind, seed, 0.1, seen=5, frames=False)
        assert not blind.fell()
        assert not blind.in_zone()
        newest = moment.observations[-1]
        np.testing.assert_array_equal(newest.joints, blind.joint_positions())
        assert len(newest.applied) == moment.tick
        assert len(moment.observations) == min(5, moment.tick + 1)
        behaviours.add(moment.behaviour)
        ticks.add(moment.tick)
    again = find_moment(blind, seed, 0.1, seen=5, frames=False)
    np.testing.assert_array_equal(again.snapshot.physics, moment.snapshot.physics)
    assert len(behaviours) >= 4
    assert len(ticks) >= 10


def test_aimed_sequences_move_the_mug_and_the_others_mostly_do_not(blind: TabletopSim) -> None:
    moved = {"around still": 0, "aimed": 0}
    oracle = SimulatorModel(blind, PROFILE.model.ticks_per_step)
    for seed in SEEDS:
        moment = find_moment(blind, seed, 0.1, seen=1, frames=False)
        mug = np.array(blind.mug_pose()[:2])
        planner = MpcPlanner(PROFILE, PlannerConfig())
        rng = np.random.default_rng(0)
        goal = np.array(moment.task.goal)
        actions = draw_sequences(planner, rng, 24, blind.tip(), mug, goal)
        assert actions.shape == (24, PROFILE.model.horizon_ticks, 2)
        assert np.abs(actions).max() <= 0.25
        end = oracle.outcomes(actions)["state"][:, -1, :2]
        far = np.linalg.norm(end - mug, axis=-1) > 0.01
        moved["around still"] += far[:12].sum()
        moved["aimed"] += far[12:].sum()
    assert moved["aimed"] >= 18
    assert moved["aimed"] > moved["around still"]
    oracle.close()


def test_watching_plays_what_the_oracle_simulates() -> None:
    sim = TabletopSim((64, 48))
    oracle = SimulatorModel(sim, 2)
    moment = find_moment(sim, SEEDS[0], 0.1, seen=1, frames=False)
    assert sim.driver.pending  # which must not act a second time
    actions = np.random.default_rng(1).uniform(-0.2, 0.2, (1, 16, 2)).astype(np.float32)
    truth = oracle.outcomes(actions)["state"][0, -1]
    frames: list[NDArray[np.uint8]] = []

    def encode(frame: NDArray[np.uint8]) -> Floats:
        frames.append(frame)
        return np.full(3, len(frames), np.float32)

    latents = watch(sim, moment.snapshot, actions[0], 2, encode)
    np.testing.assert_array_equal(latents[:, 0], np.arange(1, 9))
    np.testing.assert_allclose([*sim.mug_pose()[:2], *sim.tip()], truth, atol=1e-6)
    assert (frames[0] != frames[-1]).any()
    oracle.close()
    sim.close()


def test_transitions_hold_what_acted_between_two_latents() -> None:
    latents = np.array([[[0], [1], [5]]], np.float32)
    actions = np.array([[[1, 0], [3, 0], [5, 2], [7, 4]]], np.float32)  # two steps of two ticks
    found = transitions(latents, actions)
    np.testing.assert_array_equal(found.latents, [[0, 1], [1, 4]])  # before, change
    np.testing.assert_array_equal(found.actions, [[2, 0], [6, 3]])


# ---- known models --------------------------------------------------------------------------


@dataclass
class Shifted:
    """The simulator, but for the mug's place, which is off by so many metres."""

    oracle: SimulatorModel
    by: float

    def rollout(
        self,
        context: Context,
        actions: Floats,
        goal_latent: Floats | None = None,
        lean: bool = False,
    ) -> Outcomes:
        out = self.oracle.rollout(context, actions)
        state = out.state.copy()
        state[..., 0] += self.by
        return replace(out, state=state)


def _records(blind: TabletopSim, shift: float) -> Iterator[StateRecord]:
    oracle = SimulatorModel(blind, PROFILE.model.ticks_per_step)
    quick = PlanSettings(config=PlannerConfig(candidates=8, iterations=1))
    settings = Settings(sequences=20, plan=quick)
    nothing = Context(0, np.zeros((2, 0)), np.zeros((2, 4)), np.zeros((2, 2, 2)))
    for seed in SEEDS:
        moment = find_moment(blind, seed, 0.1, seen=1, frames=False)
        prompt = Prompt(nothing, Goal(state=np.asarray(moment.task.goal, np.float32)))
        model = Shifted(oracle, shift)
        yield measure(moment, prompt, model, blind, oracle, PROFILE, settings)
    oracle.close()


def _count(records: list[StateRecord]) -> dict:
    groups = np.zeros(0, np.int64)
    return figures_of(records, NOTHING, groups, PROFILE.event_names, PROFILE.model.step_s)


def test_the_simulator_itself_is_perfect(blind: TabletopSim) -> None:
    records = list(_records(blind, 0.0))
    figures = _count(records)
    assert figures["spearman"]["cost"]["median"] == pytest.approx(1.0)
    assert figures["spearman"]["cost"]["states"] == 3
    steps = figures["mug_error_cm"]["steps"]
    assert [entry["step"] for entry in steps] == list(range(1, 9))  # it cannot roll on
    assert all(entry["model"]["mean"] == 0.0 for entry in steps)
    assert steps[-1]["moved"]["copy_last"]["mean"] > 1.0
    assert steps[-1]["sequences"] + steps[-1]["fallen_left_out"] == 60
    assert all(event["brier"] == 0.0 for event in figures["risk"].values())
    exploited = figures["exploitation"]
    assert exploited["sampled_gap"]["mean"] == pytest.approx(0.0, abs=1e-5)
    for item in exploited["chosen"]:
        assert item["gap"]["mean"] == pytest.approx(0.0, abs=1e-5)
        assert item["true_distance_cm"] == item["predicted_distance_cm"]
    assert figures["mug_error_cm"]["reading_now"] is None
    assert figures["action_recovery"] is None
    reversed_ = [replace(r, cost=Pair(-r.cost.true, r.cost.true)) for r in records]
    assert _count(reversed_)["spearman"]["cost"]["median"] == pytest.approx(-1.0)


def test_a_model_that_is_off_by_a_centimetre_is_found_to_be(blind: TabletopSim) -> None:
    figures = _count(list(_records(blind, 0.01)))
    for entry in figures["mug_error_cm"]["steps"]:
        assert entry["model"]["mean"] == pytest.approx(1.0, abs=1e-3)
    assert figures["spearman"]["cost"]["median"] < 1.0
    assert abs(figures["exploitation"]["chosen"][0]["gap"]["mean"]) > 0.01


# ---- the command ---------------------------------------------------------------------------


def fidelity(*words: str) -> int:
    return main(["evaluate", "--fidelity", *words])


@pytest.mark.timeout(400)  # it starts two processes, perhaps on a busy machine
def test_the_shipped_bundle_gives_the_same_figures_in_any_number_of_processes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    few = ["--states", "2", "--sequences", "20", "--goal", "image", "--weight", "value=0.5"]
    words = ["--bundle", str(resource("bundles/tabletop")), *few]
    alone, both = tmp_path / "alone.json", tmp_path / "both.json"
    assert fidelity(*words, "--workers", "1", "--json", str(alone)) == 0
    pictures = ["--pictures", str(tmp_path / "pictures")]
    assert fidelity(*words, "--workers", "2", "--json", str(both), *pictures) == 0
    figures, other = json.loads(alone.read_text()), json.loads(both.read_text())
    assert Path(other.pop("picture")).read_bytes().startswith(b"\x89PNG")
    assert figures == other
    assert "NaN" not in alone.read_text()
    assert [entry["step"] for entry in figures["mug_error_cm"]["steps"]] == list(range(1, 17))
    assert figures["mug_error_cm"]["reading_now"]["mean"] < 5.0
    assert figures["spearman"]["cost"]["median"] > 0.2
    assert figures["action_recovery"]["transitions"] == 2 * 2 * 7
    assert [item["uncertainty_weight"] for item in figures["exploitation"]["chosen"]] == [0, 0.1]
    said = capsys.readouterr().out
    for part in (
        "rank correlation",
        "mug error after 16 steps",
        "risk of fell",
        "actions from imagined",
    ):
        assert part in said


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--suite", "tabletop"], "give one of --suite, --fidelity and --alarms"),
        (["--bundle", "shipped", "--states", "1"], "too few"),
        (["--bundle", "shipped", "--sequences", "8"], "8 sequences"),
        (["--bundle", "shipped", "--uncertainty-weight", "0"], "above 0"),
    ],
)
def test_wrong_usage_is_one_sentence(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    shipped = str(resource("bundles/tabletop"))
    assert fidelity(*[shipped if word == "shipped" else word for word in words]) == 1
    said = capsys.readouterr().err.strip()
    assert message in said
    assert said.count("\n") == 0


def test_another_robot_is_refused(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bundle = untrained_bundle(load_profile("g1_bottle"), tmp_path / "b")
    assert fidelity("--bundle", str(bundle.path)) == 1
    assert "simulated table-top" in capsys.readouterr().err


def test_what_else_stands_on_the_table_may_be_labelled_too(tmp_path: Path) -> None:
    path = tmp_path / "b"
    config = ModelConfig(transition_blocks=1)
    untrained_bundle(load_profile("tabletop_hazards"), path, config=config, searches={})
    assert require_tabletop(path, "this is of").name == "tabletop_hazards"
