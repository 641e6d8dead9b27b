"""``wm export`` writes what an older version left out, and changes nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from wm_node.bundle import GOLDEN, SEARCH_TERMS, WEIGHTS, load_bundle
from wm_node.cli.main import main
from wm_node.model.config import ModelConfig
from wm_node.resources import LABEL_FREE_BUNDLE, resource


def test_the_graphs_are_new_and_the_weights_are_not(tmp_path: Path) -> None:
    old = load_bundle(resource(LABEL_FREE_BUNDLE))
    out, figures = tmp_path / "again", tmp_path / "figures.json"
    words = ["export", "--bundle", str(old.path), "--out", str(out), "--json", str(figures)]
    assert main(words) == 0
    new = load_bundle(out)
    assert new.manifest["exported_from"] == old.sha256
    sizes = [ModelConfig.from_dict(bundle.manifest["model"]) for bundle in (old, new)]
    assert sizes[0] == sizes[1]
    for key in ("profile", "data", "training", "metrics", "calibration"):
        assert new.manifest[key] == old.manifest[key]
    assert json.loads(figures.read_text())["bundle_sha256"] == new.sha256
    before, after = load_file(old.file(WEIGHTS)), load_file(new.file(WEIGHTS))
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    golden = np.load(new.file(GOLDEN))
    assert golden["plan_fast/in/weights"].shape == (len(SEARCH_TERMS),)


def test_an_existing_bundle_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    words = ["export", "--bundle", str(resource(LABEL_FREE_BUNDLE)), "--out", str(taken)]
    assert main(words) == 1
    assert "already exists" in capsys.readouterr().err
    assert not list(taken.iterdir())
