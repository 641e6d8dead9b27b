"""Kinematics of the four-joint arm, and the driver that turns commands into joint targets.

The driver follows its own reference, not the measured state, as long as the arm follows: then a
command sequence gives the same joint targets whatever the mug does, and the oracle relies on that.
Where something stops the arm, the reference waits for it (:func:`wait_for_arm`).
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import acos, atan2, cos, hypot, pi, sin

import numpy as np
from numpy.typing import NDArray

from wm_node.sim.scene import (
    ARM_BASE,
    LINK_LENGTH,
    SHOULDER_HEIGHT,
    STICK_LENGTH,
    TIP_BOUNDS,
    TIP_HEIGHT,
)

JOINT_NAMES = ("base_yaw", "shoulder", "elbow", "wrist")
JOINT_LOWER = (-3.0, -2.0, -2.8, -2.8)
JOINT_UPPER = (3.0, 2.0, 2.8, 2.8)
MAX_JOINT_VELOCITY = 3.0  # rad/s
MAX_TIP_SPEED = 0.25  # m/s, each axis
MAX_TIP_ACCELERATION = 3.0  # m/s^2, each axis
COMMAND_TIMEOUT_S = 0.2
MAX_LEAD_M = 0.02  # of the reference before the tip; 1.3 cm where nothing is in the way

Joints = tuple[float, float, float, float]


def joints_for_tip(x: float, y: float) -> Joints:
    """Return the joint angles (rad) that hold the stick upright with its tip over ``(x, y)``."""
    dx, dy = x - ARM_BASE[0], ARM_BASE[1] - y
    reach = hypot(dx, dy)
    drop = TIP_HEIGHT + STICK_LENGTH - SHOULDER_HEIGHT  # wrist above the shoulder
    span = hypot(reach, drop)
    bend = acos(min(1.0, span / (2 * LINK_LENGTH)))  # both links are equally long
    lean = atan2(reach, drop)  # of the line shoulder-wrist, from upright
    shoulder, elbow = lean - bend, 2 * bend
    return atan2(dx, dy), shoulder, elbow, pi - shoulder - elbow


def tip_for_joints(joints: Sequence[float]) -> tuple[float, float]:
    """Return the tip's ``(x, y)`` for any joint angles (rad)."""
    yaw, shoulder, elbow, wrist = joints
    forearm = shoulder + elbow
    reach = LINK_LENGTH * (sin(shoulder) + sin(forearm)) + STICK_LENGTH * sin(forearm + wrist)
    return ARM_BASE[0] + reach * sin(yaw), ARM_BASE[1] - reach * cos(yaw)


def tips_for_joints(joints: NDArray[np.float64]) -> NDArray[np.float64]:
    """Return the tips (..., 2) for joint angles (..., 4) in rad, as :func:`tip_for_joints` does."""
    yaw, shoulder, elbow, wrist = (joints[..., k] for k in range(4))
    forearm = shoulder + elbow
    bent = np.sin(shoulder) + np.sin(forearm)
    reach = LINK_LENGTH * bent + STICK_LENGTH * np.sin(forearm + wrist)
    return np.stack([ARM_BASE[0] + reach * np.sin(yaw), ARM_BASE[1] - reach * np.cos(yaw)], axis=-1)


@dataclass(frozen=True)
class Trajectory:
    """Joint waypoints: ``times`` in s after the trajectory's start, ``positions`` in rad."""

    times: tuple[float, ...]
    positions: tuple[Joints, ...]

    def starting_at(self, joints: Joints) -> Trajectory:
        """Return the trajectory with the joints (rad) at its start as the first waypoint.

        Without it the way to the first waypoint would be taken at once, however late that is due.
        """
        if self.times[0] <= 0:
            return self
        return Trajectory((0.0, *self.times), (joints, *self.positions))

    def at(self, elapsed_s: float) -> Joints:
        """Interpolate linearly; before the first waypoint and after the last, hold it."""
        if elapsed_s <= self.times[0]:
            return self.positions[0]
        for k in range(1, len(self.times)):
            if elapsed_s < self.times[k]:
                t0, t1 = self.times[k - 1], self.times[k]
                share = (elapsed_s - t0) / (t1 - t0)
                a, b, c, d = (
                    p + share * (q - p)
                    for p, q in zip(self.positions[k - 1], self.positions[k], strict=True)
                )
                return a, b, c, d
        return self.positions[-1]


@dataclass(frozen=True)
class DriverState:
    """All that the driver remembers; immutable, so that keeping it is a snapshot.

    ``pending`` holds commands that have not taken effect, as (effective time in s, command); a
    command is a tip velocity ``(vx, vy)`` or a :class:`Trajectory`.
    """

    tip: tuple[float, float]
    joints: Joints
    velocity: tuple[float, float] = (0.0, 0.0)  # of the reference, after the slew limit
    wanted: tuple[float, float] = (0.0, 0.0)
    wanted_since: float = -1.0e9
    trajectory: Trajectory | None = None
    trajectory_start: float = 0.0
    pending: tuple[tuple[float, tuple[float, float] | Trajectory], ...] = ()


def driver_at(x: float, y: float) -> DriverState:
    """Return a driver at rest with its tip at ``(x, y)``."""
    return DriverState(tip=(x, y), joints=joints_for_tip(x, y))


def _slew(value: float, wanted: float, step: float) -> float:
    return min(max(wanted, value - step), value + step)


def _towards(joints: Joints, wanted: Sequence[float], step: float) -> Joints:
    a, b, c, d = (
        _slew(q, min(max(w, low), high), step)
        for q, w, low, high in zip(joints, wanted, JOINT_LOWER, JOINT_UPPER, strict=True)
    )
    return a, b, c, d


def wait_for_arm(state: DriverState, joints: Sequence[float]) -> DriverState:
    """Return the driver's state with its tip at most ``MAX_LEAD_M`` from that of the arm.

    Without it the reference of an arm that pushes against a wall would wander off, and the arm
    would do nothing for as long when it is told to come back, or leap where the wall ends. A joint
    trajectory keeps its own time and is left as it is.

    Args:
        state: before a step.
        joints: (4,) as measured, in rad.
    """
    if state.trajectory is not None:
        return state
    x, y = tip_for_joints(joints)
    lead = hypot(state.tip[0] - x, state.tip[1] - y)
    if lead <= MAX_LEAD_M:
        return state
    share = MAX_LEAD_M / lead
    tip = x + share * (state.tip[0] - x), y + share * (state.tip[1] - y)
    return replace(state, tip=tip)


def driver_step(
    state: DriverState, time_s: float, dt: float, timeout_s: float = COMMAND_TIMEOUT_S
) -> DriverState:
    """Advance the reference from ``time_s`` by ``dt`` seconds; the result's joints are the targets.

    Velocities are limited to ``MAX_TIP_SPEED`` and ``MAX_TIP_ACCELERATION`` an axis and to
    ``TIP_BOUNDS``; ``timeout_s`` after the last velocity command the driver brakes. A
    trajectory starts where the joints' targets are, ends at rest by itself and is replaced by the
    next command of either kind.
    """
    wanted, since = state.wanted, state.wanted_since
    trajectory, start = state.trajectory, state.trajectory_start
    tip, velocity, pending = state.tip, state.velocity, state.pending
    while pending and pending[0][0] <= time_s + 1e-9:
        since, command = pending[0]
        pending = pending[1:]
        if isinstance(command, Trajectory):
            trajectory, start = command.starting_at(state.joints), time_s
        else:
            if trajectory is not None:
                tip, velocity = TIP_BOUNDS.clip(*tip_for_joints(state.joints)), (0.0, 0.0)
            trajectory, wanted = None, command
    if trajectory is not None:
        joints = _towards(state.joints, trajectory.at(time_s + dt - start), MAX_JOINT_VELOCITY * dt)
        tip, velocity, wanted = tip_for_joints(joints), (0.0, 0.0), (0.0, 0.0)
    else:
        if time_s - since >= timeout_s - 1e-9:
            wanted = (0.0, 0.0)
        step = MAX_TIP_ACCELERATION * dt
        vx, vy = _slew(velocity[0], wanted[0], step), _slew(velocity[1], wanted[1], step)
        x, y = TIP_BOUNDS.clip(tip[0] + vx * dt, tip[1] + vy * dt)
        velocity = ((x - tip[0]) / dt, (y - tip[1]) / dt)  # zero against a border
        tip = (x, y)
        joints = _towards(state.joints, joints_for_tip(x, y), MAX_JOINT_VELOCITY * dt)
    return DriverState(tip, joints, velocity, wanted, since, trajectory, start, pending)
