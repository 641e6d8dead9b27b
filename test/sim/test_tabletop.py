"""The simulator on arrays: reproducible episodes, exact snapshots, the driver, falls, the zone."""

from __future__ import annotations

import math

import mujoco
import numpy as np
import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from wm_node.errors import WmError
from wm_node.sim.arm import (
    JOINT_LOWER,
    JOINT_UPPER,
    MAX_TIP_ACCELERATION,
    joints_for_tip,
    tip_for_joints,
)
from wm_node.sim.behaviours import push_velocity
from wm_node.sim.scene import TABLE_BOUNDS, TIP_BOUNDS, ZONE_BOUNDS
from wm_node.sim.tabletop import TabletopSim


@pytest.fixture(scope="module")
def sim() -> TabletopSim:
    return TabletopSim(render=False)


@pytest.fixture(scope="module")
def seeing() -> TabletopSim:
    return TabletopSim((160, 120))


def push_to(sim: TabletopSim, goal: tuple[float, float], ticks: int) -> None:
    for _ in range(ticks):
        tip, mug = tuple(sim.tip()), sim.mug_pose()[:2]
        sim.command_tip_velocity(push_velocity(tip, mug, goal))
        sim.advance(0.1)
        if sim.fell():
            return


def drive(sim: TabletopSim, ticks: int) -> list[tuple[float, ...]]:
    rng = np.random.default_rng(5)
    seen = []
    for _ in range(ticks):
        sim.command_tip_velocity(rng.uniform(-0.25, 0.25, 2), delay_s=0.03)
        sim.advance(0.1)
        seen.append((*sim.joint_positions(), *sim.joint_velocities(), *sim.mug_pose(), *sim.tip()))
    return seen


def test_a_seed_decides_the_episode(seeing):
    other = TabletopSim((160, 120))
    other.reset(99)  # another past must not matter
    drive(other, 5)
    pictures, paths = [], []
    for one in (seeing, other):
        one.reset(7)
        pictures.append(one.render())
        paths.append(drive(one, 10))
    other.close()
    np.testing.assert_array_equal(pictures[0], pictures[1])
    assert paths[0] == paths[1]


def test_episodes_differ_in_all_that_is_randomised(seeing):
    seen = []
    for seed in range(3):
        seeing.reset(seed)
        model, mug = seeing.model, seeing.model.body("mug").id
        seen.append(
            (
                *seeing.mug_pose()[:2],
                seeing.mug_pose()[3],
                *seeing.tip(),
                model.body_mass[mug],
                model.geom_friction[model.geom("mug_body").id, 0],
                *model.geom_rgba[model.geom("mug_body").id, :3],
                *model.light_diffuse[0],
                *model.cam_pos[0],
            )
        )
    seen = np.array(seen)
    for a, b in ((0, 1), (1, 2), (0, 2)):
        assert (seen[a] != seen[b]).all()
    assert seen[:, 5].min() / 0.25 >= 0.5
    assert seen[:, 5].max() / 0.25 <= 2.0


def test_a_snapshot_repeats_bit_for_bit(seeing):
    seeing.reset(3)
    drive(seeing, 7)
    seeing.command_tip_velocity((0.1, -0.2), delay_s=0.05)  # on its way while saved
    state = seeing.save()
    first, picture = drive(seeing, 15), seeing.render()
    seeing.reset(4)
    drive(seeing, 3)
    seeing.restore(state)
    assert drive(seeing, 15) == first
    np.testing.assert_array_equal(seeing.render(), picture)


def test_rendering_does_not_disturb_the_physics(seeing):
    seeing.reset(3)
    without = drive(seeing, 5)
    seeing.reset(3)
    seeing.render()
    seeing.render_goal((0.0, 0.0))
    assert drive(seeing, 5) == without


def test_the_goal_picture_shows_the_mug_at_the_goal(seeing):
    seeing.reset(11)
    x, y, _, _ = seeing.mug_pose()
    np.testing.assert_array_equal(seeing.render_goal((x, y)), seeing.render())
    moved = seeing.render_goal((-0.1, -0.1)).astype(int) - seeing.render()
    assert np.abs(moved).max() > 60
    assert seeing.mug_pose()[0] == x


def test_without_a_camera_rendering_is_refused(sim):
    with pytest.raises(WmError, match="no camera"):
        sim.render()


@given(st.floats(TIP_BOUNDS.x_min, TIP_BOUNDS.x_max), st.floats(TIP_BOUNDS.y_min, TIP_BOUNDS.y_max))
@example(TIP_BOUNDS.x_max, TIP_BOUNDS.y_min)
@example(TIP_BOUNDS.x_min, TIP_BOUNDS.y_min)
@example(TIP_BOUNDS.x_max, TIP_BOUNDS.y_max)
@example(0.0, TIP_BOUNDS.y_max)
def test_the_arm_reaches_its_whole_workspace_within_its_limits(x, y):
    joints = joints_for_tip(x, y)
    assert tip_for_joints(joints) == pytest.approx((x, y), abs=1e-9)
    for value, low, high in zip(joints, JOINT_LOWER, JOINT_UPPER, strict=True):
        assert low < value < high


def test_the_tip_follows_the_command_and_keeps_its_height(sim):
    sim.reset(2)
    start = sim.tip()
    aim = np.array([0.15, 0.1]) * np.sign(-start)  # inwards, so that no border is met
    for _ in range(6):
        sim.command_tip_velocity(aim)
        sim.advance(0.1)
    moved = sim.tip() - start
    assert np.linalg.norm(moved - 0.6 * aim) < 0.02  # slew and servo lag
    mujoco.mj_kinematics(sim.model, sim.data)
    height = sim.data.geom_xpos[sim.model.geom("tip").id, 2]
    assert height == pytest.approx(0.03, abs=0.002)


def test_the_driver_limits_speed_acceleration_and_workspace(sim):
    sim.reset(2)
    before = np.zeros(2)
    for step in range(400):
        sim.command_tip_velocity((9.0, -9.0) if step < 350 else (-9.0, 9.0))
        sim.advance(0.01)
        now = np.array(sim.driver.velocity)
        assert np.abs(now).max() <= 0.25 + 1e-9
        at_border = not TIP_BOUNDS.contains(*sim.driver.tip, margin=1e-6)
        if not at_border:
            assert np.abs(now - before).max() <= MAX_TIP_ACCELERATION * 0.01 + 1e-9
        before = now
    assert TIP_BOUNDS.contains(*sim.driver.tip, margin=-1e-9)


def test_the_driver_brakes_by_itself_after_its_timeout(sim):
    sim.reset(2)
    sim.command_tip_velocity(-0.2 * np.sign(sim.tip()))
    sim.advance(0.2)
    assert np.abs(sim.driver.velocity).min() > 0.19
    sim.advance(0.01)
    assert np.abs(sim.driver.velocity).max() < 0.19  # braking began
    sim.advance(0.3)
    still = sim.tip()
    sim.advance(0.5)
    assert np.linalg.norm(sim.tip() - still) < 1e-4


def test_an_actuation_delay_defers_the_command():
    slow = TabletopSim(render=False, actuation_delay_s=0.15)
    slow.reset(2)
    slow.command_tip_velocity((0.2, 0.0))
    slow.advance(0.15)
    assert slow.driver.velocity == (0.0, 0.0)
    slow.advance(0.01)
    assert slow.driver.velocity[0] > 0
    with pytest.raises(WmError, match="actuation_delay_s"):
        TabletopSim(render=False, actuation_delay_s=-1.0)


@pytest.mark.parametrize("bad", [(math.nan, 0.0), (0.0, math.inf)])
def test_a_velocity_that_is_not_finite_is_refused(sim, bad):
    with pytest.raises(WmError, match="not finite"):
        sim.command_tip_velocity(bad)


def test_joint_trajectories_are_followed_and_end_at_rest(sim):
    sim.reset(2)
    start, goal = sim.joint_positions(), np.array(joints_for_tip(0.1, -0.1))
    sim.command_joints([0.5, 1.0], [(start + goal) / 2, goal])
    sim.advance(1.5)
    np.testing.assert_allclose(sim.joint_positions(), goal, atol=0.02)
    sim.advance(1.0)
    assert np.abs(sim.joint_velocities()).max() < 1e-3
    sim.command_tip_velocity((0.1, 0.0))  # and velocities take over from there
    sim.advance(0.1)
    assert np.linalg.norm(sim.tip() - (0.1, -0.1)) < 0.03


def test_the_first_waypoint_is_reached_at_its_time_not_as_fast_as_can_be(sim):
    sim.reset(2)
    sim.advance(0.1)
    start, goal = np.array(sim.driver.joints), np.array(joints_for_tip(0.1, -0.1))
    sim.command_joints([2.0], [goal])
    sim.advance(sim.actuation_delay_s)
    for share in (0.25, 0.5, 0.75, 1.0):
        sim.advance(0.5)
        expected = start + share * (goal - start)
        np.testing.assert_allclose(sim.driver.joints, expected, atol=1e-9)
        speed = np.abs(sim.joint_velocities()).max()
        assert speed < 1.5 * np.abs(goal - start).max() / 2.0
    sim.command_joints([0.0], [start])  # a waypoint of now: as fast as the limit allows
    sim.advance(sim.actuation_delay_s + 0.05)
    moved = np.abs(np.array(sim.driver.joints) - goal).max()
    assert moved == pytest.approx(3.0 * 0.05)


def test_a_trajectory_that_replaces_another_starts_where_the_joints_are(sim):
    sim.reset(2)
    start, goal = np.array(sim.driver.joints), np.array(joints_for_tip(0.1, -0.1))
    sim.command_joints([1.0], [goal])
    sim.advance(sim.actuation_delay_s + 0.5)
    sim.command_joints([1.0], [start])
    sim.advance(sim.actuation_delay_s)
    turned = np.array(sim.driver.joints)
    for _ in range(50):
        before = np.array(sim.driver.joints)
        sim.advance(0.01)
        step = np.abs(np.array(sim.driver.joints) - before).max()
        assert step <= np.abs(turned - start).max() * 0.01 + 1e-9


@pytest.mark.parametrize(
    ("times", "positions", "told"),
    [
        ([], [], "M >= 1"),
        ([0.5], [[0.0, 0.0, 0.0]], "M >= 1"),
        ([0.5, 0.5], np.zeros((2, 4)), "do not increase"),
        ([0.5], [[0.0, 0.0, math.nan, 0.0]], "not finite"),
    ],
)
def test_bad_trajectories_are_refused(sim, times, positions, told):
    with pytest.raises(WmError, match=told):
        sim.command_joints(times, positions)


def test_time_advances_in_driver_steps_only(sim):
    with pytest.raises(ValueError, match="multiple"):
        sim.advance(0.005)


def test_a_push_slides_the_mug_without_tipping_it(sim):
    sim.reset(1)
    x, y, _, _ = sim.mug_pose()
    goal = (x * 0.3, y * 0.3 - 0.05)
    push_to(sim, goal, 60)
    assert math.dist(sim.mug_pose()[:2], goal) < 0.03
    assert abs(sim.mug_pose()[2]) < 0.002
    assert not sim.fell()


@pytest.mark.parametrize(
    ("seed", "beyond"),
    [
        (4, (TABLE_BOUNDS.x_min - 0.1, 0.0)),
        (5, (TABLE_BOUNDS.x_max + 0.1, -0.08)),
        (6, (0.0, TABLE_BOUNDS.y_min - 0.1)),
    ],
)
def test_a_mug_pushed_over_an_edge_falls_and_stays_in_view(sim, seed, beyond):
    sim.reset(seed)
    assert not sim.fell()
    push_to(sim, beyond, 90)
    assert sim.fell()
    sim.advance(1.0)
    assert sim.fell()
    x, y, z, _ = sim.mug_pose()
    assert z < -0.05  # on the floor, or leaning against the table
    across, down = _in_picture(sim, np.array([x, y, z]))
    assert abs(across) < 0.97
    assert abs(down) < 0.97


def _in_picture(sim: TabletopSim, point: np.ndarray) -> tuple[float, float]:
    """Where the camera sees a point, both within -1 and 1 inside the picture (4:3)."""
    model = sim.model
    turn = np.empty(9)
    mujoco.mju_quat2Mat(turn, model.cam_quat[0])
    seen = turn.reshape(3, 3).T @ (point - model.cam_pos[0])
    half = math.tan(math.radians(model.cam_fovy[0]) / 2)
    return seen[0] / -seen[2] / (half * 4 / 3), seen[1] / -seen[2] / half


def test_the_zone_is_red_and_notices_the_mug(seeing):
    seeing.reset(8)
    assert not seeing.in_zone()
    centre = (
        (ZONE_BOUNDS.x_min + ZONE_BOUNDS.x_max) / 2,
        (ZONE_BOUNDS.y_min + ZONE_BOUNDS.y_max) / 2,
    )
    picture = seeing.render_goal((-0.2, -0.1), tip=(-0.3, -0.2)).astype(int)
    across, up = _in_picture(seeing, np.array([*centre, 0.0]))
    red, green, blue = picture[round(60 - 60 * up), round(80 + 80 * across)]
    assert red > 2 * max(green, blue)
    push_to(seeing, centre, 120)
    assert seeing.in_zone()
    assert not seeing.fell()
