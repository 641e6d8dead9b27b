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
from wm_node.sim.arm import driver_step, tip_for_joints
from wm_node.sim.events import EVENTS, has_fallen, is_in_zone
from wm_node.sim.tabletop import DRIVER_STEP_S, PHYSICS_PER_DRIVER_STEP, TabletopSim
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

    The driver's joint targets follow from the commands alone, so they are computed first, and the
    physics of all candidates then runs in MuJoCo's own threads.

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
        targets = np.stack([self._targets(candidate) for candidate in actions])
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
        return self._summary(qpos, times)

    def _targets(self, candidate: NDArray[np.floating]) -> NDArray[np.float64]:
        """Joint targets (T * STEPS_PER_TICK, 4) of one candidate (T, 2)."""
        driver = replace(self._sim.driver, pending=())
        now = self._sim.time_s
        targets = np.empty((len(candidate) * STEPS_PER_TICK, 4))
        for tick, (vx, vy) in enumerate(candidate.tolist()):
            at = now + tick * TICK_S
            driver = replace(driver, pending=((at, (vx, vy)),))
            for step in range(STEPS_PER_TICK):
                time_s = at + step * DRIVER_STEP_S
                driver = driver_step(driver, time_s, DRIVER_STEP_S, self._sim.command_timeout_s)
                targets[tick * STEPS_PER_TICK + step] = driver.joints
        return targets

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
