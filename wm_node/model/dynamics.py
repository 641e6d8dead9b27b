"""GPT over time with parallel action prefixes: all future latents of a candidate in one pass.

Context tokens attend to each other; the action token of step k attends to the context and to the
action tokens up to k, and its output gives the latent at the end of step k. No prediction is fed
back inside the horizon, so errors do not compound and one engine call serves a whole population of
candidates. The context's keys and values are computed once and shared by all candidates.
"""

from __future__ import annotations

from collections.abc import Iterable
from typing import cast

import torch
from torch import Tensor, nn

from wm_node.model.config import Dims, ModelConfig


def split_heads(qkv: Tensor, heads: int) -> tuple[Tensor, Tensor, Tensor]:
    """(..., L, 3 W) -> query, key and value, each (..., heads, L, W / heads)."""
    shape = (*qkv.shape[:-1], 3, heads, qkv.shape[-1] // (3 * heads))
    query, key, value = qkv.view(shape).unbind(-3)
    return query.transpose(-3, -2), key.transpose(-3, -2), value.transpose(-3, -2)


def attend(query: Tensor, key: Tensor, value: Tensor) -> Tensor:
    """(..., L, size), thrice -> the same shape: attention without a mask."""
    # Plain matrix products: torch's fused attention is slow on CPUs at these short lengths.
    weights = torch.softmax(query @ key.transpose(-1, -2) * query.shape[-1] ** -0.5, dim=-1)
    return weights @ value


class Block(nn.Module):
    """Pre-norm transformer block on a shared context (B, C, W) and candidates (B, N, H, W)."""

    def __init__(self, width: int, heads: int) -> None:
        super().__init__()
        self.heads = heads
        self.norm_attention = nn.LayerNorm(width)
        self.qkv = nn.Linear(width, 3 * width)
        self.out = nn.Linear(width, width)
        self.norm_mlp = nn.LayerNorm(width)
        self.mlp = nn.Sequential(
            nn.Linear(width, 4 * width), nn.SiLU(), nn.Linear(4 * width, width)
        )

    def _split(self, x: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """(..., L, W) -> three of (..., heads, L, W / heads)."""
        return split_heads(self.qkv(self.norm_attention(x)), self.heads)

    def _finish(self, x: Tensor, mixed: Tensor) -> Tensor:
        x = x + self.out(mixed.transpose(-3, -2).flatten(-2))
        result: Tensor = x + self.mlp(self.norm_mlp(x))
        return result

    def remember(self, context: Tensor) -> tuple[Tensor, tuple[Tensor, Tensor]]:
        """Return the updated context (B, C, W) and its keys and values (B, heads, C, W / heads)."""
        query, key, value = self._split(context)
        return self._finish(context, attend(query, key, value)), (key, value)

    def follow(self, tokens: Tensor, memory: tuple[Tensor, Tensor], mask: Tensor) -> Tensor:
        """Return the updated candidate tokens (B, N, H, W)."""
        key, value = memory
        scale = (tokens.shape[-1] // self.heads) ** -0.5
        own_query, own_key, own_value = self._split(tokens)
        past = own_query @ key.unsqueeze(1).transpose(-1, -2) * scale  # (B, N, heads, H, C)
        own = own_query @ own_key.transpose(-1, -2) * scale + mask  # (B, N, heads, H, H)
        weights = torch.softmax(torch.cat([past, own], dim=-1), dim=-1)
        length = key.shape[-2]
        mixed = weights[..., :length] @ value.unsqueeze(1) + weights[..., length:] @ own_value
        return self._finish(tokens, mixed)


Memory = list[tuple[Tensor, Tensor]]
"""Keys and values of the context in every block."""


class Dynamics(nn.Module):
    """Predicts the latents at the end of each future step for N candidates of actions."""

    def __init__(self, dims: Dims, config: ModelConfig) -> None:
        super().__init__()
        width = config.width
        self.latent_in = nn.Linear(config.latent, width)
        self.joints_in = nn.Linear(dims.joints, width)
        self.past_in = nn.Linear(dims.ticks * dims.action, width)
        self.action_in = nn.Sequential(
            nn.Linear(dims.ticks * dims.action, width), nn.SiLU(), nn.Linear(width, width)
        )
        self.guess_in = nn.Linear(dims.joints, width)
        self.context_position = nn.Parameter(torch.randn(dims.context, width) * 0.02)
        self.step_position = nn.Parameter(torch.randn(dims.horizon, width) * 0.02)
        self.blocks = nn.ModuleList(Block(width, config.heads) for _ in range(config.layers))
        self.norm = nn.LayerNorm(width)
        self.latent_out = nn.Linear(width, config.latent)
        nn.init.zeros_(self.latent_out.weight)
        nn.init.zeros_(self.latent_out.bias)
        later = torch.triu(torch.ones(dims.horizon, dims.horizon), diagonal=1)
        self.register_buffer("mask", later * -1e4, persistent=False)
        self.mask: Tensor

    def forward(
        self, latents: Tensor, joints: Tensor, past: Tensor, actions: Tensor, guess: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Roll candidates out.

        Args:
            latents: (B, C, latent) of the context, oldest first.
            joints: (B, C, J), normalised.
            past: (B, C, ticks * A), normalised: the actions of the step that ended at each frame.
            actions: (B, N, H, ticks * A), normalised.
            guess: (B, N, H, J), normalised: where the joint baseline sees the joints.

        Returns:
            Predicted latents (B, N, H, latent) and the hidden states (B, N, H, W) behind them.
        """
        return self.follow(self.remember(latents, joints, past), latents[:, -1], actions, guess)

    def remember(self, latents: Tensor, joints: Tensor, past: Tensor) -> Memory:
        """Read the context once, for any number of rollouts; arguments as :meth:`forward`."""
        context = (
            self.latent_in(latents)
            + self.joints_in(joints)
            + self.past_in(past)
            + self.context_position
        )
        memory: Memory = []
        for block in cast(Iterable[Block], self.blocks):
            context, kept = block.remember(context)
            memory.append(kept)
        return memory

    def follow(
        self, memory: Memory, present: Tensor, actions: Tensor, guess: Tensor
    ) -> tuple[Tensor, Tensor]:
        """Roll candidates out of a remembered context.

        Args:
            memory: of :meth:`remember`.
            present: (B, latent) newest latent of the context.
            actions, guess: as :meth:`forward`.

        Returns:
            As :meth:`forward`.
        """
        horizon = actions.shape[2]
        tokens = self.action_in(actions) + self.guess_in(guess) + self.step_position[:horizon]
        mask = self.mask[:horizon, :horizon].to(tokens.dtype)
        blocks = cast(Iterable[Block], self.blocks)
        for block, kept in zip(blocks, memory, strict=True):
            tokens = block.follow(tokens, kept, mask)
        hidden = self.norm(tokens)
        return present.unsqueeze(1).unsqueeze(1) + self.latent_out(hidden), hidden
