"""Dynamics as one learned transition, applied once a model step, on N candidates at a time.

Contact is local in time: what an object does in a step follows from where it stands and what
pushes it then. A transition that all steps share learns that from every step of every window, and
the latent that it has predicted so far is its input, as the touched object's place is to physics.
It is trained through the whole horizon, so it learns to live with its own predictions.

Where more than one thing may happen, one prediction is their mean, which is none of them. A model
with ``futures`` has a code for each of a few ways that things may go on; a code is brought to every
step, so that a future holds together. Without a code the mean is predicted, which plans.

Against
:class:`wm_node.model.dynamics.Dynamics`, which sees the horizon's actions at once, it predicts
pushes better at a third of the operations; docs/decisions.md has the measurement.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wm_node.model.config import Dims, ModelConfig
from wm_node.model.dynamics import Memory


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
        self.latent_in = nn.Linear(config.latent, width)
        self.codes = nn.Parameter(torch.randn(config.futures, width)) if config.futures else None
        self.blocks = nn.ModuleList(
            TransitionBlock(width, config.transition_hidden)
            for _ in range(config.transition_blocks)
        )
        self.norm = nn.LayerNorm(width)
        self.latent_out = nn.Linear(width, config.latent)
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
        latents, states = [], []
        for step in range(horizon):
            brought = steps[:, :, step] + self.latent_in(latent)
            for block in self.blocks:
                carried = block(carried, brought)
            state = self.norm(carried)
            latent = latent + self.latent_out(state)
            latents.append(latent)
            states.append(state)
        return torch.stack(latents, dim=2), torch.stack(states, dim=2)
