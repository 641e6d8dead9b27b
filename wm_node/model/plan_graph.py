"""A whole search for a plan as one graph: candidates, rollouts, costs, elites, the winner.

One call of a backend then plans: nothing travels between the accelerator and the host in between,
and the context is read once for all candidates of all iterations. Everything that may change while
the robot runs is an input: goals, weights, limits, noise. The method is that of
:mod:`wm_node.planning.planner`, whose tests hold both to the same plan.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from wm_node.bundle import NOT_FINITE, SEARCH_TERMS, SearchSize
from wm_node.model.world import WorldModelNet
from wm_node.profile import RobotProfile


@dataclass(frozen=True)
class Columns:
    """Which labels the objective reads."""

    goal: tuple[int, ...]
    object: tuple[int, ...]
    tool: tuple[int, ...]

    @staticmethod
    def of(profile: RobotProfile) -> Columns:
        """Read them from a profile; empty where it has no objective."""
        spec, names = profile.objective, profile.label_names
        if spec is None:
            return Columns((), (), ())
        push = spec.push
        return Columns(
            tuple(names.index(name) for name in spec.goal),
            tuple(names.index(name) for name in push.object) if push else (),
            tuple(names.index(name) for name in push.tool) if push else (),
        )


def plan_search(
    net: WorldModelNet,
    columns: Columns,
    size: SearchSize,
    latents: Tensor,
    joints: Tensor,
    past_actions: Tensor,
    goal_latent: Tensor,
    goal_state: Tensor,
    weights: Tensor,
    scales: Tensor,
    events: Tensor,
    usual_uncertainty: Tensor,
    seeds: Tensor,
    mean: Tensor,
    noise: Tensor,
    basis: Tensor,
    fit: Tensor,
    limits: Tensor,
    shift: Tensor,
    before: Tensor,
) -> dict[str, Tensor]:
    """Search the actions of least cost by the cross-entropy method over spline knots.

    Args:
        net: the network.
        columns: labels that the objective reads.
        size: of the search.
        latents: (1, C, latent); joints: (1, C, J); past_actions: (1, C, ticks, A): the context.
        goal_latent: (1, latent), read for ``time_to_goal`` of the winner alone.
        goal_state: (1, G).
        weights: (5,) in the order of ``SEARCH_TERMS``; 0 where there is no such goal.
        scales: (2,) tolerance and standoff, in the labels' units.
        events: (E,) 1 for events whose risk is available.
        usual_uncertainty: (1,) disagreement that counts as 1.
        seeds: (M, T, A) actions of the given candidates.
        mean: (K, A) knots that the search starts from.
        noise: (I, N, K, A) of unit variance.
        basis: (T, K) of the spline, and fit: (K, T), its pseudo-inverse.
        limits: (4, A) least and greatest action, first and least deviation of the knots.
        shift: (T, T) and before: (T, A): what acts from the state's stamp on is
            ``shift @ actions + before``, which holds delay and commands under way.

    Returns:
        ``actions`` (1, T, A), ``applied`` (1, T, A), ``cost`` (1,), ``terms`` (1, 5) weighted as
        above, ``source`` (1,) index of the seed that won or -1 for a sample, ``first_costs`` (N,)
        of the first iteration's candidates, and the outcomes of the winner as ``rollout`` gives.
    """
    memory = net.remember(latents, joints, past_actions)
    present = latents[:, -1]
    lower, upper, deviation, floor = limits[0], limits[1], limits[2].expand_as(mean), limits[3]
    extra = seeds
    best = torch.zeros_like(seeds[:1])
    best_cost = torch.full((1,), 2.0 * NOT_FINITE, device=seeds.device)
    best_terms = torch.zeros(1, len(SEARCH_TERMS), device=seeds.device)
    source = torch.full((1,), -1, dtype=torch.int64, device=seeds.device)
    first_costs = best_cost
    for iteration in range(size.iterations):
        given = size.seeds if iteration == 0 else 2
        drawn = basis @ (mean + noise[iteration, : size.candidates - given] * deviation)
        actions = torch.cat([extra, torch.minimum(torch.maximum(drawn, lower), upper)])
        applied = shift @ actions + before
        outcome = net.search_of(memory, present, joints, past_actions, applied, doubt=True)
        outcome["uncertainty"] = outcome["uncertainty"] / usual_uncertainty
        cost, terms = _costs(outcome, applied, columns, goal_state, weights, scales, events, limits)
        if iteration == 0:
            first_costs = cost
        least, order = torch.topk(cost, size.elites, largest=False)
        elite = actions[order]
        better = least[:1] < best_cost
        best = torch.where(better.view(1, 1, 1), elite[:1], best)
        best_terms = torch.where(better.unsqueeze(-1), terms[order[:1]], best_terms)
        best_cost = torch.where(better, least[:1], best_cost)
        if iteration == 0:
            source = torch.where(order[:1] < size.seeds, order[:1], source)
        else:
            # Candidate 0 is the best so far: if it wins again, it came from where it came from.
            source = torch.where(better & (order[:1] > 0), torch.full_like(source, -1), source)
        knots = fit @ elite  # (elites, K, A)
        mean = knots.mean(0)
        spread = ((knots - mean) ** 2).mean(0).sqrt()
        deviation = torch.maximum(spread, floor.expand_as(spread))
        centre = torch.minimum(torch.maximum(basis @ mean, lower), upper)
        extra = torch.cat([best, centre.unsqueeze(0)])
    applied = shift @ best + before
    outcome = net.outcome_of(memory, present, joints, past_actions, applied, goal_latent)
    return {
        "actions": best,
        "applied": applied,
        "cost": best_cost,
        "terms": best_terms,
        "source": source,
        "first_costs": first_costs,
        **outcome,
    }


def _costs(
    outcome: dict[str, Tensor],
    applied: Tensor,
    columns: Columns,
    goal: Tensor,
    weights: Tensor,
    scales: Tensor,
    events: Tensor,
    limits: Tensor,
) -> tuple[Tensor, Tensor]:
    """Costs (N,) and weighted terms (N, 5); see :class:`wm_node.planning.objective.Objective`."""
    zero = torch.zeros_like(applied[:, 0, 0])
    tolerance, standoff = scales[0], scales[1]
    aim, push, risk = zero, zero, zero
    if columns.goal:
        state = outcome["state"]
        distance = _norm(_take(state, columns.goal) - goal) / tolerance
        aim = weights[0] * (0.5 * distance[:, -1] + 0.5 * distance.mean(-1))
        if columns.object:
            item, tool = _take(state, columns.object), _take(state, columns.tool)
            towards = goal - item
            way = _norm(towards)
            behind = item - standoff * towards / way.clamp_min(1e-6).unsqueeze(-1)
            fade = (way / tolerance).clamp_max(1.0)
            push = weights[1] * (fade * _norm(tool - behind) / tolerance).mean(-1)
    if "risk" in outcome:
        risk = weights[2] * (outcome["risk"][:, -1] * events).amax(-1)
    change = (applied[:, 1:] - applied[:, :-1]) / (limits[1] - limits[0])
    smoothness = weights[3] * (change**2).sum(-1).mean(-1)
    doubt = weights[4] * (outcome["uncertainty"] - 1.0).clamp_min(0.0).mean(-1)
    terms = torch.stack([aim, push, risk, smoothness, doubt], dim=-1)
    cost = terms.sum(-1)
    # A comparison with NaN is false, so these catch NaN and infinity alike.
    latents = outcome["future_latents"].abs().sum((1, 2))
    sound = (cost.abs() < NOT_FINITE) & (latents < NOT_FINITE)
    return torch.where(sound, cost, torch.full_like(cost, NOT_FINITE)), terms


def _take(state: Tensor, columns: tuple[int, ...]) -> Tensor:
    """Columns by slices: a list as an index would be copied from the host at each call."""
    return torch.cat([state[..., k : k + 1] for k in columns], dim=-1)


def _norm(x: Tensor) -> Tensor:
    return (x**2).sum(-1).sqrt()
