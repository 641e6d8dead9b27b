"""The dataset: episodes of many bags on one grid of ticks, as a zarr (v2) directory.

Episodes lie one after the other along the first axis of every array (T ticks in all):

========================  ==========================  =============================================
``frames/<camera>``       u8 (T, Hm, Wm, 3)           RGB at the model's size; zeros where invalid
``frame_valid``           u8 (T, cameras)             1 where the camera gave a frame for the tick
``joints``                f32 (T, J)                  positions at the tick
``actions``               f32 (T, A)                  what acted over [tick, tick + 1)
``labels``                f32 (T, S)                  labelled state values, NaN where absent
``events``                u8 (T, E)                   1 if active in [tick, tick + 1), 255 unknown
``stamps``                i64 (T,)                    nanoseconds, of the bag's header clock
``episode_start``         i64 (episodes,)             first tick of each episode
``episode_length``        i64 (episodes,)             its ticks
========================  ==========================  =============================================

The attributes hold the robot profile, the episodes' names and the fingerprint of the sources.
"""

from __future__ import annotations

import json
import os
import shutil
from collections.abc import Mapping
from dataclasses import dataclass
from functools import cached_property
from pathlib import Path
from types import TracebackType
from typing import Any, Protocol

import numcodecs
import numpy as np
import psutil
import zarr
from numpy.typing import NDArray
from zarr.errors import GroupNotFoundError

from wm_node.errors import WmError
from wm_node.profile import RobotProfile, parse_profile

FORMAT = "wm_dataset"
VERSION = 1
FRAME_CHUNK = 32  # ticks
SMALL_CHUNK = 4096  # ticks
COPY_BLOCK = 1024  # ticks copied at a time, which bounds memory
IN_MEMORY_BYTES = 2 << 30  # arrays other than frames are kept in memory up to this size

# lz4 for frames, because training reads them at random; zstd for the small rest.
_FRAME_CODEC = numcodecs.Blosc(cname="lz4", clevel=5, shuffle=numcodecs.Blosc.NOSHUFFLE)
_SMALL_CODEC = numcodecs.Blosc(cname="zstd", clevel=3, shuffle=numcodecs.Blosc.SHUFFLE)


class Rows(Protocol):
    """An array, or anything else that has a shape and gives arrays for slices of rows."""

    @property
    def shape(self) -> tuple[int, ...]:
        """Rows first."""

    def __getitem__(self, rows: slice, /) -> NDArray[Any]:
        """Return the rows as an array."""


@dataclass(frozen=True)
class EpisodeArrays:
    """One episode of T ticks."""

    name: str
    stamps: NDArray[np.int64]  # (T,)
    frames: Mapping[str, NDArray[np.uint8]]  # camera -> (T, Hm, Wm, 3)
    frame_valid: NDArray[np.uint8]  # (T, cameras)
    joints: NDArray[np.float32]  # (T, J)
    actions: NDArray[np.float32]  # (T, A)
    labels: NDArray[np.float32]  # (T, S)
    events: NDArray[np.uint8]  # (T, E)


@dataclass(frozen=True)
class Episode:
    """Where an episode lies: ticks ``start .. start + length`` of every array."""

    name: str
    start: int
    length: int


def array_specs(profile: RobotProfile) -> dict[str, tuple[str, tuple[int, ...]]]:
    """Return dtype and shape of one tick of every array that grows with the ticks."""
    specs: dict[str, tuple[str, tuple[int, ...]]] = {
        f"frames/{camera.name}": ("u1", (camera.model_height, camera.model_width, 3))
        for camera in profile.cameras
    }
    specs["frame_valid"] = ("u1", (len(profile.cameras),))
    specs["joints"] = ("<f4", (len(profile.joints.names),))
    specs["actions"] = ("<f4", (len(profile.action.names),))
    specs["labels"] = ("<f4", (len(profile.labels),))
    specs["events"] = ("u1", (len(profile.events),))
    specs["stamps"] = ("<i8", ())
    return specs


class _Column:
    """Appends to one zarr array in whole chunks, so that no chunk is ever written twice."""

    def __init__(self, group: zarr.Group, name: str, dtype: str, item: tuple[int, ...]) -> None:
        frames = name.startswith("frames/")
        self.chunk = FRAME_CHUNK if frames else SMALL_CHUNK
        self.array = group.create_dataset(
            name,
            shape=(0, *item),
            chunks=(self.chunk, *(max(size, 1) for size in item)),
            dtype=dtype,
            compressor=_FRAME_CODEC if frames else _SMALL_CODEC,
            fill_value=0,
        )
        self.buffer = np.zeros((self.chunk, *item), dtype=dtype)
        self.written = 0
        self.filled = 0

    def append(self, block: NDArray[Any]) -> None:
        taken = 0
        while taken < len(block):
            count = min(self.chunk - self.filled, len(block) - taken)
            self.buffer[self.filled : self.filled + count] = block[taken : taken + count]
            self.filled += count
            taken += count
            if self.filled == self.chunk:
                self.flush()

    def flush(self) -> None:
        end = self.written + self.filled
        if self.array.shape[0] < end:  # grow in strides: each resize rewrites the metadata
            self.array.resize(max(end, 2 * self.array.shape[0]), *self.array.shape[1:])
        if self.filled:
            self.array[self.written : end] = self.buffer[: self.filled]
        self.written, self.filled = end, 0

    def close(self) -> None:
        self.flush()
        self.array.resize(self.written, *self.array.shape[1:])


class _Part:
    """Some rows of an array, as :class:`Rows`."""

    def __init__(self, array: Rows, start: int, length: int) -> None:
        self._array, self._start = array, start
        self.shape = (length, *array.shape[1:])

    def __getitem__(self, rows: slice, /) -> NDArray[Any]:
        return self._array[self._start + rows.start : self._start + rows.stop]


class DatasetWriter:
    """Writes a dataset beside its final place and moves it there when it is whole.

    Use as a context manager: leaving it by an exception removes what was written.
    """

    def __init__(self, path: str | Path, profile: RobotProfile, overwrite: bool = False) -> None:
        """Start a dataset.

        Args:
            path: the directory to create.
            profile: the robot; it fixes names, sizes and rates.
            overwrite: replace an existing dataset when the new one is whole.

        Raises:
            WmError: ``path`` exists and may not be replaced, or cannot be written.
        """
        self.path = Path(path)
        self.profile = profile
        self._overwrite = overwrite
        check_target(self.path, overwrite)
        self.partial = self.path.with_name(f".{self.path.name}.partial-{os.getpid()}")
        self._specs = array_specs(profile)
        self._episodes: list[Episode] = []
        self._ticks = 0
        self._open = True
        try:
            self.partial.mkdir(parents=True)
            group = zarr.open_group(zarr.DirectoryStore(str(self.partial)), mode="w")
            self._group = group
            self._columns = {
                name: _Column(group, name, dtype, item)
                for name, (dtype, item) in self._specs.items()
            }
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    def append(self, episode: EpisodeArrays) -> None:
        """Append one episode.

        Raises:
            WmError: an array does not fit the profile, or the disk is full.
        """
        self.append_rows(episode.name, len(episode.stamps), _arrays_of(episode))

    def append_rows(self, name: str, ticks: int, arrays: Mapping[str, Rows]) -> None:
        """Append one episode from sources that are copied block by block, which bounds memory.

        Args:
            name: the episode's name.
            ticks: its length.
            arrays: one source of ``ticks`` rows for every name in :func:`array_specs`.

        Raises:
            WmError: a source does not fit the profile, or the disk is full.
        """
        for key, (_, item) in self._specs.items():
            shape = arrays[key].shape if key in arrays else None
            if shape != (ticks, *item):
                raise WmError(
                    f"episode '{name}' gives shape {shape} for '{key}', but the profile "
                    f"'{self.profile.name}' needs {(ticks, *item)}."
                )
        if not ticks:
            raise WmError(f"episode '{name}' is empty.")
        try:
            for key, column in self._columns.items():
                for start in range(0, ticks, COPY_BLOCK):
                    column.append(arrays[key][start : min(start + COPY_BLOCK, ticks)])
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        self._episodes.append(Episode(name, self._ticks, ticks))
        self._ticks += ticks

    def append_dataset(self, dataset: Dataset) -> None:
        """Append all episodes of a dataset of the same profile.

        Raises:
            WmError: it is damaged, or the disk is full.
        """
        arrays: dict[str, Any] = {
            name: dataset.frames(name.removeprefix("frames/"))
            if name.startswith("frames/")
            else getattr(dataset, name)
            for name in self._specs
        }
        for episode in dataset.episodes:
            rows = {
                name: _Part(array, episode.start, episode.length) for name, array in arrays.items()
            }
            self.append_rows(episode.name, episode.length, rows)

    def finish(self, fingerprint: str = "", info: Mapping[str, Any] | None = None) -> None:
        """Write everything that is still missing; the dataset lies whole at :attr:`partial`.

        Args:
            fingerprint: hash of the sources.
            info: further JSON data to keep in the attributes under ``info``.

        Raises:
            WmError: there is no episode, or the disk is full.
        """
        if not self._episodes:
            raise WmError(f"nothing to write: no episode was given for the dataset {self.path}.")
        try:
            for column in self._columns.values():
                column.close()
            for name, values in (
                ("episode_start", [episode.start for episode in self._episodes]),
                ("episode_length", [episode.length for episode in self._episodes]),
            ):
                self._group.create_dataset(
                    name,
                    data=np.array(values, dtype="<i8"),
                    chunks=(len(values),),
                    compressor=_SMALL_CODEC,
                )
            self._group.attrs.put(
                {
                    "format": FORMAT,
                    "version": VERSION,
                    "profile": self.profile.dump(),
                    "episode_names": [episode.name for episode in self._episodes],
                    "fingerprint": fingerprint,
                    "counts": {"episodes": len(self._episodes), "ticks": self._ticks},
                    "info": dict(info or {}),
                }
            )
        except OSError as error:
            raise _cannot_write(self.path, error) from error

    def commit(self) -> None:
        """Move the finished dataset to its place."""
        try:
            _move_into_place(self.partial, self.path, self._overwrite)
        except OSError as error:
            raise _cannot_write(self.path, error) from error
        self._open = False

    def close(self, fingerprint: str = "", info: Mapping[str, Any] | None = None) -> None:
        """Finish the dataset and move it to its place; see :meth:`finish`."""
        self.finish(fingerprint, info)
        self.commit()

    def abort(self) -> None:
        """Remove what was written; nothing happens after :meth:`close`."""
        if self._open:
            self._open = False
            shutil.rmtree(self.partial, ignore_errors=True)

    def __enter__(self) -> DatasetWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        self.abort()


class Dataset:
    """A dataset opened for reading.

    Arrays other than frames are read into memory on first use while they are small
    (``IN_MEMORY_BYTES`` each) and stay on disk otherwise; both kinds are sliced alike.
    """

    def __init__(self, path: Path, group: zarr.Group) -> None:
        """Use :meth:`open`."""
        attrs = group.attrs.asdict()
        self.path = path
        self.profile: RobotProfile = parse_profile(attrs["profile"], f"the profile in {path}")
        self.fingerprint = str(attrs["fingerprint"])
        self.info: dict[str, Any] = dict(attrs["info"])
        self._group = group
        starts, lengths = group["episode_start"][:], group["episode_length"][:]
        self.episodes: tuple[Episode, ...] = tuple(
            Episode(str(name), int(start), int(length))
            for name, start, length in zip(attrs["episode_names"], starts, lengths, strict=True)
        )
        self.num_ticks = int(group["stamps"].shape[0])
        self._frames: dict[str, Any] = {
            camera.name: group[f"frames/{camera.name}"] for camera in self.profile.cameras
        }

    @classmethod
    def open(cls, path: str | Path) -> Dataset:
        """Open a dataset and check that it is whole.

        Raises:
            WmError: there is no dataset at ``path``, or it is damaged.
        """
        path = Path(path)
        try:
            group = zarr.open_group(zarr.DirectoryStore(str(path)), mode="r")
        except (GroupNotFoundError, OSError, ValueError) as error:
            raise WmError(
                f"{path} is not a dataset; make one with 'wm ingest BAGS --robot PROFILE --out "
                f"{path}'."
            ) from error
        try:
            attrs = group.attrs.asdict()
            if attrs.get("format") != FORMAT or attrs.get("version") != VERSION:
                raise WmError(
                    f"{path} is not a dataset of format {FORMAT} {VERSION}; ingest the bags again."
                )
            _check_arrays(group, path)
            dataset = cls(path, group)
            _check_sizes(dataset)
        except (KeyError, TypeError, ValueError, OSError, RuntimeError) as error:
            raise WmError(f"the dataset {path} is damaged ({error!r}); ingest again.") from error
        return dataset

    @cached_property
    def stamps(self) -> NDArray[np.int64]:
        """(T,) nanoseconds."""
        return self._array("stamps")

    @cached_property
    def joints(self) -> NDArray[np.float32]:
        """(T, J) rad or m."""
        return self._array("joints")

    @cached_property
    def actions(self) -> NDArray[np.float32]:
        """(T, A) in the profile's units."""
        return self._array("actions")

    @cached_property
    def labels(self) -> NDArray[np.float32]:
        """(T, S), NaN where absent."""
        return self._array("labels")

    @cached_property
    def events(self) -> NDArray[np.uint8]:
        """(T, E), 255 where unknown."""
        return self._array("events")

    @cached_property
    def frame_valid(self) -> NDArray[np.uint8]:
        """(T, cameras)."""
        return self._array("frame_valid")

    def frames(self, camera: str) -> NDArray[np.uint8]:
        """Return the frames of a camera, (T, Hm, Wm, 3); sliceable, read from disk on slicing."""
        if camera not in self._frames:
            raise WmError(
                f"the dataset {self.path} has no camera '{camera}', only {sorted(self._frames)}."
            )
        frames: NDArray[np.uint8] = self._frames[camera]
        return frames

    @property
    def frame_bytes(self) -> int:
        """Bytes of all frames, decompressed."""
        return sum(int(np.prod(array.shape)) for array in self._frames.values())

    def window(self, start: int, length: int) -> EpisodeArrays:
        """Read ``length`` ticks from tick ``start`` on, which must lie in one episode.

        Raises:
            IndexError: the window leaves its episode.
        """
        number = int(np.searchsorted(self._starts, start, side="right")) - 1
        if number < 0 or length < 1:
            raise IndexError(f"no window of {length} ticks starts at tick {start}")
        episode = self.episodes[number]
        if start + length > episode.start + episode.length:
            raise IndexError(f"ticks {start} to {start + length} leave episode '{episode.name}'")
        part = slice(start, start + length)
        return EpisodeArrays(
            name=episode.name,
            stamps=self.stamps[part],
            frames={name: array[part] for name, array in self._frames.items()},
            frame_valid=self.frame_valid[part],
            joints=self.joints[part],
            actions=self.actions[part],
            labels=self.labels[part],
            events=self.events[part],
        )

    def window_starts(self, length: int, stride: int = 1) -> NDArray[np.int64]:
        """Return every tick at which a window of ``length`` ticks fits into its episode."""
        parts = [
            np.arange(episode.start, episode.start + episode.length - length + 1, stride)
            for episode in self.episodes
            if episode.length >= length
        ]
        return np.concatenate(parts).astype(np.int64) if parts else np.zeros(0, dtype=np.int64)

    def load_frames_into_memory(self, limit_bytes: int | None = None) -> None:
        """Decompress all frames into memory, after which :meth:`frames` and windows are fast.

        Args:
            limit_bytes: refuse above this size; by default 70 % of the memory that is free now.

        Raises:
            WmError: the frames do not fit.
        """
        limit = limit_bytes if limit_bytes is not None else _free_bytes()
        if self.frame_bytes > limit:
            raise WmError(
                f"the frames of {self.path} need {self.frame_bytes / 2**30:.2f} GiB of memory, but "
                f"only {limit / 2**30:.2f} GiB may be used: read windows from disk instead."
            )
        for name, array in self._frames.items():
            self._frames[name] = array if isinstance(array, np.ndarray) else array[:]

    @cached_property
    def _starts(self) -> NDArray[np.int64]:
        return np.array([episode.start for episode in self.episodes], dtype=np.int64)

    def _array(self, name: str) -> NDArray[Any]:
        array: Any = self._group[name]
        sliceable: NDArray[Any] = array[:] if array.nbytes <= IN_MEMORY_BYTES else array
        return sliceable


def check_target(path: Path, overwrite: bool) -> None:
    """Check that a dataset may be written to ``path``.

    Raises:
        WmError: something is there that is not a dataset, or a dataset and not ``overwrite``.
    """
    if not path.exists():
        return
    if not overwrite:
        raise WmError(f"{path} exists already; give --overwrite to replace it.")
    try:
        format_name = json.loads((path / ".zattrs").read_text(encoding="utf-8")).get("format")
    except (OSError, ValueError, AttributeError):
        format_name = None
    if format_name != FORMAT:
        raise WmError(f"{path} exists and is not a dataset, so it is not replaced; remove it.")


def _arrays_of(episode: EpisodeArrays) -> dict[str, Rows]:
    arrays: dict[str, Rows] = {f"frames/{k}": v for k, v in episode.frames.items()}
    for name in ("frame_valid", "joints", "actions", "labels", "events", "stamps"):
        arrays[name] = getattr(episode, name)
    return arrays


def _check_arrays(group: zarr.Group, path: Path) -> None:
    """Refuse arrays that this module did not write: other codecs may run code when they decode."""
    for name, array in _walk(group):
        plain = array.dtype.kind in "uif" and not array.filters
        if not plain or not isinstance(array.compressor, numcodecs.Blosc):
            raise WmError(f"array '{name}' of {path} was not written by wm_node; ingest again.")


def _walk(group: zarr.Group, prefix: str = "") -> list[tuple[str, zarr.Array]]:
    found = [(prefix + name, array) for name, array in group.arrays()]
    for name, child in group.groups():
        found += _walk(child, f"{prefix}{name}/")
    return found


def _check_sizes(dataset: Dataset) -> None:
    ticks = dataset.num_ticks
    for name, (dtype, item) in array_specs(dataset.profile).items():
        array = dataset._group[name]
        if array.shape != (ticks, *item) or array.dtype != np.dtype(dtype):
            raise ValueError(f"'{name}' is {array.dtype} {array.shape}")
    end = 0
    for episode in dataset.episodes:
        if episode.start != end or episode.length < 1:
            raise ValueError(f"episode '{episode.name}' does not follow the one before")
        end += episode.length
    if end != ticks:
        raise ValueError(f"episodes hold {end} of {ticks} ticks")


def _free_bytes() -> int:
    return int(0.7 * psutil.virtual_memory().available)


def _cannot_write(path: Path, error: OSError) -> WmError:
    reason = error.strerror or str(error)
    return WmError(
        f"cannot write the dataset {path}: {reason}; free space or choose another --out."
    )


def _move_into_place(partial: Path, path: Path, overwrite: bool) -> None:
    if path.exists():
        check_target(path, overwrite)
        old = path.with_name(f".{path.name}.old-{os.getpid()}")
        path.rename(old)
        partial.rename(path)
        shutil.rmtree(old)
    else:
        partial.rename(path)
