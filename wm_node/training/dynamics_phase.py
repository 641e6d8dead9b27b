"""Phase 2: dynamics and heads on cached latents of the frozen encoder.

The dynamics are trained again from where phase 1 left them, with far more windows than frames
could be encoded for: this is what decides planning success. Label heads read predicted and
observed latents; by default their gradient stops there, so that neither encoder nor rollout is
shaped by labels.
"""

from __future__ import annotations

from collections.abc import Iterator, Mapping

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wm_node.model.joint_baseline import fit_joint_baseline
from wm_node.model.world import WorldModelNet
from wm_node.training import ranks
from wm_node.training.data import TrainingData, batches
from wm_node.training.futures import SHARE, futures_of, validate_futures
from wm_node.training.head_losses import head_losses
from wm_node.training.loop import Phase
from wm_node.training.recipe import Recipe

FUTURES_WEIGHT = 0.1
"""Weight of telling which future is likely, which shapes nothing but the classifier."""


class Windows:
    """Windows of context and horizon on cached latents.

    ``views`` (V, T, latent) are the same frames as they would be read in other colours: how the
    encoder errs is not white noise, and a context that varies as readings do cannot be memorised.
    """

    def __init__(
        self, net: WorldModelNet, data: TrainingData, latents: Tensor, views: Tensor | None = None
    ) -> None:
        self.net, self.data, self.latents, self.views = net, data, latents, views
        self.context, self.horizon = net.dims.context, net.dims.horizon
        self.steps = self.context + self.horizon
        self.split = data.split(self.steps)

    def gather(self, at: Tensor) -> dict[str, Tensor]:
        """(B,) window starts -> latents, joints, actions of all steps, labels and events ahead."""
        ticks = self.data.frame_ticks(at, self.steps)
        ahead = ticks[:, self.context :]
        span = self.data.ticks
        # An event belongs to a step if it was active in any tick of it.
        inside = ahead.unsqueeze(-1) - torch.arange(span, 0, -1, device=at.device)
        events = self.data.events[inside].amax(2) if self.net.dims.events else None
        result = {
            "latents": self.latents[ticks],
            "joints": self.data.joints[ticks],
            "actions": self.data.step_actions(at, self.steps),
            "labels": self.data.labels[ahead],
        }
        if events is not None:
            # At the end of the step it may also just have begun.
            result["events"] = torch.maximum(events, self.data.events[ahead])
        return result

    def contexts(self, at: Tensor) -> Tensor:
        """(B,) window starts -> context latents (B, C, latent), each window in one of the views."""
        ticks = self.data.frame_ticks(at, self.context)
        plain = self.latents[ticks]
        if self.views is None:
            return plain
        count = len(self.views)
        view = torch.randint(0, count + 1, (len(at), 1), device=at.device)
        seen = self.views[view.clamp_max(count - 1), ticks]
        return torch.where(view.unsqueeze(-1) == count, plain, seen)

    def predict(
        self, window: Mapping[str, Tensor], noise: float = 0.0
    ) -> tuple[Tensor, Tensor, Tensor]:
        """Predict the horizon: latents (B, H, latent), hidden (B, H, W), baseline (B, H, J)."""
        context = self.context
        latents = window["latents"][:, :context]
        if noise > 0.0:
            latents = latents + noise * torch.randn_like(latents)
        future, hidden, guess = self.net.predict(
            latents,
            window["joints"][:, :context],
            window["actions"][:, :context],
            window["actions"][:, context:].unsqueeze(1),
        )
        return future[:, 0], hidden[:, 0], guess[:, 0]

    def joints(self, window: Mapping[str, Tensor], hidden: Tensor, guess: Tensor) -> Tensor:
        """Corrected joints (B, H, J) from what :meth:`predict` returns."""
        now = window["joints"][:, self.context - 1]
        return self.net.future_joints(hidden.unsqueeze(1), guess.unsqueeze(1), now)[:, 0]

    @torch.no_grad()
    def errors(self, starts: NDArray[np.int64], batch: int = 2048) -> NDArray[np.float64]:
        """Mean square prediction error of each window (N,), used to find the hard ones.

        Of several ranks all get the first one's, so that they draw from the same windows.
        """
        self.net.eval()
        parts = []
        for first in range(0, len(starts), batch):
            at = torch.from_numpy(starts[first : first + batch]).to(self.data.device)
            window = self.gather(at)
            future, _, _ = self.predict(window)
            wanted = window["latents"][:, self.context :]
            parts.append(((future - wanted) ** 2).mean((1, 2)).double())
        errors: NDArray[np.float64] = ranks.agreed(torch.cat(parts)).cpu().numpy()
        return errors


def fit_baseline(net: WorldModelNet, data: TrainingData, limit: int = 40_000) -> None:
    """Fit the joints' linear baseline on windows of the training episodes."""
    dims = net.dims
    steps = dims.context + dims.horizon
    starts = data.split(steps).train
    starts = starts[:: max(1, -(-len(starts) // limit))]
    at = torch.from_numpy(starts).to(data.device)
    first = np.array([episode.start for episode in data.dataset.episodes])
    groups = torch.from_numpy(np.searchsorted(first, starts, side="right")).to(data.device)
    joints, actions = data.joints[data.frame_ticks(at, steps)], data.step_actions(at, steps)
    net.joint_baseline.set_fit(
        fit_joint_baseline(
            joints[:, : dims.context],
            actions[:, : dims.context],
            actions[:, dims.context :],
            joints[:, dims.context :],
            groups,
        )
    )


def fit_joint_labels(net: WorldModelNet, data: TrainingData) -> None:
    """Find the labels that the joints alone determine, and how; judged on left-out episodes."""
    if not net.dims.labels:
        return
    left_out = torch.zeros(len(data.joints), dtype=torch.bool)
    left_out[torch.from_numpy(data.split(1).validation)] = True
    net.joint_labels.fit(net.normalise("joints", data.joints), data.labels, left_out)


def freeze_encoder(net: WorldModelNet) -> None:
    """Fix what phase 1 made, its BatchNorm statistics too."""
    for parameter in net.encoder.parameters():
        parameter.requires_grad_(False)


class DynamicsTraining(nn.Module):
    """The parts of the network that phase 2 trains."""

    def __init__(self, net: WorldModelNet) -> None:
        super().__init__()
        self.dynamics = net.dynamics
        self.state, self.risk = net.heads.state, net.heads.risk
        self.joints, self.disagreement = net.heads.joints, net.heads.disagreement
        if net.config.futures:
            self.likelihood = net.heads.likelihood


def dynamics_phase(
    windows: Windows, recipe: Recipe, seed: int, weights: NDArray[np.float64] | None
) -> Phase:
    """Build the phase: latents, joints, label heads and the disagreement ensemble.

    Args:
        windows: cached latents.
        recipe: how long and how hard.
        seed: of the batches.
        weights: prediction error of each training window after phase 1, see ``hard_share``.
    """
    net, data, context = windows.net, windows.data, windows.context
    starts = windows.split.train

    def make_batches(first_step: int) -> Iterator[Tensor]:
        for picked in batches(
            starts, recipe.dynamics_batch, seed, first_step, weights, recipe.hard_share
        ):
            yield torch.from_numpy(picked).to(data.device)

    def losses(at: Tensor, step: int) -> Mapping[str, Tensor]:
        window = windows.gather(at)
        wanted = window["latents"][:, context:]
        if windows.views is not None:
            window["latents"] = torch.cat([windows.contexts(at), wanted], dim=1)
        future, hidden, guess = windows.predict(window, recipe.latent_noise)
        joints = window["joints"]
        left = (joints[:, context:] - guess) / net.joint_baseline.residual
        moved = net.joint_correction(
            hidden.unsqueeze(1), guess.unsqueeze(1), joints[:, context - 1]
        )[:, 0]
        share = recipe.label_gradient
        read = future.detach() if share == 0.0 else share * future + (1 - share) * future.detach()
        imagined = head_losses(net, read, window["labels"], window.get("events"))
        observed = head_losses(net, wanted, window["labels"], window.get("events"))
        result = {
            "prediction": ((future - wanted) ** 2).mean(),
            "joints": recipe.joints_weight * ((moved - left) ** 2).mean(),
            "disagreement": _disagreement_loss(net, hidden.detach(), wanted),
        }
        for name in imagined:
            weight = recipe.rollout_label_weight if name == "state" else 1.0
            result[name] = weight * (imagined[name] + 0.5 * observed[name])
        if net.config.futures:
            few = len(at) // SHARE
            result |= _futures_losses(
                net, {key: value[:few] for key, value in window.items()}, hidden[:few], recipe
            )
        return result

    return Phase(
        "dynamics",
        recipe.dynamics_steps,
        DynamicsTraining(net),
        recipe.dynamics_rate,
        make_batches,
        losses,
    )


def _futures_losses(
    net: WorldModelNet, window: Mapping[str, Tensor], hidden: Tensor, recipe: Recipe
) -> dict[str, Tensor]:
    """Losses of the futures that learn, weighed as those of the mean future, and of which it is."""
    share = recipe.label_gradient
    weight = share * recipe.rollout_label_weight
    future, likelihood = futures_of(net, window, hidden, weight)
    wanted = window["latents"][:, net.dims.context :]
    read = share * future + (1 - share) * future.detach()
    heads = head_losses(net, read, window["labels"], window.get("events"))
    heads["state"] = recipe.rollout_label_weight * heads.get("state", future.new_zeros(()))
    loss = ((future - wanted) ** 2).mean() + sum(heads.values())
    return {"futures": loss, "likelihood": FUTURES_WEIGHT * likelihood}


def _disagreement_loss(net: WorldModelNet, hidden: Tensor, wanted: Tensor) -> Tensor:
    """Each member learns the projected latent on its own random half of the batch."""
    heads = net.heads.disagreement
    flat = hidden.flatten(0, 1)
    members = heads(flat)
    target = (wanted.flatten(0, 1) @ heads.projection).unsqueeze(0)
    share = torch.rand(members.shape[0], len(hidden), 1, device=hidden.device) < 0.5
    half = share.float().expand(-1, -1, wanted.shape[1]).flatten(1).unsqueeze(-1)
    loss: Tensor = ((members - target) ** 2 * half).mean() * 2.0
    return loss


@torch.no_grad()
def set_correction_gain(windows: Windows, limit: int = 8192) -> None:
    """Keep of the joints' correction what helps on left-out episodes: least squares, 0 to 1."""
    net = windows.net
    net.eval()
    starts = windows.split.validation
    at = torch.from_numpy(starts[:: max(1, len(starts) // limit)]).to(windows.data.device)
    window = windows.gather(at)
    _, hidden, guess = windows.predict(window)
    now = window["joints"][:, windows.context - 1]
    moved = net.joint_correction(hidden.unsqueeze(1), guess.unsqueeze(1), now)[:, 0]
    moved = moved * net.joint_baseline.residual
    left = window["joints"][:, windows.context :] - guess
    gain = (moved * left).sum((0, 2)) / (moved**2).sum((0, 2)).clamp_min(1e-12)
    net.correction_gain.copy_(gain.clamp(0.0, 1.0))


@torch.no_grad()
def validate(windows: Windows, limit: int = 4096) -> dict[str, float]:
    """Errors on left-out episodes: latents, copy-last, and labels in their own units."""
    net = windows.net
    net.eval()
    starts = windows.split.validation
    step = max(1, len(starts) // limit)
    at = torch.from_numpy(starts[::step]).to(windows.data.device)
    window = windows.gather(at)
    future, hidden, guess = windows.predict(window)
    wanted = window["latents"][:, windows.context :]
    present = window["latents"][:, windows.context - 1 : windows.context]
    figures = {
        "latent_mse": float(((future - wanted) ** 2).mean()),
        "latent_mse_copy": float(((present - wanted) ** 2).mean()),
    }
    joints = window["joints"]
    error = (windows.joints(window, hidden, guess) - joints[:, windows.context :]) ** 2
    for step_ahead in {1, 2, 4, windows.horizon}:
        if step_ahead <= windows.horizon:
            figures[f"joint_rmse_{step_ahead}"] = float(error[:, step_ahead - 1].mean().sqrt())
    if net.dims.labels:
        read = net.state(future, windows.joints(window, hidden, guess))
        seen = net.state(wanted, joints[:, windows.context :])
        for index, name in enumerate(windows.data.profile.label_names):
            gap = (read - window["labels"])[..., index].abs()
            figures[f"{name}_mae_{windows.horizon}"] = float(gap[:, -1].nanmean())
            observed = (seen - window["labels"])[..., index].abs()
            figures[f"{name}_mae_observed"] = float(observed.nanmean())
        pose = windows.data.profile.objective
        if pose is not None:
            columns = [windows.data.profile.label_names.index(name) for name in pose.goal]
            gap = (read - window["labels"])[..., columns].norm(dim=-1)
            first = windows.data.labels[
                windows.data.frame_ticks(at, windows.steps)[:, windows.context - 1]
            ][:, columns]
            moved = (window["labels"][:, -1, columns] - first).norm(dim=-1) > 0.01
            for ahead in (2, 4, windows.horizon):
                if ahead <= windows.horizon:
                    figures[f"goal_error_{ahead}"] = float(gap[:, ahead - 1].nanmean())
            figures["goal_error_moved"] = float(gap[moved, -1].nanmean())
    if net.config.futures:
        objective, names = windows.data.profile.objective, windows.data.profile.label_names
        goal = [names.index(name) for name in objective.goal] if objective else []
        figures |= validate_futures(net, window, future, hidden, goal)
    return figures
