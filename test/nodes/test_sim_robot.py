"""The simulated robot as a process of its own, over real DDS."""

from __future__ import annotations

import json
import math
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from geometry_msgs.msg import PointStamped, PoseStamped, TwistStamped
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Bool, String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory, JointTrajectoryPoint

from wm_node.cli.processes import private_domain
from wm_node.data.images import decode_image
from wm_node.errors import WmError
from wm_node.nodes.common import COMMAND_QOS, LATCHED_QOS, RELIABLE_QOS, stamp_to_ns
from wm_node.nodes.lifecycle import Caller
from wm_node.nodes.sim_robot import SimRobot
from wm_node.resources import resource
from wm_node.sim.arm import joints_for_tip
from wm_node.sim.behaviours import push_velocity
from wm_node.sim.levels import find_level
from wm_node.sim.tabletop import JOINT_NAMES, TabletopSim
from wm_node.sim.task import task_for_seed

NAME = "/sim_robot"
XML = "FASTRTPS_DEFAULT_PROFILES_FILE"
SEED = 40


class Client:
    """Hears all that the robot publishes, commands it and drives its lifecycle."""

    def __init__(self) -> None:
        self.node = rclpy.create_node("client")
        self.caller = Caller(self.node)
        self.heard: dict[str, list[Any]] = {}
        for topic, kind, qos in (
            ("image_raw", Image, RELIABLE_QOS),
            ("joint_states", JointState, RELIABLE_QOS),
            ("sim_robot/mug_pose", PoseStamped, RELIABLE_QOS),
            ("sim_robot/tip", PointStamped, RELIABLE_QOS),
            ("sim_robot/goal", PointStamped, LATCHED_QOS),
            ("goal_image", Image, LATCHED_QOS),
            ("events/fell", Bool, RELIABLE_QOS),
            ("events/zone", Bool, RELIABLE_QOS),
            ("/clock", Clock, RELIABLE_QOS),
        ):
            self.heard[topic] = []
            self.node.create_subscription(kind, topic, self.heard[topic].append, qos)
        self.status: dict[str, str] = {}
        self.node.create_subscription(
            DiagnosticArray, "/diagnostics", self._on_diagnostics, RELIABLE_QOS
        )
        self.twist = self.node.create_publisher(TwistStamped, "command", COMMAND_QOS)
        self.trajectory = self.node.create_publisher(
            JointTrajectory, "command_trajectory", COMMAND_QOS
        )

    def _on_diagnostics(self, message: DiagnosticArray) -> None:
        for status in message.status:
            if status.name == "sim_robot: simulation":
                self.status = {pair.key: pair.value for pair in status.values}

    def clear(self) -> None:
        for messages in self.heard.values():
            messages.clear()

    def wait(self, done: Callable[[], bool], what: str, timeout_s: float = 20.0) -> None:
        self.caller.spin_until(done, timeout_s, what)

    def wait_for(self, topic: str, count: int = 1) -> list[Any]:
        """Clear a topic, then wait for that many new messages."""
        self.heard[topic].clear()
        self.wait(lambda: len(self.heard[topic]) >= count, f"nothing on {topic}")
        return self.heard[topic]

    def command(self, x: float, y: float, **changes: Any) -> None:
        message = TwistStamped()
        message.header.stamp = self.node.get_clock().now().to_msg()
        message.header.frame_id = changes.get("frame", "table")
        message.twist.linear.x, message.twist.linear.y = x, y
        message.twist.angular.z = changes.get("turn", 0.0)
        self.twist.publish(message)

    def trigger(self, name: str) -> dict[str, Any]:
        response = self.caller.call(Trigger, f"sim_robot/{name}", Trigger.Request(), resend_s=3.0)
        assert response.success, response.message
        return json.loads(response.message)

    def tip(self) -> tuple[float, float]:
        point = self.wait_for("sim_robot/tip")[-1].point
        return point.x, point.y


class Robot:
    """The node's process."""

    def __init__(self, domain: int, log: Path, namespace: str = "") -> None:
        self.log = log
        self.namespace = namespace
        self.environment = dict(os.environ, ROS_DOMAIN_ID=str(domain))
        self.environment |= {"ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST"}
        self.environment[XML] = str(resource("config/fastdds_large_images.xml"))
        self.process: subprocess.Popen[bytes] | None = None

    def start(self, **parameters: Any) -> str:
        """Start the process; return the node's full name."""
        words = [sys.executable, "-m", "wm_node.nodes.sim_robot", "--ros-args"]
        for name, value in {"seed": SEED, **parameters}.items():
            words += ["-p", f"{name}:={value if isinstance(value, str) else json.dumps(value)}"]
        if self.namespace:
            words += ["-r", f"__ns:={self.namespace}"]
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(words, env=self.environment, stdout=log, stderr=log)
        return self.namespace + NAME

    def end(self, number: int = signal.SIGINT) -> int:
        assert self.process is not None
        self.process.send_signal(number)
        return self.process.wait(20)


@pytest.fixture(scope="module")
def domain() -> Iterator[int]:
    with private_domain() as number:
        yield number


@pytest.fixture(scope="module")
def participant(domain: int) -> Iterator[Client]:
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
        patch.setenv(XML, str(resource("config/fastdds_large_images.xml")))
        rclpy.init(domain_id=domain)
        one = Client()
        yield one
        one.caller.close()
        one.node.destroy_node()
        rclpy.shutdown()


@pytest.fixture(scope="module")
def running(
    domain: int, participant: Client, tmp_path_factory: pytest.TempPathFactory
) -> Iterator[Robot]:
    """One active robot that the tests of ordinary behaviour share."""
    one = Robot(domain, tmp_path_factory.mktemp("robot") / "log.txt")
    one.start()
    try:
        participant.caller.change(NAME, "configure")
        participant.caller.change(NAME, "activate")
        yield one
        participant.caller.change(NAME, "deactivate")
        assert one.end() == 0, one.log.read_text()
    finally:
        if one.process is not None and one.process.poll() is None:
            one.process.kill()
            one.process.wait(10)


@pytest.fixture
def client(participant: Client, running: Robot) -> Client:
    participant.clear()
    return participant


@pytest.fixture
def another(participant: Client, domain: int, tmp_path: Path) -> Iterator[Robot]:
    """A robot in a namespace of its own, for tests that need other parameters."""
    participant.clear()
    one = Robot(domain, tmp_path / "log.txt", "/other")
    yield one
    if one.process is not None and one.process.poll() is None:
        one.process.kill()
        one.process.wait(10)


def test_streams_are_regular_and_stamped_with_ros_time(client):
    joints = list(client.wait_for("joint_states", 100))
    now = client.node.get_clock().now().nanoseconds
    stamps = np.array([stamp_to_ns(message.header.stamp) for message in joints])
    assert joints[0].name == list(JOINT_NAMES)
    assert len(joints[0].position) == len(joints[0].velocity) == 4
    assert abs(now - stamps[-1]) < 2e9
    assert (np.diff(stamps) > 0).all()
    assert np.median(np.diff(stamps)) == pytest.approx(1e7, rel=0.01)
    images = client.wait_for("image_raw", 8)
    gaps = np.diff([stamp_to_ns(message.header.stamp) for message in images])
    assert np.median(gaps) == pytest.approx(5e7, rel=0.02)
    assert (images[0].encoding, images[0].width, images[0].height) == ("rgb8", 320, 240)
    assert images[0].header.frame_id == "front"
    client.wait(lambda: "real_time_factor" in client.status, "no diagnostics")
    client.wait_for("events/fell")
    assert client.heard["events/zone"]


def test_reset_begins_the_episode_of_its_seed(client):
    answers = [client.trigger("reset"), client.trigger("reset")]
    assert answers[1]["seed"] == answers[0]["seed"] + 1
    sim = TabletopSim((320, 240))
    task = task_for_seed(sim, answers[1]["seed"])
    assert answers[1]["goal"] == pytest.approx(task.goal)
    assert answers[1]["ticks"] == task.ticks
    pose = client.wait_for("sim_robot/mug_pose", 4)[-1].pose.position
    assert (pose.x, pose.y) == pytest.approx(task.start, abs=1e-6)
    assert client.tip() == pytest.approx(tuple(sim.tip()), abs=1e-3)
    client.wait(lambda: client.heard["sim_robot/goal"], "no goal")
    goal = client.heard["sim_robot/goal"][-1].point
    assert (goal.x, goal.y) == pytest.approx(task.goal)
    difference = decode_image(client.wait_for("image_raw", 2)[-1]).astype(int) - sim.render()
    assert np.abs(difference).mean() < 1.0  # the arm sags by less than a pixel


def test_the_goal_picture_comes_on_request(client):
    answer = client.trigger("reset")
    client.trigger("render_goal")
    client.wait(lambda: client.heard["goal_image"], "no goal picture")
    sim = TabletopSim((320, 240))
    sim.reset(answer["seed"])
    picture = decode_image(client.heard["goal_image"][-1]).astype(int)
    assert np.abs(picture - sim.render_goal(tuple(answer["goal"]))).mean() < 1.0


def test_commands_move_the_tip_and_the_driver_brakes_without_them(client):
    client.trigger("reset")
    start = client.tip()
    away = -0.2 * np.sign(start)
    client.wait(lambda: client.twist.get_subscription_count() == 1, "nobody takes commands")
    for _ in range(5):
        client.command(*away)
        client.wait_for("joint_states", 10)  # a tenth of a second of the robot's time
    assert math.dist(client.tip(), start) > 0.04
    joints = client.wait_for("joint_states", 60)  # silence, three times the timeout
    assert np.abs(joints[0].velocity).max() > 0.05
    assert np.abs(joints[-1].velocity).max() < 1e-3


def test_a_joint_trajectory_is_followed(client):
    client.trigger("reset")
    client.wait(lambda: client.trajectory.get_subscription_count() == 1, "nobody listens")
    goal = dict(zip(JOINT_NAMES, joints_for_tip(-0.1, -0.1), strict=True))
    names = list(reversed(JOINT_NAMES))  # matched by name, not by order
    point = JointTrajectoryPoint(positions=[goal[name] for name in names])
    point.time_from_start.nanosec = 800_000_000
    client.trajectory.publish(JointTrajectory(joint_names=names, points=[point]))
    client.wait(
        lambda: math.dist(client.tip(), (-0.1, -0.1)) < 0.01, "the arm did not reach the waypoint"
    )


def test_commands_that_make_no_sense_are_refused_and_counted(client):
    client.trigger("reset")
    start = client.tip()
    for changes in ({"frame": "map"}, {"turn": 0.5}):
        client.command(0.2, 0.2, **changes)
        client.wait_for("joint_states", 5)
    client.command(math.nan, 0.2)
    client.trajectory.publish(JointTrajectory(joint_names=["elbow"]))
    wanted = ("wrong_frame", "out_of_plane", "not_finite", "wrong_joints")
    client.wait(
        lambda: all(f"refused_{reason}" in client.status for reason in wanted),
        "the refusals are not in the diagnostics",
    )
    assert math.dist(client.tip(), start) < 1e-3


def test_a_fall_shows_on_the_event_topic(client):
    client.trigger("reset")
    assert not client.wait_for("events/fell")[-1].data

    def fallen() -> bool:
        pose = client.wait_for("sim_robot/mug_pose")[-1].pose.position
        client.command(*push_velocity(client.tip(), (pose.x, pose.y), (-0.45, pose.y)))
        return any(message.data for message in client.heard["events/fell"])

    client.wait(fallen, "the mug did not fall", timeout_s=40.0)


def test_a_level_moves_its_hand_and_tells_what_is_hit(another, participant):
    name = another.start(level="moving_hand", robot="tabletop_hazards", seed=2)
    participant.caller.change(name, "configure")
    node = participant.node
    frames: list[Image] = []
    hits: list[bool] = []
    violations: list[str] = []
    tips: list[tuple[float, float]] = []
    hands: list[tuple[float, float]] = []

    def hear(kind: type, topic: str, note: Callable[[Any], None]) -> None:
        node.create_subscription(kind, f"/other/{topic}", note, RELIABLE_QOS)

    hear(Image, "image_raw", frames.append)
    hear(Bool, "events/hit", lambda m: hits.append(m.data))
    hear(String, "sim_robot/violation", lambda m: violations.append(m.data))
    hear(PointStamped, "sim_robot/tip", lambda m: tips.append((m.point.x, m.point.y)))
    hear(PointStamped, "sim_robot/hand", lambda m: hands.append((m.point.x, m.point.y)))
    publisher = node.create_publisher(TwistStamped, "/other/command", COMMAND_QOS)
    # What the suite's scene of this seed does: its hand, and where it reaches to.
    sim = TabletopSim(render=False, level=find_level("moving_hand"))
    sim.reset(2)
    assert sim.setup.mover is not None
    deep = sim.setup.mover.pose(np.asarray(1.8))[:2]
    participant.caller.change(name, "activate")
    heard = (frames, hits, violations, tips)
    participant.wait(lambda: all(map(len, heard)), "nothing from the robot")
    assert not hits[0]
    assert violations[0] == ""

    def touched() -> bool:
        message = TwistStamped()
        message.header.frame_id = "table"
        towards = np.sign(deep - np.array(tips[-1] if tips else deep))
        message.twist.linear.x, message.twist.linear.y = (0.25 * towards).tolist()
        publisher.publish(message)
        participant.caller.spin_for(0.05)
        return any(hits) and any(violations)

    participant.wait(touched, "the tip went to the hand, and nothing was hit", timeout_s=6.0)
    assert any(text.endswith("hand") for text in violations)
    assert min(math.dist(hand, deep) for hand in hands) < 0.05
    first, last = (np.frombuffer(bytes(frame.data), np.uint8) for frame in (frames[0], frames[-1]))
    assert (np.abs(first.astype(int) - last) > 40).mean() > 0.01  # an arm more is in the picture
    assert another.end() == 0


def test_deactivation_stops_time_and_keeps_the_node_usable(client):
    client.caller.change(NAME, "deactivate")
    client.caller.spin_for(0.3)
    client.clear()
    client.caller.spin_for(0.3)
    assert not client.heard["joint_states"]
    client.command(0.2, 0.2)
    client.caller.change(NAME, "cleanup")
    client.caller.change(NAME, "configure")
    client.caller.change(NAME, "activate")
    client.wait_for("joint_states", 5)
    client.wait_for("image_raw", 2)


def test_simulated_time_and_delay_when_asked(another, participant):
    name = another.start(
        publish_clock=True, actuation_delay_s=0.3, camera_width=640, camera_height=480
    )
    participant.caller.change(name, "configure")
    assert not participant.heard["/clock"]
    participant.caller.change(name, "activate")
    clocks = [stamp_to_ns(message.clock) for message in participant.wait_for("/clock", 50)]
    assert set(np.diff(clocks)) == {10_000_000}
    assert clocks[0] < 60e9  # since the start, not since 1970
    images: list[Image] = []
    moved: list[tuple[int, float]] = []
    node = participant.node
    node.create_subscription(Image, "/other/image_raw", images.append, RELIABLE_QOS)
    node.create_subscription(
        JointState,
        "/other/joint_states",
        lambda m: moved.append((stamp_to_ns(m.header.stamp), float(np.abs(m.velocity).max()))),
        RELIABLE_QOS,
    )
    publisher = node.create_publisher(TwistStamped, "/other/command", COMMAND_QOS)
    participant.wait(lambda: len(images) > 1 and len(moved) > 9, "nothing from the robot")
    assert (images[0].width, images[0].height, len(images[0].data)) == (640, 480, 921_600)
    assert stamp_to_ns(images[0].header.stamp) < 60e9
    assert max(speed for _, speed in moved) < 0.05
    message = TwistStamped()
    message.header.frame_id = "table"
    message.twist.linear.x = 0.2
    sent = moved[-1][0]
    publisher.publish(message)
    participant.wait(lambda: moved[-1][1] > 0.05, "the command had no effect")
    assert 0.3e9 <= moved[-1][0] - sent < 2e9
    assert another.end(signal.SIGTERM) == 0


def test_episodes_follow_each_other_when_asked(another, participant):
    name = another.start(episode_seconds=0.5)
    participant.caller.change(name, "configure")
    participant.caller.change(name, "activate")
    goals: list[PointStamped] = []
    participant.node.create_subscription(
        PointStamped, "/other/sim_robot/goal", goals.append, RELIABLE_QOS
    )
    participant.wait(lambda: len({goal.point.x for goal in goals}) >= 3, "no new goals")
    assert another.end() == 0


@pytest.mark.parametrize(
    ("parameters", "told"),
    [
        ({"robot": "no_such_robot"}, "no_such_robot"),
        ({"level": "hell"}, "there is no level 'hell'"),
        ({"robot": "arm.yaml"}, "does not describe the simulated arm"),
    ],
)
def test_a_profile_of_another_robot_fails_at_configure(
    another, participant, tmp_path, parameters, told
):
    text = resource("config/robots/tabletop.yaml").read_text(encoding="utf-8")
    (tmp_path / "arm.yaml").write_text(text.replace("elbow", "knee"), encoding="utf-8")
    if parameters.get("robot", "").endswith(".yaml"):
        parameters = {"robot": str(tmp_path / parameters["robot"])}
    name = another.start(**parameters)
    with pytest.raises(WmError, match="refused to configure"):
        participant.caller.change(name, "configure")
    assert participant.caller.state(name) == "unconfigured"
    assert another.end() == 0
    assert told in another.log.read_text()


@pytest.mark.usefixtures("participant")
def test_the_parameter_file_holds_exactly_the_parameters_with_their_defaults(
    check_parameter_file: Callable[[Any, str], None],
) -> None:
    node = SimRobot()
    check_parameter_file(node, "config/sim_robot.yaml")
    node.destroy_node()
