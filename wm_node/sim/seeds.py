"""Which seeds of simulated episodes are for what: no use ever sees the scenes of another."""

from __future__ import annotations

from wm_node.errors import WmError

# Training uses seeds below 5 million, the choice of checkpoints those from 5 million on;
# ``wm evaluate`` and ``wm demo`` play the same episodes, from 10 million on. The fidelity of
# futures is measured in states of one range, and its inverse model fitted in those of another;
# thresholds of risk are calibrated on one range and judged on another.
VALIDATION_SEED = 5_000_000
EVALUATION_SEED = 10_000_000
STATE_SEED = 200_000_000
INVERSE_SEED = 400_000_000
CALIBRATION_SEED = 600_000_000
ALARM_SEED = 800_000_000
SCENE_SEED = 10**12
"""From here on: the scenes of level ``scattered``, so many of each training seed."""
SCENES = 1000
SEED_SPACING = 100_000


def scene_seed(seed: int, number: int) -> int:
    """Return the seed of a scene, below :data:`SCENES`, of a scattered episode."""
    return SCENE_SEED + seed * SCENES + number


def evaluation_seeds(seed: int, episodes: int, first: int = EVALUATION_SEED) -> list[int]:
    """Return the episodes' seeds of evaluation ``seed``; equal for all planners, so paired.

    Raises:
        WmError: a seed or a number of episodes whose seeds would be those of another use.
    """
    if not (0 <= seed < 1000 and 1 <= episodes <= SEED_SPACING):
        raise WmError(f"use a --seed of 0 to 999 and 1 to {SEED_SPACING} episodes.")
    return [first + seed * SEED_SPACING + number for number in range(episodes)]
