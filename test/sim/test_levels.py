"""Levels of the suite: what each adds, what it forbids, and that `basic` has stayed as it was."""

from __future__ import annotations

import colorsys
import json
import math
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wm_node.errors import WmError
from wm_node.sim.arm import MAX_LEAD_M, driver_at, tip_for_joints, tips_for_joints
from wm_node.sim.episode import record_episode
from wm_node.sim.events import EVENTS
from wm_node.sim.level import OTHERS, standing
from wm_node.sim.level_clutter import SECOND_QPOS
from wm_node.sim.level_edge import behind_zone, near_edge
from wm_node.sim.level_hand import EPISODE_TIMES_S, MARGIN_M, OUTLINE, Reach, least_gap
from wm_node.sim.level_names import TO_COLLECT_ON
from wm_node.sim.level_scattered import AWAY
from wm_node.sim.levels import LEVELS, find_level, find_played_level
from wm_node.sim.mix import DEFAULT_MIX
from wm_node.sim.oracle import SimulatorModel
from wm_node.sim.scene import (
    FLOOR_COLOUR,
    MUG_MASS,
    MUG_RADIUS,
    TABLE_BOUNDS,
    TABLE_COLOUR,
    TIP_RADIUS,
    ZONE_BOUNDS,
)
from wm_node.sim.seeds import scene_seed
from wm_node.sim.suite import reference_policy, run_episode, run_suite
from wm_node.sim.tabletop import State, TabletopSim
from wm_node.sim.task import path_is_free, task_for_seed

RECORDED = json.loads((Path(__file__).parent / "basic_level.json").read_text(encoding="utf-8"))
ADDED = ("edge", "clutter", "moving_hand", "shift", "varied", "restless")


@pytest.fixture(scope="module")
def sims() -> dict[str, TabletopSim]:
    return {name: TabletopSim(render=False, level=level) for name, level in LEVELS.items()}


def moved_to(
    sim: TabletopSim, mug: tuple[float, float], tip: tuple[float, float], **others: list[float]
) -> State:
    """The present moment, but with the mug and the tip, and added bodies, elsewhere."""
    state = sim.save()
    physics = state.physics.copy()
    pose = sim.goal_pose(mug, tip=tip)
    for name, values in others.items():
        at = int(sim.model.joint(name).qposadr[0])
        pose[at : at + 7] = values
    physics[1 : 1 + sim.model.nq] = pose  # after the time
    return replace(state, physics=physics, driver=driver_at(*tip))


# ---- basic -----------------------------------------------------------------------------------


@pytest.mark.parametrize("recorded", RECORDED["episodes"], ids=lambda one: str(one["seed"]))
def test_basic_episodes_are_those_recorded_before_there_were_levels(sims, recorded):
    score = run_episode(sims["basic"], recorded["seed"], reference_policy("scripted")())
    # Bit for bit on the machine that recorded them; elsewhere the mug settles a hair's breadth of
    # rounding away (1e-10 m seen), and the target is drawn from where it stands.
    assert score.goal == pytest.approx(recorded["goal"], abs=1e-9)
    assert score.success == recorded["success"]
    assert score.ticks == recorded["ticks"]
    for name in ("start_distance", "final_distance", "least_distance"):
        assert getattr(score, name) == pytest.approx(recorded[name], abs=1e-6)


def test_levels_are_called_as_the_help_texts_call_them() -> None:
    assert [level.name for level in LEVELS.values()] == list(LEVELS)
    assert [level.name for level in LEVELS.values() if level.scattered] == list(TO_COLLECT_ON)


def test_basic_pictures_are_those_recorded_before_there_were_levels():
    sim = TabletopSim((320, 240))
    for recorded in RECORDED["pictures"]:
        sim.reset(recorded["seed"])
        means = sim.render().reshape(6, 40, 8, 40, 3).mean((1, 3))
        np.testing.assert_allclose(means, recorded["means"], atol=0.5)
    sim.close()


def test_levels_share_what_the_seed_draws(sims):
    for sim in sims.values():
        sim.reset(21)
    basic = sims["basic"]
    for name in ("clutter", "moving_hand", "shift", "varied", "restless"):
        assert sims[name].setup.start == basic.setup.start
        np.testing.assert_allclose(sims[name].pose()[:11], basic.pose(), atol=1e-3)
    assert sims["edge"].setup.start.tip == basic.setup.start.tip


def test_unknown_levels_are_refused():
    with pytest.raises(WmError, match="moving_hand"):
        find_level("hard")


# ---- all added levels ------------------------------------------------------------------------


@pytest.mark.parametrize("name", ADDED)
def test_a_seed_decides_the_episode_and_a_snapshot_repeats_it(sims, name):
    sim, other = sims[name], TabletopSim(render=False, level=LEVELS[name])
    other.reset(5)
    first, second = task_for_seed(sim, 8), task_for_seed(other, 8)
    assert first == second
    rng = np.random.default_rng(2)
    commands = rng.uniform(-0.25, 0.25, (12, 2))

    def drive() -> list[list[float]]:
        seen = []
        for command in commands:
            sim.command_tip_velocity(command)
            sim.advance(0.1)
            seen.append([*sim.pose(), *sim.data.mocap_pos.ravel(), *sim.data.mocap_quat.ravel()])
        return seen

    sim.advance(0.7)
    state = sim.save()
    path = drive()
    sim.reset(9)
    sim.restore(state)
    assert drive() == path


@pytest.mark.parametrize("name", ADDED)
def test_whoever_does_not_move_breaks_no_rule_and_has_no_success(sims, name):
    for seed in range(4):
        score = run_episode(sims[name], 600_000 + seed, reference_policy("still")())
        assert not score.success
        assert score.reason == ""


@pytest.mark.parametrize("name", ADDED)
def test_the_level_can_be_done(sims, name):
    policy = reference_policy("scripted")()
    scores = [run_episode(sims[name], 600_000 + seed, policy) for seed in range(8)]
    assert sum(score.success for score in scores) >= 4
    assert all(score.violation == bool(score.reason) for score in scores)
    assert not any(score.success and score.violation for score in scores)


@pytest.mark.parametrize("name", ["clutter", "moving_hand"])
def test_the_oracle_predicts_exactly_what_then_happens(sims, name):
    sim = sims[name]
    sim.reset(3)
    sim.advance(0.6)
    actions = np.random.default_rng(0).uniform(-0.25, 0.25, (3, 16, 2)).astype(np.float32)
    # One candidate goes straight for what must not be touched.
    actions[0] = 0.25 * np.sign(np.array(_forbidden(sim)) - sim.tip())
    assert_foreseen(sim, actions)


def assert_foreseen(sim: TabletopSim, actions: np.ndarray) -> None:
    """The oracle predicts of candidates (N, T, 2) what the simulator then does."""
    model = SimulatorModel(sim, 2)
    state = sim.save()
    out = model.outcomes(actions)
    for candidate in range(len(actions)):
        sim.restore(state)
        broken = False
        for tick, action in enumerate(actions[candidate]):
            sim.command_tip_velocity(action)
            for _ in range(10):
                sim.advance(0.01)
                broken |= bool(sim.violation())
            if tick % 2:
                true = [*sim.mug_pose()[:2], *sim.tip()]
                np.testing.assert_allclose(out["state"][candidate, tick // 2], true, atol=1e-6)
                assert out["risk"][candidate, tick // 2, EVENTS.index("hit")] == broken
    model.close()


def beside_the_block(sim: TabletopSim, seed: int) -> np.ndarray:
    """Put the tip close to the block, and return the direction (2,) from there to its middle."""
    sim.reset(seed)
    block = sim.setup.obstacles[1]
    inwards = -np.array([block.x, block.y])  # of the table: there the tip has room to come back
    inwards /= np.linalg.norm(inwards)
    x, y = np.array([block.x, block.y]) + (block.radius + 0.025) * inwards
    sim.restore(moved_to(sim, sim.mug_pose()[:2], (float(x), float(y))))
    sim.advance(0.1)
    return -inwards


def test_an_arm_that_is_stopped_waits_and_comes_back_at_once(sims):
    sim = sims["clutter"]
    ahead = beside_the_block(sim, 5)
    for _ in range(20):
        sim.command_tip_velocity(0.2 * ahead)
        sim.advance(0.1)
    stopped = sim.tip()
    lead = np.linalg.norm(np.array(sim.driver.tip) - stopped)
    assert 0.015 < lead < MAX_LEAD_M + 0.005  # it pushes, and its reference has not wandered off
    for _ in range(5):
        sim.command_tip_velocity(-0.2 * ahead)
        sim.advance(0.1)
    assert (stopped - sim.tip()) @ ahead > 0.04  # where 0.1 m were commanded


def test_the_oracle_foresees_that_the_block_stops_the_arm(sims):
    sim = sims["clutter"]
    ahead = beside_the_block(sim, 5)
    candidates = np.stack([0.2 * ahead * np.ones((16, 1)), np.zeros((16, 2))])
    candidates[0, 9:] *= -1.0  # and back
    assert_foreseen(sim, candidates)


def test_the_oracle_foresees_a_driver_that_brakes_within_a_tick():
    sim = TabletopSim(render=False, command_timeout_s=0.05)
    sim.reset(3)
    assert_foreseen(sim, np.random.default_rng(0).uniform(-0.25, 0.25, (2, 16, 2)))


def test_a_careless_person_reaches_for_mug_and_arm_too(sims):
    def struck(name: str, seed: int) -> bool:
        """Whether a mug and an arm that do not move are hit."""
        sims[name].reset(seed)
        setup = sims[name].setup
        return least_gap(setup.start, setup.mover, EPISODE_TIMES_S) < 0.0

    assert sum(struck("careless_hand", seed) for seed in range(40)) > 8
    assert not any(struck("moving_hand", seed) for seed in range(40))


def _forbidden(sim: TabletopSim) -> tuple[float, float]:
    if sim.setup.mover is not None:
        x, y = sim.setup.mover.pose(np.asarray(1.8))[:2].tolist()
        return x, y
    x, y = sim.setup.rest_qpos[:2]
    return x, y


# ---- each ------------------------------------------------------------------------------------


def test_edge_targets_are_near_an_edge_or_behind_the_zone(sims):
    sim, kinds = sims["edge"], []
    for seed in range(24):
        task = task_for_seed(sim, seed)
        assert TABLE_BOUNDS.contains(*task.goal, margin=0.03)
        assert not ZONE_BOUNDS.contains(*task.goal, margin=-0.03)
        if sim.setup.accepts is near_edge:
            assert not TABLE_BOUNDS.contains(*task.goal, margin=0.06)
        else:
            assert sim.setup.accepts is behind_zone
            assert not path_is_free(task.start, task.goal, 0.0)
        kinds.append(sim.setup.accepts is near_edge)
    assert 6 <= sum(kinds) <= 18


def test_clutter_leaves_a_free_path(sims):
    sim = sims["clutter"]
    for seed in range(10):
        task = task_for_seed(sim, seed)
        for disc in sim.setup.obstacles:
            for share in np.linspace(0.0, 1.0, 11):
                x, y = (a + share * (b - a) for a, b in zip(task.start, task.goal, strict=True))
                assert math.dist((x, y), (disc.x, disc.y)) > disc.radius + 0.04 + 0.03


def test_a_second_mug_that_is_moved_or_falls_is_a_violation(sims):
    sim = sims["clutter"]
    sim.reset(4)
    x, y = sim.setup.rest_qpos[:2]
    tip = sim.setup.start.tip
    mug = sim.mug_pose()[:2]
    sim.restore(moved_to(sim, mug, tip, second_mug=standing(x + 0.015, y, 0.0)))
    assert sim.violation() == ""
    sim.restore(moved_to(sim, mug, tip, second_mug=standing(x + 0.025, y, 0.0)))
    assert sim.violation() == "second mug was moved"
    assert not sim.hit()  # it stands where it was put
    lying = [x, y, 0.04, math.sqrt(0.5), math.sqrt(0.5), 0.0, 0.0]
    sim.restore(moved_to(sim, mug, tip, second_mug=lying))
    assert sim.violation() == "second mug fell"
    assert sim.hit()


def test_a_second_mug_is_hit_when_it_begins_to_move_long_before_the_rule_is_broken(sims):
    sim = sims["clutter"]
    sim.reset(4)
    assert not sim.hit()
    x, y = sim.setup.rest_qpos[:2]
    state = moved_to(sim, (0.0, 0.29), (x - 0.09, y), second_mug=standing(x, y, 0.0))
    sim.restore(state)
    hits, broken = [], []
    for _ in range(120):
        sim.command_tip_velocity((0.15, 0.0))
        sim.advance(0.01)
        hits.append(sim.hit())
        broken.append(bool(sim.violation()))
    assert 5 < hits.index(True) < broken.index(True)


def test_the_block_stops_a_mug(sims):
    sim = sims["clutter"]
    sim.reset(4)
    block = sim.model.body_pos[sim.model.body("block").id]
    x, y = float(block[0]), float(block[1])
    far = [0.0, 0.29, 0.0, 1.0, 0.0, 0.0, 0.0]  # the second mug, out of the way
    state = moved_to(sim, (x - 0.11, y), (x - 0.17, y), second_mug=far)
    sim.restore(state)
    for _ in range(12):
        sim.command_tip_velocity((0.12, 0.0))
        sim.advance(0.1)
    beside = abs(sim.mug_pose()[1] - y) > 0.03  # it slid past, off the corner
    assert beside or sim.mug_pose()[0] < x - 0.05
    np.testing.assert_array_equal(sim.model.body_pos[sim.model.body("block").id], block)


def test_the_hand_touched_by_arm_or_mug_is_a_violation(sims):
    sim = sims["moving_hand"]
    sim.reset(2)
    assert isinstance(sim.setup.mover, Reach)
    reach = sim.setup.mover
    sim.advance(round(reach.begin_s + reach.in_s, 1))  # the hand is in
    x, y = reach.fingertips(np.asarray(sim.time_s)).tolist()
    tip, mug = sim.setup.start.tip, sim.setup.start.mug
    assert sim.violation() == ""
    sim.restore(moved_to(sim, mug, (x, y)))
    assert sim.violation() == "arm touched the hand"
    sim.restore(moved_to(sim, (x, y), tip))
    assert sim.violation() == "mug hit the hand"
    assert sim.events() == {"fell": False, "zone": sim.in_zone(), "hit": True}


def test_a_hand_that_is_missed_by_too_little_is_a_hit_but_breaks_no_rule(sims):
    sim = sims["moving_hand"]
    sim.reset(2)
    sim.advance(round(sim.setup.mover.begin_s + sim.setup.mover.in_s, 1))  # the hand is in
    x, y = sim.setup.mover.fingertips(np.asarray(sim.time_s)).tolist()
    ahead = np.array([x, y]) - sim.setup.mover.shoulder
    ahead /= np.linalg.norm(ahead)

    def tip_at(room: float) -> tuple[str, bool]:
        far = OUTLINE[0][0] + OUTLINE[0][2] + TIP_RADIUS + room  # of the fingertips' capsule
        tip = (x + far * ahead[0], y + far * ahead[1])
        sim.restore(moved_to(sim, sim.setup.start.mug, tip))
        return sim.violation(), sim.hit()

    assert tip_at(-0.002) == ("arm touched the hand", True)
    assert tip_at(MARGIN_M - 0.003) == ("", True)
    assert tip_at(MARGIN_M + 0.003) == ("", False)


def test_the_hand_comes_goes_and_keeps_its_outline(sims):
    sim = sims["moving_hand"]
    times = np.arange(0.0, 6.0, 0.01)
    for seed in range(5):
        sim.reset(seed)
        assert isinstance(sim.setup.mover, Reach)
        reach = sim.setup.mover
        tips = reach.fingertips(times)
        on_table = np.array([TABLE_BOUNDS.contains(*tip) for tip in tips.tolist()])
        assert on_table.any()
        assert not on_table[0]
        assert not on_table[times > 4.0].any()
        assert np.linalg.norm(np.diff(tips, axis=0), axis=1).max() < 0.015  # 1.5 m/s
        # Shapes that are drawn and collide lie within the outline that the rules use.
        sim.advance(1.0)
        person = sim.model.body("person").id
        for geom in np.flatnonzero(sim.model.geom_bodyid == person).tolist():
            x, y, _ = sim.data.geom_xpos[geom]
            assert reach.clearance(x, y, np.asarray(sim.time_s)) < 0.0


def test_levels_tell_where_what_they_add_stands(sims):
    clutter = sims["clutter"]
    clutter.reset(5)
    assert set(clutter.others()) == {"second_mug", "block"} == set(clutter.level.adds)
    assert clutter.others()["block"] == tuple(clutter.model.body("block").pos[:2])
    clutter.restore(moved_to(clutter, (0.0, 0.0), (0.2, 0.2), second_mug=standing(0.1, -0.1, 0.0)))
    assert clutter.others()["second_mug"] == pytest.approx((0.1, -0.1))
    hand, told = sims["moving_hand"], []
    hand.reset(5)
    assert hand.others() == {}  # not there yet
    for _ in range(60):
        hand.advance(0.1)
        told.append("hand" in hand.others())
        if told[-1]:
            assert hand.others()["hand"] == pytest.approx(hand.mover_pose()[:2])
    assert any(told)
    assert not told[-1]  # gone again
    assert sims["basic"].others() == {}


def test_shift_leaves_the_training_range(sims):
    sim = sims["shift"]
    mug, square = sim.model.body("mug").id, sim.model.geom("shift_square").id
    seen = []
    for seed in range(6):
        sim.reset(seed)
        mass = sim.model.body_mass[mug] / MUG_MASS
        assert mass < 0.5 or mass > 2.0
        friction = sim.model.geom_friction[sim.model.geom("mug_body").id, 0]
        assert friction < 0.25 or friction > 0.60
        seen.append((*sim.model.geom_pos[square, :2], *sim.model.geom_rgba[square, :3]))
    assert len(set(seen)) == 6


def test_shift_moves_the_camera_by_two_centimetres_and_two_degrees(sims):
    for sim in (sims["basic"], sims["shift"]):
        sim.reset(3)
    cameras = [(s.model.cam_pos[0], s.model.cam_quat[0]) for s in (sims["basic"], sims["shift"])]
    (place, turn), (new_place, new_turn) = cameras
    assert np.linalg.norm(new_place - place) == pytest.approx(0.02)
    assert 2 * math.acos(abs(float(turn @ new_turn))) == pytest.approx(math.radians(2.0), abs=1e-6)


@pytest.mark.parametrize("name", ["varied", "restless", "scattered"])
def test_what_shift_shows_is_kept_for_shift(sims, name):
    """What trains under these levels has seen no look of ``shift``."""
    shift, varied = sims["shift"], sims[name]
    pictures: set[str] = set()
    for seed in range(40):
        for sim in (shift, varied):
            sim.reset(seed)
        if varied.setup.redress is not None:
            varied.setup.redress(np.random.default_rng(seed))
        for thing in ("table", "floor"):
            red, green, blue = varied.model.geom(thing).rgba[:3].tolist()
            hue, saturation, _ = colorsys.rgb_to_hsv(red, green, blue)
            usual = {"table": TABLE_COLOUR, "floor": FLOOR_COLOUR}[thing]
            as_usual = np.allclose((red, green, blue), usual)
            assert as_usual or saturation < 0.01 or not 0.25 <= hue <= 0.70
            pictures.add(varied.model.material(varied.model.geom(thing).matid[0]).name)
        hue, saturation, value = colorsys.rgb_to_hsv(*varied.model.geom("mug_body").rgba[:3])
        assert value >= 0.54  # shift has dark mugs,
        assert saturation < 0.01 or not 0.82 <= hue <= 0.92  # and pink ones
        mass = varied.model.body_mass[varied.model.body("mug").id] / MUG_MASS
        assert 0.5 <= mass <= 2.0
        sims["basic"].reset(seed)
        away = varied.model.cam_pos[0] - sims["basic"].model.cam_pos[0]
        assert np.linalg.norm(away) < 0.0151  # shift: 0.02
        assert np.linalg.norm(shift.model.cam_pos[0] - sims["basic"].model.cam_pos[0]) > 0.0199
    assert len(pictures) > 20


def test_varied_looks_different_every_time():
    sim, means = TabletopSim((96, 72), level=LEVELS["varied"]), []
    for seed in (0, 1, 2, 3, 0):
        sim.reset(seed)
        means.append(sim.render().reshape(3, 24, 4, 24, 3).mean((1, 3)))
    sim.close()
    np.testing.assert_array_equal(means[0], means[4])
    for k in range(4):
        for other in range(k):
            assert np.abs(means[k] - means[other]).mean() > 4.0


def test_scattered_shows_another_scene_in_every_frame_at_rest() -> None:
    sim = TabletopSim((96, 72), level=LEVELS["scattered"])
    streams, again = (record_episode(sim, 3, DEFAULT_MIX, 10.0) for _ in range(2))
    sim.close()
    np.testing.assert_array_equal(streams.frames, again.frames)
    assert streams.behaviour == "scattered"
    at = np.searchsorted(streams.stamps, streams.frame_stamps)
    mugs, tips = streams.mug_position[at, :2], streams.tip[at]
    for places in (mugs, tips):
        assert np.linalg.norm(np.diff(places, axis=0), axis=1).mean() > 0.15
        assert (places.std(axis=0) > 0.08).all()
    apart = np.linalg.norm(mugs - tips, axis=1)
    assert apart.min() > MUG_RADIUS + TIP_RADIUS
    assert 0.3 < (apart < 0.13).mean() < 0.8, "half of the tips are near the mug"
    # Until the next scene nothing moves, so that labels between samples are those of the frame.
    before = np.linalg.norm(streams.mug_position[at[1:] - 1, :2] - mugs[:-1], axis=1)
    assert np.median(before) < 0.001
    assert not streams.hit.any()
    assert not streams.commands.any()
    for name, places in streams.others.items():
        there = np.isfinite(places[at, 0])
        assert 0.1 < there.mean() < 0.8, name
        gaps = np.linalg.norm(places[at][there] - mugs[there], axis=1)
        assert gaps.min() > 0.03, name
    assert set(streams.others) == set(OTHERS)


def test_scattered_scenes_show_what_their_labels_say() -> None:
    """A picture with the thing that is said to be there, and the same one without it, differ."""
    sim = TabletopSim((160, 120), level=LEVELS["scattered"])
    seen = set()
    for seed in range(12):
        sim.reset(scene_seed(1, seed))
        whole, others = sim.render(), sim.others()
        without = sim.pose()
        if "second_mug" in others:
            without[SECOND_QPOS : SECOND_QPOS + 3] = AWAY
        changed = np.abs(sim.picture(without).astype(int) - whole).max(-1) > 20
        assert changed.any() == ("second_mug" in others)
        seen |= set(others)
    sim.close()
    assert seen == set(OTHERS)


def test_scattered_cannot_be_played() -> None:
    with pytest.raises(WmError, match="another scene in every picture"):
        run_suite(reference_policy("still"), [1], level="scattered")
    assert find_played_level("clutter") is find_level("clutter")


def test_restless_looks_different_in_every_frame_and_moves_as_basic_does():
    sim = TabletopSim((96, 72), level=LEVELS["restless"])
    plain = TabletopSim(render=False)
    frames = []
    for _ in range(2):
        for one in (sim, plain):
            one.reset(3)
            one.command_tip_velocity((0.2, 0.1))
        for _ in range(4):
            frames.append(sim.render())
            for one in (sim, plain):
                one.advance(0.1)
        np.testing.assert_array_equal(sim.pose(), plain.pose())
    sim.close()
    means = [frame.reshape(3, 24, 4, 24, 3).mean((1, 3)) for frame in frames]
    for k in range(4):
        np.testing.assert_array_equal(frames[k], frames[4 + k])
        for other in range(k):
            assert np.abs(means[k] - means[other]).mean() > 4.0


@pytest.mark.parametrize("seed", [10100023, 10100140, 10200041, 10200052, 10200111])
def test_edge_has_a_target_in_every_episode(sims, seed):
    """Of these starts one point of the grid alone was fit, which the mug lost as it settled."""
    task = task_for_seed(sims["edge"], seed)
    assert near_edge(task.start, task.goal) or behind_zone(task.start, task.goal)


def test_tips_of_many_joints_are_those_of_each(sims):
    joints = np.random.default_rng(0).uniform(-1.0, 1.0, (3, 4))
    expected = [tip_for_joints(row) for row in joints.tolist()]
    np.testing.assert_allclose(tips_for_joints(joints), expected, atol=1e-12)


def test_workers_play_the_level_and_trace_it():
    told = []
    scores = run_suite(
        reference_policy("still"),
        [600_000, 600_001],
        workers=2,
        level="clutter",
        on_trace=lambda score, trace: told.append((score.seed, trace)),
    )
    assert [score.seed for score in scores] == [600_000, 600_001]
    traces = dict(told)
    assert set(traces) == {600_000, 600_001}
    assert traces[600_000].poses.shape == (61, 18)
    np.testing.assert_allclose(traces[600_000].times_s, np.arange(61) / 10)
