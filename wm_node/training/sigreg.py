"""SIGReg: pushes latents towards an isotropic Gaussian, so that they cannot collapse.

Source: LeJEPA / LeWorldModel (sketched isotropic Gaussian regularisation): the Epps-Pulley
statistic of random one-dimensional projections.
"""

from __future__ import annotations

import torch
from torch import Tensor

from wm_node.training import ranks


def sigreg(latents: Tensor, directions: int = 256, knots: int = 17) -> Tensor:
    """Return the mean Epps-Pulley statistic over random directions.

    Args:
        latents: (T, B, D): the statistic is taken over B, of all ranks together, for each of the
            T time steps.
        directions: number of random unit directions, drawn anew at each call.
        knots: number of points of the characteristic function on [0, 3].

    Returns:
        Scalar; about 1 for Gaussian samples and growing with B when they are not.
    """
    _, batch, width = latents.shape
    points = torch.linspace(0.0, 3.0, knots, device=latents.device)
    gauss = torch.exp(-0.5 * points**2)
    weights = torch.full_like(points, 3.0 / (knots - 1))
    weights[0] *= 0.5
    weights[-1] *= 0.5
    weights = weights * gauss
    basis = ranks.agreed(torch.randn(width, directions, device=latents.device))
    basis = basis / basis.norm(dim=0, keepdim=True)
    projected = latents.float() @ basis  # (T, B, directions)
    angles = projected.unsqueeze(-1) * points  # (T, B, directions, knots)
    real = ranks.mean(angles.cos().mean(1)) - gauss
    imaginary = ranks.mean(angles.sin().mean(1))
    statistic = ((real**2 + imaginary**2) * weights).sum(-1) * batch * ranks.size()
    result: Tensor = statistic.mean()
    return result
