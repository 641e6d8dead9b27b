"""A disk that is full or may not be written: one sentence, and nothing that was kept is lost."""

from __future__ import annotations

import resource
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
import torch

from wm_node.bundle import WEIGHTS, Bundle
from wm_node.errors import WmError
from wm_node.profile import RobotProfile, load_profile
from wm_node.training.loop import Checkpoint, Checkpoints, Recorder

BundleOf = Callable[[RobotProfile, Path], Bundle]


@contextmanager
def full_beyond(size: int) -> Iterator[None]:
    """No file may grow beyond ``size`` bytes; Python ignores the signal, so writing fails."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@pytest.fixture
def no_folder(tmp_path: Path) -> Path:
    """A path at which no folder can be made, not even by root."""
    (tmp_path / "file").write_text("in the way")
    return tmp_path / "file" / "work"


@pytest.mark.parametrize("room", [100, 100_000])
def test_the_last_checkpoint_outlives_a_full_disk(tmp_path: Path, room: int) -> None:
    checkpoints = Checkpoints(tmp_path / "work", {"seed": 1})
    checkpoints.save(Checkpoint({"a": torch.ones(5)}, "encoder", 7, {"loss": 1.5}))
    kept = {path.name: path.read_bytes() for path in (tmp_path / "work").iterdir()}
    with full_beyond(room), pytest.raises(WmError) as caught:
        checkpoints.save(Checkpoint({"a": torch.zeros(100_000)}, "dynamics", 9, {}))
    assert f"cannot write the checkpoint in {tmp_path / 'work'}: " in str(caught.value)
    assert "File too large" in str(caught.value)
    assert "free space" in str(caught.value)
    assert {path.name: path.read_bytes() for path in (tmp_path / "work").iterdir()} == kept
    loaded = Checkpoints(tmp_path / "work", {"seed": 1}).load()
    assert loaded is not None
    torch.testing.assert_close(loaded.tensors["a"], torch.ones(5))
    assert (loaded.phase, loaded.step, loaded.metrics) == ("encoder", 7, {"loss": 1.5})


def test_a_checkpoint_whose_text_finds_no_room_is_not_half_taken(tmp_path: Path) -> None:
    checkpoints = Checkpoints(tmp_path / "work", {"recipe": "x" * 5_000})
    checkpoints.save(Checkpoint({"a": torch.ones(5)}, "encoder", 7, {"loss": 1.5}))
    with full_beyond(2_000), pytest.raises(WmError, match="cannot write the checkpoint"):
        checkpoints.save(Checkpoint({"a": torch.zeros(5)}, "dynamics", 9, {}))
    loaded = checkpoints.load()
    assert loaded is not None
    torch.testing.assert_close(loaded.tensors["a"], torch.ones(5))
    assert (loaded.phase, loaded.step) == ("encoder", 7)


def test_a_work_folder_that_cannot_be_made_is_one_sentence(no_folder: Path) -> None:
    with pytest.raises(WmError, match=r"cannot write to .*/work: .*; choose another --work\."):
        Checkpoints(no_folder, {})
    with pytest.raises(WmError, match=r"cannot write to .*/logs: .*; choose another --work\."):
        Recorder(no_folder / "logs", lambda phase, step, steps, text: None)


def test_figures_that_find_no_room_end_the_run_in_one_sentence(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    recorder = Recorder(tmp_path / "logs", lambda phase, step, steps, text: None)

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(recorder._writer, "add_scalar", full)
        with pytest.raises(WmError, match=r"cannot write .*/logs: No space left on device; free"):
            recorder.scalars("encoder", 1, {"loss": 1.0})
    recorder.close()


def test_a_bundle_that_finds_no_room_leaves_nothing(
    tmp_path: Path, random_bundle_of: BundleOf
) -> None:
    profile = load_profile("tabletop")
    weights = random_bundle_of(profile, tmp_path / "whole").file(WEIGHTS).stat().st_size
    for room in (1_000, weights + 10):  # in the weights; in a graph, which holds them at first
        with full_beyond(room), pytest.raises(WmError) as caught:
            random_bundle_of(profile, tmp_path / "bundle")
        assert f"cannot write the bundle {tmp_path / 'bundle'}: " in str(caught.value)
        assert "File too large" in str(caught.value)
        assert [path.name for path in tmp_path.iterdir()] == ["whole"]


def test_a_bundle_where_no_folder_can_be_made_is_one_sentence(
    no_folder: Path, random_bundle_of: BundleOf
) -> None:
    with pytest.raises(WmError, match=r"cannot write the bundle .*; .* another --out"):
        random_bundle_of(load_profile("tabletop"), no_folder / "bundle")
