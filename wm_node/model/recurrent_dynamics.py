"""Dynamics as one learned transition, applied once a model step, on N candidates at a time.

Contact is local in time: what an object does in a step follows from where it stands and what
pushes it then. A transition that all steps share learns that from every step of every window, and
the latent that it has predicted so far is its input, as the touched object's place is to physics.
It is trained through the whole horizon, so it learns to live with its own predictions.

Where more than one thing may happen, one prediction is their mean, which is none of them. A model
with ``futures`` has a code for each of a few ways that things may go on; a code is brought to every
step, so that a future holds together. Without a code the mean is predicted, which plans.

A latent of several tokens, each of a place on the frame, carries a state for each; between the
blocks the tokens attend to each other, for what moves comes from a neighbour's place.

Against
:class:`wm_node.model.dynamics.Dynamics`, which sees the horizon's actions at once, it predicts
pushes better at a third of the operations; docs/decisions.md has the measurement.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wm_node.model.config import Dims, ModelConfig
from wm_node.model.dynamics import Memory, attend, split_heads


class TransitionBlock(nn.Module):
    """Pre-norm residual perceptron that reads the carried state and what the step brings."""

    def __init__(self, width: int, hidden: int) -> None:
        super().__init__()
        self.norm = nn.LayerNorm(width)
        self.mlp = nn.Sequential(nn.Linear(width, hidden), nn.SiLU(), nn.Linear(hidden, width))

    def forward(self, carried: Tensor, brought: Tensor) -> Tensor:
        """(..., W) and (..., W) -> the carried state (..., W) after the block."""
        change: Tensor = self.mlp(self.norm(carried + brought))
        return carried + change


class TokenAttention(nn.Module):
    """Pre-norm attention between the tokens of one instant, beside the identity."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)

    def forward(self, carried: Tensor) -> Tensor:
        """(..., K, W) -> the same shape."""
        mixed = attend(*split_heads(self.qkv(self.norm(carried)), self.heads))
        change: Tensor = self.out(mixed.transpose(-3, -2).flatten(-2))
        return carried + change


class RecurrentDynamics(nn.Module):
    """Predicts the latents at the end of each future step, one step after the other."""

    def __init__(self, dims: Dims, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        frame = config.latent + dims.joints + dims.ticks * dims.action
        self.context_in = nn.Sequential(
            nn.Linear(dims.context * frame, 2 * width), nn.SiLU(), nn.Linear(2 * width, width)
        )
        # The action, and the joints' baseline at the step's end, at its beginning and between.
        self.step_in = nn.Linear(dims.ticks * dims.action + 3 * dims.joints, width)
        self.tokens, size = config.tokens, config.latent // config.tokens
        self.latent_in = nn.Linear(size, width)
        self.codes = nn.Parameter(torch.randn(config.futures, width)) if config.futures else None
        self.blocks = nn.ModuleList(
            TransitionBlock(width, config.transition_hidden)
            for _ in range(config.transition_blocks)
        )
        # The width of a single token stays as it was before there could be several.
        self.places = nn.Parameter(torch.randn(self.tokens, width)) if self.tokens > 1 else None
        self.mixing = nn.ModuleList(
            TokenAttention(width, config.heads)
            for _ in range(config.transition_blocks if self.tokens > 1 else 0)
        )
        self.norm = nn.LayerNorm(width)
        self.latent_out = nn.Linear(width, size)
        nn.init.zeros_(self.latent_out.weight)
        nn.init.zeros_(self.latent_out.bias)

    def forward(
        self, latents: Tensor, joints: Tensor, past: Tensor, actions: Tensor, guess: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Roll candidates out; as :meth:`wm_node.model.dynamics.Dynamics.forward`."""
        return self.follow(self.remember(latents, joints, past), latents[:, -1], actions, guess)

    def remember(self, latents: Tensor, joints: Tensor, past: Tensor) -> Memory:
        """Read the context once: the state (B, W) to start from, and the present joints (B, J)."""
        context = torch.cat([latents, joints, past], dim=-1).flatten(1)
        return [(self.context_in(context), joints[:, -1])]

    def follow(
        self,
        memory: Memory,
        present: Tensor,
        actions: Tensor,
        guess: Tensor,
        code: Tensor | None = None,
    ) -> tuple[Tensor, Tensor]:
        """Roll candidates out of a remembered context; as :meth:`forward`.

        ``code`` (B, N, W), of :attr:`codes`, says which future; None: their mean.
        """
        ((start, joints),) = memory
        count, horizon = actions.shape[1], actions.shape[2]
        now = joints[:, None, None].expand(-1, count, 1, -1)
        before = torch.cat([now, guess[:, :, :-1]], dim=2)
        steps = self.step_in(torch.cat([actions, guess, before, guess - before], dim=-1))
        if code is not None:
            steps = steps + code.unsqueeze(2)
        # Sums over the horizon are kept in full precision, under autocast too.
        carried = start.float().unsqueeze(1).expand(-1, count, -1)
        latent = present.float().unsqueeze(1).expand(-1, count, -1)
        if self.places is not None:
            carried = carried.unsqueeze(2) + self.places
            latent = latent.reshape(*latent.shape[:2], self.tokens, -1)
            steps = steps.unsqueeze(3)
        latents, states = [], []
        for step in range(horizon):
            brought = steps[:, :, step] + self.latent_in(latent)
            for index, block in enumerate(self.blocks):
                carried = block(carried, brought)
                if self.places is not None:
                    carried = self.mixing[index](carried)
            state = self.norm(carried)
            latent = latent + self.latent_out(state)
            latents.append(latent)
            states.append(state)
        rolled, hidden = torch.stack(latents, dim=2), torch.stack(states, dim=2)
        if self.places is not None:
            rolled, hidden = rolled.flatten(3), hidden.mean(3)
        return rolled, hidden
