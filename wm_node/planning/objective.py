"""What a predicted future costs: goal, value-to-go, risk, uncertainty, smoothness, push."""

from __future__ import annotations

from dataclasses import dataclass, fields

import numpy as np
from numpy.typing import NDArray

from wm_node.errors import WmError
from wm_node.planning.world_model import Floats, Goal, Outcomes
from wm_node.profile import RobotProfile

__all__ = ["Goal", "Objective", "Weights"]


@dataclass(frozen=True)
class Weights:
    """Weights of the terms; live parameters of the planner."""

    goal: float = 1.0
    """Distance of the labelled values to the goal, in tolerances, half final and half mean."""
    push: float = 1.0
    """Distance of the tool to the point behind the object, in tolerances."""
    value: float = 0.0
    """Learned time to the goal picture, in model steps, half final and half mean; by default 1
    for a robot without an objective, whose goals are pictures."""
    risk: float = 20.0
    """Highest probability of an event over the horizon."""
    uncertainty: float = 6.0
    """Mean disagreement above its usual value."""
    smoothness: float = 0.1
    """Mean square change of the action, in shares of its range."""

    @staticmethod
    def of(profile: RobotProfile) -> Weights:
        """Return the defaults with what the profile sets.

        Raises:
            WmError: the profile names an unknown weight.
        """
        # Without labels to plan by, nothing else draws the robot to its goal.
        given = profile.objective.weights if profile.objective else {"value": 1.0}
        known = {field.name for field in fields(Weights)}
        if unknown := sorted(set(given) - known):
            raise WmError(
                f"profile '{profile.name}': unknown objective weights {unknown}; "
                f"known are {sorted(known)}."
            )
        return Weights(**given)


class Objective:
    """Costs of outcomes for one robot profile."""

    def __init__(self, profile: RobotProfile) -> None:
        spec, names = profile.objective, profile.label_names
        self._range = np.asarray(profile.action.upper) - np.asarray(profile.action.lower)
        self.tolerance = spec.tolerance if spec else 1.0
        self._goal = [names.index(name) for name in spec.goal] if spec else []
        push = spec.push if spec else None
        self.standoff = push.standoff_m if push else 0.0
        self._object = [names.index(name) for name in push.object] if push else []
        self._tool = [names.index(name) for name in push.tool] if push else []

    @property
    def has_goal(self) -> bool:
        """Whether the profile names labels that a goal can be given for."""
        return bool(self._goal)

    @property
    def goal_size(self) -> int:
        """Length of a goal as compiled searches take it, at least 1."""
        return max(len(self._goal), 1)

    def goal_values(self, state: Floats) -> Floats:
        """Pick the goal's labels out of all labels: (..., S) -> (..., G)."""
        return state[..., self._goal]

    def __call__(
        self, outcomes: Outcomes, actions: Floats, goal: Goal, weights: Weights
    ) -> tuple[NDArray[np.float64], dict[str, NDArray[np.float64]]]:
        """Return the cost (N,) of each candidate and its weighted terms (N,) by name.

        A candidate whose outcomes are not finite costs infinity.
        """
        terms: dict[str, NDArray[np.float64]] = {}
        has_state = outcomes.state.shape[-1] > 0
        if goal.state is not None and has_state and self._goal:
            away = outcomes.state[..., self._goal] - goal.state
            distance = np.linalg.norm(away, axis=-1) / self.tolerance
            terms["goal"] = weights.goal * _final_and_mean(distance)
            if self._object and weights.push > 0.0:
                terms["push"] = weights.push * self._behind(outcomes.state, goal.state)
        if goal.latent is not None and weights.value > 0.0:
            terms["value"] = weights.value * _final_and_mean(outcomes.time_to_goal)
        if outcomes.risk.shape[-1] and weights.risk > 0.0:
            # An event without labels has risk NaN, "not available": it neither adds nor hides.
            final = np.nan_to_num(outcomes.risk[:, -1], nan=0.0)
            terms["risk"] = weights.risk * final.max(axis=-1)
        if weights.uncertainty > 0.0:
            doubt = np.maximum(outcomes.uncertainty - 1.0, 0.0)
            terms["uncertainty"] = weights.uncertainty * doubt.mean(axis=-1)
        if weights.smoothness > 0.0:
            change = np.diff(actions, axis=1) / self._range
            terms["smoothness"] = weights.smoothness * (change**2).sum(-1).mean(-1)
        terms = {name: np.asarray(term, dtype=np.float64) for name, term in terms.items()}
        cost = np.sum(list(terms.values()), axis=0) if terms else np.zeros(len(actions))
        sound = np.isfinite(cost) & np.isfinite(outcomes.latents).all(axis=(1, 2))
        return np.where(sound, cost, np.inf), terms

    def _behind(self, state: Floats, goal: Floats) -> NDArray[np.float64]:
        """Mean distance, in tolerances, of the tool to the far side of the object."""
        item, tool = state[..., self._object], state[..., self._tool]
        towards = goal - item
        distance = np.linalg.norm(towards, axis=-1, keepdims=True)
        behind = item - self.standoff * towards / np.maximum(distance, 1e-6)
        # Fades near the goal, where the side to push from no longer matters.
        fade = np.minimum(distance[..., 0] / self.tolerance, 1.0)
        away = np.linalg.norm(tool - behind, axis=-1) / self.tolerance
        return np.asarray((fade * away).mean(axis=-1))


def _final_and_mean(values: Floats) -> NDArray[np.float64]:
    """(N, H) -> (N,): half the last value, half the mean."""
    return np.asarray(0.5 * values[:, -1] + 0.5 * values.mean(axis=-1))
