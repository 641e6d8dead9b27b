"""The size of the search follows what fits into the deadline."""

from __future__ import annotations

from wm_node.planning.effort import PATIENCE, Effort, ladder
from wm_node.planning.planner import PlannerConfig

LARGE, MIDDLE, SMALL = (PlannerConfig(count, 3) for count in (512, 128, 64))
DEADLINE_S = 0.088
REST_S = 0.015  # of a cycle besides the search


def play(effort: Effort, per_candidate_s: float, plans: int) -> list[int]:
    """Plan on a machine of that speed; return the sizes that were searched with."""
    sizes = []
    for _ in range(plans):
        sizes.append(effort.config.candidates)
        plan_s = per_candidate_s * effort.config.candidates
        effort.note(REST_S + plan_s, plan_s, DEADLINE_S)
    return sizes


def test_a_ladder_holds_the_configured_size_and_smaller_graphs_largest_first() -> None:
    graphs = [(64, 3), (512, 4), (128, 3)]
    assert ladder(LARGE, graphs) == [LARGE, MIDDLE, SMALL]
    assert ladder(MIDDLE, graphs) == [MIDDLE, SMALL]
    assert ladder(PlannerConfig(100, 3), graphs) == [PlannerConfig(100, 3), SMALL]
    assert ladder(SMALL, []) == [SMALL]


def test_a_machine_that_is_fast_enough_keeps_the_largest() -> None:
    assert set(play(Effort([LARGE, MIDDLE, SMALL]), 1e-4, 500)) == {512}


def test_late_plans_lead_down_at_once_and_as_far_as_it_takes() -> None:
    effort = Effort([LARGE, MIDDLE, SMALL])
    assert play(effort, 1e-3, 6) == [512, 512, 128, 128, 64, 64]
    assert effort.steps_down == 2


def test_a_single_late_plan_changes_nothing() -> None:
    effort = Effort([LARGE, MIDDLE])
    for _ in range(10):
        effort.note(1.0, 0.9, DEADLINE_S)
        play(effort, 1e-4, 20)
    assert effort.config is LARGE


def test_below_the_smallest_there_is_nothing() -> None:
    effort = Effort([SMALL])
    assert set(play(effort, 1.0, 50)) == {64}
    assert effort.steps_down == 0


def test_slack_leads_up_again_but_not_before_long() -> None:
    effort = Effort([MIDDLE, SMALL])
    play(effort, 1e-3, 4)
    assert effort.config is SMALL
    sizes = play(effort, 1e-4, 3 * PATIENCE)
    assert sizes.index(128) >= PATIENCE - 2
    assert set(sizes[sizes.index(128) :]) == {128}


def test_no_try_is_made_of_what_cannot_fit() -> None:
    effort = Effort([LARGE, SMALL])
    assert set(play(effort, 2e-4, 2000)[5:]) == {64}  # 512 would take 102 ms


def test_tries_that_fail_become_rarer() -> None:
    """A load that shows only in the larger search: time is not in proportion to its size."""
    effort, tries = Effort([MIDDLE, SMALL]), 0
    for _ in range(4000):
        large = effort.config is MIDDLE
        tries += large
        effort.note(0.1 if large else 0.03, 0.01, DEADLINE_S)
    assert 2 <= tries < 20


def test_what_fits_after_all_is_tried_as_soon_as_ever_the_next_time() -> None:
    effort = Effort([MIDDLE, SMALL])
    for _ in range(400):
        effort.note(0.1 if effort.config is MIDDLE else 0.03, 0.01, DEADLINE_S)
    play(effort, 1e-4, 40 * PATIENCE)
    assert effort.config is MIDDLE
    play(effort, 1e-3, 2)
    assert effort.config is SMALL
    assert 128 in play(effort, 1e-4, 2 * PATIENCE)
