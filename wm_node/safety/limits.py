"""Shapes commands so that they keep the profile's limits and can always be braked to rest.

A shaper owns the last output. ``follow`` moves it towards a target as far as the limits allow in
``dt``; ``brake`` moves it towards rest at the highest deceleration. Per step an output never
changes by more than the limits of acceleration and, where there is one, of jerk, so any mixture of
the two is smooth.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from wm_node.errors import WmError
from wm_node.profile import RobotProfile
from wm_node.safety.ramps import AccelerationRamp, JerkRamp, Ramp
from wm_node.safety.reasons import Reason

Values = NDArray[np.float64]

# Relative slack before a value counts as over its limit: planners compute in float32.
_SLACK = 1e-5


@dataclass(frozen=True)
class MotionLimits:
    """Limits by action; all arrays have shape (A,), in the action's units.

    Attributes:
        lower: lowest action value; for positions within the joint's limits.
        upper: highest action value.
        velocity: highest speed of the commanded quantity (equal to the bound for velocities).
        acceleration: highest acceleration and deceleration.
        jerk: highest change of acceleration a second; None: not limited.
        period_s: time between two commands of the source.
    """

    lower: Values
    upper: Values
    velocity: Values
    acceleration: Values
    jerk: Values | None
    period_s: float

    @property
    def stopping_s(self) -> float:
        """The longest time from full speed to rest."""
        speed, acceleration = self.velocity, self.acceleration
        if self.jerk is None:
            return float(np.max(speed / acceleration))
        full = speed >= acceleration**2 / self.jerk  # else full deceleration is not reached
        ramps = np.where(full, acceleration / self.jerk, 2.0 * np.sqrt(speed / self.jerk))
        return float(np.max(ramps + full * speed / acceleration))

    def ramp(self, together: bool) -> Ramp:
        """Return how velocities change within these limits; see :mod:`wm_node.safety.ramps`."""
        if self.jerk is None:
            return AccelerationRamp(self.acceleration, together)
        return JerkRamp(self.acceleration, self.jerk, together)


def joint_indices(profile: RobotProfile) -> NDArray[np.intp]:
    """Return the index of each action's joint in the profile's joints; empty for a twist."""
    if profile.action.kind == "twist":
        return np.zeros(0, dtype=np.intp)
    order = {name: i for i, name in enumerate(profile.joints.names)}
    return np.array([order[name] for name in profile.action.names], dtype=np.intp)


def motion_limits(profile: RobotProfile) -> MotionLimits:
    """Read the limits of the profile's action.

    Without ``max_acceleration`` the robot brakes evenly over ``safety.stopping_time_s``.

    Raises:
        WmError: position and action limits exclude each other, or the acceleration limit is too
            low to stop within ``safety.stopping_time_s``.
    """
    action, joints, index = profile.action, profile.joints, joint_indices(profile)
    lower, upper = np.array(action.lower), np.array(action.upper)
    if action.kind == "joint_position":
        lower = np.maximum(lower, np.array(joints.lower)[index])
        upper = np.minimum(upper, np.array(joints.upper)[index])
        velocity = np.array(joints.max_velocity)[index]
        if np.any(lower > upper):
            names = [n for n, bad in zip(action.names, lower > upper, strict=True) if bad]
            raise WmError(
                f"the profile '{profile.name}' leaves no allowed position for {', '.join(names)}; "
                "compare the limits of 'action' and 'joints'."
            )
    else:
        if action.kind == "joint_velocity":
            fastest = np.array(joints.max_velocity)[index]
            lower, upper = np.maximum(lower, -fastest), np.minimum(upper, fastest)
        velocity = np.maximum(-lower, upper)
    stopping = profile.safety.stopping_time_s
    acceleration = (
        velocity / stopping
        if action.max_acceleration is None
        else np.array(action.max_acceleration)
    )
    jerk = None if action.max_jerk is None else np.array(action.max_jerk)
    limits = MotionLimits(lower, upper, velocity, acceleration, jerk, 1.0 / action.rate_hz)
    if limits.stopping_s > stopping * (1 + _SLACK):
        raise WmError(
            f"the profile '{profile.name}' cannot stop within stopping_time_s = {stopping:g} s: "
            f"at max_acceleration{' and max_jerk' if jerk is not None else ''} it needs "
            f"{limits.stopping_s:.3g} s; raise one or lower the speed."
        )
    return limits


def brakeable_speed(distance: Values, acceleration: Values, dt: float | Values) -> Values:
    """Return the highest speed, (A,), from which the distance suffices to stop.

    One step of ``dt`` at that speed passes before braking starts:
    ``v dt + v^2 / (2 a) <= distance``, solved for v; 0 where no distance is left.
    """
    lag = acceleration * dt
    return np.asarray(np.sqrt(lag**2 + 2 * acceleration * np.maximum(distance, 0.0)) - lag)


class Shaper(Protocol):
    """What the gate needs of a shaper. ``positions`` are measured, (A,), empty for a twist."""

    @property
    def output(self) -> Values:
        """The last output, (A,)."""

    @property
    def at_rest(self) -> bool:
        """Whether the output commands standstill."""

    def reset(self, positions: Values) -> None:
        """Start from standstill where the joints are."""

    def jumps(self, target: Values) -> bool:
        """Whether the target cannot be reached within the acceleration limit in one period."""

    def follow(
        self, target: Values, age_s: float, dt: float, scale: float, positions: Values
    ) -> Reason:
        """Move towards the target of a command that is ``age_s`` old; return OK or the limit.

        ``scale`` in 0..1 reduces the highest speed.
        """

    def brake(self, dt: float) -> None:
        """Move towards rest at the highest deceleration."""

    def manoeuvre(self, dt: float) -> Values:
        """Return the outputs to send, (K, A), ``dt`` apart: positions brake to rest from here on.

        Velocities are sent one at a time (K = 1): the driver's own timeout ends them at rest.
        """


class VelocityShaper:
    """Shapes twists and joint velocities.

    Args:
        limits: of the action.
        joints: lower and upper joint positions, each (A,); None for a twist.
        reaction_s: how long a velocity may act before the next one does.
    """

    def __init__(
        self, limits: MotionLimits, joints: tuple[Values, Values] | None, reaction_s: float
    ) -> None:
        self._limits = limits
        self._joints = joints
        self._ramp = limits.ramp(together=joints is None)
        self._reaction_s = reaction_s + self._ramp.lag_s
        self._velocity = np.zeros_like(limits.lower)
        self._acceleration = np.zeros_like(limits.lower)

    @property
    def output(self) -> Values:
        """The last velocity."""
        return self._velocity.copy()

    @property
    def at_rest(self) -> bool:
        """Whether the velocity is zero, and stays so."""
        return not (self._velocity.any() or self._acceleration.any())

    def reset(self, positions: Values) -> None:
        """Start from standstill."""
        self._velocity = np.zeros_like(self._velocity)
        self._acceleration = np.zeros_like(self._velocity)

    def jumps(self, target: Values) -> bool:
        """Whether the change of velocity is more than one period allows."""
        change = np.abs(np.clip(target, self._limits.lower, self._limits.upper) - self._velocity)
        allowed = self._limits.acceleration * self._limits.period_s
        return bool(np.any(change > allowed * (1 + _SLACK)))

    def follow(
        self, target: Values, age_s: float, dt: float, scale: float, positions: Values
    ) -> Reason:
        """Move the velocity towards the target."""
        limits, reason = self._limits, Reason.OK
        # Slower, in the same direction: clipping axis by axis would steer.
        wanted = _scaled_into(target, limits.lower * scale, limits.upper * scale)
        if np.any(np.abs(wanted - target) > _SLACK * limits.velocity):
            reason = Reason.VELOCITY_LIMIT
        if self._joints is not None:
            lower, upper = self._joints
            up = brakeable_speed(upper - positions, limits.acceleration, self._reaction_s)
            down = -brakeable_speed(positions - lower, limits.acceleration, self._reaction_s)
            safe = np.clip(wanted, down, up)
            if np.any(np.abs(safe - wanted) > _SLACK * limits.velocity):
                reason = Reason.POSITION_LIMIT
            wanted = safe
        self._velocity, self._acceleration = self._ramp.towards(
            self._velocity, self._acceleration, wanted, dt
        )
        return reason

    def brake(self, dt: float) -> None:
        """Reduce the velocity; a twist keeps its direction, joints brake each as fast as it can."""
        self._velocity, self._acceleration = self._ramp.brake(
            self._velocity, self._acceleration, dt
        )

    def manoeuvre(self, dt: float) -> Values:
        """Return the present velocity, (1, A)."""
        return self._velocity[None].copy()


class PositionShaper:
    """Shapes joint positions: a reference that moves within the limits of its motion."""

    def __init__(self, limits: MotionLimits) -> None:
        self._limits = limits
        self._ramp = limits.ramp(together=False)
        self._position = np.zeros_like(limits.lower)
        self._velocity = np.zeros_like(limits.lower)
        self._acceleration = np.zeros_like(limits.lower)

    @property
    def output(self) -> Values:
        """The last reference position."""
        return self._position.copy()

    @property
    def at_rest(self) -> bool:
        """Whether the reference stands still, and stays so."""
        return not (self._velocity.any() or self._acceleration.any())

    def reset(self, positions: Values) -> None:
        """Start from standstill where the joints are."""
        self._position = np.array(positions, dtype=np.float64)
        self._velocity = np.zeros_like(self._position)
        self._acceleration = np.zeros_like(self._position)

    def jumps(self, target: Values) -> bool:
        """Return False: a distant position shows as a velocity limit."""
        return False

    def follow(
        self, target: Values, age_s: float, dt: float, scale: float, positions: Values
    ) -> Reason:
        """Move the reference to arrive when the next command is due, able to stop there."""
        limits, reason = self._limits, Reason.OK
        wanted = np.clip(target, limits.lower, limits.upper)
        if np.any(np.abs(wanted - target) > _SLACK):
            reason = Reason.POSITION_LIMIT
        distance = np.abs(wanted - self._position)
        speed = distance / max(limits.period_s - age_s, dt)
        fastest = limits.velocity * scale
        if reason is Reason.OK and np.any(speed > fastest * (1 + _SLACK)):
            reason = Reason.VELOCITY_LIMIT
        speed = np.minimum(speed, fastest)
        speed = np.minimum(
            speed, brakeable_speed(distance, limits.acceleration, dt + self._ramp.lag_s)
        )
        change = self._ramp.smallest_change(dt)
        # So near and so slow that it can be there and at rest now: end exactly, without creeping.
        arrives = (
            (distance <= np.minimum(change, fastest) * dt)
            & (np.abs(self._velocity) <= change)
            & (np.abs(self._acceleration) * dt <= change)
        )
        goal = np.copysign(speed, wanted - self._position)
        velocity, acceleration = self._ramp.towards(self._velocity, self._acceleration, goal, dt)
        self._position = np.where(arrives, wanted, self._position + velocity * dt)
        self._velocity = np.where(arrives, 0.0, velocity)
        self._acceleration = np.where(arrives, 0.0, acceleration)
        return reason

    def brake(self, dt: float) -> None:
        """Reduce the reference's velocity, joint by joint."""
        self._velocity, self._acceleration = self._ramp.brake(
            self._velocity, self._acceleration, dt
        )
        self._position = self._position + self._velocity * dt

    def manoeuvre(self, dt: float) -> Values:
        """Return the present position and the braking positions that follow it, (K, A)."""
        rows, velocity, acceleration = [self._position], self._velocity, self._acceleration
        while (velocity.any() or acceleration.any()) and dt > 0:
            velocity, acceleration = self._ramp.brake(velocity, acceleration, dt)
            rows.append(rows[-1] + velocity * dt)
        return np.array(rows)


def _scaled_into(values: Values, lower: Values, upper: Values) -> Values:
    bound = np.where(values > 0, upper, lower)
    ratio = np.divide(bound, values, out=np.ones_like(values), where=np.abs(values) > np.abs(bound))
    return np.asarray(values * min(1.0, float(ratio.min(initial=1.0))))


def make_shaper(profile: RobotProfile, reaction_s: float) -> Shaper:
    """Return the shaper of the profile's kind of action.

    Args:
        profile: the robot.
        reaction_s: how long a velocity may act before the next one does.

    Raises:
        WmError: limits that contradict each other, or a message that cannot carry the action.
    """
    limits = motion_limits(profile)
    if profile.action.kind == "joint_position":
        return PositionShaper(limits)
    if profile.action.message == "trajectory_msgs/msg/JointTrajectory":
        raise WmError(
            f"the profile '{profile.name}' publishes '{profile.action.kind}' as a JointTrajectory, "
            "which carries positions; use kind 'joint_position' or another message."
        )
    if profile.action.kind == "twist":
        return VelocityShaper(limits, None, reaction_s)
    index = joint_indices(profile)
    joints = (np.array(profile.joints.lower)[index], np.array(profile.joints.upper)[index])
    return VelocityShaper(limits, joints, reaction_s)
