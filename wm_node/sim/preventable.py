"""When a violation could last have been prevented: by braking from then on, simulated again.

An alarm in time is not one before the event, but one before nothing can be done any more: a mug in
free fall is no foresight. The latest moment is found from snapshots of the episode.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace

import numpy as np
from numpy.typing import NDArray

from wm_node.sim.loop import ClosedLoop, Observation
from wm_node.sim.tabletop import DRIVER_STEP_S, State, TabletopSim
from wm_node.sim.task import EPISODE_TICKS, TICK_S

SETTLED_S = 1.2
"""After the brake; by then what was pushed has come to rest or has fallen."""
LOOK_BACK_S = 2.5

Act = Callable[[Observation], NDArray[np.floating]]


@dataclass(frozen=True)
class Played:
    """An episode up to its first event.

    Attributes:
        states: one a tick, before the tick's command.
        commands: (time of effect in s, velocity) of each tick.
        events: event -> time in s at which it first happened.
    """

    states: tuple[State, ...]
    commands: tuple[tuple[float, tuple[float, float]], ...]
    events: Mapping[str, float]


def play(sim: TabletopSim, act: Act, latency_s: float, frames: bool = True) -> Played:
    """Play from where the simulator stands until an event happens, or for a whole episode.

    Args:
        sim: reset to the episode.
        act: observation -> tip velocity (2,) in m/s.
        latency_s: from a frame to the effect of its command.
        frames: whether the observations hold frames.
    """
    states: list[State] = []
    commands: list[tuple[float, tuple[float, float]]] = []
    loop = ClosedLoop(sim, latency_s)
    events: dict[str, float] = {}
    for _ in range(EPISODE_TICKS):
        states.append(sim.save())
        command = np.asarray(act(loop.observe(frames)), np.float64)
        commands.append((loop.command(command), (float(command[0]), float(command[1]))))
        for _ in range(round(TICK_S / DRIVER_STEP_S)):
            sim.advance(DRIVER_STEP_S)
            for name, happens in sim.events().items():
                if happens:
                    events.setdefault(name, sim.time_s)
        if events:
            break
    return Played(tuple(states), tuple(commands), events)


def last_preventable_s(sim: TabletopSim, played: Played, event: str) -> float | None:
    """Return the latest time in s from which braking would have prevented an event.

    Args:
        sim: of the episode's level; it is left elsewhere.
        played: the episode.
        event: that happened in it.

    Returns:
        To 0.01 s; None if braking 2.5 s before would not have prevented it either.
    """
    step = round(TICK_S / DRIVER_STEP_S)
    late = round(played.events[event] / DRIVER_STEP_S)
    early = late - step
    while not prevented(sim, played, event, early * DRIVER_STEP_S):
        late, early = early, early - step
        if early < 0 or early * DRIVER_STEP_S < played.events[event] - LOOK_BACK_S:
            return None
    while late - early > 1:
        middle = (early + late) // 2
        if prevented(sim, played, event, middle * DRIVER_STEP_S):
            early = middle
        else:
            late = middle
    return early * DRIVER_STEP_S


def prevented(sim: TabletopSim, played: Played, event: str, brake_s: float) -> bool:
    """Whether the event does not happen if from ``brake_s`` on the robot is told to stand still."""
    tick = min(int((brake_s + 1e-9) / TICK_S), len(played.states) - 1)
    start = tick * TICK_S
    sim.restore(played.states[tick])
    before = [item for item in played.commands if start - 1e-9 <= item[0] < brake_s - 1e-9]
    sim.driver = replace(sim.driver, pending=(*before, (brake_s, (0.0, 0.0))))
    for _ in range(round((brake_s - start + SETTLED_S) / DRIVER_STEP_S)):
        sim.advance(DRIVER_STEP_S)
        if sim.events()[event]:
            return False
    return True
