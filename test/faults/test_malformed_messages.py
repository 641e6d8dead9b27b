"""Messages and parameters that nobody should send, at the running gate and model.

Each message is one that DDS carries, with up to three of its fields spoiled: not finite, of
another length, time or name. ``make verify`` sends 10,000 of them to each process.
"""

from __future__ import annotations

import contextlib
import math
import os
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from geometry_msgs.msg import TwistStamped
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import ListParameters, SetParameters
from rclpy.qos import QoSProfile, ReliabilityPolicy
from sensor_msgs.msg import Image, JointState, PointCloud2
from std_msgs.msg import Header

from wm_node.errors import WmError
from wm_node.nodes.common import HEARTBEAT_QOS, set_stamp
from wm_node.nodes.pointcloud import pack
from wm_node.profile import load_profile

COUNT = 10_000 if os.environ.get("WM_VERIFY") else 500
TOGETHER = 20  # messages between two looks at what comes back
RELIABLE = QoSProfile(depth=TOGETHER, reliability=ReliabilityPolicy.RELIABLE)
PROFILE = load_profile("tabletop")
CAMERA = PROFILE.cameras[0]

pytestmark = pytest.mark.timeout(900)


# ---- what is right, and how it is spoiled --------------------------------------------------


def _stamped(message: Any) -> Any:
    set_stamp(message.header.stamp, time.time_ns())
    return message


def joint_state() -> JointState:
    """The arm at rest."""
    names = list(PROFILE.joints.names)
    zeros = [0.0] * len(names)
    return _stamped(JointState(name=names, position=zeros, velocity=zeros, effort=zeros))


def twist() -> TwistStamped:
    """No motion."""
    message = _stamped(TwistStamped())
    message.header.frame_id = PROFILE.action.frame_id
    return message


def verdict() -> PointCloud2:
    """Of no command that is sent here: nothing may move."""
    safe = np.full((1, 8), 0.01, np.float32)
    channels = {f"risk_{name}": safe for name in PROFILE.event_names}
    return pack(channels, time.time_ns() - 2_000_000_000)


def candidates() -> PointCloud2:
    """Four candidates of a whole horizon."""
    ticks = PROFILE.model.horizon_ticks
    return pack({name: np.zeros((4, ticks), np.float32) for name in PROFILE.action.names}, 0)


def heartbeat() -> Header:
    """All is well."""
    message = Header(frame_id="OK")
    set_stamp(message.stamp, time.time_ns())
    return message


def image() -> Image:
    """A grey frame of the camera's size."""
    message = Image(
        height=CAMERA.height, width=CAMERA.width, encoding="rgb8", step=3 * CAMERA.width
    )
    message.data = bytes([127]) * (message.height * message.step)
    return _stamped(message)


def _pick(random: np.random.Generator, *choices: Any) -> Any:
    return choices[int(random.integers(len(choices)))]


def _wrong(value: Any, kind: str, random: np.random.Generator) -> Any:
    """Return a value of the same type that does not belong there."""
    pick = partial(_pick, random)
    if isinstance(value, bool):
        return not value
    if isinstance(value, int):
        bits = int(kind.strip("uint") or 8)
        low, high = (
            (0, 2**bits - 1) if kind.startswith("u") else (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1)
        )
        return pick(low, high, 1, int(random.integers(low, high, endpoint=True, dtype=np.int64)))
    if isinstance(value, float):
        return pick(math.nan, math.inf, -math.inf, -1e30, 1e30, 0.0)
    if isinstance(value, str):
        return pick("", "x" * 300, "é\n\t", "base_yaw", "nan")
    items = list(value)
    if items and random.random() < 0.5:
        where = int(random.integers(len(items)))
        items[where] = _wrong(items[where], "uint8", random)
        return items
    return pick([], items + items, items[:-1])


def spoil(message: Any, random: np.random.Generator) -> None:
    """Change one field, of the message or of a message in it, to what its type allows."""
    holder = message
    while True:
        kinds = holder.get_fields_and_field_types()
        name = list(kinds)[int(random.integers(len(kinds)))]
        value = getattr(holder, name)
        inner = value if hasattr(value, "get_fields_and_field_types") else None
        if isinstance(value, list) and value and hasattr(value[0], "get_fields_and_field_types"):
            inner = value[int(random.integers(len(value)))]
        if inner is None:
            break
        holder = inner
    # What is not a value of this type leaves the message as it is.
    with contextlib.suppress(AssertionError, TypeError, OverflowError):
        setattr(holder, name, _wrong(value, kinds[name], random))


def pour(
    bench: Any, makes: dict[str, Callable[[], Any]], look: Callable[[], None], seed: int
) -> None:
    """Send spoiled messages to the topics in turn; ``look`` is called now and then."""
    random = np.random.default_rng(seed)
    publishers = {
        topic: bench.node.create_publisher(
            type(make()), topic, HEARTBEAT_QOS if "heartbeat" in topic else RELIABLE
        )
        for topic, make in makes.items()
    }
    try:
        bench.wait(
            lambda: all(one.get_subscription_count() for one in publishers.values()),
            f"nobody listens to one of {list(publishers)}",
        )
        for number in range(COUNT):
            topic = list(makes)[number % len(makes)]
            message = makes[topic]()
            for _ in range(int(random.integers(0, 4))):
                spoil(message, random)
            publishers[topic].publish(message)
            if number % TOGETHER == 0:
                bench.spin(0.02)
                look()
    finally:
        for publisher in publishers.values():
            bench.node.destroy_publisher(publisher)


def is_well(bench: Any, name: str, nodes: tuple[str, ...]) -> None:
    """The process lives, answers, and said nothing of an error that it did not expect."""
    assert bench.processes[name].poll() is None
    for node in nodes:
        assert bench.caller.state(node) == "active"
    assert "Traceback" not in (bench.folder / f"{name}.log").read_text(errors="replace")


# ---- the gate ------------------------------------------------------------------------------


def test_malformed_messages_move_nothing_and_the_gate_goes_on(bench: Any) -> None:
    bench.start_gate()

    def look() -> None:
        assert bench.processes["gate"].poll() is None
        assert all(command.value == 0.0 for command in bench.commands)

    makes = {
        PROFILE.joints.topic: joint_state,
        "mpc_planner/command": twist,
        "mpc_planner/verdict": verdict,
        "mpc_planner/heartbeat": heartbeat,
    }
    pour(bench, makes, look, seed=0)
    look()
    assert bench.commands, "the gate sent nothing"
    is_well(bench, "gate", ("/safety_gate",))

    # Nothing of it is left: with a planner that is well the arm moves.
    bench.start_robot()
    bench.start_upstream()
    bench.wait(bench.passes, "the gate does not pass commands")
    bench.moving()
    for name in ("upstream", "gate", "robot"):
        bench.kill(name)


# ---- the model -----------------------------------------------------------------------------


def test_malformed_messages_do_not_end_the_model_and_it_plans_again(
    bench: Any, random_bundle_of: Callable[..., Any], tmp_path: Path
) -> None:
    bench.start_model(random_bundle_of(PROFILE, tmp_path / "bundle").path)
    planned: list[float] = []
    bench.node.create_subscription(
        TwistStamped,
        "mpc_planner/command",
        lambda m: planned.append(math.hypot(m.twist.linear.x, m.twist.linear.y)),
        RELIABLE,
    )

    def look() -> None:
        assert bench.processes["world_model"].poll() is None
        assert all(speed <= max(PROFILE.action.upper) * math.sqrt(2) + 1e-6 for speed in planned)

    makes = {
        CAMERA.topic: image,
        PROFILE.joints.topic: joint_state,
        PROFILE.action.readback.topic: twist,
        "world_model/candidates": candidates,
        "goal_image": image,
        "external_command": twist,
    }
    pour(bench, makes, look, seed=1)
    look()
    is_well(bench, "world_model", ("/world_model", "/mpc_planner"))

    bench.start_robot(camera_rate=20.0)
    bench.start_gate()
    bench.caller.set_parameter("mpc_planner", "goal_state", [0.1, 0.05])
    planned.clear()
    bench.wait(lambda: len(planned) > 3, "it does not plan again", timeout_s=30.0)
    for name in ("world_model", "gate", "robot"):
        bench.kill(name)


# ---- parameters ----------------------------------------------------------------------------


def _any_value(random: np.random.Generator) -> ParameterValue:
    integer = _pick(random, 0, 1, -1, 2**62, int(random.integers(100)))
    real = _pick(random, math.nan, math.inf, -1.0, 0.0, 1e300, float(random.random()))
    text = _pick(random, "", "tabletop", "/nowhere", "x" * 2000, "../..", "é\n")
    some = int(random.integers(4))
    return _pick(
        random,
        ParameterValue(type=ParameterType.PARAMETER_NOT_SET),
        ParameterValue(type=ParameterType.PARAMETER_BOOL, bool_value=bool(some % 2)),
        ParameterValue(type=ParameterType.PARAMETER_INTEGER, integer_value=integer),
        ParameterValue(type=ParameterType.PARAMETER_DOUBLE, double_value=real),
        ParameterValue(type=ParameterType.PARAMETER_STRING, string_value=text),
        ParameterValue(type=ParameterType.PARAMETER_DOUBLE_ARRAY, double_array_value=[real] * some),
        ParameterValue(type=ParameterType.PARAMETER_STRING_ARRAY, string_array_value=[text] * some),
    )


@pytest.mark.parametrize(
    ("module", "nodes"),
    [("safety_gate", ["/safety_gate"]), ("world_model", ["/world_model", "/mpc_planner"])],
)
def test_parameters_of_nonsense_are_refused_or_end_in_a_sentence(
    bench: Any, module: str, nodes: list[str]
) -> None:
    name, random = f"nonsense_{module}", np.random.default_rng(2)
    for left in tuple(bench.processes):
        bench.kill(left)
    bench.start(name, "-m", f"wm_node.nodes.{module}")
    for node in nodes:
        listed = bench.caller.call(
            ListParameters, f"{node}/list_parameters", ListParameters.Request(), resend_s=2.0
        ).result.names
        for number in range(COUNT // 10):
            parameters = [
                Parameter(name=listed[int(random.integers(len(listed)))], value=_any_value(random))
                for _ in range(int(random.integers(1, 4)))
            ]
            request = SetParameters.Request(parameters=parameters)
            answer = bench.caller.call(SetParameters, f"{node}/set_parameters", request)
            assert len(answer.results) == len(parameters)
            assert all(one.successful or one.reason for one in answer.results)
            if number % 25 == 0:
                configured = False
                with contextlib.suppress(WmError):  # refused, which its log explains
                    bench.caller.change(node, "configure")
                    configured = True
                if configured:
                    bench.caller.change(node, "cleanup")
    assert bench.processes[name].poll() is None
    assert "Traceback" not in (bench.folder / f"{name}.log").read_text(errors="replace")
    assert bench.end(name) == 0
