"""Small readers of latents: labelled state, event risk, joints, time to goal, proposal, doubt."""

from __future__ import annotations

import torch
from torch import Tensor, nn

from wm_node.model.config import Dims, ModelConfig


def mlp(inputs: int, hidden: int, outputs: int, layers: int = 2) -> nn.Sequential:
    """Return a perceptron with ``layers`` hidden layers, LayerNorm after the first, and SiLU."""
    parts: list[nn.Module] = [nn.Linear(inputs, hidden), nn.LayerNorm(hidden), nn.SiLU()]
    for _ in range(layers - 1):
        parts += [nn.Linear(hidden, hidden), nn.SiLU()]
    return nn.Sequential(*parts, nn.Linear(hidden, outputs))


class TimeToGoal(nn.Module):
    """Closeness of a goal latent: the discounted chance-to-be-there, as a logit.

    ``sigmoid(logit) = discount ** steps``, so the steps to go are
    ``log(sigmoid(logit)) / log(discount)``.
    """

    def __init__(self, config: ModelConfig, discount: float = 0.95) -> None:
        super().__init__()
        self.net = mlp(3 * config.latent, config.value_hidden, 1, layers=3)
        self.log_discount = float(torch.log(torch.tensor(discount)))

    def logit(self, latents: Tensor, goal: Tensor) -> Tensor:
        """(..., D) and (..., D) -> (...) logits of the closeness."""
        out: Tensor = self.net(torch.cat([latents, goal, latents - goal], dim=-1))
        return out.squeeze(-1)

    def forward(self, latents: Tensor, goal: Tensor) -> Tensor:
        """Return the expected number of model steps to the goal."""
        return nn.functional.logsigmoid(self.logit(latents, goal)) / self.log_discount


class Disagreement(nn.Module):
    """Cheap ensemble: members predict a random projection of the future latent.

    Each member adds a fixed random prior (Osband et al., 2018) and is trained on its own random
    half of each batch, so that members agree only where data taught them to.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        members, width, hidden, out = config.ensemble, config.width, 64, config.ensemble_dim
        self.first = nn.Parameter(torch.randn(members, width, hidden) * width**-0.5)
        self.second = nn.Parameter(torch.randn(members, hidden, out) * hidden**-0.5)
        self.register_buffer("prior_first", torch.randn(members, width, hidden) * width**-0.5)
        self.register_buffer("prior_second", torch.randn(members, hidden, out) * hidden**-0.5)
        self.register_buffer("projection", torch.randn(config.latent, out) * config.latent**-0.5)
        self.prior_first: Tensor
        self.prior_second: Tensor
        self.projection: Tensor

    def forward(self, hidden: Tensor) -> Tensor:
        """(R, W) hidden states -> (members, R, out) predictions."""
        learnt = torch.relu(hidden @ self.first) @ self.second
        prior = torch.relu(hidden @ self.prior_first) @ self.prior_second
        return learnt + prior

    def spread(self, hidden: Tensor) -> Tensor:
        """(R, W) hidden states -> (R,) standard deviation over members, mean over dimensions."""
        members = self(hidden)
        centred = members - members.mean(0, keepdim=True)
        spread: Tensor = (centred**2).mean(0).mean(-1).sqrt()
        return spread


class JointCorrection(nn.Module):
    """What the linear joint baseline leaves over, in its deviations; zero before training.

    Dropout, because recordings of a real robot are few and the rest is mostly noise.
    """

    def __init__(self, width: int, hidden: int, joints: int) -> None:
        super().__init__()
        self.drop = nn.Dropout(0.3)
        self.net = mlp(width + joints, hidden, joints, layers=1)
        last = self.net[-1]
        nn.init.zeros_(last.weight)  # type: ignore[arg-type]
        nn.init.zeros_(last.bias)  # type: ignore[arg-type]

    def forward(self, hidden: Tensor, change: Tensor) -> Tensor:
        """(..., W) hidden states and (..., J) change by the baseline -> (..., J)."""
        correction: Tensor = self.net(self.drop(torch.cat([hidden, change], dim=-1)))
        return correction


class Heads(nn.Module):
    """All readers of one model. Heads without labels in the profile have zero outputs."""

    def __init__(self, dims: Dims, config: ModelConfig) -> None:
        super().__init__()
        latent, hidden = config.latent, config.head_hidden
        self.state = mlp(latent, hidden, max(dims.labels, 1))
        self.risk = mlp(latent, hidden, max(dims.events, 1))
        self.joints = JointCorrection(config.width, hidden, dims.joints)
        self.value = TimeToGoal(config)
        self.disagreement = Disagreement(config)
        if config.futures:
            # Of the carried state at the end of the mean future's horizon.
            self.likelihood = mlp(config.width, hidden, config.futures, layers=1)
        actions = dims.horizon * dims.ticks * dims.action
        # The proposal sees the present latent, the joints and the goal (labelled values and latent,
        # each zero with its flag when not given), and gives mean and log-deviation of the actions.
        goal = latent + 1 + max(dims.labels, 1) + 1
        self.proposal = mlp(latent + dims.joints + goal, config.value_hidden, 2 * actions, layers=3)
