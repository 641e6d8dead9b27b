"""The dataset: round trip, windows, atomicity, damage."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest
import zarr
from numcodecs import Zlib

from wm_node.data.dataset import Dataset, DatasetWriter, EpisodeArrays
from wm_node.errors import WmError
from wm_node.profile import RobotProfile


def episode(ticks: int, name: str, seed: int = 0) -> EpisodeArrays:
    rng = np.random.default_rng(seed)
    return EpisodeArrays(
        name=name,
        stamps=np.arange(ticks, dtype=np.int64) * 10**8,
        frames={"front": rng.integers(0, 256, (ticks, 64, 64, 3), dtype=np.uint8)},
        frame_valid=np.ones((ticks, 1), np.uint8),
        joints=rng.random((ticks, 4), dtype=np.float32),
        actions=rng.random((ticks, 2), dtype=np.float32),
        labels=np.full((ticks, 4), np.nan, np.float32),
        events=np.full((ticks, 2), 255, np.uint8),
    )


@pytest.fixture
def episodes() -> list[EpisodeArrays]:
    return [episode(ticks, f"bag_{i}", i) for i, ticks in enumerate((31, 70, 1, 64))]


@pytest.fixture
def path(tmp_path: Path, tabletop: RobotProfile, episodes: list[EpisodeArrays]) -> Path:
    with DatasetWriter(tmp_path / "data", tabletop) as writer:
        for one in episodes:
            writer.append(one)
        writer.close("abc", {"note": 1})
    return tmp_path / "data"


def test_everything_comes_back(
    path: Path, tabletop: RobotProfile, episodes: list[EpisodeArrays]
) -> None:
    dataset = Dataset.open(path)
    assert dataset.profile == tabletop
    assert (dataset.fingerprint, dataset.info) == ("abc", {"note": 1})
    assert [e.name for e in dataset.episodes] == [e.name for e in episodes]
    assert dataset.num_ticks == sum(len(e.stamps) for e in episodes)
    for in_memory in (False, True):
        if in_memory:
            dataset.load_frames_into_memory()
        for entry, given in zip(dataset.episodes, episodes, strict=True):
            window = dataset.window(entry.start, entry.length)
            np.testing.assert_array_equal(window.frames["front"], given.frames["front"])
            for key in ("stamps", "frame_valid", "joints", "actions", "labels", "events"):
                np.testing.assert_array_equal(getattr(window, key), getattr(given, key))


def test_windows_stay_in_their_episode(path: Path) -> None:
    dataset = Dataset.open(path)
    starts = dataset.window_starts(20)
    assert starts.size == (31 - 19) + (70 - 19) + (64 - 19)
    for start in starts:
        assert dataset.window(int(start), 20).stamps.size == 20
    for start, length in ((12, 20), (-1, 3), (165, 2), (0, 0), (10**6, 1)):
        with pytest.raises(IndexError):
            dataset.window(start, length)


def test_frames_that_do_not_fit_into_memory_are_refused(path: Path) -> None:
    dataset = Dataset.open(path)
    with pytest.raises(WmError, match="GiB"):
        dataset.load_frames_into_memory(limit_bytes=dataset.frame_bytes - 1)
    with pytest.raises(WmError, match="no camera 'rear'"):
        dataset.frames("rear")


def test_nothing_appears_before_it_is_whole(tmp_path: Path, tabletop: RobotProfile) -> None:
    target = tmp_path / "data"
    with DatasetWriter(target, tabletop) as writer:
        writer.append(episode(40, "a"))
        assert not target.exists()
    assert list(tmp_path.iterdir()) == []


def test_replacing_is_explicit_and_only_for_datasets(
    path: Path, tmp_path: Path, tabletop: RobotProfile
) -> None:
    with pytest.raises(WmError, match="--overwrite"):
        DatasetWriter(path, tabletop)
    with DatasetWriter(path, tabletop, overwrite=True) as writer:
        writer.append(episode(40, "new"))
        assert len(Dataset.open(path).episodes) == 4
        writer.close()
    assert [e.name for e in Dataset.open(path).episodes] == ["new"]
    (tmp_path / "home").mkdir()
    (tmp_path / "home" / "precious").write_text("x")
    with pytest.raises(WmError, match="not a dataset"):
        DatasetWriter(tmp_path / "home", tabletop, overwrite=True)
    assert sorted(p.name for p in tmp_path.iterdir()) == ["data", "home"]


def test_arrays_that_do_not_fit_the_profile_are_refused(
    tmp_path: Path, tabletop: RobotProfile
) -> None:
    wrong = episode(40, "a")
    with DatasetWriter(tmp_path / "data", tabletop) as writer:
        with pytest.raises(WmError, match="'joints'"):
            writer.append(EpisodeArrays(**{**vars(wrong), "joints": wrong.joints[:, :3]}))
        with pytest.raises(WmError, match="no episode"):
            writer.close()


def test_damage_is_told_in_one_sentence(path: Path, tmp_path: Path) -> None:
    with pytest.raises(WmError, match="not a dataset"):
        Dataset.open(tmp_path / "nowhere")
    attrs = json.loads((path / ".zattrs").read_text())
    (path / ".zattrs").write_text(json.dumps({**attrs, "version": 99}))
    with pytest.raises(WmError, match="format"):
        Dataset.open(path)
    (path / ".zattrs").write_text(json.dumps({**attrs, "episode_names": ["one"]}))
    with pytest.raises(WmError, match="damaged"):
        Dataset.open(path)
    (path / ".zattrs").write_text(json.dumps(attrs))
    (path / "joints" / ".zarray").unlink()
    with pytest.raises(WmError, match="damaged"):
        Dataset.open(path)


def test_arrays_with_foreign_codecs_are_not_decoded(path: Path) -> None:
    group = zarr.open_group(str(path), mode="a")
    values = group["joints"][:]
    group.create_dataset("joints", data=values, chunks=(4096, 4), compressor=Zlib(), overwrite=True)
    with pytest.raises(WmError, match="not written by wm_node"):
        Dataset.open(path)
