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


def present_values(
    model: WorldModel, objective: Objective, goal: Goal, context: Context
) -> Floats | None:
    """Return the goal's values (G,) as the present frame shows them.

    None for a goal that is a picture alone, of a robot without labels.
    """
    if goal.state is None:
        return None
    return objective.goal_values(model.read(context.latents[-1]))


def holds(
    model: WorldModel,
    objective: Objective,
    goal: Goal,
    context: Context,
    now: Floats | None,
    limits: HoldLimits,
    held: bool,
) -> bool:
    """Whether the robot should hold at its goal now.

    Args:
        model: tells the time to a goal picture.
        objective: knows the tolerance.
        goal: where the scene should be.
        context: ends at the present.
        now: of :func:`present_values`.
        limits: how near is near enough.
        held: whether it held in the cycle before.
    """
    if goal.state is not None and now is not None:
        away = float(np.linalg.norm(now - goal.state)) / objective.tolerance
        return away < (limits.resume if held else limits.reached)
    profile = model.profile
    brake = brake_actions(profile, rest_action(profile, context))
    to_go = model.rollout(context, brake[None], goal.latent).time_to_goal[0, 0]
    share = limits.resume / limits.reached if held else 1.0
    return bool(to_go < limits.steps * share)
