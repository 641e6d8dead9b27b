"""Futures: a code learns one of the ways that things may go on, by whoever predicts best.

Source of the method: multiple choice learning (Guzman-Rivera et al., 2012; stochastic, Lee et al.,
2016): of the futures that a window is predicted in, the best one learns. A few learn at random, so
that no code is left behind (relaxed as by Rupprecht et al., 2017). A classifier learns how likely
each is to be the best, from what the mean future knows.
"""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor, nn

from wm_node.model.world import WorldModelNet
from wm_node.training.head_losses import label_errors

SHARE = 4
"""One in so many windows of a batch is predicted in every future."""
AT_RANDOM = 0.05
"""Share of the windows whose code is drawn, not won."""


def errors_of_futures(
    net: WorldModelNet, window: Mapping[str, Tensor], label_weight: float
) -> Tensor:
    """Return the error (B, F) of each future of each window.

    ``label_weight`` weighs the labels' error beside that of the latents; 0: latents alone.
    """
    future = _predict(net, window, net.codes.unsqueeze(0))
    wanted = window["latents"][:, net.dims.context :].unsqueeze(1)
    error = ((future - wanted) ** 2).mean((-1, -2))
    if label_weight > 0.0 and net.dims.labels:
        labels, known = label_errors(net, future, window["labels"].unsqueeze(1))
        error = error + label_weight * labels.sum((-1, -2)) / known.sum((-1, -2)).clamp_min(1)
    return error


def _predict(net: WorldModelNet, window: Mapping[str, Tensor], codes: Tensor) -> Tensor:
    """Predict the latents (B, N, H, latent) of windows in futures by their codes (B or 1, N, W)."""
    context = net.dims.context
    ahead = window["actions"][:, context:].unsqueeze(1)
    future, _, _ = net.predict(
        window["latents"][:, :context],
        window["joints"][:, :context],
        window["actions"][:, :context],
        ahead.expand(-1, codes.shape[1], *ahead.shape[2:]),
        codes,
    )
    return future


def pick_futures(errors: Tensor) -> tuple[Tensor, Tensor]:
    """(B, F) errors -> (B,) the best future of each window, and (B,) the one that learns."""
    best = errors.argmin(-1)
    drawn = torch.randint_like(best, errors.shape[-1])
    lucky = torch.rand(best.shape, device=best.device) < AT_RANDOM
    return best, torch.where(lucky, drawn, best)


def futures_of(
    net: WorldModelNet,
    window: Mapping[str, Tensor],
    hidden: Tensor,
    label_weight: float,
) -> tuple[Tensor, Tensor]:
    """Let the best futures of windows be found, and learn.

    Args:
        net: with ``futures``.
        window: (B, ...) as of :meth:`wm_node.training.dynamics_phase.Windows.gather`.
        hidden: (B, H, W) carried states of the mean futures of the same windows.
        label_weight: see :func:`errors_of_futures`.

    Returns:
        Latents (B, H, latent) of the future that learns, and the classifier's loss.
    """
    with torch.no_grad():
        best, learns = pick_futures(errors_of_futures(net, window, label_weight))
    future = _predict(net, window, net.codes[learns].unsqueeze(1))
    likelihood = nn.functional.cross_entropy(net.likelihood(hidden[:, -1].detach()).float(), best)
    return future[:, 0], likelihood


@torch.no_grad()
def validate_futures(
    net: WorldModelNet,
    window: Mapping[str, Tensor],
    mean: Tensor,
    hidden: Tensor,
    columns: list[int],
) -> dict[str, float]:
    """Score futures beside their mean, at the horizon's end, by proper scores.

    Args:
        net: with ``futures``.
        window: (B, ...) of left-out episodes.
        mean: (B, H, latent) mean futures, and hidden: (B, H, W) their carried states.
        columns: of the labels that tell where the object is; may be empty.

    Returns:
        ``energy`` and ``energy_futures``: energy score of the object's place (Gneiting and Raftery,
        2007; for one prediction its distance), over windows in which it moves by more than a
        centimetre; ``goal_error_best``: distance of the best future; ``brier`` and
        ``brier_futures``: of all events together; ``futures_used``: exponential of the entropy of
        the average likelihood.
    """
    likelihood = net.likelihood(hidden[:, -1]).softmax(-1)  # (B, F)
    future = _predict(net, window, net.codes.unsqueeze(0))
    used = torch.special.entr(likelihood.mean(0)).sum().exp()
    figures = {"futures_used": float(used)}
    if columns:
        truth = window["labels"][:, -1, columns]
        places = net.restore("labels", net.heads.state(future[:, :, -1]))[..., columns]
        one = net.restore("labels", net.heads.state(mean[:, -1]))[..., columns]
        moved = (truth - window["labels"][:, 0, columns]).norm(dim=-1) > 0.01
        away = (places - truth.unsqueeze(1)).norm(dim=-1)  # (B, F)
        apart = (places.unsqueeze(1) - places.unsqueeze(2)).norm(dim=-1)
        pairs = likelihood.unsqueeze(1) * likelihood.unsqueeze(2)
        energy = (likelihood * away).sum(-1) - 0.5 * (pairs * apart).sum((1, 2))
        figures |= {
            "energy": float((one - truth).norm(dim=-1)[moved].nanmean()),
            "energy_futures": float(energy[moved].nanmean()),
            "goal_error_best": float(away.amin(-1)[moved].nanmean()),
        }
    if net.dims.events:
        happened = window["events"].amax(1)  # (B, E)
        known = torch.isfinite(happened)
        risk = torch.sigmoid(net.heads.risk(mean)).amax(1)
        of_each = torch.sigmoid(net.heads.risk(future)).amax(2)  # (B, F, E)
        over = (likelihood.unsqueeze(-1) * of_each).sum(1)
        figures |= {
            "brier": float(((risk - happened) ** 2)[known].mean()),
            "brier_futures": float(((over - happened) ** 2)[known].mean()),
        }
    return figures
