"""What is usual on left-out data: scales of surprise and uncertainty, kept in the bundle."""

from __future__ import annotations

from typing import Any

import torch

from wm_node.training.dynamics_phase import Windows


@torch.no_grad()
def calibrate(windows: Windows, limit: int = 8192) -> dict[str, Any]:
    """Measure the calibration on left-out episodes.

    Returns:
        ``surprise_scale``: root mean square error of the predicted latent at each step;
        ``uncertainty_scale``: mean disagreement; ``label_mean`` and ``label_std``;
        ``events_trained``: the events that were seen both present and absent, for the others the
        risk is "not available".
    """
    net, data = windows.net, windows.data
    net.eval()
    starts = windows.split.validation
    at = torch.from_numpy(starts[:: max(1, len(starts) // limit)]).to(data.device)
    window = windows.gather(at)
    future, hidden, _ = windows.predict(window)
    wanted = window["latents"][:, windows.context :]
    surprise = ((future - wanted) ** 2).mean((0, 2)).sqrt()
    spread = net.heads.disagreement.spread(hidden.flatten(0, 1).float())
    trained = []
    for index, name in enumerate(data.profile.event_names):
        seen = data.events[:, index]
        if bool((seen == 1.0).any()) and bool((seen == 0.0).any()):
            trained.append(name)
    return {
        "surprise_scale": [round(float(value), 6) for value in surprise],
        "uncertainty_scale": round(float(spread.mean()), 6),
        "label_mean": [float(value) for value in net.labels_mean],  # type: ignore[union-attr]
        "label_std": [float(value) for value in net.labels_std],  # type: ignore[union-attr]
        "events_trained": trained,
        "windows": len(at),
    }
