"""A dataset as training draws from it: windows on the grid of model steps."""

from __future__ import annotations

import queue
import threading
from collections.abc import Iterator
from dataclasses import dataclass
from typing import TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wm_node.data.dataset import Dataset
from wm_node.data.resample import NO_LABEL
from wm_node.errors import WmError
from wm_node.training import ranks

Item = TypeVar("Item")

VALIDATION_EVERY = 20
"""Every so many-th episode is left out of training."""


SCATTERED_SPEED = 1.5
"""Times the joints' greatest velocity: what no joint reaches, however it was measured."""


def is_left_out(number: int) -> bool:
    """Whether the dataset's episode of this number, from 0 on, is left out of training."""
    return number % VALIDATION_EVERY == VALIDATION_EVERY - 1


@dataclass(frozen=True)
class Split:
    """Window starts of the training and of the left-out episodes."""

    train: NDArray[np.int64]
    validation: NDArray[np.int64]


class TrainingData:
    """The small arrays as tensors on the device; frames from memory where they fit, else disk.

    A window of L model steps starts at a tick s and holds L frames, at ticks s + (i + 1) * ticks;
    ``actions[i]`` are those of the step that ends at frame i.
    """

    def __init__(self, dataset: Dataset, device: torch.device, memory_bytes: int) -> None:
        self.dataset, self.profile, self.device = dataset, dataset.profile, device
        self.ticks = dataset.profile.model.ticks_per_step
        self.joints = torch.from_numpy(np.asarray(dataset.joints)).to(device)
        self.actions = torch.from_numpy(np.asarray(dataset.actions)).to(device)
        self.labels = torch.from_numpy(np.asarray(dataset.labels)).to(device)
        events = np.asarray(dataset.events)
        self.events = torch.from_numpy(
            np.where(events == NO_LABEL, np.nan, events).astype(np.float32)
        ).to(device)
        self.mask = torch.from_numpy(np.asarray(dataset.frame_valid).astype(np.float32)).to(device)
        episodes = dataset.episodes
        self._first = np.array([episode.start for episode in episodes], dtype=np.int64)
        self._length = np.array([episode.length for episode in episodes], dtype=np.int64)
        self._cameras = [camera.name for camera in dataset.profile.cameras]
        self.in_memory = dataset.frame_bytes <= memory_bytes
        self._frames: Tensor | None = None
        if self.in_memory:
            dataset.load_frames_into_memory(memory_bytes)
            frames = [np.asarray(dataset.frames(name)) for name in self._cameras]
            # A single camera's frames need not be copied.
            stacked = frames[0][:, None] if len(frames) == 1 else np.stack(frames, axis=1)
            self._frames = torch.from_numpy(stacked).to(device)

    def scattered_episodes(self) -> list[str]:
        """Return the names of episodes in which no joint could move as recorded, tick by tick.

        Such are scenes that follow each other without time in between (level ``scattered``), from
        which motion cannot be learnt.
        """
        limit = SCATTERED_SPEED * np.array(self.profile.joints.max_velocity)
        steps = np.abs(np.diff(np.asarray(self.dataset.joints), axis=0))
        jumps = np.asarray((steps > limit * self.profile.model.tick_s).any(1))
        return [
            episode.name
            for episode in self.dataset.episodes
            if episode.length > 1
            and jumps[episode.start : episode.start + episode.length - 1].mean() > 0.5
        ]

    def split(self, steps: int) -> Split:
        """Return the starts of windows of ``steps`` model steps, by episode.

        Raises:
            WmError: no episode is long enough, or all are left out.
        """
        length = (steps + 1) * self.ticks
        train: list[NDArray[np.int64]] = []
        validation: list[NDArray[np.int64]] = []
        for number, episode in enumerate(self.dataset.episodes):
            if episode.length < length:
                continue
            starts = np.arange(episode.start, episode.start + episode.length - length + 1)
            (validation if is_left_out(number) else train).append(starts)
        if not train or not validation:
            raise WmError(
                f"the dataset {self.dataset.path} has {len(train) + len(validation)} episodes of "
                f"at least {length} ticks; training needs {VALIDATION_EVERY} of them."
            )
        return Split(np.concatenate(train), np.concatenate(validation))

    def frames(self, at: Tensor) -> Tensor:
        """(...,) tick indices -> (..., cameras, H, W, 3) uint8 on the device."""
        if self._frames is not None:
            return self._frames[at.to(self._frames.device)]
        flat = at.flatten().cpu().numpy()
        order = np.unique(flat, return_inverse=True)
        picked = [self._read(name, order[0])[order[1]] for name in self._cameras]
        frames = torch.from_numpy(np.stack(picked, axis=1)).to(self.device)
        return frames.view(*at.shape, *frames.shape[1:])

    def _read(self, camera: str, ticks: NDArray[np.int64]) -> NDArray[np.uint8]:
        """Read single ticks, each run of neighbours in one go."""
        source = self.dataset.frames(camera)
        runs = np.split(ticks, np.flatnonzero(np.diff(ticks) > 8) + 1)
        parts = [source[run[0] : run[-1] + 1][run - run[0]] for run in runs]
        return np.concatenate(parts)

    def same_episode(self, ticks: Tensor, random: np.random.Generator) -> Tensor:
        """(N,) ticks -> (N,) ticks drawn evenly from the same episodes."""
        episode = np.searchsorted(self._first, ticks.cpu().numpy(), side="right") - 1
        offset = (random.random(len(episode)) * self._length[episode]).astype(np.int64)
        return torch.from_numpy(self._first[episode] + offset).to(self.device)

    def frame_ticks(self, starts: Tensor, steps: int) -> Tensor:
        """(B,) window starts -> (B, steps) ticks of their frames."""
        offsets = torch.arange(1, steps + 1, device=starts.device) * self.ticks
        return starts.unsqueeze(1) + offsets

    def step_actions(self, starts: Tensor, steps: int) -> Tensor:
        """(B,) window starts -> (B, steps, ticks, A): the actions of the step before each frame."""
        ticks = torch.arange(steps * self.ticks, device=starts.device)
        flat = self.actions[starts.unsqueeze(1) + ticks]
        return flat.view(len(starts), steps, self.ticks, -1)

    def statistics(self) -> dict[str, tuple[Tensor, Tensor]]:
        """Mean and deviation of joints, actions and labels; a constant value gets deviation 1."""
        result = {}
        for name in ("joints", "actions", "labels"):
            values = getattr(self, name).cpu().double()
            if values.shape[1] == 0:
                continue
            known = torch.isfinite(values)
            count = known.sum(0).clamp_min(1)
            mean = torch.where(known, values, 0.0).sum(0) / count
            variance = torch.where(known, (values - mean) ** 2, 0.0).sum(0) / count
            std = variance.sqrt()
            std = torch.where(std < 1e-6, torch.ones_like(std), std)
            result[name] = (mean.float(), std.float())
        return result


def batches(
    starts: NDArray[np.int64],
    size: int,
    seed: int,
    first_step: int = 0,
    weights: NDArray[np.float64] | None = None,
    weighted_share: float = 0.0,
) -> Iterator[NDArray[np.int64]]:
    """Yield endless batches of window starts; batch k depends on the seed and k alone.

    Of several ranks each yields its share.

    Args:
        starts: (N,) windows to draw from.
        size: of a batch.
        seed: of the run.
        first_step: number of the first batch, so that a resumed run goes on with the same data.
        weights: (N,) with which ``weighted_share`` of the batch is drawn instead of evenly.
        weighted_share: 0 to 1.
    """
    cumulative = None if weights is None else np.cumsum(weights / weights.sum())
    step = first_step
    while True:
        random = np.random.default_rng([seed, step])
        index = random.integers(0, len(starts), size)
        if cumulative is not None:
            count = round(size * weighted_share)
            hard = np.searchsorted(cumulative, random.random(count))
            index[:count] = np.minimum(hard, len(starts) - 1)
        yield ranks.share(starts[index])
        step += 1


def read_ahead(items: Iterator[Item], in_memory: bool) -> Iterator[Item]:
    """Return the items, read from disk in a thread where their frames are not all in memory."""
    return items if in_memory else prefetch(items)


def prefetch(items: Iterator[Item], depth: int = 3) -> Iterator[Item]:
    """Produce items in a thread, so that reading frames from disk overlaps with computing."""
    box: queue.Queue[Item | BaseException] = queue.Queue(depth)
    stop = threading.Event()

    def work() -> None:
        try:
            for item in items:
                while not stop.is_set():
                    try:
                        box.put(item, timeout=0.2)
                        break
                    except queue.Full:
                        continue
                if stop.is_set():
                    return
        except BaseException as error:  # handed to the consumer, which raises it
            box.put(error)

    thread = threading.Thread(target=work, daemon=True)
    thread.start()
    try:
        while True:
            item = box.get()
            if isinstance(item, BaseException):
                raise item
            yield item
    finally:
        stop.set()
        thread.join(timeout=5.0)
