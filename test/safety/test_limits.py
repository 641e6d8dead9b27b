from __future__ import annotations

import sys
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wm_node.errors import WmError
from wm_node.profile import RobotProfile, load_profile, parse_profile
from wm_node.safety.limits import (
    PositionShaper,
    Shaper,
    VelocityShaper,
    brakeable_speed,
    make_shaper,
    motion_limits,
)
from wm_node.safety.reasons import Reason

DT = 0.02
NONE = np.zeros(0)


def changed(**action: Any) -> RobotProfile:
    data = load_profile("tabletop").dump()
    data["action"] |= action
    return parse_profile(data, "test")


def joints_profile(kind: str) -> RobotProfile:
    position = kind == "joint_position"
    return changed(
        kind=kind,
        names=["elbow", "base_yaw"],
        units=["rad", "rad"] if position else ["rad/s", "rad/s"],
        lower=[-1.0, -2.0],
        upper=[1.0, 2.0],
        max_acceleration=[20.0, 12.0],
        message="trajectory_msgs/msg/JointTrajectory"
        if position
        else "std_msgs/msg/Float64MultiArray",
        fields=["positions"],
    )


def test_limits_that_cannot_stop_in_time_are_refused() -> None:
    with pytest.raises(WmError, match="stopping_time_s"):
        motion_limits(changed(max_acceleration=[0.5, 3.0]))


def test_without_acceleration_limit_the_robot_brakes_over_its_stopping_time() -> None:
    limits = motion_limits(changed(max_acceleration=None))
    assert limits.stopping_s == pytest.approx(0.3)


def test_velocities_in_a_joint_trajectory_are_refused() -> None:
    profile = changed(
        kind="joint_velocity",
        names=["elbow", "wrist"],
        units=["rad/s", "rad/s"],
        max_acceleration=None,
        message="trajectory_msgs/msg/JointTrajectory",
        fields=["velocities"],
    )
    with pytest.raises(WmError, match="carries positions"):
        make_shaper(profile, 0.04)


def test_a_twist_over_its_limit_keeps_its_direction() -> None:
    shaper = make_shaper(load_profile("tabletop"), 0.04)
    target = np.array([0.5, 0.1])
    for _ in range(50):
        reason = shaper.follow(target, 0.0, DT, 1.0, NONE)
    assert reason is Reason.VELOCITY_LIMIT
    np.testing.assert_allclose(shaper.output, [0.25, 0.05])


def test_a_jump_is_more_than_one_period_allows() -> None:
    shaper = make_shaper(load_profile("tabletop"), 0.04)
    assert not shaper.jumps(np.array([0.25, 0.0]))
    for _ in range(50):
        shaper.follow(np.array([0.25, 0.0]), 0.0, DT, 1.0, NONE)
    assert shaper.jumps(np.array([-0.25, 0.0]))


def test_brakeable_speed_solves_its_equation() -> None:
    distance, acceleration = np.array([0.3, 0.0, -1.0]), np.full(3, 2.0)
    speed = brakeable_speed(distance, acceleration, 0.1)
    assert speed[0] * 0.1 + speed[0] ** 2 / 4 == pytest.approx(0.3)
    assert speed[1] == speed[2] == 0.0


TARGETS = st.lists(
    st.tuples(st.floats(-9, 9), st.floats(-9, 9), st.floats(0.0, 2 * DT)), min_size=1, max_size=60
)


@given(targets=TARGETS)
def test_twist_keeps_speed_and_acceleration_limits_and_brakes_straight(
    targets: list[tuple[float, float, float]],
) -> None:
    profile = load_profile("tabletop")
    limits = motion_limits(profile)
    shaper = VelocityShaper(limits, None, 2 * DT)
    for *target, dt in targets:
        before = shaper.output
        shaper.follow(np.array(target), 0.0, dt, 1.0, NONE)
        assert np.all(np.abs(shaper.output) <= limits.velocity + 1e-12)
        assert np.all(np.abs(shaper.output - before) <= limits.acceleration * dt + 1e-12)
    steps = 0
    while not shaper.at_rest:
        before = shaper.output
        shaper.brake(DT)
        steps += 1
        assert np.abs(shaper.output).max() < np.abs(before).max()
        assert np.cross(np.append(before, 0), np.append(shaper.output, 0))[2] == pytest.approx(
            0, abs=1e-12
        )
    assert steps * DT <= profile.safety.stopping_time_s + DT


@given(targets=TARGETS, start=st.tuples(st.floats(-2.8, 2.8), st.floats(-3, 3)))
def test_joint_velocities_never_leave_the_position_limits(
    targets: list[tuple[float, float, float]], start: tuple[float, float]
) -> None:
    profile = joints_profile("joint_velocity")
    limits = motion_limits(profile)
    lower, upper = np.array([-2.8, -3.0]), np.array([2.8, 3.0])
    shaper = VelocityShaper(limits, (lower, upper), 2 * DT)
    positions = np.array(start)
    for *target, dt in targets * 5:
        shaper.follow(np.array(target), 0.0, dt, 1.0, positions)
        positions = positions + shaper.output * dt
        assert np.all(positions >= lower - 1e-9)
        assert np.all(positions <= upper + 1e-9)
    while not shaper.at_rest:  # and neither does braking
        shaper.brake(DT)
        positions = positions + shaper.output * DT
    assert np.all(positions >= lower - 1e-9)
    assert np.all(positions <= upper + 1e-9)


@given(targets=TARGETS, start=st.tuples(st.floats(-1, 1), st.floats(-2, 2)))
def test_positions_keep_every_limit_and_every_command_ends_at_rest(
    targets: list[tuple[float, float, float]], start: tuple[float, float]
) -> None:
    profile = joints_profile("joint_position")
    limits = motion_limits(profile)
    shaper = PositionShaper(limits)
    shaper.reset(np.array(start))
    speed = np.zeros(2)
    for *target, dt in targets:
        before = shaper.output
        shaper.follow(np.array(target), 0.0, dt, 1.0, NONE)
        assert np.all(shaper.output >= limits.lower - 1e-9)
        assert np.all(shaper.output <= limits.upper + 1e-9)
        if dt > 1e-4:
            now = (shaper.output - before) / dt
            assert np.all(np.abs(now) <= limits.velocity + 1e-6)
            speed = now
        rows = shaper.manoeuvre(DT)
        assert np.all(rows >= limits.lower - 1e-9)
        assert np.all(rows <= limits.upper + 1e-9)
        steps = np.abs(np.diff(rows, axis=0))
        assert np.all(np.diff(steps, axis=0) <= 1e-12)  # slower and slower
        assert len(rows) * DT <= profile.safety.stopping_time_s + 2 * DT
    assert np.isfinite(speed).all()


def test_a_position_is_reached_exactly_and_without_overshoot() -> None:
    profile = joints_profile("joint_position")
    shaper = PositionShaper(motion_limits(profile))
    shaper.reset(np.array([0.0, 0.0]))
    target = np.array([0.5, -1.0])
    for _ in range(200):
        shaper.follow(target, 1.0, DT, 1.0, NONE)
        assert np.all(np.abs(shaper.output) <= np.abs(target) + 1e-12)
    np.testing.assert_array_equal(shaper.output, target)
    assert shaper.at_rest


def test_positions_beyond_the_limits_are_clipped_and_named() -> None:
    shaper = PositionShaper(motion_limits(joints_profile("joint_position")))
    shaper.reset(np.zeros(2))
    assert shaper.follow(np.array([1.5, 0.0]), 0.0, DT, 1.0, NONE) is Reason.POSITION_LIMIT
    assert shaper.follow(np.array([0.9, 0.0]), 0.0, DT, 1.0, NONE) is Reason.VELOCITY_LIMIT
    assert shaper.follow(np.array([0.01, 0.0]), 0.0, DT, 1.0, NONE) is Reason.OK


# ---- jerk ------------------------------------------------------------------------------------

JERK = {"twist": [60.0, 60.0], "joint_velocity": [400.0, 240.0], "joint_position": [400.0, 240.0]}
# Of the two joints.
LOWER, UPPER = np.array([-2.8, -3.0]), np.array([2.8, 3.0])
JERK_STEPS = st.lists(
    st.tuples(
        st.floats(-3, 3),
        st.floats(-3, 3),
        st.integers(1, 12),  # cycles
        st.booleans(),  # brakes instead
        st.sampled_from([1.0, 0.3]),
    ),
    min_size=1,
    max_size=12,
)


def profile_of(kind: str, **action: Any) -> RobotProfile:
    data = (load_profile("tabletop") if kind == "twist" else joints_profile(kind)).dump()
    data["action"] |= {"max_jerk": JERK[kind], **action}
    return parse_profile(data, "test")


def shaper_of(profile: RobotProfile) -> Shaper:
    limits = motion_limits(profile)
    if profile.action.kind == "joint_position":
        return PositionShaper(limits)
    joints = None if profile.action.kind == "twist" else (LOWER, UPPER)
    return VelocityShaper(limits, joints, 2 * DT)


@pytest.mark.parametrize("kind", list(JERK))
@given(steps=JERK_STEPS)
def test_any_mixture_of_following_and_braking_keeps_the_limit_of_jerk(
    kind: str, steps: list[tuple[float, float, int, bool, float]]
) -> None:
    profile = profile_of(kind)
    limits, shaper = motion_limits(profile), shaper_of(profile)
    positions = np.zeros(2)
    shaper.reset(positions)
    outputs = [shaper.output] * 4
    for x, y, cycles, brakes, scale in steps:
        for number in range(cycles):
            if brakes:
                shaper.brake(DT)
            else:
                shaper.follow(np.array([x, y]), number * DT, DT, scale, positions)
            outputs.append(shaper.output)
            if kind == "joint_velocity":
                positions = positions + shaper.output * DT
                assert np.all((positions >= LOWER) & (positions <= UPPER))
    for _ in range(60):
        shaper.brake(DT)
        outputs.append(shaper.output)
    assert shaper.at_rest
    moves = np.array(outputs)
    velocity = np.diff(moves, axis=0) / DT if kind == "joint_position" else moves
    acceleration = np.diff(velocity, axis=0) / DT
    jerk = np.diff(acceleration, axis=0) / DT
    assert limits.jerk is not None
    assert np.all(np.abs(velocity) <= limits.velocity * (1 + 1e-6))
    assert np.all(np.abs(acceleration) <= limits.acceleration * (1 + 1e-6))
    assert np.all(np.abs(jerk) <= limits.jerk * (1 + 1e-6))
    if kind == "joint_position":
        assert np.all((moves >= limits.lower - 1e-9) & (moves <= limits.upper + 1e-9))


def test_a_twist_brakes_straight_and_in_time() -> None:
    profile = profile_of("twist")
    shaper = shaper_of(profile)
    for _ in range(30):
        shaper.follow(np.array([0.24, -0.12]), 0.0, DT, 1.0, NONE)
    np.testing.assert_allclose(shaper.output, [0.24, -0.12])
    steps = 0
    while not shaper.at_rest:
        before = shaper.output
        shaper.brake(DT)
        steps += 1
        assert np.abs(shaper.output).max() <= np.abs(before).max()
        assert shaper.output[1] == pytest.approx(-0.5 * shaper.output[0], abs=1e-9)
    assert steps * DT <= motion_limits(profile).stopping_s + DT


def test_with_jerk_a_position_is_reached_exactly_and_without_overshoot() -> None:
    shaper = shaper_of(profile_of("joint_position"))
    target = np.array([0.5, -1.0])
    for _ in range(400):
        shaper.follow(target, 1.0, DT, 1.0, NONE)
        assert np.all(np.abs(shaper.output) <= np.abs(target) + 1e-9)
    np.testing.assert_array_equal(shaper.output, target)
    assert shaper.at_rest


def test_the_positions_sent_brake_to_rest_within_the_stopping_time() -> None:
    profile = profile_of("joint_position")
    shaper = shaper_of(profile)
    for number in range(20):
        shaper.follow(np.array([1.0, 2.0]), 0.0, DT, 1.0, NONE)
        rows = shaper.manoeuvre(DT)
        assert np.abs(np.diff(rows, axis=0)[-1]).max(initial=0.0) < 0.02, number
        assert len(rows) * DT <= profile.safety.stopping_time_s + 8 * DT


def test_a_jerk_that_does_not_let_the_robot_stop_in_time_is_refused() -> None:
    assert motion_limits(changed(max_jerk=[60.0, 60.0])).stopping_s == pytest.approx(
        0.25 / 3.0 + 3.0 / 60.0
    )
    with pytest.raises(WmError, match=r"at max_acceleration and max_jerk it needs 0\.31"):
        motion_limits(changed(max_jerk=[10.0, 60.0]))


def test_without_the_library_the_profile_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "ruckig", None)
    with pytest.raises(WmError, match="pip install ruckig"):
        shaper_of(profile_of("twist"))
    shaper_of(load_profile("tabletop"))  # which has no limit of jerk
