"""`wm calibrate --risk` and `--doubt`: into an overlay, from the simulator and from bags."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wm_node.bundle import load_bundle
from wm_node.cli.main import main
from wm_node.data.overlay import load_overlay, with_overlay
from wm_node.errors import WmError
from wm_node.resources import BUNDLE, resource


def calibrate(*words: str) -> int:
    return main(["calibrate", *words])


def check(overlay: Path, figures: dict[str, object]) -> None:
    """What was written holds for the shipped bundle, and is what the figures say."""
    bundle = load_bundle(resource(BUNDLE))
    risk = load_overlay(overlay).robots["tabletop"].risk
    assert risk is not None
    assert risk.bundle == bundle.sha256
    assert risk.threshold == figures["threshold"]
    profile = with_overlay(bundle.profile, overlay, bundle.sha256)
    assert profile.safety.risk_threshold == risk.threshold
    assert set(risk.threshold) == {"fell", "zone"}
    assert all(0.0 < value <= 1.0 for value in risk.threshold.values())


def test_thresholds_from_simulated_episodes(tmp_path: Path) -> None:
    overlay, file = tmp_path / "overlay.yaml", tmp_path / "figures.json"
    words = ["--risk", "--source", "planner", "--episodes", "12", "--miss-rate", "0.9"]
    assert calibrate(*words, "--out", str(overlay), "--json", str(file)) == 0
    figures = json.loads(file.read_text())
    check(overlay, figures)
    measured = figures["measured"]
    assert (measured["source"], measured["episodes"]) == ("planner", 12)
    assert all(event["events"] >= 1 for event in measured["events"].values())


def test_thresholds_from_bags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bags, overlay, file = tmp_path / "bags", tmp_path / "overlay.yaml", tmp_path / "figures.json"
    words = ["collect", "--episodes", "16", "--camera-rate", "10", "--seed", "4000000"]
    assert main([*words, "--behaviours", "edge=0.5,zone=0.5", "--out", str(bags)]) == 0
    words = ["--risk", str(bags), "--miss-rate", "0.9", "--out", str(overlay)]
    assert calibrate(*words, "--json", str(file)) == 0
    figures = json.loads(file.read_text())
    check(overlay, figures)
    assert figures["measured"]["source"] == "bags"
    assert 1 <= figures["measured"]["events"]["fell"]["events"] <= 16
    capsys.readouterr()
    # Sixteen episodes promise no rate of 1 %.
    assert calibrate("--risk", str(bags), "--miss-rate", "0.01") == 1
    assert "use at least 230" in capsys.readouterr().err


def test_limits_of_doubt_from_bags(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    bags, overlay, file = tmp_path / "bags", tmp_path / "overlay.yaml", tmp_path / "figures.json"
    words = ["collect", "--episodes", "10", "--camera-rate", "10", "--seed", "4100000"]
    assert main([*words, "--out", str(bags)]) == 0
    words = ["--doubt", str(bags), "--out", str(overlay), "--json", str(file)]
    assert calibrate(*words, "--false-alarms", "1200") == 0
    figures = json.loads(file.read_text())
    doubt = load_overlay(overlay).robots["tabletop"].doubt
    assert doubt is not None
    assert doubt.model_dump(mode="json") == figures
    measured = doubt.measured
    assert doubt.surprise_limit < measured["surprise"]["max"]  # what lasts is less than the worst
    assert doubt.uncertainty_limit <= measured["uncertainty"]["max"]
    assert measured["stretches"] == len(doubt.windows) == 10
    bundle = load_bundle(resource(BUNDLE))
    profile = with_overlay(bundle.profile, overlay, bundle.sha256)
    assert profile.safety.surprise_limit == doubt.surprise_limit
    assert profile.safety.uncertainty_limit == doubt.uncertainty_limit
    with pytest.raises(WmError, match="run 'wm calibrate --doubt' again"):
        with_overlay(bundle.profile, overlay, "0" * 64)
    capsys.readouterr()
    assert calibrate("--doubt", str(bags)) == 1  # an hour's rate from a minute's work
    assert "record 46 minutes, or allow more" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "sentence"),
    [
        (["--risk", "--miss-rate", "0"], "--miss-rate must lie between 0 and 1"),
        (["--risk", "--latency-s", "3"], "--latency-s must lie between 0 and 1"),
        (["--risk", "nowhere"], "nowhere"),
        (["--risk", "--episodes", "0"], "use a --seed"),
        (["--delay", "bags"], "--delay needs the --robot"),
        (["--doubt", "nowhere"], "nowhere"),
        (["--doubt", "bags", "--false-alarms", "0"], "--false-alarms must be a positive"),
    ],
)
def test_wrong_use_is_one_sentence(
    words: list[str], sentence: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert calibrate(*words) == 1
    assert sentence in capsys.readouterr().err
