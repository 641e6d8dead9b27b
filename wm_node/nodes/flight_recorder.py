"""``/flight_recorder``: writes what the robot sees, does and is told into rosbag2 MCAP bags.

Subscribes raw to the topics of the robot profile and of its own parameters as they appear, with
the quality of service that their publishers offer. Camera images are stored as JPEG under
``<topic>/compressed`` unless ``images`` is ``raw``. A bag begins at ``activate`` and is complete
after ``deactivate`` or a clean exit; ``wm recover`` repairs one whose recorder was killed.

Each file of the bag holds three latched strings that say what was running: ``~/profile`` (the
robot profile, YAML), ``~/bundle`` (JSON: path and sha256) and ``~/parameters`` (JSON: parameters by
node). Service ``~/split`` (``std_srvs/Trigger``) begins a new file.

No robot publishes that something went wrong. ``~/mark_event`` (``std_srvs/Trigger``) lets a person
say so: ``events/marked`` (``std_msgs/Bool``, latched, recorded) is true for ``mark_s`` from then
on, and false otherwise. A profile names it among its events as any other.
"""

from __future__ import annotations

import json
import sys
import time
from collections.abc import Sequence
from dataclasses import replace
from datetime import datetime
from functools import partial
from pathlib import Path
from typing import Any, NamedTuple

import yaml
from rclpy.qos import (
    DurabilityPolicy,
    HistoryPolicy,
    QoSProfile,
    ReliabilityPolicy,
)
from rclpy.serialization import serialize_message
from std_msgs.msg import Bool, String
from std_srvs.srv import Trigger

from wm_node import __version__
from wm_node.bundle import load_bundle
from wm_node.errors import WmError
from wm_node.nodes.common import (
    ERROR,
    LATCHED_QOS,
    OK,
    WARN,
    Diagnostics,
    ManagedNode,
    message_class,
    run_node,
    steady_clock,
)
from wm_node.nodes.image_encoder import Deliver, Frame, ImageEncoder
from wm_node.nodes.parameter_watch import ParameterWatch
from wm_node.nodes.polled_subscription import GapCounter, PolledSubscription, Take
from wm_node.profile import RobotProfile, load_profile
from wm_node.recording.definitions import message_definition, type_hash
from wm_node.recording.mcap_file import COMPRESSIONS
from wm_node.recording.metadata import Qos, Topic
from wm_node.recording.recorder import RECORDING, BagRecorder, RecorderConfig, RecorderStatus

IMAGE = "sensor_msgs/msg/Image"
COMPRESSED = "sensor_msgs/msg/CompressedImage"
STRING = "std_msgs/msg/String"
BOOL = "std_msgs/msg/Bool"

# What is recorded of our own nodes besides the topics of the profile.
MARKED = "events/marked"
DEFAULT_TOPICS = (
    "goal_image",
    "mpc_planner/command",
    "mpc_planner/verdict",
    "mpc_planner/heartbeat",
    "mpc_planner/plan",
    "world_model/outcomes",
    "safety_gate/status",
    "safety_gate/shadow_command",
    "sim_robot/goal",
    MARKED,
    "/diagnostics",
    "/parameter_events",
    "/rosout",
    "/tf",
    "/tf_static",
)
DEFAULT_NODES = ("world_model", "mpc_planner", "safety_gate", "sim_robot")

_POLL_S = 0.05
_DISCOVERY_S = 0.2  # topics that have not been seen; the others every fifth time
_STATUS_S = 1.0
_DROP_WARNING_S = 10.0
_MB = 1_000_000
_INFINITE_NS = 2**63 - 1


class _Recorded(NamedTuple):
    """One recorded topic: its subscription, and the quality of service that it has."""

    subscription: PolledSubscription
    gaps: GapCounter
    topic: Topic
    qos: QoSProfile


class FlightRecorder(ManagedNode):
    """The lifecycle node around :class:`~wm_node.recording.recorder.BagRecorder`."""

    def __init__(self, **options: Any) -> None:
        super().__init__("flight_recorder", **options)
        self._declare()
        self._diagnostics = Diagnostics(self, "recording")
        self._diagnostics.report(OK, "not recording")
        self._profile: RobotProfile | None = None
        self._bundle: dict[str, str] = {}
        self._recorder: BagRecorder | None = None
        self._encoder: ImageEncoder | None = None
        self._watch: ParameterWatch | None = None
        self._recorded: dict[str, _Recorded] = {}
        self._wanted: list[str] = []
        self._problems: dict[str, str] = {}
        self._lost: dict[str, int] = {}
        self._unsent: dict[str, tuple[str, Any]] = {}
        self._sim_time = False
        self._previous: tuple[float, RecorderStatus] | None = None
        self._rounds = 0
        self._drops_seen = 0
        self._drops_at = -_DROP_WARNING_S
        self._own_timers: list[Any] = []
        self._own_services: list[Any] = []
        self._mark: Any = None
        self._mark_ends: Any = None
        self._keeps_marks = False

    def _declare(self) -> None:
        declare = self.declare
        declare("robot", "", "robot profile: a path, or the name of one in config/robots")
        declare("bundle", "", "bundle whose hash is noted in the bag; empty: none")
        declare("bag_path", "", "folder of the bag; empty: a new one in output_dir")
        declare("output_dir", "~/wm_bags", "where bags named <robot>_<date>_<time> are made")
        declare("topics", list(DEFAULT_TOPICS), "topics recorded besides those of the profile")
        declare("exclude", [""], "topics that are not recorded even if the profile names them")
        declare("parameter_nodes", list(DEFAULT_NODES), "nodes whose parameters are noted")
        kinds: tuple[str, ...] = ("compressed", "raw")
        declare("images", "compressed", "how raw images are stored", choices=kinds)
        declare("jpeg_quality", 90, "quality of stored images", minimum=1, maximum=100)
        declare("image_queue", 32, "frames that may wait for the encoder", minimum=1, maximum=1000)
        kinds = tuple(COMPRESSIONS)
        declare("compression", "zstd", "compression of the bag's chunks", choices=kinds)
        declare("chunk_s", 0.4, "longest time that a chunk is open", minimum=0.1, maximum=0.5)
        declare("chunk_kb", 1024, "size at which a chunk is closed", minimum=1, maximum=65536)
        declare("fsync_s", 2.0, "how often the file is synced to disk", minimum=0.1, maximum=60.0)
        declare("split_mb", 2000, "size at which a new file begins", minimum=1, maximum=1_000_000)
        declare("split_s", 300.0, "time after which a new file begins", minimum=0.5, maximum=86400)
        declare("mark_s", 0.5, "how long a marked event lasts", minimum=0.1, maximum=60.0)
        declare("queue_mb", 128, "memory for messages that wait for the disk", minimum=2)
        declare("min_free_mb", 1000, "recording stops below this much free space", minimum=0)
        declare("resume_margin_mb", 256, "it resumes with this much above min_free_mb", minimum=0)

    def _value(self, name: str) -> Any:
        return self.get_parameter(name).value

    # ---------------------------------------------------------------- lifecycle

    def configure(self) -> None:
        """Load profile and bundle, and settle what is recorded."""
        robot = str(self._value("robot"))
        if not robot:
            raise WmError("the parameter 'robot' is empty; name a robot profile.")
        self._profile = load_profile(robot)
        path = str(self._value("bundle"))
        self._bundle = {"path": path, "sha256": load_bundle(path).sha256} if path else {}
        excluded = {self.resolve_topic_name(name) for name in self._value("exclude") if name}
        names = [self.resolve_topic_name(name) for name in self._names()]
        wanted = [name for name in dict.fromkeys(names) if name not in excluded]
        self._own_services = [
            self.create_service(Trigger, "~/split", self._on_split),
            self.create_service(Trigger, "~/mark_event", self._on_mark),
        ]
        self._mark = self.create_publisher(Bool, MARKED, LATCHED_QOS)
        self._keeps_marks = self._mark.topic_name in wanted
        self._wanted = [name for name in wanted if name != self._mark.topic_name]
        self._diagnostics.report(OK, "not recording", {})

    def _names(self) -> list[str]:
        assert self._profile is not None
        profile = self._profile
        names = [camera.topic for camera in profile.cameras]
        names += [profile.joints.topic, profile.action.topic, profile.action.readback.topic]
        names += [label.topic for label in profile.labels]
        names += [event.topic for event in profile.events]
        return names + [name for name in self._value("topics") if name]

    def activate(self) -> None:
        """Begin a bag and subscribe to everything that is there."""
        assert self._profile is not None
        profile = self._profile
        profile_text = yaml.safe_dump(profile.dump(), sort_keys=False, allow_unicode=True)
        about = {"wm_node": __version__, "robot": profile.name}
        if self._bundle:
            about["bundle_sha256"] = self._bundle["sha256"]
        recorder = BagRecorder(
            self._recorder_config(),
            metadata=about,
            attachments={"profile.yaml": ("application/yaml", profile_text.encode())},
            now_ns=self._now_ns,
        )
        recorder.start()
        self._recorder = recorder
        self._sim_time = bool(self._value("use_sim_time"))
        self._lost.clear()
        self._previous = None
        self._drops_seen = 0
        if self._value("images") == "compressed":
            quality, capacity = self._value("jpeg_quality"), self._value("image_queue")
            self._encoder = ImageEncoder(_into(recorder), quality, capacity)
        self._latch_text("profile", profile_text)
        self._latch_text("bundle", json.dumps(self._bundle))
        nodes = [self._node_name(name) for name in self._value("parameter_nodes") if name]
        self._watch = ParameterWatch(self, nodes, self._on_parameters)
        self._on_parameters({})
        clock = steady_clock()
        self._own_timers = [
            self.create_timer(_POLL_S, self._poll, clock=clock),
            self.create_timer(_DISCOVERY_S, self._discover, clock=clock),
            self.create_timer(_STATUS_S, self._report, clock=clock),
        ]
        self._say_marked(False)
        self._discover()
        self._report()
        self.get_logger().info(f"recording into {recorder.status().folder}")

    def deactivate(self) -> None:
        """Stop taking messages, write what is queued and finish the bag."""
        self._end_mark()
        for timer in self._own_timers:
            self.destroy_timer(timer)
        self._own_timers = []
        for one in self._recorded.values():
            one.subscription.destroy()
        self._recorded.clear()
        self._problems.clear()
        if self._watch is not None:
            self._watch.close()
            self._watch = None
        encoder, self._encoder = self._encoder, None
        if encoder is not None:
            encoder.close()
        recorder, self._recorder = self._recorder, None
        if recorder is None:
            return
        status = recorder.close()
        total = sum(status.written.values())
        dropped = status.dropped_total + (sum(encoder.dropped().values()) if encoder else 0)
        said = f"wrote {total} messages into {status.folder}, {dropped} were dropped"
        if status.unfinished:
            raise WmError(f"{said}; {status.reason}.")
        self.get_logger().info(said)
        self._diagnostics.report(OK, "not recording", {"last_bag": status.folder})

    def cleanup(self) -> None:
        """Forget the configuration."""
        while self._own_services:
            self.destroy_service(self._own_services.pop())
        if self._mark is not None:
            self.destroy_publisher(self._mark)
            self._mark = None
        self._profile = None

    def _recorder_config(self) -> RecorderConfig:
        assert self._profile is not None
        given = str(self._value("bag_path"))
        if given:
            folder = Path(given).expanduser().resolve()
        else:
            stamp = datetime.now().strftime("%Y%m%d_%H%M%S")
            parent = Path(str(self._value("output_dir"))).expanduser().resolve()
            folder = parent / f"{self._profile.name}_{stamp}"
        return RecorderConfig(
            folder=folder,
            chunk_bytes=self._value("chunk_kb") << 10,
            chunk_s=self._value("chunk_s"),
            fsync_s=self._value("fsync_s"),
            split_bytes=self._value("split_mb") * _MB,
            split_s=self._value("split_s"),
            queue_bytes=self._value("queue_mb") * _MB,
            min_free_bytes=self._value("min_free_mb") * _MB,
            resume_margin_bytes=self._value("resume_margin_mb") * _MB,
            compression=self._value("compression"),
        )

    # ---------------------------------------------------------------- topics

    def _discover(self) -> None:
        """Subscribe to wanted topics that have appeared or changed their quality of service."""
        everything = self._rounds % 5 == 0
        self._rounds += 1
        for name in self._wanted:
            if name in self._recorded and not everything:
                continue
            publishers = self.get_publishers_info_by_topic(name)
            if not publishers:
                continue
            try:
                self._subscribe(name, publishers)
                self._problems.pop(name, None)
            except WmError as error:
                self._note_problem(name, str(error))
        if everything:
            self._look_for_other_marks()
            if self._watch is not None:
                self._watch.poll()
        self._send_latched()

    def _look_for_other_marks(self) -> None:
        """Tell who else publishes on the topic of marks: what it says is not recorded."""
        topic = self._mark.topic_name
        others = sorted(
            {info.node_name for info in self.get_publishers_info_by_topic(topic)}
            - {self.get_name()}
        )
        if others and self._keeps_marks:
            who = ", ".join(others)
            self._note_problem(topic, f"{who} publishes there too; call ~/mark_event instead.")
        else:
            self._problems.pop(topic, None)

    def _note_problem(self, topic: str, problem: str) -> None:
        """Keep why a topic is not recorded, and log it when it is new."""
        if self._problems.get(topic) != problem:
            self.get_logger().error(f"{topic} is not recorded: {problem}")
        self._problems[topic] = problem

    def _subscribe(self, name: str, publishers: Sequence[Any]) -> None:
        types = sorted({info.topic_type for info in publishers})
        if len(types) > 1:
            raise WmError(f"its publishers disagree on the type: {', '.join(types)}.")
        message_type = types[0]
        jpeg = (
            message_type == IMAGE
            and self._encoder is not None
            and f"{name}/compressed" not in self._wanted
        )
        qos = adapted_qos([info.qos_profile for info in publishers], message_type == IMAGE)
        known = self._recorded.get(name)
        if known is not None and known.topic.type != message_type:
            was = known.topic.type
            raise WmError(f"its type changed from {was} to {message_type}; begin a new recording.")
        gaps = GapCounter() if known is None else known.gaps
        gaps.publishers = len(publishers)
        if known is not None and known.qos == qos:
            return
        # State, not history: what expires (the log) is not repeated in every file.
        latched = qos.durability == DurabilityPolicy.TRANSIENT_LOCAL and all(
            info.qos_profile.lifespan.nanoseconds >= _INFINITE_NS for info in publishers
        )
        topic = Topic(
            name=name,
            type=message_type,
            definition=message_definition(message_type),
            qos=tuple(offered_qos(info.qos_profile) for info in publishers),
            type_hash=str(publishers[0].topic_type_hash),
            latched=latched,
            keep=len(publishers),
        )
        if known is not None:
            known.subscription.destroy()
        subscription = PolledSubscription(
            self,
            message_class(message_type),
            name,
            qos,
            self._taker(topic, jpeg),
            gaps,
            partial(self._count_lost, name),
        )
        self._recorded[name] = _Recorded(subscription, gaps, topic, qos)

    def _poll(self) -> None:
        """Take what has arrived."""
        for one in self._recorded.values():
            one.subscription.poll()

    def _taker(self, topic: Topic, jpeg: bool) -> Take:
        """Return the callback of a subscription; whatever it takes is written or counted."""
        recorder, encoder = self._recorder, self._encoder
        assert recorder is not None

        def write(data: bytes, info: dict[str, Any]) -> None:
            log_ns = self._log_ns(info)
            recorder.write(topic, log_ns, int(info.get("source_timestamp") or log_ns), data)

        if not jpeg or encoder is None:
            return write
        jpeg_topic = replace(
            topic,
            name=f"{topic.name}/compressed",
            type=COMPRESSED,
            definition=message_definition(COMPRESSED),
            type_hash=type_hash(COMPRESSED),
        )

        def encode(data: bytes, info: dict[str, Any]) -> None:
            log_ns = self._log_ns(info)
            publish_ns = int(info.get("source_timestamp") or log_ns)
            encoder.submit(Frame(topic, jpeg_topic, log_ns, publish_ns, data))

        return encode

    def _count_lost(self, name: str, count: int) -> None:
        self._lost[name] = self._lost.get(name, 0) + count

    def _log_ns(self, info: dict[str, Any]) -> int:
        """Return when a message arrived: by DDS's receive stamp, or by /clock."""
        if self._sim_time:
            return self._now_ns()
        return int(info.get("received_timestamp") or time.time_ns())

    def _now_ns(self) -> int:
        return int(self.get_clock().now().nanoseconds)

    def _node_name(self, name: str) -> str:
        return name if name.startswith("/") else f"{self.get_namespace().rstrip('/')}/{name}"

    # ---------------------------------------------------------------- what was running

    def _on_parameters(self, others: dict[str, Any]) -> None:
        own = {
            name: parameter.value
            for name, parameter in sorted(self.get_parameters_by_prefix("").items())
        }
        everything = {self._node_name(self.get_name()): own, **others}
        self._latch_text("parameters", json.dumps(everything, default=str))

    def _latch_text(self, name: str, text: str) -> None:
        topic = f"{self._node_name(self.get_name())}/{name}"
        self._latch(topic, STRING, String(data=text))

    def _latch(self, topic: str, kind: str, message: Any) -> None:
        """Put a message of our own into the bag, to be repeated in each of its files."""
        self._unsent[topic] = kind, message
        self._send_latched()

    def _send_latched(self) -> None:
        now_ns = self._now_ns()
        if self._recorder is None or now_ns == 0:  # /clock has not spoken yet
            return
        for name, (kind, message) in self._unsent.items():
            topic = Topic(
                name=name,
                type=kind,
                definition=message_definition(kind),
                qos=(Qos(durability="transient_local", depth=1),),
                type_hash=type_hash(kind),
                latched=True,
            )
            self._recorder.write(topic, now_ns, now_ns, bytes(serialize_message(message)))
        self._unsent.clear()

    def _on_split(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        del request
        try:
            if self._recorder is None:
                raise WmError("cannot split: the recorder is not active.")
            response.message = self._recorder.split()
            response.success = True
        except WmError as error:
            response.message = str(error)
        return response

    def _on_mark(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        del request
        if self._recorder is None:
            response.message = "cannot mark an event: the recorder is not active."
            return response
        if self._mark_ends is None:
            self._say_marked(True)
        else:  # marked again: it lasts from now
            self.destroy_timer(self._mark_ends)
        self._mark_ends = self.create_timer(
            self._value("mark_s"), self._end_mark, clock=steady_clock()
        )
        response.success, response.message = True, f"marked on {self._mark.topic_name}"
        return response

    def _end_mark(self) -> None:
        if self._mark_ends is not None:
            self.destroy_timer(self._mark_ends)
            self._mark_ends = None
            self._say_marked(False)

    def _say_marked(self, marked: bool) -> None:
        """Publish it and record it, without waiting until DDS brings us what we say ourselves."""
        message = Bool(data=marked)
        self._mark.publish(message)
        if self._keeps_marks:
            self._latch(self._mark.topic_name, BOOL, message)

    # ---------------------------------------------------------------- diagnostics

    def _report(self) -> None:
        """Say how the recording goes; log each change of mind."""
        if self._recorder is None:
            return
        status, now = self._recorder.status(), time.monotonic()
        drops = self._drops(status)
        total = sum(sum(reasons.values()) for reasons in drops.values())
        if total > self._drops_seen:
            self._drops_seen, self._drops_at = total, now
        level, message = self._judge(status, now - self._drops_at < _DROP_WARNING_S)
        values = self._values(status, drops, now)
        self._previous = (now, status)
        if self._diagnostics.report(level, message, values):
            if level == ERROR:
                self.get_logger().error(message)
            elif level == WARN:
                self.get_logger().warning(message)

    def _drops(self, status: RecorderStatus) -> dict[str, dict[str, int]]:
        """Return all losses by topic and reason: writer, encoder and DDS."""
        drops = {topic: dict(reasons) for topic, reasons in status.dropped.items()}
        for reason, counts in (
            ("encoder", self._encoder.dropped() if self._encoder is not None else {}),
            ("dds", self._lost),
        ):
            for topic, count in counts.items():
                drops.setdefault(topic, {})[reason] = count
        return drops

    def _judge(self, status: RecorderStatus, dropping: bool) -> tuple[bytes, str]:
        if status.state != RECORDING:
            return ERROR, status.reason
        if self._encoder is not None and self._encoder.fault:
            return ERROR, self._encoder.fault
        if self._problems:
            name, problem = next(iter(self._problems.items()))
            return WARN, f"{name} is not recorded: {problem}"
        if dropping:
            return WARN, "messages are being dropped"
        return OK, "recording"

    def _values(
        self, status: RecorderStatus, drops: dict[str, dict[str, int]], now: float
    ) -> dict[str, object]:
        before = self._previous
        elapsed = max(1e-6, now - before[0]) if before else 1.0
        written_before = before[1].written if before else {}
        speed = (status.bytes_written - (before[1].bytes_written if before else 0)) / elapsed
        absent = [name for name in self._wanted if name not in self._recorded]
        values: dict[str, object] = {
            "state": status.state,
            "file": str(status.folder / status.file) if status.file else "",
            "files": status.files,
            "written_bytes": status.bytes_written,
            "bytes_per_s": speed,
            "free_bytes": status.free_bytes,
            "queue_messages": status.queue_messages,
            "queue_bytes": status.queue_bytes,
            "messages": sum(status.written.values()),
            "dropped": sum(sum(reasons.values()) for reasons in drops.values()),
            "not_seen": " ".join(absent),
        }
        for topic, count in sorted(status.written.items()):
            values[f"hz {topic}"] = (count - written_before.get(topic, 0)) / elapsed
        for topic, reasons in sorted(drops.items()):
            for reason, count in sorted(reasons.items()):
                values[f"dropped {topic} {reason}"] = count
        return values


def _into(recorder: BagRecorder) -> Deliver:
    """Return what writes encoded frames into a bag; it runs in the encoder's thread."""

    def deliver(frame: Frame, jpeg: bytes | None) -> None:
        topic, data = (frame.topic, frame.data) if jpeg is None else (frame.jpeg_topic, jpeg)
        recorder.write(topic, frame.log_ns, frame.publish_ns, data)

    return deliver


def adapted_qos(offered: Sequence[QoSProfile], large: bool) -> QoSProfile:
    """Return the strictest quality of service that matches all publishers of a topic.

    Reliable, or latched, only if every publisher is. ``large`` messages get a shorter history.
    """
    reliable = all(qos.reliability == ReliabilityPolicy.RELIABLE for qos in offered)
    latched = all(qos.durability == DurabilityPolicy.TRANSIENT_LOCAL for qos in offered)
    return QoSProfile(
        history=HistoryPolicy.KEEP_LAST,
        depth=60 if large else 1000,  # a second's worth, should a split hold us up
        reliability=ReliabilityPolicy.RELIABLE if reliable else ReliabilityPolicy.BEST_EFFORT,
        durability=DurabilityPolicy.TRANSIENT_LOCAL if latched else DurabilityPolicy.VOLATILE,
    )


def offered_qos(qos: QoSProfile) -> Qos:
    """Return a publisher's quality of service in rosbag2's words.

    Discovery does not tell history and depth; rosbag2 writes what it is told as well.
    """
    sec = 1_000_000_000
    return Qos(
        reliability=qos.reliability.name.lower(),
        durability=qos.durability.name.lower(),
        history=qos.history.name.lower(),
        depth=qos.depth,
        liveliness=qos.liveliness.name.lower(),
        deadline=divmod(qos.deadline.nanoseconds, sec),
        lifespan=divmod(qos.lifespan.nanoseconds, sec),
        lease=divmod(qos.liveliness_lease_duration.nanoseconds, sec),
    )


def main(args: Sequence[str] | None = None) -> int:
    """Run the node until SIGINT or SIGTERM."""
    return run_node(FlightRecorder, args)


if __name__ == "__main__":
    sys.exit(main())
