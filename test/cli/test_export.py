"""``wm export`` writes what an older version left out, and changes nothing else."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
from safetensors.numpy import load_file

from wm_node.bundle import GOLDEN, SEARCH_TERMS, WEIGHTS, load_bundle
from wm_node.cli.main import main
from wm_node.data.dataset import DatasetWriter, EpisodeArrays
from wm_node.profile import load_profile
from wm_node.resources import LABEL_FREE_BUNDLE, resource


def test_the_graphs_are_new_and_the_weights_are_not(tmp_path: Path) -> None:
    old = load_bundle(resource(LABEL_FREE_BUNDLE))
    out, figures = tmp_path / "again", tmp_path / "figures.json"
    words = ["export", "--bundle", str(old.path), "--out", str(out), "--json", str(figures)]
    assert main(words) == 0
    new = load_bundle(out)
    assert new.manifest["exported_from"] == old.sha256
    sizes = [bundle.model for bundle in (old, new)]
    assert sizes[0] == sizes[1]
    for key in ("profile", "data", "training", "metrics", "calibration"):
        assert new.manifest[key] == old.manifest[key]
    assert json.loads(figures.read_text())["bundle_sha256"] == new.sha256
    before, after = load_file(old.file(WEIGHTS)), load_file(new.file(WEIGHTS))
    assert before.keys() == after.keys()
    assert all(np.array_equal(before[name], after[name]) for name in before)
    golden = np.load(new.file(GOLDEN))
    assert golden["plan_fast/in/weights"].shape == (len(SEARCH_TERMS),)


def test_a_dataset_that_it_was_not_trained_on_is_refused(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    profile = load_profile("tabletop")
    rates = profile.model
    with DatasetWriter(tmp_path / "d", profile) as writer:
        writer.append(
            EpisodeArrays(
                name="one",
                frames={"front": np.zeros((2, 64, 64, 3), np.uint8)},
                frame_valid=np.ones((2, 1), np.uint8),
                joints=np.zeros((2, 4), np.float32),
                actions=np.zeros((2, 2), np.float32),
                labels=np.zeros((2, 4), np.float32),
                events=np.zeros((2, 2), np.uint8),
                stamps=np.arange(2, dtype=np.int64) * round(rates.tick_s * 1e9),
            )
        )
        writer.close(fingerprint="other")
    words = ["export", "--bundle", str(resource(LABEL_FREE_BUNDLE)), "--out", str(tmp_path / "b")]
    assert main([*words, "--dataset", str(tmp_path / "d")]) == 1
    assert "is not what the bundle" in capsys.readouterr().err


def test_an_existing_bundle_is_not_overwritten(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    taken = tmp_path / "taken"
    taken.mkdir()
    words = ["export", "--bundle", str(resource(LABEL_FREE_BUNDLE)), "--out", str(taken)]
    assert main(words) == 1
    assert "already exists" in capsys.readouterr().err
    assert not list(taken.iterdir())
