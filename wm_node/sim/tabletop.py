"""The simulated table-top robot: an arm, a mug, a table edge, a red zone and one camera."""

from __future__ import annotations

import colorsys
from collections.abc import Sequence
from dataclasses import dataclass, replace
from math import atan2, isfinite

import mujoco
import numpy as np
from numpy.typing import NDArray

from wm_node.errors import WmError
from wm_node.sim import scene
from wm_node.sim.arm import (
    COMMAND_TIMEOUT_S,
    JOINT_NAMES,
    MAX_TIP_SPEED,
    DriverState,
    Trajectory,
    driver_at,
    driver_step,
    joints_for_tip,
    tip_for_joints,
    wait_for_arm,
)
from wm_node.sim.events import has_fallen, is_in_zone
from wm_node.sim.level import BASIC, Level, Mover, Start, standing
from wm_node.sim.looks import MUG_GEOMS

__all__ = ["COMMAND_TIMEOUT_S", "DRIVER_STEP_S", "JOINT_NAMES", "State", "TabletopSim"]

PHYSICS_PER_DRIVER_STEP = 5
DRIVER_STEP_S = 0.01

_PHYSICS = mujoco.mjtState.mjSTATE_INTEGRATION


@dataclass(frozen=True)
class State:
    """An exact snapshot within one episode. ``physics`` has shape (S,) and is read-only."""

    seed: int
    driver_steps: int
    driver: DriverState
    physics: NDArray[np.float64]


def _look_at(position: NDArray[np.float64], target: NDArray[np.float64]) -> NDArray[np.float64]:
    back = position - target
    back /= np.linalg.norm(back)
    right = np.cross([0.0, 0.0, 1.0], back)
    right /= np.linalg.norm(right)
    matrix = np.column_stack([right, np.cross(back, right), back])
    quaternion = np.empty(4)
    mujoco.mju_mat2Quat(quaternion, matrix.ravel())
    return quaternion


class TabletopSim:
    """Simulates one episode after another; ``reset(seed)`` decides everything random.

    Args:
        camera_size: width and height of rendered frames in pixels.
        render: False builds no OpenGL context, and ``render()`` is refused.
        actuation_delay_s: time from a command to its effect, rounded up to the driver's 0.01 s.
        command_timeout_s: time after a velocity command at which the driver brakes by itself.
        level: what is added to the scene and to every reset; see :mod:`wm_node.sim.levels`.
    """

    def __init__(
        self,
        camera_size: tuple[int, int] = (320, 240),
        render: bool = True,
        actuation_delay_s: float = 0.0,
        command_timeout_s: float = COMMAND_TIMEOUT_S,
        level: Level = BASIC,
    ) -> None:
        if not 0.0 <= actuation_delay_s <= 2.0:
            raise WmError(
                f"actuation_delay_s is {actuation_delay_s}; it must lie within 0 and 2 s."
            )
        self.level = level
        self.camera_size = camera_size
        self.actuation_delay_s = actuation_delay_s
        self.command_timeout_s = command_timeout_s
        text = scene.scene_xml(*camera_size, level.parts)
        self.model = mujoco.MjModel.from_xml_string(text, level.parts.files())
        self.data = mujoco.MjData(self.model)
        self._renders = render
        self._camera: SceneCamera | None = None
        self._mug_body = self.model.body("mug").id
        self._mug_qpos = int(self.model.joint("mug").qposadr[0])
        self._mug_mass = float(self.model.body_mass[self._mug_body])
        self._mug_inertia = self.model.body_inertia[self._mug_body].copy()
        self._mug_geoms = np.flatnonzero(self.model.geom_bodyid == self._mug_body)
        self._paint_geoms = [self.model.geom(name).id for name in MUG_GEOMS]
        self.reset(0)

    # ---- episode ---------------------------------------------------------------------------

    def reset(self, seed: int) -> None:
        """Start the episode ``seed``: the same seed gives the same episode, on any machine."""
        rng = np.random.default_rng([int(seed), 0x7AB1E])
        self.seed = int(seed)
        self._randomise_model(rng)
        mug_x, mug_y, tip_x, tip_y = _start_positions(rng)
        start = Start((mug_x, mug_y), float(rng.uniform(-np.pi, np.pi)), (tip_x, tip_y))
        # A level draws from a stream of its own: it leaves all that is drawn above as it is.
        self.setup = self.level.arrange(
            self.model, start, np.random.default_rng([int(seed), 0x1E7E1])
        )
        start = self.setup.start
        mujoco.mj_setConst(self.model, self.data)
        mujoco.mj_resetData(self.model, self.data)
        self.driver = driver_at(*start.tip)
        self.data.qpos[:4] = self.driver.joints
        self.data.ctrl[:] = self.driver.joints
        at = self._mug_qpos
        self.data.qpos[at : at + 7] = standing(*start.mug, start.mug_yaw)
        self.data.qpos[at + 7 :] = self.setup.rest_qpos
        self.driver_steps = 0
        place_mover(self.data, self.setup.mover, self.time_s)
        mujoco.mj_forward(self.model, self.data)
        mujoco.mj_step(self.model, self.data, 100)  # the mug settles on its feet
        self.data.time = 0.0
        mujoco.mj_forward(self.model, self.data)

    def _randomise_model(self, rng: np.random.Generator) -> None:
        model = self.model
        scale = float(np.exp(rng.uniform(np.log(0.5), np.log(2.0))))
        model.body_mass[self._mug_body] = self._mug_mass * scale
        model.body_inertia[self._mug_body] = self._mug_inertia * scale
        model.geom_friction[self._mug_geoms, 0] = rng.uniform(0.25, 0.60)
        hue = rng.uniform(0.07, 0.78)  # neither the zone's red nor the tip's magenta
        paint = colorsys.hsv_to_rgb(hue, rng.uniform(0.15, 0.9), rng.uniform(0.55, 1.0))
        model.geom_rgba[self._paint_geoms, :3] = paint
        light = rng.uniform(0.35, 0.65)
        model.light_diffuse[0] = light * rng.uniform(0.9, 1.1, 3)
        model.light_dir[0] = [rng.uniform(-0.5, 0.5), rng.uniform(0.0, 0.6), -1.0]
        model.vis.headlight.ambient[:] = rng.uniform(0.28, 0.42)
        position = np.array(scene.CAMERA_POSITION) + rng.normal(0.0, 0.004, 3)
        target = np.array(scene.CAMERA_TARGET) + rng.normal(0.0, 0.004, 3)
        model.cam_pos[0] = position
        model.cam_quat[0] = _look_at(position, target)

    # ---- commands --------------------------------------------------------------------------

    def command_tip_velocity(
        self, velocity: Sequence[float] | NDArray[np.floating], delay_s: float = 0.0
    ) -> None:
        """Ask for a tip velocity (2,) in m/s in the table plane.

        It takes effect after ``actuation_delay_s + delay_s`` and is clipped to 0.25 m/s an axis.
        Without a further command the driver brakes ``command_timeout_s`` later.

        Raises:
            WmError: a value is not finite.
        """
        vx, vy = float(velocity[0]), float(velocity[1])
        if not (isfinite(vx) and isfinite(vy)):
            raise WmError(f"the tip velocity ({vx}, {vy}) is not finite; the command is refused.")
        limit = MAX_TIP_SPEED
        self._enqueue((min(max(vx, -limit), limit), min(max(vy, -limit), limit)), delay_s)

    def command_joints(
        self,
        times: Sequence[float],
        positions: Sequence[Sequence[float]] | NDArray[np.floating],
    ) -> None:
        """Follow a joint trajectory: ``times`` (M,) in s, increasing; ``positions`` (M, 4) in rad.

        The driver interpolates, limits joint speed to 3 rad/s and holds the last waypoint.

        Raises:
            WmError: no waypoint, wrong shape, times that do not increase, or a value not finite.
        """
        stamps = np.asarray(times, dtype=np.float64)
        points = np.asarray(positions, dtype=np.float64)
        if stamps.ndim != 1 or len(stamps) == 0 or points.shape != (len(stamps), 4):
            raise WmError("a joint trajectory needs times (M,) and positions (M, 4) with M >= 1.")
        if not (np.isfinite(stamps).all() and np.isfinite(points).all()):
            raise WmError("the joint trajectory has a value that is not finite; it is refused.")
        if stamps[0] < 0 or np.any(np.diff(stamps) <= 0):
            raise WmError(
                "the times of the joint trajectory do not increase from 0; it is refused."
            )
        rows = tuple((float(a), float(b), float(c), float(d)) for a, b, c, d in points)
        self._enqueue(Trajectory(tuple(float(t) for t in stamps), rows), 0.0)

    def _enqueue(self, command: tuple[float, float] | Trajectory, delay_s: float) -> None:
        effective = self.time_s + self.actuation_delay_s + delay_s
        pending = (*self.driver.pending, (effective, command))
        self.driver = replace(self.driver, pending=tuple(sorted(pending, key=lambda item: item[0])))

    # ---- time ------------------------------------------------------------------------------

    def advance(self, duration_s: float) -> None:
        """Simulate ``duration_s``, a multiple of 0.01 s.

        Raises:
            ValueError: the duration is not a multiple of the driver's period.
        """
        steps = round(duration_s / DRIVER_STEP_S)
        if steps < 0 or abs(steps * DRIVER_STEP_S - duration_s) > 1e-6:
            raise ValueError(f"advance({duration_s}): not a multiple of {DRIVER_STEP_S} s")
        for _ in range(steps):
            driver = wait_for_arm(self.driver, self.data.qpos[:4].tolist())
            self.driver = driver_step(driver, self.time_s, DRIVER_STEP_S, self.command_timeout_s)
            self.driver_steps += 1
            step_physics(self.model, self.data, self.driver, self.setup.mover, self.time_s)

    @property
    def time_s(self) -> float:
        """Seconds since the episode began."""
        return self.driver_steps / 100

    # ---- what there is to see --------------------------------------------------------------

    def joint_positions(self) -> NDArray[np.float64]:
        """Return measured joint angles (4,) in rad, in the order of ``JOINT_NAMES``."""
        return np.array(self.data.qpos[:4])

    def joint_velocities(self) -> NDArray[np.float64]:
        """Return measured joint velocities (4,) in rad/s."""
        return np.array(self.data.qvel[:4])

    def tip(self) -> NDArray[np.float64]:
        """Return the measured tip position (2,) in m."""
        # Not site_xpos: a step leaves the positions of bodies where they were before it.
        return np.array(tip_for_joints(self.data.qpos[:4].tolist()))

    def mug_pose(self) -> tuple[float, float, float, float]:
        """Return the mug's ``(x, y, z, yaw)``: the centre of its bottom in m, and rad."""
        at = self._mug_qpos
        x, y, z, qw, qx, qy, qz = (float(value) for value in self.data.qpos[at : at + 7])
        yaw = atan2(2 * (qw * qz + qx * qy), 1 - 2 * (qy * qy + qz * qz))
        return x, y, z, yaw

    def mug_orientation(self) -> NDArray[np.float64]:
        """Return the mug's quaternion (4,) as x, y, z, w."""
        at = self._mug_qpos
        return np.array(self.data.qpos[[at + 4, at + 5, at + 6, at + 3]])

    def fell(self) -> bool:
        """Whether the mug has left the table top or lies on its side."""
        z, qx, qy = self.data.qpos[[self._mug_qpos + 2, self._mug_qpos + 4, self._mug_qpos + 5]]
        return bool(has_fallen(z, qx, qy))

    def in_zone(self) -> bool:
        """Whether the mug stands with its centre inside the red zone."""
        x, y, z = self.data.qpos[self._mug_qpos : self._mug_qpos + 3]
        return bool(is_in_zone(x, y, z))

    def hit(self) -> bool:
        """Whether something is hit just now that the level wants left alone."""
        if self.setup.hit is None:
            return bool(self.violation())
        return self.setup.hit(self.data.qpos, self.data.qvel, self.time_s)

    def events(self) -> dict[str, bool]:
        """Return which of :data:`~wm_node.sim.events.EVENTS` are the case at present."""
        return {"fell": self.fell(), "zone": self.in_zone(), "hit": self.hit()}

    def others(self) -> dict[str, tuple[float, float]]:
        """Return where what the level adds stands at present, in m, by its name."""
        return self.setup.others(self.data.qpos, self.time_s)

    def violation(self) -> str:
        """Return which rule of the level is broken at present, in a few words; empty: none."""
        for rule in self.setup.rules:
            if rule.broken(self.data.qpos, np.asarray(self.time_s)):
                return rule.reason
        return ""

    def render(self) -> NDArray[np.uint8]:
        """Return the camera's picture, uint8 RGB (height, width, 3)."""
        if not self._renders:
            raise WmError("this simulator was built with render=False; it has no camera.")
        if self.setup.redress is not None:
            # A look follows from episode and time alone, whatever was rendered before.
            self.setup.redress(np.random.default_rng([self.seed, self.driver_steps, 0xD2E55]))
        return self.picture(self.data.qpos)

    def render_goal(
        self,
        mug: tuple[float, float],
        yaw: float | None = None,
        tip: tuple[float, float] | None = None,
    ) -> NDArray[np.uint8]:
        """Picture this episode's scene with the mug standing at ``mug``; the state is untouched.

        The mug keeps its yaw and the arm its pose unless they are given; what moves by itself is
        where it is when the episode begins.
        """
        return self.picture(self.goal_pose(mug, yaw, tip), time_s=0.0)

    def make_camera(self) -> SceneCamera:
        """Build a camera of this scene for the calling thread, also with ``render=False``."""
        return SceneCamera(self.model, self.camera_size)

    def pose(self) -> NDArray[np.float64]:
        """Return the generalised positions: four joints, the mug's pose; (11,) or longer.

        Bodies that the level adds follow, seven numbers each.
        """
        return np.array(self.data.qpos)

    def goal_pose(
        self,
        mug: tuple[float, float],
        yaw: float | None = None,
        tip: tuple[float, float] | None = None,
    ) -> NDArray[np.float64]:
        """Return the generalised positions of the scene that ``render_goal`` pictures."""
        qpos, at = np.array(self.data.qpos), self._mug_qpos
        qpos[at : at + 7] = standing(*mug, self.mug_pose()[3] if yaw is None else yaw)
        if tip is not None:
            qpos[:4] = joints_for_tip(*tip)
        return qpos

    def picture(self, qpos: NDArray[np.float64], time_s: float | None = None) -> NDArray[np.uint8]:
        """Picture generalised positions of this episode; the state is untouched.

        ``time_s`` places what moves by itself; by default it is where it is now.
        """
        if not self._renders:
            raise WmError("this simulator was built with render=False; it has no camera.")
        if self._camera is None:
            self._camera = self.make_camera()
        return self._camera.picture(qpos, self.mover_pose(time_s))

    def mover_pose(self, time_s: float | None = None) -> NDArray[np.float64] | None:
        """Return the pose (7,) of what moves by itself, now or at a time; None without it."""
        at = self.time_s if time_s is None else time_s
        mover = self.setup.mover
        return None if mover is None else mover.pose(np.asarray(at))

    # ---- snapshots -------------------------------------------------------------------------

    def save(self) -> State:
        """Return an exact snapshot of the present moment."""
        physics = np.empty(mujoco.mj_stateSize(self.model, _PHYSICS))
        mujoco.mj_getState(self.model, self.data, physics, _PHYSICS)
        physics.setflags(write=False)
        return State(self.seed, self.driver_steps, self.driver, physics)

    def restore(self, state: State) -> None:
        """Return to a snapshot: what follows is, bit for bit, what followed then."""
        if state.seed != self.seed:
            self.reset(state.seed)
        mujoco.mj_setState(self.model, self.data, state.physics, _PHYSICS)
        self.driver_steps = state.driver_steps
        self.driver = state.driver

    def close(self) -> None:
        """Free the OpenGL context, if there is one."""
        if self._camera is not None:
            self._camera.close()
            self._camera = None


def place_mover(data: mujoco.MjData, mover: Mover | None, time_s: float) -> None:
    """Put a level's moving body, if it has one, where it is at a time."""
    if mover is not None:
        pose = mover.pose(np.asarray(time_s))
        data.mocap_pos[0], data.mocap_quat[0] = pose[:3], pose[3:]


def step_physics(
    model: mujoco.MjModel,
    data: mujoco.MjData,
    driver: DriverState,
    mover: Mover | None,
    time_s: float,
) -> None:
    """Simulate one step of the driver, which ends at ``time_s``, with the targets that it set."""
    data.ctrl[:] = driver.joints
    place_mover(data, mover, time_s)
    mujoco.mj_step(model, data, PHYSICS_PER_DRIVER_STEP)


class SceneCamera:
    """Renders poses of the scene. It belongs to the thread that builds it, as OpenGL does.

    Args:
        model: of the simulator; what ``reset`` changes in it shows in the next picture.
        size: width and height in pixels, at most those that the model was built for.
    """

    def __init__(self, model: mujoco.MjModel, size: tuple[int, int]) -> None:
        self._model = model
        self._data = mujoco.MjData(model)
        self._renderer = mujoco.Renderer(model, size[1], size[0])

    def picture(
        self, qpos: NDArray[np.float64], mover: NDArray[np.float64] | None = None
    ) -> NDArray[np.uint8]:
        """Return a fresh picture, uint8 RGB (height, width, 3), of generalised positions (11,).

        ``mover`` (7,) is the pose of a level's moving body, where it has one.
        """
        self._data.qpos[:] = qpos
        if mover is not None:
            self._data.mocap_pos[0], self._data.mocap_quat[0] = mover[:3], mover[3:]
        mujoco.mj_kinematics(self._model, self._data)
        mujoco.mj_camlight(self._model, self._data)
        self._renderer.update_scene(self._data, camera="front")
        return np.asarray(self._renderer.render(), dtype=np.uint8)

    def close(self) -> None:
        """Free the OpenGL context."""
        self._renderer.close()


def _start_positions(rng: np.random.Generator) -> tuple[float, float, float, float]:
    while True:
        mug_x, mug_y = rng.uniform(-0.21, 0.21), rng.uniform(-0.14, 0.14)
        if scene.ZONE_BOUNDS.contains(mug_x, mug_y, margin=-0.05):
            continue
        tip_x, tip_y = rng.uniform(-0.24, 0.24), rng.uniform(-0.20, 0.20)
        if (tip_x - mug_x) ** 2 + (tip_y - mug_y) ** 2 > 0.10**2:
            return mug_x, mug_y, tip_x, tip_y
