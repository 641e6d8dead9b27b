"""What all nodes share, on real rclpy; signals on real processes."""

from __future__ import annotations

import math
import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rclpy
from diagnostic_msgs.msg import DiagnosticArray
from lifecycle_msgs.msg import State
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.msg import Parameter as ParameterMessage
from rcl_interfaces.msg import SetParametersResult
from rcl_interfaces.srv import SetParameters
from rclpy.callback_groups import ReentrantCallbackGroup
from rclpy.client import Client
from rclpy.executors import MultiThreadedExecutor, SingleThreadedExecutor
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.node import Node
from rclpy.parameter import Parameter
from rclpy.serialization import deserialize_message, serialize_message
from sensor_msgs.msg import JointState

from wm_node.cli.processes import node_environment, private_domain
from wm_node.errors import WmError
from wm_node.nodes import common, lifecycle
from wm_node.nodes.lifecycle import Caller
from wm_node.profile import RobotProfile, load_profile, parse_profile


@pytest.fixture(scope="module")
def domain() -> Iterator[int]:
    with private_domain() as number:
        yield number


@pytest.fixture
def ros(domain: int, monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    rclpy.init(domain_id=domain)
    yield
    rclpy.shutdown()


class Faulty(common.ManagedNode):
    """Fails where it is told to, and notes what was called."""

    def __init__(self, name: str = "faulty", **faults: Exception) -> None:
        super().__init__(name)
        self.faults = faults
        self.calls: list[str] = []

    def _call(self, what: str) -> None:
        self.calls.append(what)
        if what in self.faults:
            raise self.faults[what]

    def configure(self) -> None:
        self._call("configure")

    def activate(self) -> None:
        self._call("activate")

    def deactivate(self) -> None:
        self._call("deactivate")

    def cleanup(self) -> None:
        self._call("cleanup")


@pytest.mark.usefixtures("ros")
class TestLifecycle:
    def test_a_known_fault_fails_the_transition_with_one_line(
        self, capfd: pytest.CaptureFixture[str]
    ) -> None:
        node = Faulty(configure=WmError("the bundle is missing; train one."))
        assert node.trigger_configure() is TransitionCallbackReturn.FAILURE
        assert node.lifecycle_state == State.PRIMARY_STATE_UNCONFIGURED
        assert node.calls == ["configure", "cleanup"]
        said = capfd.readouterr().err
        assert "configure failed: the bundle is missing; train one." in said
        assert "Traceback" not in said

    def test_a_bug_is_told_with_its_traceback_and_leaves_the_node_unconfigured(
        self, capfd: pytest.CaptureFixture[str]
    ) -> None:
        node = Faulty(activate=ZeroDivisionError("bug"))
        node.trigger_configure()
        node.trigger_activate()
        assert node.lifecycle_state == State.PRIMARY_STATE_UNCONFIGURED
        assert node.calls[-1] == "cleanup"
        said = capfd.readouterr().err
        assert "ZeroDivisionError" in said
        assert "Traceback" in said

    def test_a_failed_activation_leaves_the_node_inactive_and_its_publishers_mute(self) -> None:
        node = Faulty(activate=WmError("no."))
        publisher = node.create_lifecycle_publisher(JointState, "x", 1)
        node.trigger_configure()
        assert node.trigger_activate() is TransitionCallbackReturn.FAILURE
        assert node.lifecycle_state == State.PRIMARY_STATE_INACTIVE
        assert not publisher.is_activated
        assert node.calls == ["configure", "activate", "deactivate"]

    def test_publishers_work_in_deactivate(self) -> None:
        class Brakes(common.ManagedNode):
            def configure(self) -> None:
                self.publisher = self.create_lifecycle_publisher(JointState, "x", 1)

            def deactivate(self) -> None:
                self.enabled = self.publisher.is_activated

        node = Brakes("brakes")
        node.trigger_configure()
        node.trigger_activate()
        node.make_safe()
        assert node.enabled
        assert not node.publisher.is_activated
        assert node.lifecycle_state == State.PRIMARY_STATE_FINALIZED

    def test_an_illegal_transition_is_answered_and_survived(self) -> None:
        node = Faulty("stubborn")
        caller = Caller(rclpy.create_node("caller"))
        caller._executor.add_node(node)
        with pytest.raises(WmError, match="refused to activate"):
            caller.change("stubborn", "activate")
        caller.change("stubborn", "configure")
        assert node.calls == ["configure"]
        caller.close()


@contextmanager
def calling(server: Node, over: threading.Event) -> Iterator[Caller]:
    """A caller of a server that answers in threads of its own; ``over`` ends what it waits for."""
    executor = MultiThreadedExecutor(3)
    executor.add_node(server)
    spinning = threading.Thread(target=executor.spin)
    spinning.start()
    caller = Caller(rclpy.create_node("caller"))
    try:
        yield caller
    finally:
        over.set()
        executor.shutdown()
        spinning.join(10.0)
        caller.close()


@pytest.mark.usefixtures("ros")
class TestLostAnswers:
    """What DDS does to a client that a server has not discovered yet: the service stays silent."""

    @pytest.mark.parametrize("lost", ["answer", "request"])
    def test_a_transition_is_known_without_its_answer(self, lost: str) -> None:
        server, over = rclpy.create_node("shy"), threading.Event()
        states, requests = ["inactive"], []

        def on_change(request: ChangeState.Request, response: ChangeState.Response) -> Any:
            requests.append(request.transition.id)
            if lost == "answer" or len(requests) > 1:
                states.append("active")
            if len(requests) == 1:
                over.wait(30.0)
            response.success = True
            return response

        def on_state(request: GetState.Request, response: GetState.Response) -> Any:
            response.current_state.label = states[-1]
            return response

        together = ReentrantCallbackGroup()
        server.create_service(ChangeState, "shy/change_state", on_change, callback_group=together)
        server.create_service(GetState, "shy/get_state", on_state, callback_group=together)
        with calling(server, over) as caller:
            began_s = time.monotonic()
            caller.change("shy", "activate")
            assert time.monotonic() - began_s < 20.0
        assert states[-1] == "active"
        assert len(requests) == (1 if lost == "answer" else 2)

    def test_what_may_be_repeated_is_asked_again(self) -> None:
        server, over = rclpy.create_node("deaf", start_parameter_services=False), threading.Event()
        requests: list[str] = []

        def on_set(request: SetParameters.Request, response: SetParameters.Response) -> Any:
            requests.append(request.parameters[0].name)
            if len(requests) == 1:
                over.wait(30.0)
            response.results = [SetParametersResult(successful=True)]
            return response

        together = ReentrantCallbackGroup()
        server.create_service(SetParameters, "deaf/set_parameters", on_set, callback_group=together)
        with calling(server, over) as caller:
            request = SetParameters.Request(parameters=[ParameterMessage(name="rate")])
            assert caller.call(SetParameters, "deaf/set_parameters", request).results[0].successful
        assert requests == ["rate", "rate"]

    def test_a_client_that_discovery_has_passed_over_is_made_anew(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lifecycle, "RENEW_S", 0.5)
        asked: list[Client] = []  # of the first of them discovery never tells

        def is_ready(client: Client) -> bool:
            asked.append(client)
            return client is not asked[0] and looks(client)

        looks = Client.service_is_ready
        monkeypatch.setattr(Client, "service_is_ready", is_ready)
        server, over = (
            rclpy.create_node("missed", start_parameter_services=False),
            threading.Event(),
        )

        def on_state(request: GetState.Request, response: GetState.Response) -> Any:
            response.current_state.label = "active"
            return response

        server.create_service(GetState, "missed/get_state", on_state)
        with calling(server, over) as caller:
            assert caller.state("missed") == "active"
        assert len(set(asked)) == 2

    def test_a_service_that_does_not_appear_is_told_with_the_nodes_that_do(
        self, monkeypatch: pytest.MonkeyPatch
    ) -> None:
        monkeypatch.setattr(lifecycle, "RENEW_S", 0.2)
        monkeypatch.setattr(lifecycle, "DISCOVERY_S", 0.5)
        caller = Caller(rclpy.create_node("caller"))
        with pytest.raises(WmError, match=r"'absent/get_state' did not appear .* are .*caller"):
            caller.state("absent")
        caller.close()


@pytest.mark.usefixtures("ros")
class TestParameters:
    def test_bounds_choices_and_finiteness_hold(self) -> None:
        node = Faulty()
        node.declare("rate", 10.0, "a rate", minimum=1.0, maximum=50.0)
        node.declare("count", 3, "a count", minimum=1)
        node.declare("mode", "stop", "a mode", choices=("stop", "limit"))
        for name, bad in (
            ("rate", 0.5),
            ("rate", math.nan),
            ("rate", math.inf),
            ("count", 0),
            ("mode", "go"),
        ):
            (result,) = node.set_parameters([Parameter(name, value=bad)])
            assert not result.successful, (name, bad)
        for name, good in (("rate", 50.0), ("count", 9), ("mode", "limit")):
            (result,) = node.set_parameters([Parameter(name, value=good)])
            assert result.successful, (name, good)

    def test_a_vector_may_be_empty_and_must_be_finite(self) -> None:
        node = Faulty()
        assert node.declare_vector("goal", [], "a goal").shape == (0,)
        (result,) = node.set_parameters([Parameter("goal", value=[0.5, -1.0])])
        assert result.successful
        np.testing.assert_array_equal(node.vector("goal"), [0.5, -1.0])
        for bad in ([math.nan], "here", 1.0):
            (result,) = node.set_parameters([Parameter("goal", value=bad)])
            assert not result.successful
        (result,) = node.set_parameters([Parameter("goal", value=[])])
        assert result.successful
        assert node.vector("goal").shape == (0,)

    def test_values_given_on_start_are_checked_in_a_sentence(self, domain: int) -> None:
        context = rclpy.Context()
        rclpy.init(
            context=context,
            domain_id=domain,
            args=["--ros-args", "-p", "rate:=20", "-p", "gain:=text", "-p", "low:=-1.0"],
        )
        node = common.ManagedNode("given", context=context)
        assert node.declare("rate", 10.0, "an integer is fine for a float") == 20.0
        with pytest.raises(WmError, match="'gain' is refused"):
            node.declare("gain", 1.0, "a gain")
        with pytest.raises(WmError, match="'low' is refused"):
            node.declare("low", 1.0, "bounded", minimum=0.0)
        node.destroy_node()
        context.shutdown()


@pytest.mark.usefixtures("ros")
def test_diagnostics_come_at_once_on_change_and_else_every_second() -> None:
    node, listener = Faulty("talker"), rclpy.create_node("listener")
    heard: list[str] = []
    listener.create_subscription(
        DiagnosticArray,
        "/diagnostics",
        lambda m: heard.extend(s.message for s in m.status if s.name == "talker: part"),
        common.RELIABLE_QOS,
    )
    diagnostics = common.Diagnostics(node, "part", period_s=0.2)
    executor = SingleThreadedExecutor()
    executor.add_node(node)
    executor.add_node(listener)
    while len(heard) < 2:
        executor.spin_once(timeout_sec=5.0)
    assert set(heard) == {"starting"}
    assert diagnostics.report(common.WARN, "late", {"age": 0.1234567})
    assert not diagnostics.report(common.WARN, "late", {"age": 0.2})
    assert diagnostics.status.values[0].value == "0.2"
    while heard[-1] != "late":
        executor.spin_once(timeout_sec=5.0)
    executor.shutdown()


def joint_profile(message: str) -> RobotProfile:
    data = load_profile("tabletop").dump()
    data["action"] |= {
        "kind": "joint_position",
        "names": ["elbow", "base_yaw"],
        "units": ["rad", "rad"],
        "message": message,
        "fields": ["positions"],
    }
    return parse_profile(data, "test")


@pytest.mark.parametrize("kind", ["twist", "JointTrajectory", "Float64MultiArray"])
def test_commands_survive_the_wire(kind: str) -> None:
    profile = {
        "twist": load_profile("tabletop"),
        "JointTrajectory": joint_profile("trajectory_msgs/msg/JointTrajectory"),
        "Float64MultiArray": joint_profile("std_msgs/msg/Float64MultiArray"),
    }[kind]
    stamp_ns = 1_790_000_000_123_456_789
    message = common.command_message(profile, np.array([0.1, -0.2]), stamp_ns)
    wire = serialize_message(message)
    stamp, values = common.read_command(profile, deserialize_message(wire, type(message)))
    assert stamp == stamp_ns
    np.testing.assert_array_equal(values, [0.1, -0.2])
    assert common.command_frame(message) in ("table", "")
    with pytest.raises(WmError, match="does not fit"):
        common.command_message(profile, np.zeros(3), stamp_ns)


def test_a_trajectory_is_spaced_and_read_from_its_first_point_ahead() -> None:
    profile = joint_profile("trajectory_msgs/msg/JointTrajectory")
    message = common.command_message(profile, np.array([[1.0, 2.0], [3.0, 4.0]]), 5, 0.02)
    assert [p.time_from_start.nanosec for p in message.points] == [20_000_000, 40_000_000]
    message.joint_names = ["base_yaw", "elbow"]  # the sender's order is its own affair
    message.points[0].time_from_start.nanosec = 0
    np.testing.assert_array_equal(common.read_command(profile, message)[1], [4.0, 3.0])
    message.joint_names = ["base_yaw", "other"]
    with pytest.raises(WmError, match="lacks the joints elbow"):
        common.read_command(profile, message)
    message.points.clear()
    with pytest.raises(WmError, match="without trajectory points"):
        common.read_command(profile, message)


def test_an_array_without_a_stamp_reads_as_stamp_zero() -> None:
    profile = joint_profile("std_msgs/msg/Float64MultiArray")
    message = common.command_message(profile, np.array([0.1, 0.2]), 5)
    message.layout.dim[0].label = "stamp_ns=-5"
    assert common.read_command(profile, message)[0] == 0
    message.layout.dim = []
    assert common.read_command(profile, message)[0] == 0
    message.data = [1.0]
    with pytest.raises(WmError, match="1 values"):
        common.read_command(profile, message)


def test_named_values_refuse_contradictions() -> None:
    message = JointState(name=["a", "b"], position=[1.0, 2.0])
    np.testing.assert_array_equal(common.named_values(message, "position", ["b"]), [2.0])
    with pytest.raises(WmError, match="0 values"):
        common.named_values(message, "velocity", ["b"])
    message.name = ["a", "a"]
    with pytest.raises(WmError, match="refused"):
        common.named_values(message, "position", ["a"])


def test_types_and_fields_that_do_not_exist_are_named() -> None:
    assert common.message_class("sensor_msgs/msg/JointState") is JointState
    for name in ("nowhere_msgs/msg/Thing", "sensor_msgs/msg/Thing"):
        with pytest.raises(WmError, match="not installed"):
            common.message_class(name)
    message = JointState()
    common.set_field(message, "header.frame_id", "x")
    assert common.get_field(message, "header.frame_id") == "x"
    for path in ("header.nothing", "__class__", "header._stamp"):
        with pytest.raises(WmError, match="no field"):
            common.get_field(message, path)


_NODE = """
import sys
from wm_node.errors import WmError
from wm_node.nodes import common, lifecycle

class Node(common.ManagedNode):
    def __init__(self):
        super().__init__("victim")
        if "fail" in sys.argv:
            raise WmError("it cannot start; do this.")
        self.create_timer(0.01, self.say)
    def say(self):
        if "bug" in sys.argv:
            raise KeyError("bug")
        print("spinning", flush=True)
    def configure(self):
        pass
    def deactivate(self):
        print("safe", flush=True)

if "active" in sys.argv:
    def factory():
        node = Node(); node.trigger_configure(); node.trigger_activate(); return node
else:
    factory = Node
sys.exit(common.run_node(factory))
"""


def start(domain: int, folder: Path, *words: str) -> subprocess.Popen[str]:
    environment = node_environment(domain, folder)
    return subprocess.Popen(
        [sys.executable, "-c", _NODE, *words],
        env=environment,
        cwd=Path(__file__).parents[2],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGTERM])
def test_a_signal_makes_safe_and_exits_zero(domain: int, tmp_path: Path, number: int) -> None:
    process = start(domain, tmp_path, "active")
    assert process.stdout is not None
    while process.stdout.readline().strip() != "spinning":
        assert process.poll() is None
    os.kill(process.pid, number)
    said, complaints = process.communicate(timeout=20)
    assert process.returncode == 0
    assert said.split()[-1] == "safe"
    assert "Traceback" not in complaints


@pytest.mark.parametrize(("word", "complaint"), [("fail", "do this."), ("bug", "KeyError: 'bug'")])
def test_a_fault_exits_one_and_says_why(
    domain: int, tmp_path: Path, word: str, complaint: str
) -> None:
    process = start(domain, tmp_path, word)
    _, complaints = process.communicate(timeout=20)
    assert process.returncode == 1
    assert complaint in complaints
