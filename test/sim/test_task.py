"""Targets that can be reached, and the rule that scores an episode."""

from __future__ import annotations

import math
from dataclasses import replace

import numpy as np
import pytest

from wm_node.errors import WmError
from wm_node.sim.scene import TABLE_BOUNDS, ZONE_BOUNDS
from wm_node.sim.tabletop import TabletopSim
from wm_node.sim.task import (
    EPISODE_TICKS,
    Reading,
    ScoreKeeper,
    Task,
    is_valid_goal,
    sample_task,
    task_for_seed,
)

TASK = Task(seed=1, start=(0.0, 0.0), goal=(0.1, 0.0))
AT_GOAL, AWAY = (0.09, 0.01), (0.05, 0.0)


def test_targets_are_at_a_distance_on_the_table_and_off_the_zone():
    sim = TabletopSim(render=False)
    goals = set()
    for seed in range(40):
        task = task_for_seed(sim, seed)
        goals.add(task.goal)
        assert task.start == sim.mug_pose()[:2]
        assert 0.08 <= math.dist(task.start, task.goal) <= 0.20
        assert TABLE_BOUNDS.contains(*task.goal, margin=0.06)
        for share in range(11):
            x, y = (a + share / 10 * (b - a) for a, b in zip(task.start, task.goal, strict=True))
            assert not ZONE_BOUNDS.contains(x, y)
        assert task_for_seed(sim, seed) == task
    assert len(goals) == 40


def test_a_target_behind_the_zone_is_not_valid():
    beyond = (ZONE_BOUNDS.x_min - 0.06, 0.1)
    assert not is_valid_goal(beyond, (0.15, 0.1))
    assert not is_valid_goal((0.02, 0.1), (0.27, 0.1))
    assert is_valid_goal((-0.05, -0.05), (-0.15, 0.0))


def test_no_target_for_a_mug_that_has_fallen():
    sim = TabletopSim(render=False)
    sim.reset(0)
    sim.data.qpos[4:7] = [0.9, 0.0, -0.1]
    with pytest.raises(WmError, match="no target"):
        sample_task(sim, np.random.default_rng(0))


def test_what_was_read_is_compared_with_what_was_there():
    keeper = ScoreKeeper(TASK)
    assert (keeper.score().mug_misread, keeper.score().goal_misread) == (None, None)
    for off in (0.01, 0.02, 0.5):
        keeper.note(Reading(mug=(0.3 + off, 0.1), goal=(0.1, 0.04)), mug=(0.3, 0.1))
    keeper.note(Reading(goal=(0.1, 0.03)), mug=(0.3, 0.1))  # it looked, and read no mug
    score = keeper.score()
    assert score.mug_misread == pytest.approx(0.02)
    assert score.goal_misread == pytest.approx(0.03)


def test_five_ticks_in_a_row_within_tolerance_succeed():
    keeper = ScoreKeeper(TASK)
    for place in (AT_GOAL, AT_GOAL, AT_GOAL, AT_GOAL, AWAY, *[AT_GOAL] * 4):
        keeper.update(place, fell=False, zone=False)
        assert not keeper.done
    keeper.update(AT_GOAL, fell=False, zone=False)
    assert keeper.done
    score = keeper.score([1.0])
    assert score.success
    assert score.ticks == 10
    assert score.act_ms == (1.0,)
    assert score.start_distance == pytest.approx(0.1)


@pytest.mark.parametrize(("fell", "zone"), [(True, False), (False, True)])
def test_an_event_ends_the_episode_without_success(fell, zone):
    keeper = ScoreKeeper(TASK)
    for _ in range(4):
        keeper.update(AT_GOAL, fell=False, zone=False)
    keeper.update(AT_GOAL, fell=fell, zone=zone)
    assert keeper.done
    score = keeper.score()
    assert (score.success, score.fell, score.zone) == (False, fell, zone)


@pytest.mark.parametrize("ticks", [EPISODE_TICKS, 2 * EPISODE_TICKS])
def test_time_runs_out(ticks: int):
    keeper = ScoreKeeper(replace(TASK, ticks=ticks))
    for _ in range(ticks - 4):
        keeper.update(AWAY, fell=False, zone=False)
    for _ in range(4):
        assert not keeper.done
        keeper.update(AT_GOAL, fell=False, zone=False)
    assert keeper.done
    assert not keeper.score().success
    assert keeper.score().least_distance == pytest.approx(math.dist(AT_GOAL, TASK.goal))
