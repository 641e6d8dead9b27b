"""Keeps links of the robot in their workspace and out of volumes, by kinematics alone.

Nothing here is learned, and nothing learned can overrule it: whatever the model foresees, an output
passes only if the robot could still brake in free space afterwards. Free space is a box less other
boxes, for balls around the watched links.
"""

from __future__ import annotations

from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wm_node.profile import Box, RobotProfile, Space, urdf_file
from wm_node.safety.kinematics import load_chains
from wm_node.safety.limits import joint_indices, motion_limits
from wm_node.safety.reasons import Reason

Values = NDArray[np.float64]

SAMPLES = 9
"""Places on a way to standstill that are looked at, the present one included."""
_ROUNDING_M = 1e-9


class SpaceGuard:
    """Judges outputs of one robot.

    Args:
        profile: with ``safety.space``.
        space: of the profile.
        urdf: its kinematics.
        reaction_s: how long an output may act before the gate's next one does.

    Raises:
        WmError: the URDF cannot be read, or does not tell where the links are.
    """

    def __init__(self, profile: RobotProfile, space: Space, urdf: Path, reaction_s: float) -> None:
        links = [watched.link for watched in space.links]
        names = profile.joints.names
        self._chains = load_chains(urdf, space.frame, links, names)
        self._links = links
        self._workspace = None if space.workspace is None else _corners(space.workspace)
        self._volumes = [(f"'{volume.name}'", _corners(volume)) for volume in space.keep_out]
        self._radii = np.array([watched.radius_m for watched in space.links])
        self._kind, self._index = profile.action.kind, joint_indices(profile)
        # The measured place is as old as joint states may be, and the robot acts late.
        late_s = profile.safety.max_joint_age_s + max(profile.action.delay_s or (0.0,))
        self._reaction_s = reaction_s + late_s
        self._acceleration = motion_limits(profile).acceleration
        axes = {"x": 0, "y": 1, "z": 2}
        self._axes = (
            np.array([axes[path[-1]] for path in profile.action.fields], dtype=np.intp)
            if self._kind == "twist"
            else np.zeros(0, dtype=np.intp)
        )

    def breach(self, joints: Values, output: Values, manoeuvre: Values) -> tuple[Reason, str]:
        """Return which border the robot would cross before it can stand still, ``OK`` if none.

        Args:
            joints: (J,) measured positions.
            output: (A,) that would be sent.
            manoeuvre: (K, A) the output and the braking after it, of a position robot.
        """
        for places in self._ways(joints, output, manoeuvre):
            for link, radius, way in zip(self._links, self._radii, places, strict=True):
                for reason, name, room in self._rooms(way, radius):
                    # Where it already is beyond, what leads no deeper passes: the way back does.
                    if room.min() < min(0.0, room[0]) - _ROUNDING_M:
                        return reason, f"{link}, {1e3 * room.min():.0f} mm to {name}"
        return Reason.OK, ""

    def _ways(self, joints: Values, output: Values, manoeuvre: Values) -> list[Values]:
        """Places (L, SAMPLES, 3) of the links from now to standstill, for each way to come there.

        A twist is braked in its direction, so that braking earlier is a part of braking late, and
        a position is sent with its braking. Joint velocities are braked each as fast as it can,
        which bends the way: braked at once it is another one than braked late.
        """
        if self._kind == "twist":
            way = np.zeros((SAMPLES, 3))
            way[:, self._axes] = self._stopping_way(output, self._reaction_s)
            return [np.stack([chain.places(joints[None]) + way for chain in self._chains])]
        states = np.repeat(joints[None], SAMPLES, 0)
        if self._kind == "joint_position":
            rows = np.linspace(0, len(manoeuvre) - 1, SAMPLES - 1).round().astype(np.intp)
            states[1:, self._index] = manoeuvre[rows]
            return [self._places(states)]
        ways = []
        for reaction_s in (0.0, self._reaction_s):
            moved = states.copy()
            moved[:, self._index] += self._stopping_way(output, reaction_s)
            ways.append(self._places(moved))
        return ways

    def _places(self, states: Values) -> Values:
        return np.stack([chain.places(states) for chain in self._chains])

    def _stopping_way(self, velocity: Values, reaction_s: float) -> Values:
        """What is moved (SAMPLES, A) if a velocity acts for the reaction time, then is braked."""
        seconds = np.abs(velocity) / self._acceleration
        longest = float(seconds.max(initial=0.0))
        if self._kind == "twist":
            seconds = np.full_like(seconds, longest)
        times = np.linspace(0.0, reaction_s + longest, SAMPLES)[:, None]
        braked = np.clip(times - reaction_s, 0.0, seconds)
        # After the time t of a braking that takes T, v (t - t^2 / 2 T) are behind.
        share = np.divide(braked, seconds, out=np.zeros_like(braked), where=seconds > 0)
        return np.asarray(velocity * (np.minimum(times, reaction_s) + braked * (1 - share / 2)))

    def _rooms(self, way: Values, radius: float) -> list[tuple[Reason, str, Values]]:
        """Distances (SAMPLES,) to each border, negative beyond it."""
        rooms = []
        if self._workspace is not None:
            lower, upper = self._workspace
            inside = np.minimum(way - lower, upper - way).min(axis=1)
            rooms.append((Reason.WORKSPACE, "the border of the workspace", inside - radius))
        for name, (lower, upper) in self._volumes:
            rooms.append((Reason.KEEP_OUT, name, _outside(way, lower, upper) - radius))
        return rooms


def _corners(box: Box) -> tuple[Values, Values]:
    return np.array(box.lower), np.array(box.upper)


def _outside(places: Values, lower: Values, upper: Values) -> Values:
    """Distances (N,) of places (N, 3) to a box; inside it, minus the way out."""
    away = np.maximum(lower - places, places - upper)
    outside = np.linalg.norm(np.maximum(away, 0.0), axis=1)
    return np.asarray(outside + np.minimum(away.max(axis=1), 0.0))


def space_guard(profile: RobotProfile, path: str | Path, reaction_s: float) -> SpaceGuard | None:
    """Return the guard of a profile that was loaded from ``path``; None where it sets no space.

    Raises:
        WmError: as :class:`SpaceGuard`.
    """
    space = profile.safety.space
    if space is None:
        return None
    return SpaceGuard(profile, space, urdf_file(path, space), reaction_s)
