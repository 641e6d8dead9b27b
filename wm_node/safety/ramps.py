"""How a velocity changes towards another: within limits of acceleration, or of jerk as well.

Jerk-limited changes are those of Ruckig (Berscheid and Kroeger, 2021), time-optimal and replanned
at every step. A robot without ``max_jerk`` does not need that library.
"""

from __future__ import annotations

import importlib
from typing import Any, Protocol

import numpy as np
from numpy.typing import NDArray

from wm_node.errors import WmError

Values = NDArray[np.float64]

_REST_S = 1e-9  # so near to rest is rest: no denormal creeps on for ever


class Ramp(Protocol):
    """Changes of a velocity (A,) with its acceleration (A,), step by step of ``dt``.

    Attributes:
        lag_s: (A,) time that it may take until braking is in full force.
    """

    lag_s: Values

    def towards(
        self, velocity: Values, acceleration: Values, wanted: Values, dt: float
    ) -> tuple[Values, Values]:
        """Return velocity and acceleration one step nearer to a wanted velocity (A,)."""

    def brake(self, velocity: Values, acceleration: Values, dt: float) -> tuple[Values, Values]:
        """Return velocity and acceleration one step nearer to rest."""

    def smallest_change(self, dt: float) -> Values:
        """Return the velocity (A,) below which one step may end all motion."""


class AccelerationRamp:
    """Changes at the highest acceleration.

    Args:
        acceleration: highest, (A,).
        together: all braking takes equally long, so that the direction stays.
    """

    def __init__(self, acceleration: Values, together: bool) -> None:
        self._limit, self._together = acceleration, together
        self.lag_s = np.zeros_like(acceleration)

    def towards(
        self, velocity: Values, acceleration: Values, wanted: Values, dt: float
    ) -> tuple[Values, Values]:
        """See :class:`Ramp`."""
        change = self._limit * dt
        return velocity + np.clip(wanted - velocity, -change, change), np.zeros_like(velocity)

    def brake(self, velocity: Values, acceleration: Values, dt: float) -> tuple[Values, Values]:
        """See :class:`Ramp`."""
        seconds = np.abs(velocity) / self._limit
        if self._together:
            seconds = np.full_like(seconds, seconds.max(initial=0.0))
        moving = seconds > dt + _REST_S
        left = np.divide(seconds - dt, seconds, out=np.zeros_like(seconds), where=moving)
        return velocity * left, np.zeros_like(velocity)

    def smallest_change(self, dt: float) -> Values:
        """See :class:`Ramp`."""
        return self._limit * dt


class JerkRamp:
    """Changes within limits of acceleration and jerk, by Ruckig's velocity interface.

    Args:
        acceleration: highest, (A,).
        jerk: highest, (A,).
        together: braking keeps the direction, where the present acceleration lets it.

    Raises:
        WmError: Ruckig is not installed.
    """

    def __init__(self, acceleration: Values, jerk: Values, together: bool) -> None:
        try:
            self._ruckig: Any = importlib.import_module("ruckig")
        except ImportError as error:
            raise WmError(
                "the profile's 'max_jerk' needs the library ruckig: pip install ruckig."
            ) from error
        self._limit, self._jerk, self._together = acceleration, jerk, together
        size = len(acceleration)
        self._generator = self._ruckig.Ruckig(size)
        self._input = self._ruckig.InputParameter(size)
        self._path = self._ruckig.Trajectory(size)
        self._input.control_interface = self._ruckig.ControlInterface.Velocity
        self._input.max_acceleration = acceleration.tolist()
        self._input.max_jerk = jerk.tolist()
        self._plain = AccelerationRamp(acceleration, together)
        # From full acceleration away from rest to full braking, and to its end.
        self.lag_s = 2.0 * acceleration / jerk

    def towards(
        self, velocity: Values, acceleration: Values, wanted: Values, dt: float
    ) -> tuple[Values, Values]:
        """See :class:`Ramp`."""
        return self._step(velocity, acceleration, wanted, dt, "No")

    def brake(self, velocity: Values, acceleration: Values, dt: float) -> tuple[Values, Values]:
        """See :class:`Ramp`."""
        rest = np.zeros_like(velocity)
        return self._step(velocity, acceleration, rest, dt, "Phase" if self._together else "No")

    def smallest_change(self, dt: float) -> Values:
        """See :class:`Ramp`."""
        return self._jerk * dt**2 / 4.0

    def _step(
        self, velocity: Values, acceleration: Values, wanted: Values, dt: float, sync: str
    ) -> tuple[Values, Values]:
        given = self._input
        given.synchronization = getattr(self._ruckig.Synchronization, sync)
        given.current_velocity = velocity.tolist()
        given.current_acceleration = np.clip(acceleration, -self._limit, self._limit).tolist()
        given.target_velocity = wanted.tolist()
        result = self._generator.calculate(given, self._path)
        if result.value < 0:
            # No answer is no reason to go on: brake or follow as robots without max_jerk do.
            return self._plain.towards(velocity, acceleration, wanted, dt)
        if self._path.duration <= dt + _REST_S:
            return wanted.copy(), np.zeros_like(velocity)
        _, reached, pulling = self._path.at_time(dt)
        return np.array(reached), np.array(pulling)
