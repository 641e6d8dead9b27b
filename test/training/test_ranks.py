"""Two processes over gloo do together what one process does alone."""

from __future__ import annotations

import json
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wm_node.bundle import load_bundle
from wm_node.data.dataset import Dataset
from wm_node.errors import WmError
from wm_node.training import ranks

WORKER = Path(__file__).with_name("ranks_worker.py")
TORCHRUN = ("-m", "torch.distributed.run", "--standalone", "--nproc-per-node", "2")


def run(*words: Any) -> None:
    """Run Python with these words; its output is the message of a failure."""
    environment = {**os.environ, "OMP_NUM_THREADS": "1"}
    command = [sys.executable, *map(str, words)]
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=100)
    assert done.returncode == 0, done.stderr[-3000:]


@pytest.fixture(scope="module")
def results(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> list[dict[str, Any]]:
    """What one process has, and the first and the second of two."""
    folder = tmp_path_factory.mktemp("ranks")
    run(WORKER, dataset.path, folder)
    run(*TORCHRUN, WORKER, dataset.path, folder)
    names = ("rank_0_of_1", "rank_0_of_2", "rank_1_of_2")
    return [dict(np.load(folder / f"{name}.npz")) for name in names]


@pytest.mark.parametrize("name", ["starts", "stills"])
def test_together_they_see_what_one_would(results: list[dict[str, Any]], name: str) -> None:
    alone, first, second = (result[name] for result in results)
    assert first.shape == second.shape == (alone.shape[0], alone.shape[1] // 2)
    both = np.concatenate([first, second], axis=1)
    np.testing.assert_array_equal(np.sort(both, axis=1), np.sort(alone, axis=1))


def test_their_losses_and_gradients_are_those_of_one(results: list[dict[str, Any]]) -> None:
    alone, first, second = results
    losses = {name for name in alone if name.startswith("loss.")}
    assert {"loss.prediction", "loss.sigreg", "loss.state", "loss.inverse"} <= losses
    # The joints' head drops some of its input at random, of each rank's own windows.
    gradients = [n for n in alone if n.startswith("gradient.") and "heads.joints" not in n]
    assert sum(np.abs(alone[name]).max() > 1e-3 for name in gradients) > 20
    assert set(first) == set(alone)  # what phase 1 does not train has no gradient in either
    for name in (*losses, *gradients):
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)
        np.testing.assert_allclose(first[name], alone[name], rtol=1e-3, atol=2e-5, err_msg=name)


def test_they_end_with_the_same_weights(results: list[dict[str, Any]]) -> None:
    _, first, second = results
    weights = [name for name in first if name.startswith("net.")]
    assert any("running_var" in name for name in weights)
    for name in (*weights, "latents"):
        np.testing.assert_array_equal(first[name], second[name], err_msg=name)


def test_torchrun_makes_a_bundle(dataset: Dataset, tmp_path: Path) -> None:
    recipe, out, figures = WORKER.with_name("small.yaml"), tmp_path / "bundle", tmp_path / "f.json"
    words = ["train", "--dataset", dataset.path, "--recipe", recipe, "--planning-episodes", "0"]
    run(*TORCHRUN, "-m", "wm_node.cli.main", *words, "--out", out, "--json", figures)
    bundle = load_bundle(out)
    assert json.loads(figures.read_text())["bundle_sha256"] == bundle.sha256


def test_alone_everything_is_as_it_was() -> None:
    assert (ranks.rank(), ranks.size()) == (0, 1)
    assert ranks.share([1, 2, 3]) == [1, 2, 3]
    assert list(ranks.slice_of(5)) == [0, 1, 2, 3, 4]


def test_a_batch_is_shared_evenly_or_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(ranks, "size", lambda: 2)
    monkeypatch.setattr(ranks, "rank", lambda: 1)
    assert ranks.share(np.arange(6)).tolist() == [1, 3, 5]
    assert list(ranks.slice_of(5)) == [3, 4]
    with pytest.raises(WmError, match="a batch of 5 cannot be shared by 2 processes; give"):
        ranks.share(np.arange(5))
