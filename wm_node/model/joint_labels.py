"""Labels that the joints alone determine, such as the place of the tool: a closed-form regression.

The latents need not hold what the joints tell, and a head that reads such a label from them errs
where the camera does not see the robot; a planner finds those errors and exploits them. So labels
that polynomials of the joints explain on left-out episodes are read from the predicted joints, and
only the others from the predicted latents. Which labels these are is found from the data; no
geometry of a robot is written down anywhere.
"""

from __future__ import annotations

from itertools import combinations_with_replacement

import torch
from torch import Tensor, nn

from wm_node.model.config import Dims

DETERMINED = 0.999
"""Share of a label's variance that the joints must explain on left-out episodes."""
RIDGE = 1e-6
MANY_JOINTS = 12
"""With more joints than this the polynomials are quadratic instead of cubic, to stay few."""


class JointLabels(nn.Module):
    """Polynomials of the normalised joints; no label counts as determined before a fit."""

    def __init__(self, dims: Dims) -> None:
        super().__init__()
        degree = 3 if dims.joints <= MANY_JOINTS else 2
        terms = list(combinations_with_replacement(range(dims.joints + 1), degree))
        self._degree = degree
        for k in range(degree):
            # Where the weights are: a list as an index is copied from the host at each call.
            factor = torch.tensor([term[k] for term in terms])
            self.register_buffer(f"factor_{k}", factor, persistent=False)
        labels = max(dims.labels, 1)
        self.register_buffer("weight", torch.zeros(len(terms), labels))
        self.register_buffer("determined", torch.zeros(labels))
        self.weight: Tensor
        self.determined: Tensor

    def features(self, joints: Tensor) -> Tensor:
        """(..., J) normalised -> (..., F): all products of up to ``degree`` of the joints."""
        extended = torch.cat([torch.ones_like(joints[..., :1]), joints], dim=-1)
        product = extended[..., self.get_buffer("factor_0")]
        for k in range(1, self._degree):
            product = product * extended[..., self.get_buffer(f"factor_{k}")]
        return product

    def forward(self, joints: Tensor, labels: Tensor) -> Tensor:
        """Put what the joints determine in place of what was read from latents.

        Args:
            joints: (..., J), normalised.
            labels: (..., S), in the labels' units.

        Returns:
            (..., S) likewise.
        """
        # Not a matrix product: those may be computed in half precision, and cubes need more.
        own = (self.features(joints).unsqueeze(-1) * self.weight).sum(-2)
        return labels + self.determined * (own - labels)

    def fit(self, joints: Tensor, labels: Tensor, left_out: Tensor) -> None:
        """Fit by ridge regression and find which labels are determined.

        Args:
            joints: (T, J), normalised.
            labels: (T, S), NaN where unknown.
            left_out: (T,) bool: rows that judge the fit instead of taking part in it.
        """
        features = self.features(joints.double().cpu())
        for column in range(labels.shape[1]):
            wanted = labels[:, column].double().cpu()
            known = torch.isfinite(wanted)
            own, other = known & ~left_out.cpu(), known & left_out.cpu()
            if int(own.sum()) < 10 * features.shape[1] or int(other.sum()) < 10:
                continue
            x, y = features[own], wanted[own]
            centre = y.mean()
            square = x.T @ x / len(x) + RIDGE * torch.eye(x.shape[1], dtype=x.dtype)
            weight = torch.linalg.solve(square, x.T @ (y - centre) / len(x))
            weight[0] += centre  # the first feature is the constant
            error = ((features[other] @ weight - wanted[other]) ** 2).mean()
            variance = wanted[other].var().clamp_min(1e-12)
            self.weight[:, column] = weight.to(self.weight)
            self.determined[column] = float(1.0 - error / variance >= DETERMINED)
