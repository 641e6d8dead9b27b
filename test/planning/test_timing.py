"""``wm benchmark`` times whole plans beside their floor, and writes what it printed."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import pytest
from PIL import Image

from wm_node.bundle import PRESETS, Bundle
from wm_node.cli.main import main
from wm_node.model.config import ModelConfig
from wm_node.model.export import untrained_bundle
from wm_node.planning import timing
from wm_node.profile import RobotProfile, load_profile


def test_it_times_encoding_and_plans(
    random_bundle_of: Callable[[RobotProfile, Path], Bundle],
    tmp_path: Path,
    capsys: pytest.CaptureFixture[str],
) -> None:
    bundle = random_bundle_of(load_profile("tabletop"), tmp_path / "small")
    file = tmp_path / "figures.json"
    words = ["benchmark", "--bundle", str(bundle.path), "--preset", "fast", "--plans", "4"]
    assert main([*words, "--json", str(file)]) == 0
    figures = json.loads(file.read_text())
    assert figures["bundle_sha256"] == bundle.sha256
    assert figures["encode"]["calls"] == 4
    plan = figures["plans"]["fast"]
    assert plan["one_call"]
    assert (plan["candidates"], plan["iterations"]) == (64, 3)
    assert 0 < plan["floor_ms"] < plan["p50_ms"] <= plan["p99_ms"]
    assert figures["resident_bytes"] > 1e7
    assert "plan fast, 64 x 3, one call" in capsys.readouterr().out


@pytest.mark.parametrize(("option", "value"), [("--plans", "0"), ("--threads", "0")])
def test_senseless_sizes_are_refused(
    option: str, value: str, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["benchmark", option, value]) == 1
    assert f"{option} must lie within 1" in capsys.readouterr().err


def test_it_draws_how_times_grow(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name, sizes in (
        ("CANDIDATES", (4, 8)),
        ("HORIZONS", (4,)),
        ("IMAGE_SIDES", (32,)),
        ("ROBOTS", (1, 2)),
        ("TOKENS", (4,)),
    ):
        monkeypatch.setattr(timing, name, sizes)
    config = ModelConfig(latent=32, width=32, transition_blocks=1, transition_hidden=64)
    searches = {"plan_fast": PRESETS["plan_fast"]}
    profile = load_profile("tabletop")
    short = profile.model_copy(
        update={"model": profile.model.model_copy(update={"horizon_steps": 4})}
    )
    bundle = untrained_bundle(short, tmp_path / "small", config=config, searches=searches)
    file, folder = tmp_path / "figures.json", tmp_path / "growth"
    words = ["benchmark", "--bundle", str(bundle.path), "--preset", "fast", "--plans", "1"]
    assert main([*words, "--growth", str(folder), "--json", str(file)]) == 0
    growth = json.loads(file.read_text())["growth"]
    assert [point["size"] for point in growth["candidates"]] == [4, 8]
    assert growth["robots"][0]["ms"] < growth["robots"][1]["ms"]
    assert [point["size"] for point in growth["tokens"]] == [4]
    with Image.open(growth["picture"]) as picture:
        assert picture.width > 1000
