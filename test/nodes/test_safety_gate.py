"""The gate's node: what it imports, its parameter file, polling. Its faults: ``test/faults``."""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import rclpy
from lifecycle_msgs.msg import State
from rclpy.executors import SingleThreadedExecutor
from rclpy.lifecycle import TransitionCallbackReturn
from rclpy.parameter import Parameter
from std_msgs.msg import Header

from wm_node.cli.processes import private_domain
from wm_node.nodes import common
from wm_node.nodes.pointcloud import pack
from wm_node.nodes.polling import Polled
from wm_node.nodes.safety_gate import SafetyGate
from wm_node.profile import load_profile
from wm_node.resources import resource
from wm_node.safety.gate import Gate
from wm_node.safety.reasons import Reason

HEAVY = ("torch", "openvino", "mujoco", "mcap", "rosbags", "zarr", "matplotlib", "onnx")


@pytest.fixture
def ros(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
    with private_domain() as domain:
        rclpy.init(domain_id=domain)
        yield
        rclpy.shutdown()


def test_the_gate_imports_nothing_heavy() -> None:
    code = (
        "import sys, wm_node.nodes.safety_gate\n"
        f"heavy = [name for name in {HEAVY!r} if name in sys.modules]\n"
        "assert not heavy, heavy"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


def test_the_logic_imports_no_ros() -> None:
    code = (
        "import sys, wm_node.safety.gate\n"
        "found = [name for name in sys.modules if name.startswith(('rclpy', 'rcl_', 'torch'))]\n"
        "assert not found, found"
    )
    subprocess.run([sys.executable, "-c", code], check=True, timeout=60)


@pytest.mark.parametrize(
    "file", sorted(resource("config/robots").glob("*.yaml")), ids=lambda p: Path(p).stem
)
def test_every_shipped_profile_can_be_gated(file: Path) -> None:
    decision = Gate(load_profile(file)).step(0.0, 1)
    assert decision.reason is Reason.NO_COMMAND


@pytest.mark.usefixtures("ros")
class TestNode:
    def test_the_parameter_file_holds_exactly_the_parameters_with_their_defaults(
        self, check_parameter_file: Callable[[Any, str], None]
    ) -> None:
        node = SafetyGate()
        check_parameter_file(node, "config/safety_gate.yaml")
        node.destroy_node()

    def test_parameters_cannot_change_under_an_active_gate(self) -> None:
        node = SafetyGate()
        node.trigger_configure()
        (result,) = node.set_parameters([Parameter("shadow", value=True)])
        assert result.successful
        (result,) = node.set_parameters([Parameter("shadow", value=False)])
        assert result.successful
        assert node.trigger_activate() is TransitionCallbackReturn.SUCCESS
        for name, value in (("shadow", True), ("rate_hz", 100.0), ("doubt_s", 1.0)):
            (result,) = node.set_parameters([Parameter(name, value=value)])
            assert not result.successful
            assert "deactivate" in result.reason
        node.make_safe()
        assert node.lifecycle_state == State.PRIMARY_STATE_FINALIZED
        node.destroy_node()

    @pytest.mark.parametrize("shadow", [False, True])
    def test_an_arm_that_others_move_is_a_fault_except_in_shadow_mode(self, shadow: bool) -> None:
        node = SafetyGate()
        wanted = [Parameter("robot", value="g1_bottle"), Parameter("shadow", value=shadow)]
        assert all(result.successful for result in node.set_parameters(wanted))
        node.trigger_configure()
        node.trigger_activate()
        gate, joints = node._gate, load_profile("g1_bottle").joints
        assert gate is not None
        lower, upper = np.array(joints.lower), np.array(joints.upper)
        gate.on_joints(1, lower, None, 1.0, 1)
        gate.step(1.0, 10**18)
        gate.on_joints(2, upper, 0 * upper, 1.02, 2)
        decision = gate.step(1.02, 10**18 + 20_000_000)
        assert decision.latched is not shadow
        assert (decision.reason is Reason.TRACKING_LOST) is not shadow
        node.make_safe()
        node.destroy_node()

    def test_it_does_not_become_active_beside_another_commander(
        self, capfd: pytest.CaptureFixture[str]
    ) -> None:
        node = SafetyGate()
        node.trigger_configure()
        profile = load_profile("tabletop")
        kind = common.message_class(profile.action.message)
        intruder = node.create_publisher(kind, profile.action.topic, 1)
        assert node.trigger_activate() is TransitionCallbackReturn.FAILURE
        assert "already command the robot" in capfd.readouterr().err
        node.destroy_publisher(intruder)
        assert node.trigger_activate() is TransitionCallbackReturn.SUCCESS
        node.trigger_deactivate()
        node.trigger_cleanup()
        assert node.trigger_configure() is TransitionCallbackReturn.SUCCESS
        node.destroy_node()

    def test_polling_reads_in_order_at_most_the_queue_and_only_when_asked(self) -> None:
        node = rclpy.create_node("poller")
        got: list[str] = []
        qos = common.RELIABLE_QOS
        polled = Polled(node, Header, "x", lambda m: got.append(m.frame_id), qos)
        publisher = node.create_publisher(Header, "x", qos)
        executor = SingleThreadedExecutor()
        executor.add_node(node)
        while publisher.get_subscription_count() == 0:
            executor.spin_once(timeout_sec=0.1)
        sent = [str(i) for i in range(30)]
        for one in sent:
            publisher.publish(Header(frame_id=one))
        assert publisher.wait_for_all_acked()
        for _ in range(5):
            executor.spin_once(timeout_sec=0.01)
        assert got == []
        polled.poll()
        assert got == sent[-qos.depth :]
        polled.poll()
        assert len(got) == qos.depth
        polled.destroy()
        executor.shutdown()

    def test_a_verdict_is_as_bad_as_its_worst_step_and_half_of_one_is_none(self) -> None:
        node = SafetyGate()
        node.trigger_configure()
        seen: list[Any] = []
        assert node._gate is not None
        node._gate.on_verdict = seen.append  # type: ignore[method-assign]
        risk = np.array([[0.1, 0.7, 0.2]], dtype=np.float32)
        gap = np.array([[0.1, np.nan, 0.2]], dtype=np.float32)
        node._on_verdict(pack({"risk_fell": risk, "risk_zone": gap, "surprise": risk}, 5))
        (verdict,) = seen
        assert verdict.stamp_ns == 5
        assert verdict.risk["fell"] == pytest.approx(0.7)
        assert np.isnan(verdict.risk["zone"])
        assert verdict.surprise == pytest.approx(0.7)
        assert np.isnan(verdict.uncertainty)
        node.destroy_node()
