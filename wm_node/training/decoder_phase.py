"""Phase 4: the decoder, on frozen latents, observed and predicted."""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import torch
from torch import Tensor

from wm_node.training.data import batches, read_ahead
from wm_node.training.dynamics_phase import Windows
from wm_node.training.loop import Phase
from wm_node.training.recipe import Recipe


def decoder_phase(windows: Windows, recipe: Recipe, seed: int) -> Phase:
    """Build the phase: redraw a frame up to a horizon ahead from the present one and a latent."""
    net, data = windows.net, windows.data
    starts = windows.split.train
    weights = windows.errors(starts) if recipe.hard_share > 0.0 else None

    def make_batches(first_step: int) -> Iterator[tuple[Tensor, Tensor, Tensor]]:
        def read() -> Iterator[tuple[Tensor, Tensor, Tensor]]:
            draws = batches(
                starts, recipe.decoder_batch, seed + 2, first_step, weights, recipe.hard_share
            )
            for number, picked in enumerate(draws, first_step):
                at = torch.from_numpy(picked).to(data.device)
                generator = torch.Generator().manual_seed((seed * 7919 + number) % 2**31)
                ahead = torch.randint(1, windows.horizon + 1, (len(at),), generator=generator)
                ahead = ahead.to(data.device)
                now = at + windows.context * data.ticks
                pair = torch.stack([now, now + ahead * data.ticks], dim=1)
                yield at, ahead, data.frames(pair)

        return read_ahead(read(), data.in_memory)

    def losses(batch: tuple[Tensor, Tensor, Tensor], step: int) -> Mapping[str, Tensor]:
        at, ahead, frames = batch
        with torch.no_grad():
            window = windows.gather(at)
            future, hidden, guess = windows.predict(window)
            joints = windows.joints(window, hidden, guess)
            row = torch.arange(len(at), device=data.device)
            now = window["latents"][:, windows.context - 1]
            predicted = future[row, ahead - 1].float()
            observed = window["latents"][row, windows.context - 1 + ahead]
            use = (torch.rand(len(at), 1, device=data.device) < 0.5).float()
            latent = use * predicted + (1.0 - use) * observed
            seen = window["joints"]
            joint = (
                use * joints[row, ahead - 1] + (1.0 - use) * seen[row, windows.context - 1 + ahead]
            )
        present, wanted = frames[:, 0].float(), frames[:, 1].float()
        if recipe.colour_jitter > 0.0:  # the same for both, as another light would be
            jitter = recipe.colour_jitter
            gain = 1.0 + jitter * torch.randn(len(at), 1, 1, 1, 3, device=data.device)
            offset = 127.5 * jitter * torch.randn(len(at), 1, 1, 1, 1, device=data.device)
            present, wanted = present * gain + offset, wanted * gain + offset
        drawn = net.decode(latent, joint, now, seen[:, windows.context - 1], present)
        # The logarithm of each frame's error is its PSNR: easy frames count as much as hard ones.
        error = (((drawn.float() - wanted) / 127.5) ** 2).flatten(1).mean(1)
        return {"log_mse": torch.log(error + 1e-4).mean()}

    return Phase(
        "decoder", recipe.decoder_steps, net.decoder, recipe.decoder_rate, make_batches, losses
    )


@torch.no_grad()
def validate_decoder(windows: Windows, limit: int = 512) -> dict[str, float]:
    """PSNR of frames decoded from predicted latents at the horizon, beside copying the present."""
    net, data = windows.net, windows.data
    net.eval()
    starts = windows.split.validation
    at = torch.from_numpy(starts[:: max(1, len(starts) // limit)]).to(data.device)
    window = windows.gather(at)
    future, hidden, guess = windows.predict(window)
    joints = windows.joints(window, hidden, guess)
    now = at + windows.context * data.ticks
    figures: dict[str, float] = {}
    for ahead in sorted({2, 4, windows.horizon}):
        if ahead > windows.horizon:
            continue
        parts, copies = [], []
        for first in range(0, len(at), 64):
            part = slice(first, first + 64)
            present = data.frames(now[part])
            wanted = data.frames(now[part] + ahead * data.ticks).float()
            drawn = net.decode(
                future[part, ahead - 1].float(),
                joints[part, ahead - 1],
                window["latents"][part, windows.context - 1],
                window["joints"][part, windows.context - 1],
                present,
            )
            parts.append(_psnr(drawn, wanted))
            copies.append(_psnr(present.float(), wanted))
        figures[f"psnr_{ahead}"] = float(torch.cat(parts).mean())
        figures[f"psnr_copy_{ahead}"] = float(torch.cat(copies).mean())
    return figures


def _psnr(a: Tensor, b: Tensor) -> Tensor:
    error = ((a - b) ** 2).flatten(1).mean(1).clamp_min(0.1)
    return 10.0 * torch.log10(255.0**2 / error)
