"""Commands that are not the planner's: what each would lead to, and how fast it may be followed.

A person or a policy that commands the robot has no plan to look at. What can be foreseen is what
follows if the present command goes on for a moment and the robot brakes then: if that ends badly,
now is the time to brake, or to go slower.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wm_node.errors import WmError
from wm_node.planning.planner import brake_actions, delayed
from wm_node.planning.world_model import Context, Floats, Outcomes, WorldModel
from wm_node.profile import RobotProfile
from wm_node.safety.gate import event_over_threshold


@dataclass(frozen=True)
class SupervisionConfig:
    """How commands are foreseen.

    Attributes:
        hold_s: how long a command is thought to go on before the robot brakes. Longer alarms
            earlier, and more often in vain; docs/safety.md has the measurement.
        speeds: shares of the command's speed that are foreseen, from 1 downwards.
    """

    hold_s: float = 0.3
    speeds: tuple[float, ...] = (1.0, 0.5)

    def __post_init__(self) -> None:
        if (
            not self.speeds
            or self.speeds[0] != 1.0
            or list(self.speeds) != sorted(self.speeds, reverse=True)
        ):
            raise WmError(f"speeds {self.speeds} are no shares from 1 downwards.")
        if not 0.0 < self.hold_s <= 2.0:
            raise WmError(f"hold_s is {self.hold_s:g}; use 0 to 2 s.")


@dataclass(frozen=True)
class Supervised:
    """A command after it was foreseen.

    Attributes:
        actions: (T, A): the command, as fast as it may be followed, then the brake.
        outcomes: of it, N = 1.
        speed: its share of the command's speed.
        full_risk: event -> highest risk of the command at full speed.
    """

    actions: Floats
    outcomes: Outcomes
    speed: float
    full_risk: dict[str, float]


def held_then_braked(
    profile: RobotProfile, command: NDArray[np.floating], ticks: Sequence[int]
) -> Floats:
    """Return futures (N, T, A) in which a command goes on for some ticks before the robot brakes.

    Args:
        profile: of the robot.
        command: (A,) in its units.
        ticks: (N,) of each future.
    """
    futures = np.repeat(brake_actions(profile, command)[None], len(ticks), 0)
    for future, count in zip(futures, ticks, strict=True):
        future[:count] = command
    return futures


def worst_risk(outcomes: Outcomes, index: int, profile: RobotProfile) -> dict[str, float]:
    """Return event -> highest risk over the horizon of one candidate; NaN: not available."""
    worst = outcomes.risk[index].max(axis=0)
    return dict(zip(profile.event_names, map(float, worst), strict=True))


class Supervisor:
    """Foresees commands of one robot.

    Args:
        model: is to be prepared for ``candidates`` rollouts.
        config: how commands are foreseen.
        latency_s: from the present frame to the effect of a command.
    """

    def __init__(self, model: WorldModel, config: SupervisionConfig, latency_s: float) -> None:
        self._model, self._latency_s = model, latency_s
        self._ticks = max(1, round(config.hold_s * model.profile.model.tick_rate_hz))
        # A position is where to be, not how fast: it is not made slower here, the gate does that.
        slower = model.profile.action.kind != "joint_position"
        self._speeds = config.speeds if slower else config.speeds[:1]

    @property
    def candidates(self) -> int:
        """How many futures each command has."""
        return len(self._speeds)

    def foresee(
        self,
        context: Context,
        command: NDArray[np.floating],
        committed: NDArray[np.floating],
        thresholds: Mapping[str, float],
    ) -> Supervised:
        """Find how fast a command may be followed: the fastest speed that no risk speaks against.

        If all of them are risky the command comes back at full speed with its risk, for which the
        gate stops the robot.

        Args:
            context: the present.
            command: (A,) that would take effect ``latency_s`` after the present.
            committed: (K, A) commands before it, oldest first.
            thresholds: event -> highest risk.
        """
        profile = self._model.profile
        commands = np.concatenate(
            [
                held_then_braked(profile, speed * np.asarray(command), [self._ticks])
                for speed in self._speeds
            ]
        )
        applied = delayed(commands, committed, self._latency_s, profile.model.tick_s)
        outcomes = self._model.rollout(context, applied)
        risks = [worst_risk(outcomes, index, profile) for index in range(len(self._speeds))]
        free = (k for k, risk in enumerate(risks) if not event_over_threshold(risk, thresholds))
        chosen = next(free, 0)
        picked = outcomes.pick(chosen)
        return Supervised(commands[chosen], picked, self._speeds[chosen], risks[0])
