"""When to hold still: the goal is reached, and is left again only when the scene is clearly off it.

The planner node and the task suite decide by the same rule.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from wm_node.planning.objective import Goal, Objective
from wm_node.planning.planner import brake_actions, rest_action
from wm_node.planning.world_model import Context, Floats, WorldModel


@dataclass(frozen=True)
class HoldLimits:
    """How near the goal is near enough."""

    reached: float = 0.5
    """Distance to a goal in labelled values, in tolerances, within which the robot holds."""
    resume: float = 0.8
    """Distance beyond which it moves again."""
    steps: float = 0.5
    """The same for goal pictures without labels, in model steps to go."""


def holds(
    model: WorldModel,
    objective: Objective,
    goal: Goal,
    context: Context,
    limits: HoldLimits,
    held: bool,
) -> bool:
    """Whether the robot should hold at its goal now.

    Args:
        model: reads the present, or tells the time to a goal picture.
        objective: picks the goal's values out of the labels.
        goal: where the scene should be.
        context: ends at the present.
        limits: how near is near enough.
        held: whether it held in the cycle before.
    """
    if goal.state is not None:
        now: Floats = objective.goal_values(model.read(context.latents[-1]))
        away = float(np.linalg.norm(now - goal.state)) / objective.tolerance
        return away < (limits.resume if held else limits.reached)
    profile = model.profile
    brake = brake_actions(profile, rest_action(profile, context))
    to_go = model.rollout(context, brake[None], goal.latent).time_to_goal[0, 0]
    share = limits.resume / limits.reached if held else 1.0
    return bool(to_go < limits.steps * share)
