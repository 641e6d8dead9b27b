"""Imagined against real: what the model predicts from moments of a bag, and what then happened.

The model is given the frames, joints and actions up to a moment and the actions that were really
applied after it. Floors that any model must beat stand beside it: the joints stay where they are,
the picture stays as it is.
"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np
from numpy.typing import NDArray

from wm_node.data.resample import frame_skew_ns, interpolate, tick_actions, to_ns
from wm_node.planning.world_model import Context, WorldModel
from wm_node.profile import RobotProfile
from wm_node.reporting.run_log import RunLog, nearest_stamp, read_frames

Frame = NDArray[np.uint8]
JOINT_GAP_PERIODS = 3.0


@dataclass(frozen=True)
class Moment:
    """One prediction and what followed; H steps ahead, first camera.

    Attributes:
        stamp_ns: of the last frame that the model was given.
        now: that frame (Hm, Wm, 3).
        imagined, real: (H, Hm, Wm, 3).
        joints_predicted, joints_real: (H, J).
        joints_now: (J,).
        risk: (H, E) probability of each event, NaN where not available.
        surprise: (H,) standardised distance to the latents observed then.
    """

    stamp_ns: int
    now: Frame
    imagined: NDArray[np.uint8]
    real: NDArray[np.uint8]
    joints_predicted: NDArray[np.float64]
    joints_real: NDArray[np.float64]
    joints_now: NDArray[np.float64]
    risk: NDArray[np.float64]
    surprise: NDArray[np.float64]

    def psnr(self) -> NDArray[np.float64]:
        """Return the PSNR in dB of each imagined frame, (H,)."""
        return _psnr(self.imagined, self.real)

    def psnr_of_now(self) -> NDArray[np.float64]:
        """Return the PSNR in dB of the unchanged present frame against each real one, (H,)."""
        return _psnr(np.broadcast_to(self.now, self.real.shape), self.real)


def _psnr(a: NDArray[np.uint8], b: NDArray[np.uint8]) -> NDArray[np.float64]:
    error = np.mean((a.astype(np.float64) - b.astype(np.float64)) ** 2, axis=(1, 2, 3))
    return np.asarray(10.0 * np.log10(255.0**2 / np.maximum(error, 0.1)))


@dataclass(frozen=True)
class StepScores:
    """Means over moments, one value a step ahead; RMS errors of joints in the profile's unit."""

    seconds: NDArray[np.float64]
    moments: int
    joint_rmse: NDArray[np.float64]
    joint_rmse_hold: NDArray[np.float64]
    psnr: NDArray[np.float64]
    psnr_copy: NDArray[np.float64]


def score(moments: list[Moment], step_s: float) -> StepScores | None:
    """Average over moments; None without any."""
    if not moments:
        return None
    predicted = np.stack([m.joints_predicted - m.joints_real for m in moments])
    hold = np.stack([m.joints_now[None] - m.joints_real for m in moments])
    return StepScores(
        seconds=step_s * np.arange(1, moments[0].real.shape[0] + 1),
        moments=len(moments),
        joint_rmse=np.sqrt(np.mean(predicted**2, axis=(0, 2))),
        joint_rmse_hold=np.sqrt(np.mean(hold**2, axis=(0, 2))),
        psnr=np.mean([m.psnr() for m in moments], axis=0),
        psnr_copy=np.mean([m.psnr_of_now() for m in moments], axis=0),
    )


@dataclass(frozen=True)
class _Plan:
    """The stamps of one moment's frames: context (C,), oldest first, then future (H,)."""

    context: tuple[int, ...]
    future: tuple[int, ...]


def _frames_of(log: RunLog, at_ns: int) -> _Plan | None:
    rates, camera = log.profile.model, log.profile.cameras[0]
    stamps = log.frames.get(camera.name, np.zeros(0, dtype=np.int64))
    skew = frame_skew_ns(rates.tick_rate_hz, camera.rate_hz)
    step = to_ns(rates.step_s)
    now = nearest_stamp(stamps, at_ns, skew)
    if now is None:
        return None
    wanted = [now + k * step for k in range(1 - rates.context_steps, rates.horizon_steps + 1)]
    found = [nearest_stamp(stamps, at, skew) for at in wanted]
    known = tuple(stamp for stamp in found if stamp is not None)
    if len(known) != len(wanted):
        return None
    return _Plan(known[: rates.context_steps], known[rates.context_steps :])


def _applied(log: RunLog, now_ns: int, first: int, count: int) -> NDArray[np.float64]:
    """Return what acted in ``count`` ticks, the first of them ``first`` ticks after ``now_ns``."""
    profile = log.profile
    tick_ns = to_ns(profile.model.tick_s)
    delays = profile.action.delay_s or (0.0,) * len(profile.action.names)
    timeout = profile.action.command_timeout_s
    return tick_actions(
        profile.action.kind,
        log.applied.stamps,
        log.applied.values,
        now_ns + tick_ns * np.arange(first, first + count, dtype=np.int64),
        tick_ns,
        np.array([to_ns(delay) for delay in delays], dtype=np.int64),
        None if timeout is None else to_ns(timeout),
    )


def look_back(
    log: RunLog,
    model: WorldModel,
    at: list[int],
    progress: Callable[[int, int], None] = lambda done, total: None,
) -> list[Moment]:
    """Predict from each wanted moment; those with missing frames, joints or actions are left out.

    Args:
        log: the run.
        model: the world model; its profile must be the log's.
        at: wanted moments, ns; each snaps to the nearest frame.
        progress: told (done, total) after each moment.
    """
    profile = log.profile
    camera = profile.cameras[0]
    plans = [plan for plan in (_frames_of(log, stamp) for stamp in at) if plan is not None]
    stamps = sorted({s for plan in plans for s in (*plan.context, *plan.future)})
    size = (camera.model_width, camera.model_height)
    frames = read_frames(log.bag, profile, camera.name, stamps, size)
    moments = []
    for index, plan in enumerate(plans):
        moment = _moment(log, model, plan, frames, profile)
        if moment is not None:
            moments.append(moment)
        progress(index + 1, len(plans))
    return moments


def _moment(
    log: RunLog, model: WorldModel, plan: _Plan, frames: dict[int, Frame], profile: RobotProfile
) -> Moment | None:
    rates, camera = profile.model, profile.cameras[0].name
    # A frame shows the moment before its stamp by the camera's latency.
    late_ns = to_ns(profile.cameras[0].latency_s)
    gap = to_ns(JOINT_GAP_PERIODS / profile.joints.rate_hz)
    at = np.array([*plan.context, *plan.future], dtype=np.int64) - late_ns
    joints, known = interpolate(log.joints.stamps, log.joints.values, at, gap, edge_ns=gap)
    now = plan.context[-1]
    past_ticks = rates.context_steps * rates.ticks_per_step
    past = _applied(log, now - late_ns, -past_ticks, past_ticks)
    future = _applied(log, now - late_ns, 0, rates.horizon_ticks)
    if not known.all() or np.isnan(past).any() or np.isnan(future).any():
        return None
    latents = np.stack([model.encode({camera: frames[stamp]}) for stamp in plan.context])
    seen = [model.encode({camera: frames[stamp]}) for stamp in plan.future]
    context = Context(
        stamp_ns=now,
        latents=latents,
        joints=joints[: rates.context_steps].astype(np.float32),
        actions=past.reshape(rates.context_steps, rates.ticks_per_step, -1).astype(np.float32),
    )
    outcomes = model.rollout(context, future[None].astype(np.float32))
    predicted, joints_predicted = outcomes.latents[0].copy(), outcomes.joints[0].copy()
    blank = np.zeros_like(frames[now])
    pictures = {
        item.name: frames[now] if item.name == camera else blank for item in profile.cameras
    }
    imagined = model.decode(predicted, joints_predicted, latents[-1], context.joints[-1], pictures)
    surprise = [model.surprise(predicted[h], latent, h + 1) for h, latent in enumerate(seen)]
    return Moment(
        stamp_ns=now,
        now=frames[now],
        imagined=imagined[:, 0],
        real=np.stack([frames[stamp] for stamp in plan.future]),
        joints_predicted=joints_predicted.astype(np.float64),
        joints_real=joints[rates.context_steps :],
        joints_now=joints[rates.context_steps - 1],
        risk=outcomes.risk[0].astype(np.float64),
        surprise=np.array(surprise),
    )
