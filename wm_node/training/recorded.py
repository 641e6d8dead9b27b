"""What the model is prompted with at a moment of a recording."""

from __future__ import annotations

import numpy as np
from numpy.typing import NDArray

from wm_node.data.dataset import Dataset
from wm_node.planning.world_model import Context, WorldModel


class RecordedContexts:
    """Contexts at ticks of a dataset; frames are encoded once while ticks go forwards."""

    def __init__(self, model: WorldModel, dataset: Dataset) -> None:
        self._model, self._dataset, self._profile = model, dataset, dataset.profile
        self._latents: dict[int, NDArray[np.float32]] = {}

    def at(self, tick: int) -> Context:
        """Return the context that ends at a tick with enough of its episode before it."""
        rates, dataset = self._profile.model, self._dataset
        steps, span = rates.context_steps, rates.ticks_per_step
        at = [tick - back * span for back in range(steps - 1, -1, -1)]
        for key in [key for key in self._latents if key < at[0] or key > tick]:
            del self._latents[key]
        for key in at:
            if key not in self._latents:
                self._latents[key] = self._encode(key)
        actions = dataset.actions[tick - steps * span : tick]
        return Context(
            stamp_ns=int(dataset.stamps[tick]),
            latents=np.stack([self._latents[key] for key in at]),
            joints=dataset.joints[at].astype(np.float32),
            actions=actions.reshape(steps, span, -1).astype(np.float32),
        )

    def frames(self, tick: int) -> NDArray[np.uint8]:
        """Return the pictures (cameras, H, W, 3) of a tick."""
        names = [camera.name for camera in self._profile.cameras]
        return np.stack([self._dataset.frames(name)[tick] for name in names])

    def _encode(self, tick: int) -> NDArray[np.float32]:
        valid = self._dataset.frame_valid[tick]
        given = zip(self._profile.cameras, self.frames(tick), valid, strict=True)
        return self._model.encode({camera.name: frame for camera, frame, there in given if there})
