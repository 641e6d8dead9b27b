"""Phase 3: time to a goal picture and the action proposal, on cached latents, from hindsight.

The value is learnt by temporal differences with hindsight goals (Andrychowicz et al., 2017) and an
expectile that favours the short ways seen (as in implicit Q-learning, Kostrikov et al., 2021).
"""

from __future__ import annotations

import copy
import math
from collections.abc import Iterator, Mapping

import torch
from torch import Tensor, nn

from wm_node.training.data import batches
from wm_node.training.dynamics_phase import Windows
from wm_node.training.loop import Phase
from wm_node.training.recipe import Recipe

TARGET_RATE = 0.01  # of the moving average of the value network
GOAL_PERSISTENCE = 0.93  # chance that a hindsight goal lies one step further
RANDOM_GOALS = 0.25  # share of goals taken from anywhere


class ValueTraining(nn.Module):
    """The heads that phase 3 trains."""

    def __init__(self, windows: Windows) -> None:
        super().__init__()
        self.value = windows.net.heads.value
        self.proposal = windows.net.heads.proposal


def value_phase(windows: Windows, recipe: Recipe, seed: int) -> Phase:
    """Build the phase."""
    net, data = windows.net, windows.data
    value = net.heads.value
    value.log_discount = math.log(recipe.discount)
    target = copy.deepcopy(value).requires_grad_(False)
    starts = windows.split.train
    ends = torch.zeros(len(data.joints), dtype=torch.long, device=data.device)
    for episode in data.dataset.episodes:
        ends[episode.start : episode.start + episode.length] = episode.start + episode.length - 1
    horizon_ticks = windows.horizon * data.ticks

    def make_batches(first_step: int) -> Iterator[Tensor]:
        for picked in batches(starts, recipe.value_batch, seed + 1, first_step):
            yield torch.from_numpy(picked).to(data.device)

    def losses(at: Tensor, step: int) -> Mapping[str, Tensor]:
        size = len(at)
        now = at + windows.context * data.ticks
        # Hindsight goals: geometric in time within the episode; a share from anywhere.
        left = (ends[now] - now) // data.ticks
        drawn = torch.empty(size, device=data.device).geometric_(1.0 - GOAL_PERSISTENCE)
        steps = drawn.long() - 1
        steps = torch.minimum(steps, left).clamp_min(0)
        random = torch.rand(size, device=data.device) < RANDOM_GOALS
        goal_at = now + steps * data.ticks
        goal_at = torch.where(random, goal_at[torch.randperm(size, device=data.device)], goal_at)
        steps = torch.where(random, torch.full_like(steps, -1), steps)
        latent, later = windows.latents[now], windows.latents[now + data.ticks]
        goal = windows.latents[goal_at]
        noisy = latent + 0.05 * torch.randn_like(latent)
        logit = value.logit(noisy, goal)
        with torch.no_grad():
            onward = torch.sigmoid(target.logit(later, goal))
            onward = torch.where(steps == 1, torch.ones_like(onward), onward)
            wanted = torch.where(steps == 0, torch.ones_like(onward), recipe.discount * onward)
            # Hindsight gives a lower bound of the closeness: no way is longer than the one taken.
            taken = torch.where(
                steps >= 0, recipe.discount ** steps.clamp_min(0).float(), torch.zeros_like(onward)
            )
            wanted = torch.maximum(wanted, taken)
            gap = wanted - torch.sigmoid(logit)
            weight = torch.where(gap > 0, recipe.expectile, 1.0 - recipe.expectile)
        entropy = nn.functional.binary_cross_entropy_with_logits(logit, wanted, reduction="none")
        result = {"value": (weight * entropy).mean()}
        result["proposal"] = 0.1 * _proposal_loss(at, now)
        return result

    def _proposal_loss(at: Tensor, now: Tensor) -> Tensor:
        ticks = torch.arange(horizon_ticks, device=data.device)
        actions = net.normalise("actions", data.actions[now.unsqueeze(1) + ticks])
        goal_at = now + horizon_ticks
        latent = windows.latents[goal_at]
        state = torch.zeros(len(at), max(net.dims.labels, 1), device=data.device)
        if net.dims.labels:
            state = torch.nan_to_num(net.normalise("labels", data.labels[goal_at]))
        objective = data.profile.objective
        keep = torch.zeros_like(state)
        if objective is not None:
            for name in objective.goal:
                keep[:, data.profile.label_names.index(name)] = 1.0
        state = state * keep
        use = torch.rand(len(at), 2, 1, device=data.device) < 0.7
        inputs = torch.cat(
            [
                latent * use[:, 0],
                use[:, 0].float(),
                state * use[:, 1],
                use[:, 1].float(),
            ],
            dim=-1,
        )
        joints = net.normalise("joints", data.joints[now])
        out = net.heads.proposal(torch.cat([windows.latents[now], joints, inputs], dim=-1))
        mean, scale = out.view(len(at), 2, -1, net.dims.action).unbind(1)
        scale = scale.clamp(-4.0, 1.0)
        loss: Tensor = (0.5 * ((actions - mean) * torch.exp(-scale)) ** 2 + scale).mean()
        return loss

    @torch.no_grad()
    def after_step(step: int) -> None:
        for slow, fast in zip(target.parameters(), value.parameters(), strict=True):
            slow.lerp_(fast, TARGET_RATE)

    return Phase(
        "value",
        recipe.value_steps,
        ValueTraining(windows),
        recipe.value_rate,
        make_batches,
        losses,
        after_step,
    )
