"""``/world_model``: watches cameras, joints and applied actions, foresees outcomes, is surprised.

The process also holds ``/mpc_planner``: both share one engine, so that candidates and outcomes
never leave it, and one executor, which does no inference: that is the work of one thread
(:mod:`wm_node.nodes.foresight`).

Subscribes, by the profile: each camera, the joints, the topic that the applied action is read back
from; and ``~/candidates``. Publishes:

``~/outcomes`` (``PointCloud2``): height = candidate, width = step, fields = predicted labels,
    ``risk_<event>``, ``uncertainty``, ``time_to_goal`` and ``cost`` where there is a goal. Stamped
    with the state that they start from: for ``~/candidates`` (fields = action names, width = ticks
    of the horizon) the stamp of the request, for plans that of the frame.
``~/imagination`` (``Image``): see :mod:`wm_node.nodes.imagination`; drawn only while somebody
    listens, at most ``imagination_rate_hz`` times a second, in the time that planning leaves.
``/diagnostics``: see :meth:`WorldModelNode._figures`.

``~/reset`` (``std_srvs/Trigger``) forgets everything observed, as after the scene was changed.
"""

from __future__ import annotations

import array
import dataclasses
import gc
import sys
import time
from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import cv2
import numpy as np
from numpy.typing import NDArray
from rclpy.qos import HistoryPolicy, QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image, JointState, PointCloud2
from std_srvs.srv import Trigger

from wm_node.bundle import load_bundle
from wm_node.data.overlay import DoubtCalibration, apply_overlay, entry_of, load_overlay
from wm_node.engine import BACKENDS, load_engine
from wm_node.errors import WmError
from wm_node.nodes.common import (
    ERROR,
    OK,
    QUIET,
    RELIABLE_QOS,
    SENSOR_QOS,
    WARN,
    Diagnostics,
    ManagedNode,
    get_field,
    message_class,
    named_values,
    qos_overrides,
    run_nodes,
    stamp_to_ns,
    steady_clock,
)
from wm_node.nodes.foresight import CHUNK, Foresight, Listeners, Tick, channels, check_match
from wm_node.nodes.gather import TickGatherer
from wm_node.nodes.handover import CallbackWatch, Outbox
from wm_node.nodes.pointcloud import pack, unpack
from wm_node.nodes.polling import Polled
from wm_node.planning.world_model import Outcomes, WorldModel
from wm_node.profile import Camera, RobotProfile, load_profile
from wm_node.safety.drift import DriftMonitor
from wm_node.safety.gate import GateConfig
from wm_node.safety.reasons import Reason

DRIFT_PATIENCE_H = 100.0  # without a change, a false alarm of drift takes that long on average
DRIFTED = (
    "the surprise is no longer that of the calibration, whose limits do not hold any more: record, "
    "run 'wm calibrate' again, and train if it stays"
)
FUTURE_NS = round(GateConfig.stamp_ahead_s * 1e9)  # how far ahead a frame may be stamped

# Joint states and applied actions come fast, wait in the queue until a tick needs them, and none
# may be lost. Best effort matches every publisher.
STREAM_QOS = QoSProfile(
    history=HistoryPolicy.KEEP_LAST, depth=200, reliability=ReliabilityPolicy.BEST_EFFORT
)


def read_applied(profile: RobotProfile, message: Any) -> NDArray[np.float64]:
    """Return the action (A,) that a message on the profile's readback topic says is in force.

    Raises:
        WmError: a field, a joint or a value is missing.
    """
    action, spec = profile.action, profile.action.readback
    if hasattr(message, "name") or hasattr(message, "joint_names"):
        return named_values(message, spec.fields[0], action.names, "read-back action")
    if len(spec.fields) == 1:
        values = np.atleast_1d(np.asarray(get_field(message, spec.fields[0]), dtype=np.float64))
    else:
        values = np.array([float(get_field(message, path)) for path in spec.fields])
    if values.shape != (len(action.names),):
        raise WmError(
            f"the read-back action on '{spec.topic}' has {values.size} values, the profile "
            f"'{profile.name}' has {len(action.names)}."
        )
    return values


class WorldModelNode(ManagedNode):
    """The ROS side of :class:`~wm_node.nodes.foresight.Foresight`."""

    def __init__(self, **options: Any) -> None:
        super().__init__("world_model", **options)
        self.foresight: Foresight | None = None
        self.on_tick: Callable[[Tick], None] | None = None
        """Called by the executor with each tick, before it is encoded."""
        self.watch = CallbackWatch()
        self.last_frame_ns = 0
        """When the first camera's last frame was taken, in time of the steady clock."""
        self.last_joints_ns = 0
        self.joints_fault = self.frames_fault = Reason.OK
        self.frames_received: dict[str, int] = {}
        self._parts: list[Callable[[], None]] = []
        self._said: set[str] = set()
        self._diagnostics = Diagnostics(self, "perception")
        self._forget_counts()
        self.declare("bundle", "", "folder of the trained bundle")
        self.declare("robot", "", "robot profile: path or name; empty: the bundle's own")
        self.declare("overlay", "", "what 'wm calibrate' measured of this robot")
        self.declare("backend", "openvino", "what runs the model", choices=tuple(BACKENDS))
        self.declare("threads", 1, "CPU threads of inference", minimum=1, maximum=256)
        self.declare(
            "imagination_rate_hz", 2.0, "most pictures of imagination a second", minimum=0.0
        )
        self.declare(
            "frame_timeout_s",
            5.0,
            "a camera that has sent nothing for so long is reported",
            minimum=0.1,
        )

    def _forget_counts(self) -> None:
        self._counts = dict.fromkeys(
            (
                "frame_gaps",
                "frames_refused",
                "clock_jumps",
                "ticks",
                "candidates_received",
                "candidates_refused",
                "actions_received",
                "actions_refused",
            ),
            0,
        )
        self._last_stamp_ns = 0
        self._active_since = 0.0
        self._fault = ""

    # Lifecycle.

    def configure(self) -> None:
        """Load and check bundle, profile and engine; subscribe."""
        path, robot, overlay, backend, threads = (
            self.get_parameter(name).value
            for name in ("bundle", "robot", "overlay", "backend", "threads")
        )
        if not path:
            raise WmError("the parameter 'bundle' is empty; give the folder that 'wm train' wrote.")
        bundle = load_bundle(path)
        profile = load_profile(robot) if robot else bundle.profile
        check_match(bundle.profile, profile)
        doubt = None
        if overlay:
            measured = load_overlay(overlay)
            profile = apply_overlay(profile, measured, bundle.sha256)
            doubt = entry_of(measured, profile.name).doubt
        bundle = dataclasses.replace(bundle, profile=profile)
        cv2.setNumThreads(threads)
        self._forget_counts()
        self._said.clear()
        model = WorldModel(bundle, load_engine(bundle, backend, threads))
        outbox = Outbox(self)
        self._parts.append(outbox.close)
        drift = None if doubt is None else _drift_monitor(doubt, profile)
        foresight = Foresight(bundle, model, self._listeners(outbox), drift)
        foresight.worker.start()
        self._parts.append(self._stop_worker)
        self.foresight = foresight
        foresight.prepare((CHUNK,))
        # What is loaded stays: without this, each full collection stops all threads for tens of ms.
        gc.collect()
        gc.freeze()
        self._gatherer = TickGatherer(bundle.profile)
        self._open_topics(bundle.profile)
        self.get_logger().info(
            f"bundle {bundle.sha256[:12]} on {model.engine.name}, {threads} thread(s), for the "
            f"robot '{bundle.profile.name}'"
        )

    def activate(self) -> None:
        """Start to watch; refuse when the robot's joints are known not to be the profile's."""
        if self.joints_fault is Reason.JOINT_NAMES:
            raise WmError(self._fault)
        self._active_since = time.monotonic()
        self._gatherer.reset()
        if self.foresight is not None:
            self.foresight.reset()

    def deactivate(self) -> None:
        """Stop to watch; the planner's frames go stale with it."""
        if self.foresight is not None:
            self.foresight.worker.clear()

    def cleanup(self) -> None:
        """Stop the inference thread, release engine and topics."""
        while self._parts:
            self._parts.pop()()
        self.foresight = None
        gc.unfreeze()
        self.joints_fault = self.frames_fault = Reason.OK

    def _stop_worker(self) -> None:
        if self.foresight is not None and not self.foresight.worker.stop():
            self.get_logger().error("the inference thread hangs and is left behind")

    def _open_topics(self, profile: RobotProfile) -> None:
        options: dict[str, Any] = {"qos_overriding_options": qos_overrides()}
        self._outcomes_topic = self.create_lifecycle_publisher(
            PointCloud2, "~/outcomes", RELIABLE_QOS, event_callbacks=QUIET
        )
        self._picture_topic = self.create_lifecycle_publisher(
            Image, "~/imagination", RELIABLE_QOS, event_callbacks=QUIET
        )
        for publisher in (self._outcomes_topic, self._picture_topic):
            self._parts.append(partial(self.destroy_lifecycle_publisher, publisher))

        def subscribe(kind: type, topic: str, call: Callable[..., None], qos: Any) -> None:
            made = self.create_subscription(kind, topic, self.watch(call), qos, **options)
            self._parts.append(partial(self.destroy_subscription, made))

        for camera in profile.cameras:
            self.frames_received[camera.name] = 0
            kind = message_class(camera.message)
            subscribe(kind, camera.topic, partial(self._on_frame, camera), SENSOR_QOS)
        readback = profile.action.readback
        self._streams = [
            Polled(self, kind, topic, call, STREAM_QOS, **options)
            for kind, topic, call in (
                (JointState, profile.joints.topic, self._on_joints),
                (message_class(readback.message), readback.topic, self._on_applied),
            )
        ]
        self._parts += [stream.destroy for stream in self._streams]
        subscribe(PointCloud2, "~/candidates", self._on_candidates, RELIABLE_QOS)
        service = self.create_service(Trigger, "~/reset", self._on_reset)
        self._parts.append(partial(self.destroy_service, service))
        clock = steady_clock()
        report = self.create_timer(1.0, self.watch(self._report), clock=clock)
        self._parts.append(partial(self.destroy_timer, report))
        self._wait = None
        if self._gatherer.wait_ns:
            self._wait = self.create_timer(
                self._gatherer.wait_ns * 1e-9, self._stop_waiting, clock=clock, autostart=False
            )
            self._parts.append(partial(self.destroy_timer, self._wait))

    # What comes in.

    def _on_frame(self, camera: Camera, message: Any) -> None:
        received_ns = time.monotonic_ns()
        self.frames_received[camera.name] += 1
        if not self.is_active or self.foresight is None:
            return
        stamp_ns = stamp_to_ns(message.header.stamp)
        if stamp_ns == 0:
            self._refuse(f"camera '{camera.name}' sends frames without a stamp.", "frames_refused")
            return
        stamp_ns -= round(camera.latency_s * 1e9)
        if camera is self.foresight.profile.cameras[0]:
            self._note_stamp(camera, stamp_ns, received_ns)
            if self.frames_fault is not Reason.OK:
                return  # nothing can be planned of it, and its command would be due far too late
        for tick in self._gatherer.add(camera.name, stamp_ns, received_ns, message):
            self._submit(tick)
        if self._wait is not None and self._gatherer.is_open and self._wait.is_canceled():
            self._wait.reset()

    def _note_stamp(self, camera: Camera, stamp_ns: int, received_ns: int) -> None:
        assert self.foresight is not None
        age_ns = self.get_clock().now().nanoseconds - stamp_ns
        self.last_frame_ns = received_ns - max(age_ns, 0)
        # What is seen would be put together with joints of another time.
        self.frames_fault = Reason.FRAMES_FUTURE if age_ns < -FUTURE_NS else Reason.OK
        since_ns = stamp_ns - self._last_stamp_ns
        if self._last_stamp_ns and since_ns < 0:
            self._counts["clock_jumps"] += 1
            self._gatherer.reset()
            self.foresight.reset()
            self.get_logger().warning(
                f"the stamps of camera '{camera.name}' jumped back by {-since_ns * 1e-9:.3f} s; "
                "the context starts anew"
            )
        elif self._last_stamp_ns and since_ns * 1e-9 > 1.5 / camera.rate_hz:
            self._counts["frame_gaps"] += round(since_ns * 1e-9 * camera.rate_hz) - 1
        self._last_stamp_ns = stamp_ns

    def _stop_waiting(self) -> None:
        assert self._wait is not None
        self._wait.cancel()
        for tick in self._gatherer.close():
            self._submit(tick)

    def _submit(self, tick: Tick) -> None:
        assert self.foresight is not None
        self._counts["ticks"] += 1
        rate = float(self.get_parameter("imagination_rate_hz").value)
        watched = rate > 0 and self._picture_topic.get_subscription_count() > 0
        self.foresight.imagination_period_s = 1.0 / rate if watched else 0.0
        if self.on_tick is not None:
            self.on_tick(tick)
        self.poll()
        self.foresight.submit_tick(tick)

    def poll(self) -> None:
        """Take the joint states and applied actions that have come."""
        if self.foresight is not None:
            for stream in self._streams:
                stream.poll()

    def _on_joints(self, message: JointState) -> None:
        if self.foresight is None:
            return
        try:
            names = self.foresight.profile.joints.names
            positions = named_values(message, "position", names, "joint state")
        except WmError as error:
            self.joints_fault = Reason.JOINT_NAMES
            self._refuse(str(error))
            return
        if not np.isfinite(positions).all():
            self.joints_fault = Reason.JOINTS_NOT_FINITE
            self._refuse("a joint state with NaN or infinity is refused; check the robot's driver.")
            return
        self.joints_fault = Reason.OK
        self.last_joints_ns = time.monotonic_ns()
        self.foresight.buffer.add_joints(self._stamp_of(message), positions)

    def _on_applied(self, message: Any) -> None:
        if self.foresight is None:
            return
        try:
            values = read_applied(self.foresight.profile, message)
            if not np.isfinite(values).all():
                raise WmError("a read-back action with NaN or infinity is refused.")
        except WmError as error:
            self._refuse(str(error), "actions_refused")
            return
        self._counts["actions_received"] += 1
        self.foresight.buffer.add_action(self._stamp_of(message), values)

    def _stamp_of(self, message: Any) -> int:
        """The header's stamp; where there is none, now."""
        stamp_ns = stamp_to_ns(message.header.stamp) if hasattr(message, "header") else 0
        return stamp_ns or int(self.get_clock().now().nanoseconds)

    def _on_candidates(self, message: PointCloud2) -> None:
        if not self.is_active or self.foresight is None:
            return
        self._counts["candidates_received"] += 1
        try:
            stamp_ns, fields = unpack(message)
            names = self.foresight.profile.action.names
            if missing := [name for name in names if name not in fields]:
                raise WmError(f"candidates lack the fields {', '.join(missing)}.")
            actions = np.stack([fields[name] for name in names], axis=-1)
            self.foresight.submit_candidates(stamp_ns, actions)
        except WmError as error:
            self._refuse(str(error), "candidates_refused")

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        if self.foresight is not None:
            self._gatherer.reset()
            self.foresight.reset()
        response.success = self.foresight is not None
        response.message = "the context is empty" if response.success else "not configured"
        return response

    # What goes out.

    def _listeners(self, outbox: Outbox) -> Listeners:
        watch = self.watch
        return Listeners(
            outcomes=lambda *given: outbox.post(partial(watch(self._publish_outcomes), *given)),
            picture=lambda *given: outbox.post(partial(watch(self._publish_picture), *given)),
            refused=lambda text, count: outbox.post(partial(self._refuse, text, count)),
        )

    def _publish_outcomes(
        self, stamp_ns: int, outcomes: Outcomes, cost: NDArray[np.float64] | None
    ) -> None:
        if self.foresight is not None and self.is_active:
            named = channels(self.foresight.profile, outcomes, cost)
            frame = self.foresight.profile.action.frame_id
            self._outcomes_topic.publish(pack(named, stamp_ns, frame))

    def _publish_picture(self, stamp_ns: int, picture: NDArray[np.uint8]) -> None:
        if self.foresight is None or not self.is_active:
            return
        message = Image(height=picture.shape[0], width=picture.shape[1], encoding="rgb8")
        message.header.stamp.sec, message.header.stamp.nanosec = divmod(stamp_ns, 10**9)
        message.step = 3 * message.width
        data = array.array("B")
        data.frombytes(picture.tobytes())
        message.data = data
        self._picture_topic.publish(message)

    def _refuse(self, text: str, count: str = "") -> None:
        """Count an input that cannot be used; say it once."""
        if count:
            self._counts[count] += 1
        self._fault = text
        if self._is_news(text):
            self.get_logger().error(text)

    def _is_news(self, text: str) -> bool:
        """Whether a sentence has not been logged yet; it counts as logged from now on."""
        if text in self._said:
            return False
        if len(self._said) < 100:
            self._said.add(text)
        return True

    # Diagnostics.

    def _report(self) -> None:
        if self.foresight is None:
            return
        self.poll()
        level, text = self._health(self.foresight)
        self._diagnostics.report(level, text, self._figures(self.foresight))
        self._fault = "" if self.joints_fault is Reason.OK else self._fault

    def _health(self, foresight: Foresight) -> tuple[bytes, str]:
        profile, drift = foresight.profile, foresight.drift
        if not self.is_active:
            return OK, "inactive"
        if self._fault:
            return ERROR, self._fault
        timeout = float(self.get_parameter("frame_timeout_s").value)
        waited = time.monotonic() - self._active_since
        for camera in profile.cameras:
            if not self.frames_received[camera.name] and waited > timeout:
                text = (
                    f"{Reason.FRAMES_STALE.name}: no frame of camera '{camera.name}' has come on "
                    f"'{camera.topic}'; check the camera's driver and the topic's name."
                )
                if self._is_news(text):
                    self.get_logger().warning(text)
                return ERROR, text
        now_ns = time.monotonic_ns()
        if (now_ns - self.last_frame_ns) * 1e-9 > profile.safety.max_frame_age_s:
            return WARN, f"{Reason.FRAMES_STALE.name}: {Reason.FRAMES_STALE.meaning}"
        if (now_ns - self.last_joints_ns) * 1e-9 > profile.safety.max_joint_age_s:
            return WARN, f"{Reason.JOINTS_STALE.name}: {Reason.JOINTS_STALE.meaning}"
        if drift is not None and drift.drifted:
            return WARN, DRIFTED
        return OK, "watching"

    def _figures(self, foresight: Foresight) -> dict[str, object]:
        """Key/values of ``world_model: perception`` on ``/diagnostics``."""
        now_ns = time.monotonic_ns()
        profile = foresight.profile
        return {
            "bundle_sha256": foresight.bundle.sha256,
            "backend": foresight.model.engine.name,
            "frames_received": self.frames_received[profile.cameras[0].name],
            **{f"frames_received_{name}": count for name, count in self.frames_received.items()},
            "frame_age_ms": 1e-6 * (now_ns - self.last_frame_ns) if self.last_frame_ns else -1.0,
            "joints_age_ms": 1e-6 * (now_ns - self.last_joints_ns) if self.last_joints_ns else -1.0,
            **self._counts,
            "ticks_dropped": foresight.dropped_ticks,
            "encode_ms_p50": foresight.encode_ms.percentile(50),
            "encode_ms_p99": foresight.encode_ms.percentile(99),
            "surprise": foresight.surprise,
            "strangeness": foresight.strangeness[0],
            **_drift_figures(foresight.drift),
            "imagined": foresight.imagined,
            "callback_ms_p99": self.watch.ms.percentile(99),
            "callback_ms_max": self.watch.worst_ms,
        }


def _drift_monitor(doubt: DoubtCalibration, profile: RobotProfile) -> DriftMonitor:
    window = max(1, round(doubt.window_s / profile.model.tick_s))
    patience = DRIFT_PATIENCE_H * 3600.0 / doubt.window_s
    return DriftMonitor(doubt.windows, window, patience, doubt.confidence)


def _drift_figures(drift: DriftMonitor | None) -> dict[str, object]:
    if drift is None:
        return {"calibration": "none"}
    return {
        "calibration": "drifted" if drift.drifted else "holds",
        "drift_evidence": drift.evidence,
        "drift_windows": drift.windows,
    }


def main(args: Sequence[str] | None = None) -> int:
    """Run ``/world_model`` and ``/mpc_planner`` in one process."""
    from wm_node.nodes.mpc_planner import MpcPlannerNode

    def nodes() -> list[ManagedNode]:
        world = WorldModelNode()
        return [MpcPlannerNode(world), world]

    return run_nodes(nodes, args)


if __name__ == "__main__":
    sys.exit(main())
