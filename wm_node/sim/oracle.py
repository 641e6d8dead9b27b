"""The simulator itself as the model: the ceiling that a learned model can be measured against."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace

import mujoco
import mujoco.rollout
import numpy as np
from numpy.typing import NDArray

from wm_node.errors import WmError
from wm_node.planning.world_model import Context, Floats, Outcomes
from wm_node.sim.arm import (
    MAX_LEAD_M,
    DriverState,
    driver_step,
    tip_for_joints,
    tips_for_joints,
    wait_for_arm,
)
from wm_node.sim.events import EVENTS, has_fallen, is_in_zone
from wm_node.sim.tabletop import (
    DRIVER_STEP_S,
    PHYSICS_PER_DRIVER_STEP,
    TabletopSim,
    step_physics,
)
from wm_node.sim.task import TICK_S

STEPS_PER_TICK = round(TICK_S / DRIVER_STEP_S)
LABELS = ("mug_x", "mug_y", "tip_x", "tip_y")
# What drives a rollout where the level has a moving body: MuJoCo reads these in this order.
_WITH_MOVER = (
    mujoco.mjtState.mjSTATE_CTRL
    | mujoco.mjtState.mjSTATE_MOCAP_POS
    | mujoco.mjtState.mjSTATE_MOCAP_QUAT
)


class SimulatorModel:
    """Rolls candidates out in the simulator's own physics, from its present state.

    Where nothing stops the arm, the driver's joint targets follow from the commands alone, so they
    are computed first, and the physics of all candidates then runs in MuJoCo's own threads.
    Candidates whose arm is stopped are simulated again, a step of the driver at a time.

    Args:
        sim: whose state the futures start from; it is left as it is.
        ticks_per_step: ticks of a model step.
        threads: of the physics.
        events: whose risks are told, in this order.
    """

    def __init__(
        self,
        sim: TabletopSim,
        ticks_per_step: int = 2,
        threads: int = 1,
        events: Sequence[str] = EVENTS,
    ) -> None:
        self._sim = sim
        self._events = [EVENTS.index(name) for name in events]
        self._ticks_per_step = ticks_per_step
        self._datas = [mujoco.MjData(sim.model) for _ in range(threads)]
        self._pool = mujoco.rollout.Rollout(nthread=threads if threads > 1 else 0)

    def close(self) -> None:
        """End the threads."""
        self._pool.close()

    def rollout(
        self,
        context: Context,
        actions: Floats,
        goal_latent: Floats | None = None,
        lean: bool = False,
    ) -> Outcomes:
        """Outcomes as of :meth:`wm_node.planning.world_model.WorldModel.rollout`.

        The context is not read: the true state is. There are no latents and no time to goal.
        """
        out = self.outcomes(actions)
        count, steps, _ = out["state"].shape
        return Outcomes(
            latents=np.zeros((count, steps, 0), np.float32),
            joints=out["joints"],
            state=out["state"],
            risk=out["risk"],
            uncertainty=np.zeros((count, steps), np.float32),
            time_to_goal=np.full((count, steps), np.nan, np.float32),
        )

    def outcomes(self, actions: NDArray[np.floating]) -> dict[str, Floats]:
        """Simulate N candidates.

        Args:
            actions: (N, T, 2), what acts in each tick from now on; T a multiple of the step.
                Commands that are on their way are part of it.

        Returns:
            ``state`` (N, H, 4) in the order of ``LABELS`` and ``joints`` (N, H, 4) at the steps'
            ends; ``risk`` (N, H, E), 1 where the event has happened by then, else 0. ``hit`` is
            that a rule of the level is broken.

        Raises:
            WmError: the actions have another shape.
        """
        if actions.ndim != 3 or actions.shape[2] != 2 or actions.shape[1] % self._ticks_per_step:
            raise WmError(f"candidates of shape {actions.shape} do not fit (N, T, 2).")
        drivers = [self._drivers(candidate) for candidate in actions]
        targets = np.array([[driver.joints for driver in row] for row in drivers])
        model, data = self._sim.model, self._sim.data
        kind = mujoco.mjtState.mjSTATE_FULLPHYSICS
        initial = np.empty(mujoco.mj_stateSize(model, kind))
        mujoco.mj_getState(model, data, initial, kind)
        count = len(actions)
        controls, spec = targets, mujoco.mjtState.mjSTATE_CTRL
        times = self._sim.time_s + DRIVER_STEP_S * np.arange(1, targets.shape[1] + 1)
        if self._sim.setup.mover is not None:
            poses = np.repeat(self._sim.setup.mover.pose(times)[None], count, 0)
            controls, spec = np.concatenate([targets, poses], axis=-1), _WITH_MOVER
        states, _ = self._pool.rollout(
            model,
            self._datas,
            np.repeat(initial[None], count, 0),
            np.repeat(controls, PHYSICS_PER_DRIVER_STEP, axis=1),
            control_spec=spec,
            initial_warmstart=np.repeat(data.qacc_warmstart[None], count, 0),
        )
        # One row a driver step; the first number of a state is the time.
        qpos = states[:, PHYSICS_PER_DRIVER_STEP - 1 :: PHYSICS_PER_DRIVER_STEP, 1 : 1 + model.nq]
        for k in np.flatnonzero(self._stopped(drivers, qpos)):
            qpos[k] = self._simulate(actions[k], initial)
        return self._summary(qpos, times)

    def _stopped(
        self, drivers: Sequence[Sequence[DriverState]], qpos: NDArray[np.float64]
    ) -> NDArray[np.bool_]:
        """Whether the arm stays behind its driver in each candidate, so that this one waits."""
        now = self._sim.driver
        if wait_for_arm(now, self._sim.data.qpos[:4].tolist()) is not now:
            return np.ones(len(drivers), dtype=np.bool_)
        wanted = np.array([[driver.tip for driver in row] for row in drivers])
        lead = np.linalg.norm(wanted - tips_for_joints(qpos[..., :4]), axis=-1)
        return np.asarray((lead > MAX_LEAD_M).any(axis=1))

    def _commanded(self, candidate: NDArray[np.floating]) -> DriverState:
        """The driver as it is now, but with the commands of one candidate (T, 2) on their way."""
        now = self._sim.time_s
        pending = ((now + k * TICK_S, (vx, vy)) for k, (vx, vy) in enumerate(candidate.tolist()))
        return replace(self._sim.driver, pending=tuple(pending))

    def _times(self, candidate: NDArray[np.floating]) -> list[float]:
        """When each step of the driver begins in one candidate (T, 2)."""
        steps = range(len(candidate) * STEPS_PER_TICK)
        return [self._sim.time_s + k * DRIVER_STEP_S for k in steps]

    def _drivers(self, candidate: NDArray[np.floating]) -> list[DriverState]:
        """The driver after each of its steps, of one candidate (T, 2), if the arm follows."""
        driver, drivers = self._commanded(candidate), []
        for time_s in self._times(candidate):
            driver = driver_step(driver, time_s, DRIVER_STEP_S, self._sim.command_timeout_s)
            drivers.append(driver)
        return drivers

    def _simulate(
        self, candidate: NDArray[np.floating], initial: NDArray[np.float64]
    ) -> NDArray[np.float64]:
        """Generalised positions (T * STEPS_PER_TICK, nq) of one candidate (T, 2)."""
        sim, data = self._sim, self._datas[0]
        mujoco.mj_setState(sim.model, data, initial, mujoco.mjtState.mjSTATE_FULLPHYSICS)
        data.qacc_warmstart[:] = sim.data.qacc_warmstart
        driver, rows = self._commanded(candidate), []
        for time_s in self._times(candidate):
            driver = wait_for_arm(driver, data.qpos[:4].tolist())
            driver = driver_step(driver, time_s, DRIVER_STEP_S, sim.command_timeout_s)
            step_physics(sim.model, data, driver, sim.setup.mover, time_s + DRIVER_STEP_S)
            rows.append(data.qpos.copy())
        return np.array(rows)

    def _summary(self, qpos: NDArray[np.float64], times: NDArray[np.float64]) -> dict[str, Floats]:
        every = STEPS_PER_TICK * self._ticks_per_step
        ends = qpos[:, every - 1 :: every]
        tips = np.array([[tip_for_joints(row[:4]) for row in one] for one in ends])
        state = np.concatenate([ends[..., 4:6], tips], axis=-1)
        x, y, z = qpos[..., 4], qpos[..., 5], qpos[..., 6]
        fell, zone = has_fallen(z, qpos[..., 8], qpos[..., 9]), is_in_zone(x, y, z)
        broken = np.zeros(qpos.shape[:2], dtype=np.bool_)
        for rule in self._sim.setup.rules:
            broken |= rule.broken(qpos, np.broadcast_to(times, broken.shape))
        events = np.stack([fell, zone, broken], axis=-1)[..., self._events]
        happened = np.maximum.accumulate(events, axis=1)
        return {
            "state": state.astype(np.float32),
            "joints": ends[..., :4].astype(np.float32),
            "risk": happened[:, every - 1 :: every].astype(np.float32),
        }
