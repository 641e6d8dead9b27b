"""Picture strips: which episodes get one, and a ring where the target is."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from PIL import Image

from wm_node.errors import WmError
from wm_node.sim.strips import FRAMES, GAP, Trace, draw_ring, project, write_strips
from wm_node.sim.suite import reference_policy, run_suite
from wm_node.sim.tabletop import TabletopSim
from wm_node.sim.task import Reading

SIZE = (160, 120)


def traced(count: int):
    told = []
    run_suite(
        reference_policy("still"),
        [600_000 + k for k in range(count)],
        level="moving_hand",
        on_trace=lambda *episode: told.append(episode),
    )
    return told


def test_failures_and_the_first_successes_get_a_strip(tmp_path):
    (score, trace), *_ = traced(1)
    won = [(replace(score, seed=score.seed + k, success=True), trace) for k in range(1, 6)]
    lost = [(score, trace), (replace(score, seed=7, reason="mug hit the hand"), trace)]
    paths = write_strips(tmp_path, "moving_hand", "still", [*won, *lost], SIZE)
    assert sorted(path.name for path in tmp_path.iterdir()) == sorted(path.name for path in paths)
    assert [path.name for path in paths] == [
        "moving_hand_still_600001_success.png",
        "moving_hand_still_600002_success.png",
        "moving_hand_still_600003_success.png",
        "moving_hand_still_7_mug_hit_the_hand.png",
        "moving_hand_still_600000_out_of_time.png",
    ]
    picture = np.asarray(Image.open(paths[-1]))
    assert picture.shape == (SIZE[1], FRAMES * (SIZE[0] + GAP) - GAP, 3)
    first, middle = picture[:, : SIZE[0]], picture[:, 4 * (SIZE[0] + GAP) :][:, : SIZE[0]]
    assert np.abs(first.astype(int) - middle).max() > 60  # the hand has come


def test_the_ring_is_drawn_where_the_scene_has_the_target():
    sim = TabletopSim(SIZE)
    sim.reset(1)
    goal = (-0.1, -0.1)
    plain = sim.render()
    changed = np.argwhere((draw_ring(plain, sim, goal) != plain).any(-1))
    ((x, y),) = project(sim.model, np.array([[*goal, 0.0]]), SIZE)
    assert np.abs(changed.mean(0) - (y, x)).max() < 2.0
    # The mug's foot, pictured there, surrounds the same place.
    with_mug = sim.render_goal(goal, tip=(0.3, 0.2))
    without = sim.render_goal((0.2, -0.1), tip=(0.3, 0.2))
    rows, columns = np.nonzero(np.abs(with_mug.astype(int) - without).max(-1) > 20)
    near = columns < SIZE[0] / 2
    assert columns[near].min() < x < columns[near].max()
    assert rows[near].min() < y < rows[near].max() + 1
    sim.close()


def test_a_folder_that_cannot_be_written_is_told(tmp_path):
    blocked = tmp_path / "file"
    blocked.write_text("")
    with pytest.raises(WmError, match="cannot write pictures"):
        write_strips(blocked, "basic", "still", [], SIZE)


def test_a_trace_holds_poses_and_times():
    ((_, trace),) = traced(1)
    assert isinstance(trace, Trace)
    assert len(trace.poses) == len(trace.times_s) == len(trace.readings) == 61


def test_what_a_policy_read_is_drawn_where_it_took_it_to_be(tmp_path):
    ((score, trace),) = traced(1)
    mug, goal = (-0.1, 0.05), (0.05, -0.1)
    read = replace(trace, readings=(Reading(mug, goal),) * len(trace.poses))
    (plain,) = write_strips(tmp_path / "plain", "moving_hand", "still", [(score, trace)], SIZE)
    (drawn,) = write_strips(tmp_path / "drawn", "moving_hand", "still", [(score, read)], SIZE)
    before, after = (np.asarray(Image.open(path))[:, : SIZE[0]] for path in (plain, drawn))
    changed = np.argwhere((before != after).any(-1))
    sim = TabletopSim(SIZE)
    sim.reset(score.seed)
    places = project(sim.model, np.array([[*mug, 0.0], [*goal, 0.0]]), SIZE)
    near = [np.abs(changed - (y, x)).max(1) < 12 for x, y in places]
    assert (near[0] | near[1]).all()
    for (x, y), mine in zip(places, near, strict=True):
        assert mine.sum() > 20
        assert np.abs(changed[mine].mean(0) - (y, x)).max() < 2.0
    sim.close()
