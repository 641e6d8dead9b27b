"""The world model at work: frames in, observations and outcomes out, all in one inference thread.

:class:`Foresight` is what ``/world_model`` and ``/mpc_planner`` share in their process. Whoever
owns the executor calls ``submit_*`` and ``add_*``, which only store and return. The thread converts
and encodes each picked frame once, compares it with what was predicted for it and hands it to the
control cycle; then, in this order of priority, it encodes goal pictures, rolls out the candidates
of others, and draws the imagination in what time is left. Nothing here knows ROS.
"""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wm_node.bundle import Bundle
from wm_node.data.images import decode_image, resize_area
from wm_node.errors import WmError
from wm_node.nodes.imagination import Imagination
from wm_node.nodes.inference import InferenceWorker, Samples
from wm_node.planning.context import NotReady, ObservationBuffer
from wm_node.planning.doubt import densities_of, surprise_at_present
from wm_node.planning.world_model import (
    Context,
    Futures,
    Goal,
    Outcomes,
    WorldModel,
)
from wm_node.profile import Camera, RobotProfile
from wm_node.safety.drift import DriftMonitor

Floats = NDArray[np.float32]
Frame = NDArray[np.uint8]

CHUNK = 16  # candidates of others that are rolled out at once, between two frames
MAX_ASPECT_ERROR = 0.02


@dataclass(frozen=True)
class Tick:
    """Camera messages that start a control cycle.

    Attributes:
        stamp_ns: when the first camera's frame was taken, ROS time.
        received_ns: when it was received, steady clock.
        messages: image message by camera name; absent cameras are masked.
    """

    stamp_ns: int
    received_ns: int
    messages: Mapping[str, Any]


@dataclass(frozen=True)
class Observation:
    """A tick after encoding.

    Attributes:
        tick: the tick.
        frames: uint8 (Hm, Wm, 3) by camera name, of the model's size.
        latent: (D,).
        context: what a plan from this tick may start from, or why there is none.
        surprise: distance to the latent predicted for it, 1 is usual; NaN where none was predicted.
        strangeness: of its strangest frame, see :mod:`wm_node.safety.familiarity`, and the camera's
            name; 0 where the bundle does not tell.
    """

    tick: Tick
    frames: Mapping[str, Frame]
    latent: Floats
    context: Context | NotReady
    surprise: float
    strangeness: tuple[float, str] = (0.0, "")


@dataclass
class CandidateRequest:
    """Candidates (N, T, A) of another planner, in physical units, from the state at a stamp."""

    stamp_ns: int
    actions: Floats
    context: Context | None = None
    done: list[Outcomes] = field(default_factory=list)


@dataclass
class _Drawing:
    """A plan being decoded, frame by frame; latents (M, D), joints (M, J), joints now (J,).

    M is H, or (1 + F) H where there are F futures of ``likelihood``.
    """

    observation: Observation
    latents: Floats
    joints: Floats
    joints_now: Floats
    likelihood: Floats | None = None
    frames: list[Frame] = field(default_factory=list)


@dataclass(frozen=True)
class Listeners:
    """Called in the inference thread; each must return quickly.

    Attributes:
        outcomes: stamp, outcomes and cost (N,) or None, of plans and of requested candidates.
        picture: stamp and imagination picture.
        refused: one sentence about an input that cannot be used, and the name of its count.
    """

    outcomes: Callable[[int, Outcomes, NDArray[np.float64] | None], None]
    picture: Callable[[int, Frame], None]
    refused: Callable[[str, str], None]


@dataclass(frozen=True)
class Cycle:
    """What the planner hangs into the inference thread.

    Attributes:
        run: plans from an observation.
        failed: a tick that gives no observation, and why.
        cost: cost (N,) of outcomes of actions (N, T, A) for the present goal, None without one.
    """

    run: Callable[[Observation], None]
    failed: Callable[[Tick, Exception], None]
    cost: Callable[[Outcomes, Floats], NDArray[np.float64] | None]


class Foresight:
    """Model, context and inference thread of one process."""

    def __init__(
        self,
        bundle: Bundle,
        model: WorldModel,
        listeners: Listeners,
        drift: DriftMonitor | None = None,
    ) -> None:
        profile = bundle.profile
        self.bundle, self.profile, self.model = bundle, profile, model
        self.buffer = ObservationBuffer(profile)
        self.encode_ms = Samples()
        self.surprise = float("nan")
        self.strangeness = (0.0, "")
        self._densities = densities_of(bundle)
        self.drift = drift
        """Watches the surprise, where it is known what is usual."""
        self.cycle: Cycle | None = None
        self.imagination_period_s = 0.0  # 0: nobody looks, nothing is decoded
        self.imagined = 0
        self._listeners = listeners
        self._tick_s = profile.model.tick_s
        self._step_ns = round(profile.model.step_s * 1e9)
        self._imagination = Imagination(
            profile.model.horizon_steps, self._step_ns, round(self._tick_s * 1e9)
        )
        self._drawing: _Drawing | None = None
        self._decode_s = 0.0  # of one frame
        self._last_picture_s = -1e9
        self._forget = threading.Event()
        self.worker = InferenceWorker(self._failed)
        self._work = self.worker.slot("preparation", lambda work: work())
        self._ticks = self.worker.slot("frame", self._observe, depth=4)
        self._goals = self.worker.slot("goal image", self._encode_goal)
        self._requests = self.worker.slot("candidates", self._roll_out, depth=2)
        self._plans = self.worker.slot("imagination", self._imagine)

    # Called by the executor.

    def prepare(
        self,
        sizes: tuple[int, ...],
        *searches: tuple[int, int],
        timeout_s: float = 120.0,
    ) -> None:
        """Compile and warm the engine in the thread that uses it, as ``WorldModel.prepare``.

        Raises:
            WmError: it failed or did not end in time.
        """
        done = threading.Event()
        faults: list[Exception] = []

        def work() -> None:
            try:
                self.model.prepare(sizes, *searches)
                latent, joints = self._blank_latent(), self._blank_joints()
                self._decode_one(latent, joints, latent[0], joints[0], {})
            except Exception as error:
                faults.append(error)
            done.set()

        self.worker.put(self._work, work)
        if not done.wait(timeout_s):
            raise WmError(f"the engine was not ready within {timeout_s:g} s.")
        if faults:
            raise WmError(f"the engine failed to prepare: {faults[0]}") from faults[0]

    def submit_tick(self, tick: Tick) -> None:
        """Encode these frames and, if they are the newest, run a control cycle on them."""
        self.worker.put(self._ticks, tick)

    def submit_goal(self, message: Any, done: Callable[[Goal | None], None]) -> None:
        """Encode a goal picture of the first camera.

        ``done`` gets the goal, or None when the picture is refused, in the thread; it is not called
        when a newer picture comes first.
        """
        camera = self.profile.cameras[0]
        self.worker.put(
            self._goals,
            (
                lambda: self.model.picture_goal({camera.name: model_frame(message, camera)}),
                "picture",
                done,
            ),
        )

    def submit_clip(
        self, clip: Sequence[NDArray[np.uint8]], done: Callable[[Goal | None], None]
    ) -> None:
        """Encode a demonstration, frames (h, w, 3) of the first camera; ``done`` as for a picture.

        It takes the thread some milliseconds a frame, in which no cycle runs.
        """
        camera = self.profile.cameras[0].name
        frames = [{camera: frame} for frame in clip]
        self.worker.put(self._goals, (lambda: self.model.clip_goal(frames), "clip", done))

    def submit_candidates(self, stamp_ns: int, actions: Floats) -> None:
        """Roll out candidates (N, T, A) of another planner from the state at a stamp.

        Raises:
            WmError: a wrong shape or values that are not finite.
        """
        shape = (self.profile.model.horizon_ticks, len(self.profile.action.names))
        if actions.ndim != 3 or actions.shape[1:] != shape or not len(actions):
            raise WmError(
                f"candidates of shape {actions.shape} are refused; give (candidates, "
                f"{shape[0]} ticks, {shape[1]} actions)."
            )
        if not np.isfinite(actions).all():
            raise WmError("candidates with NaN or infinity are refused.")
        self.worker.put(self._requests, CandidateRequest(stamp_ns, actions))

    def reset(self) -> None:
        """Forget everything observed: the scene was changed, or the clock jumped."""
        self.buffer.reset()
        self._forget.set()

    @property
    def dropped_ticks(self) -> int:
        """Ticks that were never encoded because newer ones had come."""
        return self._ticks.dropped

    # In the inference thread.

    def share(
        self,
        observation: Observation,
        outcomes: Outcomes,
        cost: NDArray[np.float64] | None,
        futures: Futures | None = None,
    ) -> None:
        """Publish the outcomes of a plan (N = 1) and have it imagined where somebody looks."""
        stamp_ns = observation.tick.stamp_ns
        self._listeners.outcomes(stamp_ns, outcomes, cost)
        period = self.imagination_period_s
        now = time.monotonic()
        if period <= 0.0:
            self._drawing = None
        elif (
            self._drawing is None
            and isinstance(observation.context, Context)
            and now - self._last_picture_s >= period
        ):
            self._last_picture_s = now
            drawn = [outcomes, *(() if futures is None else (futures.outcomes,))]
            self._drawing = _Drawing(
                observation,
                np.concatenate([rows for each in drawn for rows in each.latents]),
                np.concatenate([rows for each in drawn for rows in each.joints]),
                observation.context.joints[-1],
                None if futures is None else futures.likelihood,
            )
        if self._drawing is not None:
            self.worker.put(self._plans, observation.tick)

    def _observe(self, tick: Tick) -> None:
        if self._forget.is_set():
            self._forget.clear()
            self._imagination.reset()
            self._drawing = None
        start = time.perf_counter()
        try:
            frames = {
                camera.name: model_frame(tick.messages[camera.name], camera)
                for camera in self.profile.cameras
                if camera.name in tick.messages
            }
            latent = self.model.encode(frames)
        except WmError as error:
            self._listeners.refused(str(error), "frames_refused")
            self._tell_failed(tick, error)
            return
        except Exception as error:
            self._tell_failed(tick, error)
            raise
        self.buffer.add_frame(tick.stamp_ns, latent)
        self._imagination.see(tick.stamp_ns, frames[self.profile.cameras[0].name])
        self.encode_ms.add(1e3 * (time.perf_counter() - start))
        if self._ticks.waiting:  # a newer one is here: this one is context only
            return
        try:
            context = self.buffer.context(tick.stamp_ns)
            self.surprise = surprise_at_present(self.model, self.buffer, context, latent)
            self.strangeness = max(
                (
                    (density.strangeness(frames[name]), name)
                    for name, density in self._densities.items()
                    if name in frames
                ),
                default=(0.0, ""),
            )
            if self.drift is not None:
                self.drift.add(self.surprise)
        except Exception as error:
            self._tell_failed(tick, error)
            raise
        if self.cycle is not None:
            self.cycle.run(
                Observation(tick, frames, latent, context, self.surprise, self.strangeness)
            )

    def _tell_failed(self, tick: Tick, error: Exception) -> None:
        if self.cycle is not None:
            self.cycle.failed(tick, error)

    def _encode_goal(
        self, item: tuple[Callable[[], Goal], str, Callable[[Goal | None], None]]
    ) -> None:
        read, kind, done = item
        goal: Goal | None = None
        try:
            goal = _finite(read())
        except WmError as error:
            self._listeners.refused(f"the goal {kind} is refused: {error}", "")
        finally:  # an engine that fails refuses it too
            done(goal)

    def _roll_out(self, request: CandidateRequest) -> None:
        """Roll out one chunk; the rest waits for its turn, so that frames go first."""
        if request.context is None:
            context = self.buffer.context(request.stamp_ns)
            if isinstance(context, NotReady):
                self._listeners.refused(
                    f"candidates are refused: the context at their stamp lacks {context.reason}.",
                    "candidates_refused",
                )
                return
            request.context = context
        start = sum(len(part.uncertainty) for part in request.done)
        part = request.actions[start : start + CHUNK]
        count = len(part)
        padded = np.concatenate([part, np.repeat(part[-1:], CHUNK - count, 0)])
        outcomes = self.model.rollout(request.context, padded)
        request.done.append(take(outcomes, count))
        if start + count < len(request.actions):
            self.worker.put_back(self._requests, request)
            return
        whole = join(request.done)
        cost = None if self.cycle is None else self.cycle.cost(whole, request.actions)
        self._listeners.outcomes(request.stamp_ns, whole, cost)

    def _imagine(self, tick: Tick) -> None:
        """Decode frames of the drawing one by one while the next tick is far enough away."""
        drawing = self._drawing
        if drawing is None:
            return
        next_ns = tick.received_ns + round(self._tick_s * 1e9)
        seen = drawing.observation
        while len(drawing.frames) < len(drawing.latents):
            start_ns = time.monotonic_ns()
            if self._ticks.waiting or next_ns - start_ns < self._decode_s * 1e9:
                self._decode_s *= 0.98  # one slow decode must not end all drawing
                return
            step = slice(len(drawing.frames), len(drawing.frames) + 1)
            given = drawing.latents[step], drawing.joints[step], seen.latent, drawing.joints_now
            drawing.frames.append(self._decode_one(*given, seen.frames))
            taken_s = (time.monotonic_ns() - start_ns) * 1e-9
            self._decode_s = max(taken_s, 0.9 * self._decode_s)
        self._drawing = None
        self.imagined += 1
        stamp_ns, now = seen.tick.stamp_ns, seen.frames[self.profile.cameras[0].name]
        frames, likelihood = np.stack(drawing.frames), drawing.likelihood
        picture = self._imagination.picture(stamp_ns, now, frames, likelihood)
        self._listeners.picture(stamp_ns, picture)

    def _decode_one(
        self,
        latent: Floats,
        joints: Floats,
        latent_now: Floats,
        joints_now: Floats,
        frames: Mapping[str, Frame],
    ) -> Frame:
        """Decode one latent (1, D) and joints (1, J) to the first camera's frame (Hm, Wm, 3)."""
        cameras = self.profile.cameras
        blank = np.zeros((cameras[0].model_height, cameras[0].model_width, 3), np.uint8)
        given = {camera.name: frames.get(camera.name, blank) for camera in cameras}
        drawn = self.model.decode(latent, joints, latent_now, joints_now, given)
        return np.asarray(drawn[0, 0], dtype=np.uint8)

    def _blank_latent(self) -> Floats:
        return np.zeros((1, self.model.latent_size), np.float32)

    def _blank_joints(self) -> Floats:
        return np.zeros((1, len(self.profile.joints.names)), np.float32)

    def _failed(self, slot: str, error: Exception) -> None:
        self._listeners.refused(f"the engine failed on a {slot}: {error!r}.", "")


def _finite(goal: Goal) -> Goal:
    for values in (goal.latent, goal.state, goal.via):
        if values is not None and not np.isfinite(values).all():
            raise WmError("the model reads NaN or infinity from it.")
    return goal


def model_frame(message: Any, camera: Camera) -> Frame:
    """Convert an image message to the frame that the model sees, uint8 (Hm, Wm, 3).

    Raises:
        WmError: an encoding that is no colour image, or another aspect ratio than the profile's.
    """
    image = decode_image(message)
    height, width = image.shape[:2]
    aspect = width * camera.height / (height * camera.width)
    if abs(aspect - 1.0) > MAX_ASPECT_ERROR:
        raise WmError(
            f"camera '{camera.name}' sends {width}x{height}, the profile says "
            f"{camera.width}x{camera.height}; set the camera or the profile to one aspect ratio."
        )
    return resize_area(image, camera.model_width, camera.model_height)


def take(outcomes: Outcomes, count: int) -> Outcomes:
    """Copy the first ``count`` candidates out of the engine's buffers."""
    return Outcomes(
        outcomes.latents[:count].copy(),
        outcomes.joints[:count].copy(),
        outcomes.state[:count].copy(),
        outcomes.risk[:count].copy(),
        outcomes.uncertainty[:count].copy(),
        outcomes.time_to_goal[:count].copy(),
    )


def join(parts: list[Outcomes]) -> Outcomes:
    """Put the candidates of several outcomes one after the other."""
    return Outcomes(
        np.concatenate([part.latents for part in parts]),
        np.concatenate([part.joints for part in parts]),
        np.concatenate([part.state for part in parts]),
        np.concatenate([part.risk for part in parts]),
        np.concatenate([part.uncertainty for part in parts]),
        np.concatenate([part.time_to_goal for part in parts]),
    )


def channels(
    profile: RobotProfile, outcomes: Outcomes, cost: NDArray[np.float64] | None = None
) -> dict[str, NDArray[np.floating]]:
    """Name the predicted values as channels (N, H): labels, ``risk_<event>``, ``uncertainty``,
    ``time_to_goal`` (model steps, where there is a goal picture) and ``cost``.
    """
    named: dict[str, NDArray[np.floating]] = {
        name: outcomes.state[..., index] for index, name in enumerate(profile.label_names)
    }
    for index, name in enumerate(profile.event_names):
        named[f"risk_{name}"] = outcomes.risk[..., index]
    named["uncertainty"] = outcomes.uncertainty
    if np.isfinite(outcomes.time_to_goal).any():
        named["time_to_goal"] = outcomes.time_to_goal
    if cost is not None:
        named["cost"] = np.broadcast_to(cost[:, None], outcomes.uncertainty.shape)
    return named


def check_match(trained: RobotProfile, robot: RobotProfile) -> None:
    """Check that a robot is the kind that a bundle was trained for; topics and limits may differ.

    Raises:
        WmError: the first difference that matters, in one sentence.
    """
    pairs: tuple[tuple[str, object, object], ...] = (
        ("joint names", trained.joints.names, robot.joints.names),
        ("action names", trained.action.names, robot.action.names),
        ("action kind", trained.action.kind, robot.action.kind),
        ("action units", trained.action.units, robot.action.units),
        ("model rates", trained.model, robot.model),
        (
            "cameras",
            tuple((c.name, c.model_width, c.model_height) for c in trained.cameras),
            tuple((c.name, c.model_width, c.model_height) for c in robot.cameras),
        ),
        ("labels", trained.label_names, robot.label_names),
        ("events", trained.event_names, robot.event_names),
    )
    for what, had, has in pairs:
        if had != has:
            raise WmError(
                f"the bundle was trained for another robot than the profile '{robot.name}' "
                f"describes: its {what} are {_words(had)}, the profile's are {_words(has)}; "
                "give the matching bundle or train one for this robot."
            )


def _words(value: object) -> str:
    if isinstance(value, tuple):
        return "(" + ", ".join(map(_words, value)) + ")"
    return str(value)
