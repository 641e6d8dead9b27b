"""The README's figures come from JSON files of real runs."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wm_node.reporting.readme import BEGIN, END, main

SUMMARY = {
    "episodes": 10,
    "seed": 3,
    "goal": "state",
    "successes": 9,
    "success_wilson95": [0.596, 0.982],
    "falls": 0,
    "zone_entries": 1,
    "other_violations": 0,
    "plan_ms": {"p50": 31.2, "p99": 48.9},
    "frame_to_command_ms": {"p50": 88.0, "p99": 99.0},
    "cycles": 400,
    "deadline_misses": 2,
    "control_hz": 10.02,
    "frames_published": 900,
    "frames_received": 900,
    "backend": "openvino-f32",
    "bundle_sha256": "ab" * 32,
    "machine": "some processor, 2 cores",
    "python": "3.11.7",
}
SUITE = {
    "planner": "still",
    "goal": None,
    "level": "basic",
    "seed": 9,
    "episodes": 200,
    "successes": 0,
    "falls": 0,
    "zone_entries": 0,
    "violations": 0,
    "success_wilson95": [0.0, 0.019],
    "plan_ms": None,
}


@pytest.fixture
def files(tmp_path: Path) -> list[str]:
    (tmp_path / "summary.json").write_text(json.dumps(SUMMARY))
    (tmp_path / "still.json").write_text(json.dumps(SUITE))
    (tmp_path / "README.md").write_text(f"before\n{BEGIN}\nold figures\n{END}\nafter\n")
    readme = ["--readme", str(tmp_path / "README.md")]
    return ["--demo", str(tmp_path), "--suite", str(tmp_path / "still.json"), *readme]


def test_figures_are_replaced_and_the_rest_is_kept(files: list[str], tmp_path: Path) -> None:
    assert main(files) == 0
    page = (tmp_path / "README.md").read_text()
    assert page.startswith("before\n")
    assert page.endswith("after\n")
    assert "old figures" not in page
    for text in ("9 of 10", "59.6 to 98.2 %", "some processor", "--planner still", "0 of 200"):
        assert text in page
    assert main(files) == 0
    assert (tmp_path / "README.md").read_text() == page


def test_a_suite_that_another_bundle_played_says_so(files: list[str], tmp_path: Path) -> None:
    other = {**SUITE, "planner": "mpc", "goal": "image", "bundle_sha256": "cd" * 32}
    (tmp_path / "still.json").write_text(json.dumps(other))
    assert main(files) == 0
    page = (tmp_path / "README.md").read_text()
    assert "--planner mpc --goal image --episodes 200 --seed 9` (bundle `cdcdcdcdcdcdcdcd`)" in page


def test_a_level_is_named_and_its_own_violations_are_told(files: list[str], tmp_path: Path) -> None:
    hand = {**SUITE, "level": "moving_hand", "falls": 2, "zone_entries": 1, "violations": 6}
    (tmp_path / "still.json").write_text(json.dumps(hand))
    assert main(files) == 0
    page = (tmp_path / "README.md").read_text()
    assert "--suite tabletop --level moving_hand --planner still" in page
    assert "| 0.0 to 1.9 % | 2 | 1 | 3 | - |" in page
    assert "| 59.6 to 98.2 % | 0 | 1 | 0 |" in page


def test_a_readme_without_markers_is_refused(
    files: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "README.md").write_text("nothing")
    assert main(files) == 1
    assert "lacks the markers" in capsys.readouterr().err
    assert (tmp_path / "README.md").read_text() == "nothing"


def test_the_repository_readme_has_the_markers() -> None:
    text = (Path(__file__).parents[2] / "README.md").read_text(encoding="utf-8")
    assert text.count(BEGIN) == 1
    assert text.index(BEGIN) < text.index(END)


def test_missing_figures_are_named(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert main(["--demo", str(tmp_path)]) == 1
    assert "summary.json" in capsys.readouterr().err
