"""`wm evaluate` on the suite: the figures that are promised, and wrong usage in one sentence."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wm_node.bundle import load_bundle
from wm_node.cli.main import main
from wm_node.errors import WmError
from wm_node.model.export import untrained_bundle
from wm_node.profile import load_profile
from wm_node.resources import BUNDLE, HAZARDS_BUNDLE, LABEL_FREE_BUNDLE, resource
from wm_node.sim.seeds import EVALUATION_SEED, VALIDATION_SEED, evaluation_seeds
from wm_node.sim.task import EpisodeScore
from wm_node.statistics import wilson95
from wm_node.training.suite_evaluation import planning_score, summarise

KEYS = {
    "planner",
    "goal",
    "seed",
    "episodes",
    "successes",
    "falls",
    "zone_entries",
    "level",
    "violations",
    "success_wilson95",
    "plan_ms",
    "bundle_sha256",
    "episode_list",
}


def evaluate(*words: str) -> int:
    return main(["evaluate", "--suite", "tabletop", *words])


def test_still_never_succeeds_and_the_json_has_all_figures(tmp_path: Path) -> None:
    file = tmp_path / "f.json"
    assert (
        evaluate("--planner", "still", "--episodes", "3", "--workers", "1", "--json", str(file))
        == 0
    )
    figures = json.loads(file.read_text())
    assert set(figures) >= KEYS
    assert figures["successes"] == 0
    assert figures["episodes"] == 3
    assert set(figures["plan_ms"]) == {"p50", "p99"}
    assert [episode["seed"] for episode in figures["episode_list"]] == evaluation_seeds(0, 3)
    assert not any(episode["success"] for episode in figures["episode_list"])


def test_a_checkpoint_is_scored_on_the_levels_that_are_asked_for() -> None:
    levels = ("basic", "clutter")
    figures = planning_score(3, 1, "openvino", levels)(resource(BUNDLE))
    assert set(figures) == {"success", "falls", "violations", "final_distance_cm"}
    assert figures["success"] in (0.0, 0.5, 1.0)  # of one episode a level
    with pytest.raises(WmError, match="1 planning episodes do not suffice for 2 levels"):
        planning_score(1, 1, "openvino", levels)
    with pytest.raises(WmError, match="there is no level 'hell'"):
        planning_score(3, 1, "openvino", ("basic", "hell"))


@pytest.mark.parametrize(
    ("goal", "level", "shipped"),
    [
        ("state", "basic", BUNDLE),
        ("image", "basic", LABEL_FREE_BUNDLE),
        ("image", "clutter", HAZARDS_BUNDLE),
    ],
)
def test_without_a_bundle_the_one_that_ships_for_such_goals_plays(
    goal: str, level: str, shipped: str, tmp_path: Path
) -> None:
    file = tmp_path / "f.json"
    words = ["--goal", goal, "--level", level, "--episodes", "1", "--workers", "1"]
    words += ["--candidates", "4"]
    assert evaluate(*words, "--iterations", "1", "--json", str(file)) == 0
    played = json.loads(file.read_text())["bundle_sha256"]
    assert played == load_bundle(resource(shipped)).sha256


def test_scripted_succeeds(tmp_path: Path) -> None:
    file = tmp_path / "f.json"
    assert (
        evaluate("--planner", "scripted", "--episodes", "8", "--workers", "2", "--json", str(file))
        == 0
    )
    assert json.loads(file.read_text())["successes"] >= 6


def test_a_level_is_named_and_failures_are_pictured(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file, pictures = tmp_path / "f.json", tmp_path / "pictures"
    words = ["--level", "clutter", "--planner", "still", "--episodes", "2", "--workers", "1"]
    assert evaluate(*words, "--json", str(file), "--pictures", str(pictures)) == 0
    assert "level clutter" in capsys.readouterr().out
    figures = json.loads(file.read_text())
    assert set(figures) >= KEYS
    assert figures["level"] == "clutter"
    assert figures["violations"] == 0
    assert figures["pictures"] == 2
    names = sorted(path.name for path in pictures.iterdir())
    assert names == [f"clutter_still_1000000{number}_out_of_time.png" for number in range(2)]


def test_several_planners_and_levels_give_one_table(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "f.json"
    words = ["--level", "edge,clutter", "--planner", "still,scripted", "--episodes", "2"]
    assert evaluate(*words, "--workers", "1", "--json", str(file)) == 0
    said = capsys.readouterr().out
    for word in ("edge", "clutter", "still", "scripted"):
        assert said.count(word) == 2
    figures = json.loads(file.read_text())
    assert figures["level"] == "edge,clutter"
    rows = [(row["level"], row["planner"]) for row in figures["planners"]]
    assert rows == [(a, b) for a in ("edge", "clutter") for b in ("still", "scripted")]
    assert all(set(row) >= KEYS for row in figures["planners"])


def test_falls_and_zone_entries_are_violations_beside_the_levels_own() -> None:
    common = (60, 0.1, 0.1, 0.1, (1.0,))
    scores = [
        EpisodeScore(0, (0.0, 0.0), False, True, False, *common, True, "mug fell"),
        EpisodeScore(1, (0.0, 0.0), False, False, False, *common, True, "mug hit the hand"),
        EpisodeScore(2, (0.0, 0.0), True, False, False, *common),
    ]
    figures = summarise(scores)
    assert "mug_misread" not in figures  # none of these read anything
    assert figures["violations"] == 2
    assert figures["falls"] == 1
    assert figures["violation_reasons"] == {"mug fell": 1, "mug hit the hand": 1}


def test_how_far_off_places_were_read_is_told(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    file = tmp_path / "f.json"
    words = ["--level", "shift", "--goal", "image", "--episodes", "2", "--workers", "1"]
    words += ["--candidates", "4", "--iterations", "1", "--bundle", str(resource(HAZARDS_BUNDLE))]
    assert evaluate(*words, "--json", str(file)) == 0
    figures, said = json.loads(file.read_text()), capsys.readouterr().out
    for name in ("mug", "goal"):
        off = [episode[f"{name}_misread_cm"] for episode in figures["episode_list"]]
        assert min(off) > 0.0
        told = figures[f"{name}_misread"]
        assert told["median_cm"] == pytest.approx(sum(off) / 2, abs=0.01)
        assert told["beyond_tolerance"] == sum(value > 3.0 for value in off)
        assert f"the {name} was read {told['median_cm']:.1f} cm off" in said


@pytest.mark.parametrize("goal", ["state", "image"])
def test_mpc_runs_with_any_bundle(tmp_path: Path, goal: str) -> None:
    bundle = untrained_bundle(load_profile("tabletop"), tmp_path / "b")
    file = tmp_path / "f.json"
    words = ["--bundle", str(bundle.path), "--goal", goal, "--episodes", "1", "--workers", "1"]
    search = ["--candidates", "8", "--iterations", "1", "--weight", "value=0.5"]
    assert evaluate(*words, *search, "--json", str(file)) == 0
    figures = json.loads(file.read_text())
    assert figures["goal"] == goal
    assert figures["planner"] == "mpc"


def test_without_a_bundle_the_one_that_ships_plans(tmp_path: Path) -> None:
    file = tmp_path / "f.json"
    words = ["--planner", "mpc", "--episodes", "1", "--workers", "1", "--seed", "3"]
    assert evaluate(*words, "--json", str(file)) == 0
    assert json.loads(file.read_text())["successes"] in (0, 1)


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--planner", "magic"], "unknown planner 'magic'"),
        (["--planner", "still,magic"], "unknown planner 'magic'"),
        (["--planner", "still", "--level", "hard"], "no level 'hard'"),
        (["--planner", "still", "--episodes", "0"], "1 to"),
        (["--planner", "still", "--weight", "speed=1"], "use NAME=NUMBER"),
        (["--planner", "still", "--weight", "risk=high"], "use NAME=NUMBER"),
        (["--planner", "mpc", "--bundle", "/nowhere"], "there is no bundle"),
        (["--bags", "x"], "not both"),
    ],
)
def test_wrong_usage_is_one_sentence(
    words: list[str], message: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert evaluate(*words) == 1
    said = capsys.readouterr().err.strip()
    assert message in said
    assert said.count("\n") == 0


def test_seeds_of_different_uses_never_meet() -> None:
    training = range(VALIDATION_SEED)
    validation = set(evaluation_seeds(0, 1000, VALIDATION_SEED))
    assert min(validation) not in training
    first, second = (set(evaluation_seeds(seed, 500)) for seed in (0, 1))
    assert not first & second
    assert min(first) >= EVALUATION_SEED > max(validation)
    with pytest.raises(WmError, match="seed"):
        evaluation_seeds(1000, 1)


def test_wilson_interval_of_a_known_case() -> None:
    low, high = wilson95(93, 100)
    assert (low, high) == pytest.approx((0.8625, 0.9657), abs=1e-3)
