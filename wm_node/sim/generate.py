"""Simulated episodes straight to training arrays, without bags in between.

The arrays are those that ``wm ingest`` makes of the same episode's bag: the same rendering size,
the same resizing, the same rules for actions and events.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from functools import lru_cache

import numpy as np

from wm_node.data.dataset import EpisodeArrays
from wm_node.data.images import resize_area
from wm_node.data.resample import event_flags, tick_actions, tick_stamps, to_ns
from wm_node.profile import RobotProfile
from wm_node.sim.episode import record_episode
from wm_node.sim.level import BASIC, OTHERS
from wm_node.sim.levels import find_level
from wm_node.sim.mix import DEFAULT_MIX, Mix
from wm_node.sim.processes import in_processes
from wm_node.sim.tabletop import TabletopSim


@lru_cache(maxsize=2)
def shared_simulator(width: int, height: int, render: bool, level: str = BASIC.name) -> TabletopSim:
    """Return this process's simulator of a camera size; whoever uses it resets it first."""
    return TabletopSim((width, height), render=render, level=find_level(level))


def generate_episode(
    profile: RobotProfile,
    seed: int,
    mix: Mix = DEFAULT_MIX,
    render: bool = True,
) -> EpisodeArrays:
    """Simulate the episode ``seed`` and return its arrays on the profile's ticks.

    Args:
        profile: the tabletop profile; its first camera's size is rendered, then averaged down.
        seed: of the episode, which decides scene, behaviour and noise.
        mix: shares of the behaviours.
        render: False leaves the frames zero and marked invalid, for statistics.

    Returns:
        61 ticks of 0.1 s for the tabletop profile.
    """
    camera, rates = profile.cameras[0], profile.model
    sim = shared_simulator(camera.width, camera.height, render)
    streams = record_episode(sim, seed, mix, rates.tick_rate_hz if render else None)
    start = int(streams.stamps[0])
    tick_ns = to_ns(rates.tick_s)
    count = (int(streams.stamps[-1]) - start) // tick_ns + 1
    ticks = tick_stamps(start, rates.tick_rate_hz, 0, count)
    at = np.searchsorted(streams.stamps, ticks)
    timeout = profile.action.command_timeout_s
    actions = tick_actions(
        profile.action.kind,
        streams.command_stamps,
        streams.commands,
        ticks,
        tick_ns,
        np.zeros(2, dtype=np.int64),
        None if timeout is None else to_ns(timeout),
    )
    frames = np.zeros((count, camera.model_height, camera.model_width, 3), dtype=np.uint8)
    for k, frame in enumerate(streams.frames[:count]):
        frames[k] = resize_area(frame, camera.model_width, camera.model_height)
    columns = {
        "mug_x": streams.mug_position[at, 0],
        "mug_y": streams.mug_position[at, 1],
        "tip_x": streams.tip[at, 0],
        "tip_y": streams.tip[at, 1],
    }
    nowhere = np.full((len(streams.stamps), 2), np.nan)
    for name in OTHERS:
        place = streams.others.get(name, nowhere)[at]
        columns |= {f"{name}_x": place[:, 0], f"{name}_y": place[:, 1]}
    return EpisodeArrays(
        name=f"sim_{seed:07d}_{streams.behaviour}",
        stamps=ticks,
        frames={camera.name: frames},
        frame_valid=np.full((count, len(profile.cameras)), int(render), dtype=np.uint8),
        joints=streams.joints[at].astype(np.float32),
        actions=actions.astype(np.float32),
        labels=np.stack([columns[name] for name in profile.label_names], axis=1).astype(np.float32),
        events=np.stack(
            [
                event_flags(streams.stamps, streams.events[name], ticks, ticks + tick_ns)
                for name in profile.event_names
            ],
            axis=1,
        ),
    )


def _job(args: tuple[RobotProfile, int, Mix, bool]) -> EpisodeArrays:
    return generate_episode(*args)


def generate_episodes(
    profile: RobotProfile,
    seeds: Sequence[int],
    workers: int = 2,
    mix: Mix = DEFAULT_MIX,
    render: bool = True,
) -> Iterator[EpisodeArrays]:
    """Iterate over the episodes of ``seeds`` in order, simulated in ``workers`` processes."""
    jobs = ((profile, seed, mix, render) for seed in seeds)
    return in_processes(_job, jobs, workers)
