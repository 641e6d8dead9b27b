"""The flight recorder as a process of its own, over real DDS."""

from __future__ import annotations

import array
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rclpy
import rclpy.node
from diagnostic_msgs.msg import DiagnosticArray
from mcap.reader import make_reader
from rclpy.qos import QoSProfile, ReliabilityPolicy
from rosbags.highlevel import AnyReader
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Bool, String
from std_srvs.srv import Trigger

from wm_node.cli.main import main as wm
from wm_node.cli.processes import private_domain
from wm_node.errors import WmError
from wm_node.nodes.common import LATCHED_QOS
from wm_node.nodes.conductor import AFTER_A_KILL_S
from wm_node.nodes.lifecycle import Caller, bring_up
from wm_node.recording.recover import recover
from wm_node.resources import resource

NAME = "/flight_recorder"
IMAGES = "/image_raw/compressed"
XML = "FASTRTPS_DEFAULT_PROFILES_FILE"


class Robot:
    """Publishes a camera and joints from this process, and drives the recorder's lifecycle."""

    def __init__(self) -> None:
        self.node = rclpy.create_node("robot")
        self.caller = Caller(self.node)
        qos = QoSProfile(depth=50, reliability=ReliabilityPolicy.RELIABLE)
        self.camera = self.node.create_publisher(Image, "image_raw", qos)
        self.joints = self.node.create_publisher(JointState, "joint_states", qos)
        self.note = self.node.create_publisher(String, "site_note", LATCHED_QOS)
        self.statuses: list[dict[str, str]] = []
        self.node.create_subscription(DiagnosticArray, "/diagnostics", self._on_diagnostics, 50)
        self.sent = {"image": 0, "joints": 0}
        pixels = np.random.default_rng(0).integers(0, 255, (12, 16, 3)).astype(np.uint8)
        self.picture = np.kron(pixels, np.ones((20, 20, 1), np.uint8))  # 320x240

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name == "flight_recorder: recording":
                values = {pair.key: pair.value for pair in status.values}
                level = str(int.from_bytes(status.level, "little"))
                self.statuses.append({**values, "level": level, "message": status.message})

    def wait(self, done: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
        self.caller.spin_until(done, timeout_s, what)

    def wait_until_recorded(self) -> None:
        publishers = (self.camera, self.joints, self.note)
        self.wait(
            lambda: all(one.get_subscription_count() for one in publishers), "no subscription"
        )

    def run(self, seconds: float) -> None:
        """Publish joints at 100 Hz and images at 20 Hz."""
        start = time.monotonic()
        for tick in range(round(seconds * 100)):
            self.send_joints()
            if tick % 5 == 0:
                self.send_image()
            time.sleep(max(0.0, start + (tick + 1) / 100 - time.monotonic()))

    def send_joints(self) -> None:
        message = JointState(name=["a", "b"], position=[float(self.sent["joints"]), 0.0])
        message.header.stamp = self.node.get_clock().now().to_msg()
        self.joints.publish(message)
        self.sent["joints"] += 1

    def send_image(self) -> None:
        message = Image(height=240, width=320, encoding="rgb8", step=960)
        message.header.stamp.sec = self.sent["image"]
        message.data = array.array("B", self.picture.tobytes())
        self.camera.publish(message)
        self.sent["image"] += 1


class Recorder:
    """The recorder's process."""

    def __init__(self, folder: Path, environment: dict[str, str]) -> None:
        self.folder = folder
        self.environment = environment
        self.bag = folder / "bag"
        self.process: subprocess.Popen[bytes] | None = None
        self.log = folder / "log.txt"

    def start(self, **parameters: Any) -> None:
        given = {"robot": "tabletop", "bag_path": str(self.bag), "min_free_mb": 50}
        given |= {"topics": ["site_note"], "parameter_nodes": ["robot"], **parameters}
        words = [sys.executable, "-m", "wm_node.nodes.flight_recorder", "--ros-args"]
        words += ["--params-file", str(resource("config/flight_recorder.yaml"))]
        for name, value in given.items():
            text = value if isinstance(value, str) else json.dumps(value)
            words += ["-p", f"{name}:={text}"]
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(words, env=self.environment, stderr=log, stdout=log)

    def end(self, number: int = signal.SIGINT) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(20)


@pytest.fixture
def domain() -> Iterator[int]:
    with private_domain() as number:
        yield number


@pytest.fixture
def robot(domain: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[Robot]:
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    monkeypatch.setenv(XML, str(resource("config/fastdds_large_images.xml")))
    rclpy.init(domain_id=domain)
    one = Robot()
    yield one
    one.caller.close()
    one.node.destroy_node()
    rclpy.shutdown()


@pytest.fixture
def recorder(tmp_path: Path, domain: int) -> Iterator[Recorder]:
    environment = dict(os.environ, ROS_DOMAIN_ID=str(domain))
    environment |= {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
    environment[XML] = str(resource("config/fastdds_large_images.xml"))
    one = Recorder(tmp_path, environment)
    yield one
    if one.process is not None and one.process.poll() is None:
        one.process.kill()
        one.process.wait(10)


def activate(robot: Robot, recorder: Recorder, **parameters: Any) -> None:
    recorder.start(**parameters)
    robot.caller.change(NAME, "configure")
    robot.caller.change(NAME, "activate")
    robot.note.publish(String(data="line 3"))
    robot.wait_until_recorded()


def counts(path: Path) -> dict[str, int]:
    with AnyReader([path]) as reader:
        found: dict[str, int] = {}
        for connection, _, data in reader.messages():
            reader.deserialize(data, connection.msgtype)
            found[connection.topic] = found.get(connection.topic, 0) + 1
        return found


def test_a_clean_stop_leaves_every_message_in_a_bag_that_all_readers_read(robot, recorder):
    activate(robot, recorder)
    robot.run(3.0)
    robot.wait(
        lambda: bool(robot.statuses) and float(robot.statuses[-1].get("hz /joint_states", 0)) > 50,
        "no rate on /diagnostics",
    )
    robot.caller.change(NAME, "deactivate")
    assert recorder.end() == 0, recorder.log.read_text()

    found = counts(recorder.bag)
    assert found["/joint_states"] == robot.sent["joints"] == 300
    assert found[IMAGES] == robot.sent["image"] == 60
    assert found["/site_note"] == 1
    assert robot.statuses[-2]["dropped"] == "0"

    with AnyReader([recorder.bag]) as reader:
        images = [
            (reader.deserialize(data, connection.msgtype), log_ns)
            for connection, log_ns, data in reader.messages()
            if connection.topic == IMAGES
        ]
        texts = {
            connection.topic: reader.deserialize(data, connection.msgtype).data
            for connection, _, data in reader.messages()
            if connection.topic.startswith(NAME)
        }
        qos = next(c for c in reader.connections if c.topic == "/site_note").ext
    assert [image.header.stamp.sec for image, _ in images] == list(range(60))
    assert images[0][0].format == "rgb8; jpeg compressed bgr8"
    assert np.all(np.diff([log_ns for _, log_ns in images]) > 0)
    assert "name: tabletop" in texts[f"{NAME}/profile"]
    parameters = json.loads(texts[f"{NAME}/parameters"])
    assert parameters["/flight_recorder"]["robot"] == "tabletop"
    assert "use_sim_time" in parameters["/robot"]
    assert qos.offered_qos_profiles[0].durability.name == "TRANSIENT_LOCAL"

    with next(recorder.bag.glob("*.mcap")).open("rb") as file:
        reader = make_reader(file)
        summary = reader.get_summary()
        assert summary is not None
        assert summary.statistics.message_count == sum(found.values())
        assert [one.name for one in reader.iter_attachments()] == ["profile.yaml"]
        # Log time is the time of reception, not that at which the recorder looked.
        late_ns = [
            message.log_time - message.publish_time
            for _, _, message in reader.iter_messages(topics=["/joint_states"])
        ]
        assert 0 <= np.median(late_ns) < 10_000_000
    assert recover(recorder.bag).healthy


def test_an_event_that_a_person_marks_is_in_the_bag(robot, recorder):
    activate(robot, recorder, topics=["site_note", "events/marked"], mark_s=0.3)
    heard: list[bool] = []
    robot.node.create_subscription(
        Bool, "events/marked", lambda message: heard.append(message.data), LATCHED_QOS
    )
    # At once: what is marked in the first moments of a bag is in it, too.
    answer = robot.caller.call(Trigger, f"{NAME}/mark_event", Trigger.Request())
    assert answer.success, answer.message
    robot.wait(lambda: heard[-2:] == [True, False], "the event did not begin and end")
    robot.caller.change(NAME, "deactivate")
    answer = robot.caller.call(Trigger, f"{NAME}/mark_event", Trigger.Request())
    assert (answer.success, "not active" in answer.message) == (False, True)
    assert recorder.end() == 0, recorder.log.read_text()
    with AnyReader([recorder.bag]) as reader:
        marks = [
            (log_ns, reader.deserialize(data, connection.msgtype).data)
            for connection, log_ns, data in reader.messages()
            if connection.topic == "/events/marked"
        ]
    assert [value for _, value in marks] == [False, True, False]
    assert 0.25 < (marks[2][0] - marks[1][0]) * 1e-9 < 2.0


def test_who_else_publishes_marks_is_named(robot, recorder):
    activate(robot, recorder, topics=["site_note", "events/marked"])
    robot.node.create_publisher(Bool, "events/marked", LATCHED_QOS)
    expected = "/events/marked is not recorded: robot publishes there too"
    robot.wait(
        lambda: any(expected in status["message"] for status in robot.statuses), "nothing was said"
    )


def test_a_kill_costs_no_more_than_the_open_chunk(robot, recorder):
    activate(robot, recorder)
    robot.run(3.0)
    killed_ns = time.time_ns()
    assert recorder.end(signal.SIGKILL) == -signal.SIGKILL
    robot.caller.spin_for(AFTER_A_KILL_S)  # before its participant is closed
    assert (recorder.bag / "metadata.yaml").is_file()

    assert wm(["recover", str(recorder.bag), "--json", str(recorder.folder / "r.json")]) == 0
    figures = json.loads((recorder.folder / "r.json").read_text())
    assert figures["open_chunk_s"] <= 0.5
    saved = recorder.folder / "bag_recovered"
    assert figures["out"] == str(saved)
    found = counts(saved)
    assert found == {topic: count for topic, count in figures["saved"].items() if count}
    with AnyReader([saved]) as reader:
        for topic in ("/joint_states", IMAGES):
            stamps = [log_ns for one, log_ns, _ in reader.messages() if one.topic == topic]
            assert (killed_ns - max(stamps)) * 1e-9 <= 0.6
            assert np.max(np.diff(stamps)) * 1e-9 < 0.4  # and nothing is missing before
    assert found["/joint_states"] >= robot.sent["joints"] - 60


def test_every_split_can_be_read_alone(robot, recorder):
    activate(robot, recorder, images="raw", split_s=1.0)
    robot.run(1.5)
    response = robot.caller.call(Trigger, f"{NAME}/split", Trigger.Request(), resend_s=3.0)
    assert response.success, response.message
    robot.run(0.5)
    assert recorder.end(signal.SIGTERM) == 0, recorder.log.read_text()

    files = sorted(recorder.bag.glob("*.mcap"))
    assert len(files) >= 3
    assert response.message in [file.name for file in files]
    latched = {"/site_note"} | {f"{NAME}/{name}" for name in ("profile", "bundle", "parameters")}
    total = 0
    for file in files:
        found = counts(file)
        assert latched <= set(found)
        total += found.get("/joint_states", 0)
    assert total == robot.sent["joints"] == 200
    assert counts(recorder.bag)["/image_raw"] == robot.sent["image"] == 40


def test_recording_stops_before_the_disk_is_full_and_resumes_with_room(robot, recorder):
    disk = recorder.folder / "disk"
    disk.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=24m", "tmpfs", disk], check=False)
    if mounted.returncode:
        pytest.skip("a small file system cannot be mounted here")
    try:
        filler = disk / "filler"
        recorder.bag = disk / "bag"
        activate(robot, recorder, min_free_mb=10, resume_margin_mb=1)
        robot.run(0.5)
        filler.write_bytes(bytes(16_000_000))
        robot.wait(lambda: bool(robot.statuses) and robot.statuses[-1]["level"] == "2", "no error")
        assert "limit of 10 MB" in robot.statuses[-1]["message"]
        robot.run(0.5)
        filler.unlink()
        robot.wait(lambda: robot.statuses[-1]["state"] == "recording", "it did not resume")
        robot.run(0.5)
        assert recorder.end() == 0, recorder.log.read_text()
        found = counts(recorder.bag)
        dropped = int(robot.statuses[-1]["dropped /joint_states disk"])
        assert dropped >= 50
        assert found["/joint_states"] == robot.sent["joints"] - dropped
        assert len(list(recorder.bag.glob("*.mcap"))) == 2
        assert recover(recorder.bag).healthy
    finally:
        subprocess.run(["umount", disk], check=True)


@pytest.fixture
def stranger(domain: int, robot: Robot) -> Iterator[rclpy.node.Node]:
    """A node in a participant of its own: one participant cannot give a topic two types."""
    context = rclpy.Context()
    rclpy.init(context=context, domain_id=domain)
    node = rclpy.create_node("stranger", context=context)
    yield node
    node.destroy_node()
    rclpy.shutdown(context=context)


def test_topics_may_come_late_change_their_qos_and_hold_what_jpeg_cannot(robot, stranger, recorder):
    activate(robot, recorder, topics=["site_note", "depth", "mixed", "late"])
    node = robot.node
    late = node.create_publisher(String, "late", 10)
    depth = node.create_publisher(Image, "depth", 10)
    node.create_publisher(String, "mixed", 10)
    stranger.create_publisher(JointState, "mixed", 10)
    robot.wait(
        lambda: late.get_subscription_count() > 0 and depth.get_subscription_count() > 0,
        "late topics were not subscribed",
    )
    late.publish(String(data="reliable"))
    depth.publish(Image(height=2, width=2, encoding="16UC1", step=4, data=bytes(8)))
    loose = QoSProfile(depth=10, reliability=ReliabilityPolicy.BEST_EFFORT)
    second = node.create_publisher(String, "late", loose)
    robot.wait(lambda: second.get_subscription_count() > 0, "the best effort one was not matched")
    robot.wait(
        lambda: any("disagree on the type" in one["message"] for one in robot.statuses),
        "no warning of two types",
    )
    second.publish(String(data="best effort"))
    robot.wait(
        lambda: (
            robot.statuses[-1].get("hz /late") is not None
            and float(robot.statuses[-1]["messages"]) >= 7
        ),
        "the last message was not taken",
    )
    assert recorder.end() == 0, recorder.log.read_text()
    found = counts(recorder.bag)
    assert found["/late"] == 2
    assert found["/depth"] == 1
    assert "/mixed" not in found
    assert "/mixed is not recorded" in recorder.log.read_text()


@pytest.mark.parametrize(
    ("parameters", "sentence"),
    [
        ({"robot": "nobody"}, "'config/robots/nobody.yaml' is not part of this installation"),
        ({"bundle": "/nowhere"}, "there is no bundle at /nowhere"),
        ({"min_free_mb": 10**9}, "make room or lower min_free_mb"),
    ],
)
def test_a_fault_of_configuration_is_told_in_one_sentence(robot, recorder, parameters, sentence):
    recorder.start(**parameters)
    with pytest.raises(WmError, match="refused to"):
        bring_up(robot.caller, [NAME])
    assert sentence in recorder.log.read_text()
    assert recorder.end() == 0
