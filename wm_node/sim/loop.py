"""A policy and the simulator in closed loop, tick by tick, with the latency of a real robot's.

A frame is taken at a tick; the command that it leads to takes effect ``latency_s`` later.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wm_node.sim.tabletop import TabletopSim

NS = 1_000_000_000
START_NS = NS  # stamp of an episode's first frame
DEFAULT_LATENCY_S = 0.1


@dataclass(frozen=True)
class Observation:
    """What a policy sees at a tick."""

    stamp_ns: int
    frame: NDArray[np.uint8] | None
    """(H, W, 3) RGB of the camera's size; None for policies that use no frames."""
    joints: NDArray[np.float64]
    """(4,) rad."""
    applied: tuple[tuple[int, NDArray[np.float64]], ...]
    """Every command of the episode as (stamp of its effect in ns, velocity (2,)), oldest first.

    Those stamped after ``stamp_ns`` are on their way and cannot be taken back.
    """
    planned: tuple[tuple[int, NDArray[np.float64]], ...] | None = None
    """The policy's own commands, likewise, where a gate stands between them and what was applied;
    None: what was applied."""


class ClosedLoop:
    """Observations and commands of one episode; the caller lets time pass in between.

    Args:
        sim: reset to the episode.
        latency_s: from a frame to the effect of its command, beside the robot's own delay.
    """

    def __init__(self, sim: TabletopSim, latency_s: float) -> None:
        self._sim, self._latency_s = sim, latency_s
        self._applied: list[tuple[int, NDArray[np.float64]]] = []

    def observe(self, frames: bool) -> Observation:
        """Return what there is to see now; ``frames`` False saves the rendering."""
        sim = self._sim
        stamp = START_NS + round(sim.time_s * NS)
        frame = sim.render() if frames else None
        return Observation(stamp, frame, sim.joint_positions(), tuple(self._applied))

    def command(self, velocity: NDArray[np.float64]) -> float:
        """Command a tip velocity (2,) in m/s; return when it takes effect, in simulated s."""
        sim = self._sim
        sim.command_tip_velocity(velocity, delay_s=self._latency_s)
        effect_s = sim.time_s + self._latency_s + sim.actuation_delay_s
        self._applied.append((START_NS + round(effect_s * NS), velocity))
        return effect_s

    def advance(self, seconds: float) -> None:
        """Let a moment pass."""
        self._sim.advance(seconds)
