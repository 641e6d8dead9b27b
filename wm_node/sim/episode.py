"""One simulated episode as time-stamped streams: what a robot's topics would carry."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wm_node.sim.behaviours import Behaviour, Still
from wm_node.sim.mix import MakeBehaviour, Mix, make_behaviour
from wm_node.sim.seeds import scene_seed
from wm_node.sim.tabletop import DRIVER_STEP_S, TabletopSim

NS = 1_000_000_000
STEP_NS = round(DRIVER_STEP_S * NS)
COMMAND_STEPS = 10  # driver steps between commands: 10 Hz
EPISODE_S = 6.1  # 60 ticks of 0.1 s, and one more for the action of the last
FIRST_STAMP_S = 1_700_000_000  # simulated bags need some date
EPISODE_SPACING_S = 60


@dataclass(frozen=True)
class Streams:
    """Streams of one episode. N samples at 100 Hz, K commands, F frames; stamps in ns.

    A command holds from its stamp on. Metres, rad, m/s; quaternions are x, y, z, w.
    """

    seed: int
    behaviour: str
    stamps: NDArray[np.int64]  # (N,)
    joints: NDArray[np.float64]  # (N, 4)
    joint_velocities: NDArray[np.float64]  # (N, 4)
    mug_position: NDArray[np.float64]  # (N, 3)
    mug_orientation: NDArray[np.float64]  # (N, 4)
    tip: NDArray[np.float64]  # (N, 2)
    fell: NDArray[np.bool_]  # (N,)
    zone: NDArray[np.bool_]  # (N,)
    hit: NDArray[np.bool_]  # (N,)
    command_stamps: NDArray[np.int64]  # (K,)
    commands: NDArray[np.float64]  # (K, 2)
    frame_stamps: NDArray[np.int64]  # (F,)
    frames: NDArray[np.uint8]  # (F, H, W, 3); F is 0 without a camera
    others: dict[str, NDArray[np.float64]]
    """What the level adds, by name: its place (N, 2), NaN where it is not on the table."""

    @property
    def events(self) -> dict[str, NDArray[np.bool_]]:
        """Event -> whether it is the case (N,); the names are those of the profiles."""
        return {"fell": self.fell, "zone": self.zone, "hit": self.hit}


def record_episode(
    sim: TabletopSim,
    seed: int,
    mix: Mix,
    camera_rate_hz: float | None,
    duration_s: float = EPISODE_S,
    make: MakeBehaviour = make_behaviour,
) -> Streams:
    """Run the episode ``seed`` with a behaviour drawn from ``mix``; the seed decides everything.

    On a scattered level nothing moves, and every frame shows another scene.

    Args:
        sim: the simulator; it is reset.
        seed: of the episode.
        mix: shares of behaviours; a scattered level has none.
        camera_rate_hz: frames a second, a divisor of 100; None renders nothing.
        duration_s: length in simulated time.
        make: builds the behaviour that was drawn.
    """
    rng = np.random.default_rng([seed, 0xB0B])
    sim.reset(seed)
    scattered = sim.level.scattered
    name = sim.level.name if scattered else mix.draw(rng)
    behaviour: Behaviour = Still() if scattered else make(name)
    behaviour.reset(sim, rng)
    # Commands need not fall on the frames: the closed loop's do not either.
    phase = int(rng.integers(0, COMMAND_STEPS))
    start = (FIRST_STAMP_S + EPISODE_SPACING_S * seed) * NS
    frame_every = round(1 / (camera_rate_hz * DRIVER_STEP_S)) if camera_rate_hz else 0
    steps = round(duration_s / DRIVER_STEP_S)

    joints, velocities = np.empty((steps, 4)), np.empty((steps, 4))
    position, orientation = np.empty((steps, 3)), np.empty((steps, 4))
    tip = np.empty((steps, 2))
    fell, zone, hit = (np.zeros(steps, dtype=np.bool_) for _ in range(3))
    others = {name: np.full((steps, 2), np.nan) for name in sim.level.adds}
    command_steps: list[int] = []
    commands: list[NDArray[np.float64]] = []
    frame_steps: list[int] = []
    frames: list[NDArray[np.uint8]] = []
    for step in range(steps):
        has_frame = bool(frame_every) and step % frame_every == 0
        if scattered and has_frame:
            sim.reset(scene_seed(seed, step))
        joints[step], velocities[step] = sim.joint_positions(), sim.joint_velocities()
        position[step], orientation[step] = sim.mug_pose()[:3], sim.mug_orientation()
        tip[step], hit[step] = sim.tip(), sim.hit()
        fell[step], zone[step] = sim.fell(), sim.in_zone()
        for other, place in sim.others().items():
            others[other][step] = place
        if has_frame:
            frame_steps.append(step)
            frames.append(sim.render())
        if step % COMMAND_STEPS == phase:
            command = behaviour.act(sim, rng)
            sim.command_tip_velocity(command)
            command_steps.append(step)
            commands.append(command)
        sim.advance(DRIVER_STEP_S)
    width, height = sim.camera_size
    return Streams(
        seed=seed,
        behaviour=name,
        stamps=start + STEP_NS * np.arange(steps, dtype=np.int64),
        joints=joints,
        joint_velocities=velocities,
        mug_position=position,
        mug_orientation=orientation,
        tip=tip,
        fell=fell,
        zone=zone,
        hit=hit,
        command_stamps=start + STEP_NS * np.array(command_steps, dtype=np.int64),
        commands=np.array(commands).reshape(-1, 2),
        frame_stamps=start + STEP_NS * np.array(frame_steps, dtype=np.int64),
        frames=np.stack(frames) if frames else np.empty((0, height, width, 3), dtype=np.uint8),
        others=others,
    )
