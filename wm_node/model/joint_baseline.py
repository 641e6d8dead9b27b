"""Linear prediction of the joints from past joints and commands: what the network then corrects.

Position-controlled joints follow their commands almost linearly, and a closed-form regression finds
that law to a precision that gradient descent reaches only slowly. The network's joint head starts
at zero and adds what is not linear (contact, saturation), so it is never worse than the regression.

The features are differences (past joints less the present ones, commands less the newest applied
one) beside the two present values, so that half precision loses nothing that matters.
"""

from __future__ import annotations

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn

from wm_node.model.config import Dims

PENALTIES = (0.1, 1.0, 10.0, 100.0)
FOLDS = 5


class JointBaseline(nn.Module):
    """One linear map a step of the horizon; the map of step h sees no action after its end."""

    def __init__(self, dims: Dims) -> None:
        super().__init__()
        self.dims = dims
        own = dims.context * (dims.joints + dims.ticks * dims.action)
        planned = dims.horizon * dims.ticks * dims.action
        outputs = dims.horizon * dims.joints
        self.register_buffer("own_weight", torch.zeros(own, outputs))
        self.register_buffer("planned_weight", torch.zeros(planned, outputs))
        self.register_buffer("bias", torch.zeros(outputs))
        self.register_buffer("residual", torch.ones(dims.horizon, dims.joints))
        self.own_weight: Tensor
        self.planned_weight: Tensor
        self.bias: Tensor
        self.residual: Tensor
        """(H, J) deviation of what the baseline leaves over, in joint units."""

    def forward(self, joints: Tensor, past: Tensor, actions: Tensor) -> Tensor:
        """Predict joint positions.

        Args:
            joints: (B, C, J) physical.
            past: (B, C, ticks, A) physical.
            actions: (B, N, H, ticks, A) physical.

        Returns:
            (B, N, H, J) physical.
        """
        dims = self.dims
        newest = past[:, -1, -1]
        shared = own_features(joints, past) @ self.own_weight + self.bias  # (B, H * J)
        change = (actions - newest[:, None, None, None]).flatten(2)  # (B, N, H * ticks * A)
        moved = shared.unsqueeze(1) + change @ self.planned_weight
        return joints[:, -1][:, None, None] + moved.view(*moved.shape[:2], dims.horizon, -1)

    def set_fit(self, fit: BaselineFit) -> None:
        """Take the result of :func:`fit_joint_baseline`."""
        self.own_weight.copy_(torch.from_numpy(fit.own))
        self.planned_weight.copy_(torch.from_numpy(fit.planned))
        self.bias.copy_(torch.from_numpy(fit.bias))
        self.residual.copy_(torch.from_numpy(fit.residual))


def own_features(joints: Tensor, past: Tensor) -> Tensor:
    """(B, C, J) and (B, C, ticks, A) -> (B, F): differences, then the present values."""
    present, newest = joints[:, -1], past[:, -1, -1]
    earlier = (joints[:, :-1] - present.unsqueeze(1)).flatten(1)
    applied = (past - newest[:, None, None]).flatten(1)[:, : -newest.shape[-1]]
    return torch.cat([earlier, present, applied, newest], dim=-1)


class BaselineFit:
    """Arrays of a fitted baseline, in the layout of :class:`JointBaseline`."""

    def __init__(
        self,
        own: NDArray[np.float32],
        planned: NDArray[np.float32],
        bias: NDArray[np.float32],
        residual: NDArray[np.float32],
    ) -> None:
        self.own, self.planned, self.bias, self.residual = own, planned, bias, residual


def fit_joint_baseline(
    joints: Tensor, past: Tensor, actions: Tensor, future: Tensor, groups: Tensor
) -> BaselineFit:
    """Fit the baseline by ridge regression; the penalty is chosen by cross validation over groups.

    Args:
        joints: (N, C, J); past: (N, C, ticks, A); actions: (N, H, ticks, A): windows in physical
            units.
        future: (N, H, J) joints to predict.
        groups: (N,) whole numbers, the episodes; windows of one are never split between folds.

    Returns:
        Weights for physical inputs. With fewer than two groups the middle penalty is taken.
    """
    horizon, width = actions.shape[1], actions.shape[2] * actions.shape[3]
    newest = past[:, -1, -1]
    own = own_features(joints.double(), past.double())
    planned = (actions - newest[:, None, None]).flatten(1).double()
    rows = torch.cat([own, planned], dim=1)
    mean, scale = rows.mean(0), rows.std(0)
    scale = torch.where(scale < 1e-9, torch.ones_like(scale), scale)
    rows = torch.cat([(rows - mean) / scale, torch.ones_like(rows[:, :1])], dim=1)
    targets = (future - joints[:, -1:]).double()
    unique, index = torch.unique(groups, return_inverse=True)
    folds = [index % FOLDS == fold for fold in range(min(FOLDS, len(unique)))]
    grams = [rows[fold].T @ rows[fold] for fold in folds]
    moments = [rows[fold].T @ targets[fold].flatten(1) for fold in folds]
    energies = [(targets[fold].flatten(1) ** 2).sum(0) for fold in folds]

    count, joint_count = own.shape[1], joints.shape[2]
    weights = torch.zeros(rows.shape[1], horizon * joint_count, dtype=torch.float64)
    weights = weights.to(rows.device)
    for step in range(horizon):
        # The last row is the intercept; commands after the step's end are not seen.
        seen = torch.cat(
            [torch.arange(count + (step + 1) * width), torch.tensor([rows.shape[1] - 1])]
        ).to(rows.device)
        columns = slice(step * joint_count, (step + 1) * joint_count)
        weights[seen, columns] = _ridge(
            [gram[seen][:, seen] for gram in grams],
            [moment[seen][:, columns] for moment in moments],
            [energy[columns] for energy in energies],
        )
    left = targets.flatten(1) - rows @ weights
    residual = left.std(0).clamp_min(1e-6).view(horizon, joint_count)
    physical = weights[:-1] / scale.unsqueeze(1)
    bias = weights[-1] - mean @ physical

    def array(values: Tensor) -> NDArray[np.float32]:
        result: NDArray[np.float32] = values.float().cpu().numpy()
        return result

    return BaselineFit(
        array(physical[:count]), array(physical[count:]), array(bias), array(residual)
    )


def _ridge(grams: list[Tensor], moments: list[Tensor], energies: list[Tensor]) -> Tensor:
    """Solve for all targets, each with the penalty that predicts left-out folds best."""
    gram, moment = torch.stack(grams).sum(0), torch.stack(moments).sum(0)

    def solve(matrix: Tensor, vector: Tensor, penalty: float) -> Tensor:
        diagonal = torch.full((len(matrix),), penalty, dtype=matrix.dtype, device=matrix.device)
        diagonal[-1] = 1e-9  # the intercept is not penalised
        result: Tensor = torch.linalg.solve(matrix + torch.diag(diagonal), vector)
        return result

    if len(grams) < 2:
        return solve(gram, moment, PENALTIES[len(PENALTIES) // 2])
    errors = []
    for penalty in PENALTIES:
        error = torch.zeros_like(energies[0])
        for own_gram, own_moment, energy in zip(grams, moments, energies, strict=True):
            w = solve(gram - own_gram, moment - own_moment, penalty)
            error = error + (w * (own_gram @ w - 2.0 * own_moment)).sum(0) + energy
        errors.append(error)
    chosen = torch.stack(errors).argmin(0)
    solutions = torch.stack([solve(gram, moment, penalty) for penalty in PENALTIES])
    return solutions.gather(0, chosen.expand(1, len(gram), -1))[0]
