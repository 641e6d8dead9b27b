"""Phase 1: encoder and dynamics together, from frames, joints and actions."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from dataclasses import dataclass

import numpy as np
import torch
from torch import Tensor, nn

from wm_node.model.heads import mlp
from wm_node.model.world import WorldModelNet
from wm_node.training import ranks
from wm_node.training.augment import augment
from wm_node.training.data import TrainingData, batches, read_ahead
from wm_node.training.head_losses import head_losses
from wm_node.training.loop import Phase, precision
from wm_node.training.recipe import Recipe
from wm_node.training.sigreg import sigreg
from wm_node.training.sketch import FrameSketch, half_size, sketch_loss
from wm_node.training.stills import Drawn, Stills

CONTEXTS = 4  # contexts of each sequence that predictions start from
SKETCHED = 0.25  # share of a batch's frames that are redrawn from their latents


class EncoderTraining(nn.Module):
    """The network with what only this phase needs: inverse model of the actions, and sketch."""

    def __init__(self, net: WorldModelNet) -> None:
        super().__init__()
        dims = net.dims
        self.net = net
        self.inverse = mlp(2 * net.config.latent, 256, dims.ticks * dims.action)
        self.sketch = FrameSketch(dims, net.config)


@dataclass(frozen=True)
class _Batch:
    """Windows, their frames, and which of these are redrawn against which other frames."""

    starts: Tensor  # (B,)
    frames: Tensor  # (B, L, cameras, H, W, 3) uint8
    sketched: Tensor  # (K,) of the flattened B * L
    reference: Tensor  # (K, cameras, H, W, 3) uint8, of the same episodes
    mask: Tensor  # (K, cameras): 0 where the reference is missing
    stills: Drawn  # that only labels are read from


def encoder_phase(
    module: EncoderTraining, data: TrainingData, stills: Stills, recipe: Recipe, seed: int
) -> Phase:
    """Build the phase: prediction error without stop-gradient, SIGReg, inverse dynamics.

    The prediction target is not detached: SIGReg alone keeps the latents from collapsing.
    """
    net, length = module.net, recipe.encoder_length
    context, horizon = net.dims.context, net.dims.horizon
    starts = data.split(length).train
    # Contexts end at frames context-1 .. length-2; step k of context i predicts frame i + 1 + k.
    # A few contexts a sequence are enough: more would cost as much again as encoding its frames.
    spaced = torch.linspace(context - 1, length - 2, min(CONTEXTS, length - context))
    ends = spaced.round().long().to(data.device)
    back = torch.arange(context - 1, -1, -1, device=data.device)
    ahead = torch.arange(1, horizon + 1, device=data.device)
    past_index = ends.unsqueeze(1) - back  # (M, C)
    future_index = ends.unsqueeze(1) + ahead  # (M, H)
    valid = (future_index < length).float()
    future_index = future_index.clamp_max(length - 1)

    def make_batches(first_step: int) -> Iterator[_Batch]:
        def read() -> Iterator[_Batch]:
            drawn = batches(starts, recipe.encoder_batch, seed, first_step)
            for step, picked in enumerate(drawn, first_step):
                at = torch.from_numpy(picked).to(data.device)
                ticks = data.frame_ticks(at, length)
                random = np.random.default_rng([seed, step, 1])
                count = round(SKETCHED * ticks.numel()) if recipe.sketch_weight > 0.0 else 0
                index = random.permutation(ticks.numel())[:count]
                sketched = torch.from_numpy(index).to(data.device)
                others = data.same_episode(ticks.flatten()[sketched], random)
                yield _Batch(
                    at,
                    data.frames(ticks),
                    sketched,
                    data.frames(others),
                    data.mask[others],
                    stills.draw(recipe.stills, seed, step),
                )

        return read_ahead(read(), data.in_memory and stills.in_memory)

    def losses(batch: _Batch, step: int) -> Mapping[str, Tensor]:
        at, frames = batch.starts, batch.frames
        size = len(at)
        ticks = data.frame_ticks(at, length)
        seen = torch.cat([frames.flatten(0, 1), batch.stills.frames])
        mask = torch.cat([data.mask[ticks].flatten(0, 1), batch.stills.mask])
        encoded = net.encoder(augment(seen, recipe.augmentation), mask)
        latents = encoded[: size * length].view(size, length, -1)
        joints, actions = data.joints[ticks], data.step_actions(at, length)
        many = size * len(ends)
        future, hidden, guess = net.predict(
            latents[:, past_index].flatten(0, 1),
            joints[:, past_index].flatten(0, 1),
            actions[:, past_index].flatten(0, 1),
            actions[:, future_index].flatten(0, 1).unsqueeze(1),
        )
        weight = valid.repeat(size, 1).unsqueeze(-1) / valid.mean()
        target = latents[:, future_index].view(many, horizon, -1)
        error = ((future[:, 0] - target) ** 2 * weight).mean()
        now = joints[:, ends].flatten(0, 1)
        moved = net.joint_correction(hidden, guess, now)[:, 0]
        left = joints[:, future_index].view(many, horizon, -1) - guess[:, 0]
        result = {
            "prediction": error,
            "sigreg": recipe.sigreg_weight * sigreg(latents.transpose(0, 1)),
            "joints": recipe.joints_weight
            * ((moved - left / net.joint_baseline.residual) ** 2 * weight).mean(),
        }
        if recipe.label_weight > 0.0:
            labels = torch.cat([data.labels[ticks].flatten(0, 1), batch.stills.labels])
            read = head_losses(net, encoded, labels, None)
            result |= {name: recipe.label_weight * value for name, value in read.items()}
        if recipe.inverse_weight > 0.0:
            pairs = torch.cat([latents[:, :-1], latents[:, 1:]], dim=-1)
            wanted = net.normalise("actions", actions[:, 1:]).flatten(-2)
            result["inverse"] = (
                recipe.inverse_weight * ((module.inverse(pairs) - wanted) ** 2).mean()
            )
        if recipe.sketch_weight > 0.0:
            picked = batch.sketched
            reference, wanted = half_size(batch.reference), half_size(frames.flatten(0, 1)[picked])
            sketch = module.sketch(
                latents.flatten(0, 1)[picked],
                net.normalise("joints", joints.flatten(0, 1)[picked]),
                reference,
            )
            both = batch.mask * mask[picked]
            result["sketch"] = recipe.sketch_weight * sketch_loss(sketch, wanted, reference, both)
        if recipe.reconstruction_weight > 0.0:
            first, last = 0, int(torch.randint(1, length, ()))
            few = slice(0, max(1, size // 3))
            present = frames[few, first]
            drawn = net.decode(
                latents[few, last],
                joints[few, last],
                latents[few, first],
                joints[few, first],
                present,
            )
            difference = (drawn - frames[few, last].float()) / 127.5
            result["reconstruction"] = recipe.reconstruction_weight * (difference**2).mean()
        return result

    return Phase("encoder", recipe.encoder_steps, module, recipe.encoder_rate, make_batches, losses)


@torch.no_grad()
def encode_all(
    net: WorldModelNet, data: TrainingData, batch: int = 256, augmentation: float = 0.0
) -> Tensor:
    """Return the latents (T, latent) of every tick, float32 on the device.

    ``augmentation`` is the strength of the random colours that the frames are seen in.
    """
    net.eval()
    parts = [torch.empty(0, net.config.latent, device=data.device)]
    total = data.joints.shape[0]
    own = ranks.slice_of(total)
    for start in range(own.start, own.stop, batch):
        at = torch.arange(start, min(start + batch, own.stop), device=data.device)
        frames = augment(data.frames(at), augmentation)
        # As a robot's backend does, where it multiplies in bf16: two and a half times as fast.
        with precision(data.device):
            parts.append(net.encoder(frames, data.mask[at]))
    return ranks.gathered(torch.cat([part.float() for part in parts]), total)
