"""A model in the shape of LeWM (Maes et al., 2026), in our own code, to measure ours against.

One token a frame from a ViT-Tiny, SIGReg against collapse, an autoregressive predictor of six
AdaLN-zero blocks, planning by CEM on the distance to the goal's latent: sizes, losses and search
are the defaults of ``galilai-group/stable-worldmodel``. What differs is said where it does.
"""

from __future__ import annotations

from collections.abc import Callable
from copy import deepcopy
from typing import Protocol

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wm_node.training.sigreg import sigreg

WIDTH, HEADS, HEAD, MLP, DEPTH, TOKENS = 192, 16, 64, 2048, 6, 3
SAMPLES, ITERATIONS, STEPS, ELITES = 300, 30, 5, 30
BLOCK_TICKS = 5  # actions of one step
PATCH = 8  # theirs is 14 of 224 pixels; of our 64 this leaves 64 patches
SIGREG_WEIGHT, DIRECTIONS = 0.18, 1024  # their 0.09: our statistic counts one side of the integral
DROPOUT = 0.1
WAYS = ("products", "fused", "sums", "compiled-products", "compiled-sums", "eager")
"""Of a search on a device: attention as what, a step fused by torch.compile or not; eager: as
products, without a captured graph. What is searched is the same."""

Floats = NDArray[np.float32]
Rollout = Callable[[Floats, Floats], Floats]
"""(1, W) present latent, (N, steps, A) actions -> (N, W) latents at the end."""


class Search(Protocol):
    """What plans."""

    def reset(self, seed: int) -> None:
        """Begin an episode, with noise of its own."""

    def __call__(
        self, present: Tensor, goal: Tensor, mean: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """(1, W) latents and the (steps, A) to start from -> actions (steps, A), normalised."""


class ViT(nn.Module):
    """ViT-Tiny: (B, H, W, 3) uint8 frames -> (B, 192) of the class token."""

    def __init__(self, side: int, depth: int = 12, heads: int = 3) -> None:
        super().__init__()
        self.patches = nn.Conv2d(3, WIDTH, PATCH, PATCH)
        self.start = nn.Parameter(torch.zeros(1, 1, WIDTH))
        self.place = nn.Parameter(0.02 * torch.randn(1, (side // PATCH) ** 2 + 1, WIDTH))
        layer = nn.TransformerEncoderLayer(
            WIDTH, heads, 4 * WIDTH, 0.0, "gelu", batch_first=True, norm_first=True
        )
        self.blocks = nn.TransformerEncoder(layer, depth, enable_nested_tensor=False)
        self.norm = nn.LayerNorm(WIDTH)
        self.register_buffer("mean", torch.tensor([0.485, 0.456, 0.406]))
        self.register_buffer("std", torch.tensor([0.229, 0.224, 0.225]))

    def forward(self, frames: Tensor) -> Tensor:
        pixels = ((frames.float() / 255.0 - self.mean) / self.std).permute(0, 3, 1, 2)
        tokens = self.patches(pixels).flatten(2).transpose(1, 2)
        tokens = torch.cat([self.start.expand(len(tokens), -1, -1), tokens], 1) + self.place
        return self.norm(self.blocks(tokens))[:, 0]


class Block(nn.Module):
    """AdaLN-zero block: attention and perceptron, both modulated by the action."""

    attention = "products"
    """Or ``fused`` or ``sums``, for inference alone: the same, in other kernels."""

    def __init__(self) -> None:
        super().__init__()
        self.norms = nn.ModuleList(
            [nn.LayerNorm(WIDTH, elementwise_affine=False) for _ in range(2)]
        )
        self.inner = nn.ModuleList([nn.LayerNorm(WIDTH) for _ in range(2)])
        self.qkv = nn.Linear(WIDTH, 3 * HEADS * HEAD, bias=False)
        self.out = nn.Sequential(nn.Linear(HEADS * HEAD, WIDTH), nn.Dropout(DROPOUT))
        self.mlp = nn.Sequential(
            nn.Linear(WIDTH, MLP),
            nn.GELU(),
            nn.Dropout(DROPOUT),
            nn.Linear(MLP, WIDTH),
            nn.Dropout(DROPOUT),
        )
        self.modulation = nn.Sequential(nn.SiLU(), nn.Linear(WIDTH, 6 * WIDTH))
        nn.init.zeros_(self.modulation[-1].weight)
        nn.init.zeros_(self.modulation[-1].bias)

    def forward(self, x: Tensor, action: Tensor, mask: Tensor) -> Tensor:
        shift, scale, gate, shift2, scale2, gate2 = self.modulation(action).chunk(6, -1)
        x = x + gate * self.attend(self.inner[0](self.norms[0](x) * (1 + scale) + shift), mask)
        return x + gate2 * self.mlp(self.inner[1](self.norms[1](x) * (1 + scale2) + shift2))

    def attend(self, x: Tensor, mask: Tensor) -> Tensor:
        count, tokens, _ = x.shape
        q, k, v = (
            part.view(count, tokens, HEADS, HEAD).transpose(1, 2)
            for part in self.qkv(x).chunk(3, -1)
        )
        if self.attention == "fused":
            mixed = nn.functional.scaled_dot_product_attention(q, k, v, is_causal=True)
        elif self.attention == "sums":
            scores = (q.unsqueeze(3) * k.unsqueeze(2)).sum(-1) * HEAD**-0.5 + mask
            mixed = (scores.softmax(-1).unsqueeze(-1) * v.unsqueeze(2)).sum(3)
        else:
            weights = (q @ k.transpose(-1, -2) * HEAD**-0.5 + mask).softmax(-1)
            mixed = nn.functional.dropout(weights, DROPOUT, self.training) @ v
        return self.out(mixed.transpose(1, 2).flatten(2))


class Projector(nn.Module):
    """(..., W) -> (..., W), with BatchNorm inside, which keeps a latent free in its scale."""

    def __init__(self) -> None:
        super().__init__()
        self.net = nn.Sequential(
            nn.Linear(WIDTH, MLP), nn.BatchNorm1d(MLP), nn.GELU(), nn.Linear(MLP, WIDTH)
        )

    def forward(self, x: Tensor) -> Tensor:
        return self.net(x.reshape(-1, WIDTH)).view(x.shape)


class Predictor(nn.Module):
    """(N, T <= 3, W) latents and (N, T, A) actions that leave them -> (N, T, W) the next ones.

    ``forward`` rolls out: (1, W) and (N, steps, A) -> (N, W), one call of the blocks a step.
    """

    def __init__(self, action: int) -> None:
        super().__init__()
        self.embed = nn.Sequential(
            nn.Linear(action, action),
            nn.Linear(action, 4 * WIDTH),
            nn.SiLU(),
            nn.Linear(4 * WIDTH, WIDTH),
        )
        self.place = nn.Parameter(torch.randn(1, TOKENS, WIDTH))
        self.blocks = nn.ModuleList([Block() for _ in range(DEPTH)])
        self.norm = nn.LayerNorm(WIDTH)
        self.project = Projector()
        self.register_buffer("mask", torch.full((TOKENS, TOKENS), -1e4).triu(1))

    def step(self, latents: Tensor, embedded: Tensor) -> Tensor:
        tokens = latents.shape[1]
        x = latents + self.place[:, :tokens]
        for block in self.blocks:
            x = block(x, embedded, self.mask[:tokens, :tokens])
        return self.project(self.norm(x))

    def forward(self, present: Tensor, actions: Tensor) -> Tensor:
        embedded = self.embed(actions)
        frames = [present.expand(actions.shape[0], -1)]
        for step in range(actions.shape[1]):
            first = max(0, 1 + step - TOKENS)
            window = torch.stack(frames[first:], 1)
            frames.append(self.step(window, embedded[:, first : step + 1])[:, -1])
        return frames[-1]


class LeWm(nn.Module):
    """Encoder and predictor, trained together by :meth:`losses`."""

    def __init__(self, side: int, action: int) -> None:
        super().__init__()
        self.vit = ViT(side)
        self.project = Projector()
        self.predictor = Predictor(action)

    def encode(self, frames: Tensor) -> Tensor:
        """(B, H, W, 3) uint8 -> (B, W)."""
        return self.project(self.vit(frames))

    def losses(self, frames: Tensor, actions: Tensor) -> dict[str, Tensor]:
        """(B, 4, H, W, 3) frames and (B, 3, A) actions that leave the first three."""
        latents = self.encode(frames.flatten(0, 1)).view(*frames.shape[:2], WIDTH)
        predicted = self.predictor.step(latents[:, :-1], self.predictor.embed(actions))
        return {
            "prediction": ((predicted - latents[:, 1:]) ** 2).mean(),
            "sigreg": SIGREG_WEIGHT * sigreg(latents.transpose(0, 1), DIRECTIONS),
        }


def plan(
    rollout: Rollout,
    present: Floats,
    goal: Floats,
    mean: NDArray[np.float64],
    random: np.random.Generator,
) -> NDArray[np.float64]:
    """CEM: from a mean (steps, A) to the actions (steps, A) whose end is nearest to the goal.

    Latents are (1, W); actions are normalised.
    """
    deviation = np.ones_like(mean)
    for _ in range(ITERATIONS):
        drawn = mean + deviation * random.standard_normal((SAMPLES, *mean.shape))
        drawn[0] = mean
        cost = ((rollout(present, drawn.astype(np.float32)) - goal) ** 2).mean(-1)
        best = drawn[np.argpartition(cost, ELITES)[:ELITES]]
        mean, deviation = best.mean(0), best.std(0)
    return mean


class HostSearch:
    """:func:`plan` with a rollout."""

    def __init__(self, rollout: Rollout) -> None:
        self._rollout = rollout

    def reset(self, seed: int) -> None:
        self._random = np.random.default_rng(seed)

    def __call__(
        self, present: Tensor, goal: Tensor, mean: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        return plan(self._rollout, present.numpy(), goal.numpy(), mean, self._random)


class DeviceSearch:
    """The search of :func:`plan` on a device, where the host waits for nothing but its end.

    Noise, rollouts, choice and refit are the device's. On CUDA an iteration is captured as a graph
    once, in which nothing is left to launch, and replayed. Products are in bf16 if ``narrow``.
    """

    def __init__(
        self,
        net: Predictor,
        action: int,
        device: torch.device,
        way: str = WAYS[0],
        narrow: bool = True,
    ) -> None:
        self._net = deepcopy(net).eval().requires_grad_(False).to(device)
        for module in self._net.modules():
            if isinstance(module, Block):
                module.attention = way.removeprefix("compiled-")
            if isinstance(module, nn.Linear) and narrow:
                module.to(torch.bfloat16)  # once, not at each call
        if way.startswith("compiled-"):
            self._net.step = torch.compile(self._net.step, dynamic=False)  # type: ignore[method-assign]
        self._kind, self._narrow = device.type, narrow
        self._random = torch.Generator(device)
        self._noise = torch.zeros(ITERATIONS, SAMPLES, STEPS, action, device=device)
        self._number = torch.zeros(1, dtype=torch.long, device=device)
        self._mean = torch.zeros(STEPS, action, device=device)
        self._deviation = torch.ones_like(self._mean)
        self._present = torch.zeros(1, WIDTH, device=device)
        self._goal = torch.zeros_like(self._present)
        captures = device.type == "cuda" and way != "eager"
        self._iterate = self._captured() if captures else self._iteration

    def _captured(self) -> Callable[[], None]:
        """Return what replays an iteration."""
        aside = torch.cuda.Stream()
        aside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(aside):
            for _ in range(3):  # compiles and chooses kernels, which a capture must not
                self._iteration()
        torch.cuda.current_stream().wait_stream(aside)
        graph = torch.cuda.CUDAGraph()
        with torch.cuda.graph(graph):
            self._iteration()
        return graph.replay

    @torch.no_grad()
    def _iteration(self) -> None:
        noise = self._noise.index_select(0, self._number)[0]
        drawn = self._mean + self._deviation * noise
        drawn[0].copy_(self._mean)
        with torch.autocast(self._kind, torch.bfloat16, self._narrow, cache_enabled=False):
            ends = self._net(self._present, drawn)
        cost = ((ends.float() - self._goal) ** 2).mean(-1)
        best = drawn.index_select(0, cost.topk(ELITES, largest=False, sorted=False).indices)
        self._mean.copy_(best.mean(0))
        self._deviation.copy_(best.std(0, correction=0))
        self._number.add_(1)

    def reset(self, seed: int) -> None:
        self._random.manual_seed(seed)

    def __call__(
        self, present: Tensor, goal: Tensor, mean: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        self._noise.normal_(generator=self._random)
        self._present.copy_(present)
        self._goal.copy_(goal)
        self._mean.copy_(torch.from_numpy(mean))
        self._deviation.fill_(1.0)
        self._number.zero_()
        for _ in range(ITERATIONS):
            self._iterate()
        return self._mean.double().cpu().numpy()


def rollouts(net: Predictor, threads: int, action: int) -> dict[str, Rollout]:
    """Every way to run the rollout here: OpenVINO and torch, in fp32 and, where native, bf16."""
    import openvino as ov  # not there on machines that plan on their GPU

    native = ov.Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    kinds = ["f32", "bf16"] if "BF16" in native else ["f32"]
    example = (torch.zeros(1, WIDTH), torch.zeros(SAMPLES, STEPS, action))
    model = ov.convert_model(net.eval(), example_input=example)
    inputs = zip(model.inputs, example, strict=True)
    model.reshape({port: list(one.shape) for port, one in inputs})
    found: dict[str, Rollout] = {}
    for kind in kinds:
        options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": kind,
        }
        request = ov.Core().compile_model(model, "CPU", options).create_infer_request()
        found[f"openvino-{kind}"] = lambda x, a, request=request: request.infer([x, a])[0]

        def torch_rollout(x: Floats, a: Floats, kind: str = kind) -> Floats:
            narrow = torch.autocast("cpu", torch.bfloat16, enabled=kind == "bf16")
            with torch.inference_mode(), narrow:
                return net(torch.from_numpy(x), torch.from_numpy(a)).float().numpy()

        found[f"torch-{kind}"] = torch_rollout
    return found
