"""/mpc_planner with an engine that is slow, hangs or lies: in this process, over real DDS."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from contextlib import suppress
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml
from geometry_msgs.msg import TwistStamped
from lifecycle_msgs.msg import State
from rclpy.duration import Duration
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.parameter import Parameter
from sensor_msgs.msg import Image
from std_msgs.msg import Header

from wm_node.bundle import Bundle
from wm_node.data import messages
from wm_node.data.bag_writer import BagWriter
from wm_node.errors import WmError
from wm_node.model.export import export_again
from wm_node.nodes.common import COMMAND_QOS, HEARTBEAT_QOS, stamp_to_ns, steady_clock
from wm_node.nodes.foresight import model_frame
from wm_node.nodes.mpc_planner import MpcPlannerNode
from wm_node.nodes.pointcloud import unpack
from wm_node.nodes.world_model import WorldModelNode
from wm_node.planning.effort import Effort
from wm_node.safety.familiarity import FILE, fit_density, save_densities

pytestmark = pytest.mark.timeout(120)

PLANNER = "mpc_planner"
COMMAND, VERDICT, BEAT = (f"{PLANNER}/{name}" for name in ("command", "verdict", "heartbeat"))
PLANNING = ("rollout", "plan_fast")  # graphs of which each plan calls one, once
Robot = Any  # the class of conftest.py


class Engine:
    """Passes calls on to the real one, after a pause or not at all, and may falsify them."""

    def __init__(self, engine: Any) -> None:
        self._engine, self.name, self.precision = engine, engine.name, engine.precision
        self.pause_s = 0.0
        self.pause_from = 0  # candidates
        self.release = threading.Event()
        self.release.set()
        self.spoil = False

    def prepare(self, graph: str, inputs: Any) -> None:
        self._engine.prepare(graph, inputs)

    def run(self, graph: str, inputs: Any) -> Any:
        if graph in PLANNING:
            many = "actions" not in inputs or len(inputs["actions"]) >= self.pause_from
            time.sleep(self.pause_s if many else 0.0)
            self.release.wait(30)
        out = self._engine.run(graph, inputs)
        if self.spoil and graph in PLANNING:
            out = {k: v * np.nan if v.dtype.kind == "f" else v for k, v in out.items()}
        return out


class Pair:
    """Both nodes in one executor, as in their process."""

    def __init__(self, bundle: Bundle, robot: Robot) -> None:
        self.robot = robot
        self.world = WorldModelNode(
            parameter_overrides=[Parameter("bundle", value=str(bundle.path))]
        )
        self.planner = MpcPlannerNode(
            self.world,
            parameter_overrides=[
                Parameter(name, value=value)
                for name, value in {
                    "candidates": 8,
                    "iterations": 1,
                    "uncertainty_limit": 1e6,
                    "surprise_limit": 1e6,
                    "goal_reached": 0.001,
                    "goal_state": [0.1, 0.05],
                    "latency_s": 0.15,
                }.items()
            ],
        )
        nodes = (self.world, self.planner)
        for node in nodes:
            node.trigger_configure()
        assert self.world.foresight is not None
        self.engine = Engine(self.world.foresight.model.engine)
        self.world.foresight.model.engine = self.engine
        for node in nodes:
            node.trigger_activate()
            assert node.lifecycle_state == State.PRIMARY_STATE_ACTIVE
        self._executor = SingleThreadedExecutor()
        for node in nodes:
            self._executor.add_node(node)
        self._thread = threading.Thread(target=self._spin, daemon=True)
        self._thread.start()

    def _spin(self) -> None:
        with suppress(ExternalShutdownException):
            self._executor.spin()

    def close(self) -> None:
        self.engine.release.set()
        self.engine.pause_s = 0.0
        self._executor.shutdown(timeout_sec=5.0)
        self._thread.join(5.0)
        for node in (self.planner, self.world):
            node.make_safe()
            node.destroy_node()


@pytest.fixture(scope="module")
def robot(ros_domain: int, robot_class: type[Robot]) -> Iterator[Robot]:
    made = robot_class()
    made.readback = _readback(made)
    yield made
    made.close()


def _readback(robot: Robot) -> Any:
    """Who would tell which commands act on this robot; no command of the planner does."""
    return robot.node.create_publisher(TwistStamped, "command", COMMAND_QOS)


@pytest.fixture(scope="module")
def familiar_bundle(
    random_bundle: Bundle, robot: Robot, tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    """The random model, with the robot's pictures as what is familiar."""
    camera, pictures = random_bundle.profile.cameras[0], []
    for robot.frames_sent in range(0, 256, 4):
        pictures.append(model_frame(robot.picture(), camera))
    density = fit_density(np.stack(pictures[::2]), np.stack(pictures[1::2]))
    path = tmp_path_factory.mktemp("familiar") / "b"
    return export_again(
        random_bundle, path, {FILE: lambda file: save_densities({camera.name: density}, file)}
    )


@pytest.fixture(scope="module")
def running(familiar_bundle: Bundle, robot: Robot) -> Iterator[Pair]:
    made = Pair(familiar_bundle, robot)
    yield made
    made.close()


@pytest.fixture
def pair(running: Pair) -> Iterator[Pair]:
    """Both nodes at work, with a sound engine; put back afterwards."""
    running.robot.await_reason("OK")
    yield running
    running.engine.release.set()
    running.engine.pause_s, running.engine.spoil = 0.0, False
    running.engine.pause_from = 0
    running.planner.set_parameters([Parameter("late_limit", value=4)])


class Pictures:
    """Goal pictures whose encoding ends when it is told to."""

    def __init__(self, pair: Pair, monkeypatch: pytest.MonkeyPatch) -> None:
        assert pair.world.foresight is not None
        self._pair, self._model = pair, pair.world.foresight.model
        self._encode = self._model.picture_goal
        self.entered, self.end = threading.Event(), threading.Event()
        monkeypatch.setattr(self._model, "picture_goal", self._held)

    def _held(self, frames: Any) -> Any:
        self.entered.set()
        assert self.end.wait(10)
        return self._encode(frames)

    def send(self) -> None:
        """Publish a picture and wait until it is being encoded."""
        self._pair.robot.goal_image.publish(self._pair.robot.picture())
        assert self.entered.wait(10)

    def finish(self) -> None:
        """Let the encoding end, and wait until its goal was taken or not."""
        self.end.set()
        verdicts = self._pair.robot.fresh(VERDICT)
        self._pair.robot.await_(lambda: len(verdicts) >= 3, "cycles after the picture")


@pytest.fixture
def pictures(operated: Pair, monkeypatch: pytest.MonkeyPatch) -> Iterator[Pictures]:
    made = Pictures(operated, monkeypatch)
    yield made
    made.end.set()


@pytest.fixture
def operated(pair: Pair) -> Iterator[Pair]:
    """Both nodes, for tests that change goal, weights, shadow or readback; all is put back."""
    yield pair
    pair.planner.set_parameters([Parameter("shadow", value=False)])
    _set_weights(pair, 1.0)
    pair.robot.node.destroy_publisher(pair.robot.readback)
    pair.robot.readback = _readback(pair.robot)
    _set_goal(pair, [0.1, 0.05])


def _set_goal(pair: Pair, goal: list[float]) -> None:
    (result,) = pair.planner.set_parameters(
        [Parameter("goal_state", Parameter.Type.DOUBLE_ARRAY, goal)]
    )
    assert result.successful


def _goal(pair: Pair) -> Any:
    assert pair.planner._cycle is not None
    return pair.planner._cycle.goal


def test_a_picture_becomes_the_goal(pair: Pair, pictures: Pictures):
    goals = pair.planner._counts["goals"]
    pictures.send()
    pictures.finish()
    assert _goal(pair).latent is not None
    assert pair.planner._counts["goals"] == goals + 1


def test_a_goal_that_is_cancelled_while_its_picture_is_encoded_does_not_come_back(
    pair: Pair, pictures: Pictures
):
    pictures.send()
    _set_goal(pair, [])
    commands = pair.robot.fresh(COMMAND)
    pictures.finish()
    assert _goal(pair) is None
    assert commands == []
    pair.robot.await_reason("NO_GOAL")


def test_an_empty_picture_cancels_the_one_that_is_being_encoded(pair: Pair, pictures: Pictures):
    pictures.send()
    pair.robot.goal_image.publish(Image())
    pair.robot.await_reason("NO_GOAL")
    pictures.finish()
    assert _goal(pair) is None


def test_a_newer_goal_is_not_replaced_by_an_older_picture(pair: Pair, pictures: Pictures):
    pictures.send()
    _set_goal(pair, [0.12, 0.03])
    pictures.finish()
    assert _goal(pair).state == pytest.approx([0.12, 0.03])


def test_a_refused_picture_cancels_the_present_goal_and_is_counted(operated: Pair):
    pair, robot = operated, operated.robot
    refused = pair.planner._counts["goals_refused"]
    picture = robot.picture()
    picture.encoding = "16UC1"
    robot.goal_image.publish(picture)
    robot.await_reason("NO_GOAL")
    commands = robot.fresh(COMMAND)
    assert _goal(pair) is None
    robot.await_diagnostics(PLANNER, lambda text, v: v["goals_refused"] == str(refused + 1))
    assert commands == []


def test_a_refused_picture_leaves_a_newer_goal_alone(
    pair: Pair, pictures: Pictures, monkeypatch: pytest.MonkeyPatch
):
    refused = pair.planner._counts["goals_refused"]
    pictures.send()
    _set_goal(pair, [0.12, 0.03])
    monkeypatch.setattr(pictures, "_encode", _refuse)
    pictures.finish()
    assert _goal(pair).state == pytest.approx([0.12, 0.03])
    assert pair.planner._counts["goals_refused"] == refused + 1


def _show(pair: Pair, path: Path | str) -> None:
    (result,) = pair.planner.set_parameters([Parameter("goal_clip", value=str(path))])
    assert result.successful


def test_a_recorded_demonstration_becomes_the_goal(operated: Pair, tmp_path: Path):
    pair, robot = operated, operated.robot
    with BagWriter(tmp_path / "bag") as bag:
        bag.add_topic("/image_raw", "sensor_msgs/msg/Image")
        for k in range(10):
            stamp, shade = 10**18 + k * 200_000_000, np.full((240, 320, 3), 20 * k, np.uint8)
            bag.write("/image_raw", messages.image(stamp, "front", shade), stamp)
    _show(pair, tmp_path / "bag")
    robot.await_(lambda: _goal(pair) is not None and _goal(pair).via is not None, "the clip's goal")
    assert _goal(pair).via.shape == (9, 2)
    assert _goal(pair).latent is not None
    robot.await_reason("OK")
    _show(pair, "")
    robot.await_reason("NO_GOAL")


def test_a_demonstration_that_cannot_be_read_cancels_the_goal(operated: Pair, tmp_path: Path):
    pair, robot = operated, operated.robot
    refused = pair.planner._counts["goals_refused"]
    _show(pair, tmp_path / "nothing")
    robot.await_reason("NO_GOAL")
    robot.await_diagnostics(PLANNER, lambda text, v: v["goals_refused"] == str(refused + 1))
    assert _goal(pair) is None


def test_a_newer_goal_is_not_replaced_by_a_demonstration(
    operated: Pair, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
):
    pair, refused = operated, operated.planner._counts["goals_refused"]
    go_on = threading.Event()

    def read(path: str, profile: Any) -> Any:
        assert go_on.wait(10)
        raise WmError("it is damaged.")

    monkeypatch.setattr("wm_node.nodes.mpc_planner.read_clip", read)
    _show(pair, tmp_path)
    _set_goal(pair, [0.12, 0.03])
    go_on.set()
    pair.robot.await_diagnostics(PLANNER, lambda text, v: v["goals_refused"] == str(refused + 1))
    assert _goal(pair).state == pytest.approx([0.12, 0.03])


def test_a_readback_that_nobody_publishes_ends_the_commands(operated: Pair):
    pair, robot = operated, operated.robot
    # Standing still looks best to random weights, and says nothing about the readback.
    _set_weights(pair, 0.0)
    robot.node.destroy_publisher(robot.readback)
    sentence = "the context lacks actions: nothing is read back on 'command'"
    robot.await_diagnostics(PLANNER, lambda text, v: sentence in text)
    beats, commands = robot.fresh(BEAT), robot.fresh(COMMAND)
    robot.await_(lambda: len(beats) >= 50, "heartbeats")
    assert {beat.frame_id for beat in beats} == {"CONTEXT_EMPTY"}
    assert commands == []
    robot.readback = _readback(robot)
    robot.await_reason("OK")
    robot.await_(lambda: commands, "commands again")


@pytest.mark.parametrize("what", ["NO_GOAL", "SHADOW"])
def test_a_planner_that_commands_nothing_does_not_miss_the_readback(operated: Pair, what: str):
    pair, robot, details = operated, operated.robot, set[str]()
    assert pair.world.foresight is not None
    buffer = pair.world.foresight.buffer
    if what == "NO_GOAL":
        _set_goal(pair, [])
    pair.planner.set_parameters([Parameter("shadow", value=what == "SHADOW")])
    robot.await_reason(what)
    commands, verdicts = robot.fresh(COMMAND), robot.fresh(VERDICT)
    robot.await_(lambda: len(verdicts) >= 3, "cycles")
    assert commands == []
    buffer.forget_commands()
    robot.node.destroy_publisher(robot.readback)
    verdicts = robot.fresh(VERDICT)
    for count in range(1, 21):  # two seconds of cycles
        robot.await_(lambda count=count: len(verdicts) >= count, "cycles")
        details.add(pair.planner._detail)
    assert not buffer.readback_exists
    assert not any("actions" in detail for detail in details)


def _ends_the_commands(robot: Robot, reason: str) -> None:
    robot.await_reason(reason)
    commands = robot.fresh(COMMAND)
    robot.await_reason(reason)
    assert commands == []


@pytest.mark.parametrize(
    ("shift_s", "reason"),
    [(0.3, "FRAMES_FUTURE"), (86_400.0, "FRAMES_FUTURE"), (-0.6, "FRAMES_STALE")],
)
def test_a_camera_whose_clock_is_wrong_ends_the_commands(pair: Pair, shift_s: float, reason: str):
    robot = pair.robot
    robot.frame_shift_s = shift_s
    try:
        _ends_the_commands(robot, reason)
    finally:
        robot.frame_shift_s = 0.0
    robot.await_reason("OK")


def test_a_frozen_camera_ends_the_commands(pair: Pair):
    robot = pair.robot
    robot.frozen, robot.drift = True, 0.002
    try:
        _ends_the_commands(robot, "FRAMES_FROZEN")
    finally:
        robot.frozen, robot.drift = False, 0.0
    robot.await_reason("OK")


def test_a_covered_lens_ends_the_commands(pair: Pair):
    robot = pair.robot
    robot.dark = True
    try:
        _ends_the_commands(robot, "FRAMES_STRANGE")
    finally:
        robot.dark = False
    robot.await_reason("OK")


@pytest.fixture
def supervised(operated: Pair) -> Iterator[Pair]:
    """Both nodes at rest, taking external commands; the planner commands again afterwards."""
    _set_goal(operated, [])
    operated.robot.await_reason("NO_GOAL")
    operated.robot.await_(lambda: _select(operated, "external").successful, "rest")
    operated.robot.await_reason("NO_COMMAND")
    yield operated
    operated.robot.await_(lambda: _select(operated, "planner").successful, "rest")


def _select(pair: Pair, source: str) -> Any:
    (result,) = pair.planner.set_parameters([Parameter("source", value=source)])
    return result


class Teleoperation:
    """Publishes commands as a person's joystick does, until it is closed."""

    def __init__(self, pair: Pair, vx: float, frame: str = "table", ago_s: float = 0.0) -> None:
        self._node = pair.robot.node
        self._topic = self._node.create_publisher(TwistStamped, "external_command", COMMAND_QOS)
        self.vx, self._frame, self._ago = vx, frame, Duration(seconds=ago_s)
        self._timer = self._node.create_timer(0.05, self._send, clock=steady_clock())

    def _send(self) -> None:
        message = TwistStamped()
        message.header.frame_id = self._frame
        message.header.stamp = (self._node.get_clock().now() - self._ago).to_msg()
        message.twist.linear.x = self.vx
        self._topic.publish(message)

    def close(self) -> None:
        if self._timer is not None:
            self._node.destroy_timer(self._timer)
            self._node.destroy_publisher(self._topic)
            self._timer = None


@pytest.fixture
def teleoperate(supervised: Pair) -> Iterator[Callable[..., Teleoperation]]:
    made: list[Teleoperation] = []

    def start(vx: float, **more: Any) -> Teleoperation:
        made.append(Teleoperation(supervised, vx, **more))
        return made[-1]

    yield start
    for one in made:
        one.close()
    # What is left of them must not be counted in the next test.
    gone = supervised.planner
    supervised.robot.await_(
        lambda: gone.count_publishers("external_command") == 0, "the end of external commands"
    )


def test_external_commands_are_handed_on_with_their_verdict(
    supervised: Pair, teleoperate: Callable[..., Teleoperation]
):
    robot = supervised.robot
    commands, verdicts = robot.fresh(COMMAND), robot.fresh(VERDICT)
    stick = teleoperate(0.12)
    robot.await_(lambda: len(commands) >= 5, "commands")
    # As fast as the operator wants, or slower where the random model sees a risk.
    assert {round(command.twist.linear.x, 3) for command in commands} <= {0.12, 0.06}
    told = {unpack(verdict)[0]: unpack(verdict)[1] for verdict in verdicts}
    for command in list(commands):
        channels = told[stamp_to_ns(command.header.stamp)]
        assert np.isfinite(channels["risk_fell"]).all()
    robot.await_diagnostics(
        PLANNER, lambda text, v: v["source"] == "external" and int(v["external_commands"]) > 0
    )
    # An operator who lets go: the robot is braked, not sent the last command again and again.
    stick.close()
    robot.await_reason("COMMAND_STALE")
    commands = robot.fresh(COMMAND)
    robot.await_reason("COMMAND_STALE")
    assert commands == []


@pytest.mark.parametrize(
    ("given", "reason"),
    [
        ({"vx": float("nan")}, "COMMAND_NOT_FINITE"),
        ({"vx": 0.1, "frame": "map"}, "COMMAND_FOREIGN_FRAME"),
        ({"vx": 0.1, "ago_s": 1.0}, "COMMAND_OLD"),
        ({"vx": 0.1, "ago_s": -1.0}, "COMMAND_FUTURE"),
    ],
)
def test_external_commands_that_cannot_be_followed_end_the_motion(
    supervised: Pair,
    teleoperate: Callable[..., Teleoperation],
    given: dict[str, Any],
    reason: str,
):
    commands = supervised.robot.fresh(COMMAND)
    teleoperate(**given)
    supervised.robot.await_reason(reason)
    assert commands == []


def test_two_that_command_at_once_end_the_motion(
    supervised: Pair, teleoperate: Callable[..., Teleoperation]
):
    robot = supervised.robot
    commands = robot.fresh(COMMAND)
    teleoperate(0.12)
    robot.await_(lambda: len(commands) >= 3, "commands")
    second = teleoperate(0.1)
    robot.await_reason("SECOND_SOURCE")
    commands = robot.fresh(COMMAND)
    robot.await_reason("SECOND_SOURCE")
    assert commands == []
    second.close()
    robot.await_(lambda: commands, "commands of the one that is left")


def test_the_source_of_commands_changes_at_rest_only(operated: Pair):
    robot = operated.robot
    _set_weights(operated, 0.0)  # else standing still looks best to random weights
    commands = robot.fresh(COMMAND)
    robot.await_(lambda: any(c.twist.linear.x or c.twist.linear.y for c in commands), "motion")
    refused = _select(operated, "external")
    assert not refused.successful
    assert "at rest only" in refused.reason
    robot.await_reason("OK")


def test_a_source_that_does_not_exist_is_refused(operated: Pair):
    refused = _select(operated, "joystick")
    assert not refused.successful
    assert "external" in refused.reason


def _set_weights(pair: Pair, share: float) -> None:
    values = {"weights.risk": 20.0, "weights.smoothness": 0.1}
    pair.planner.set_parameters([Parameter(name, value=share * v) for name, v in values.items()])


def test_a_robot_that_would_hear_the_planner_without_the_gate_is_refused(
    pair: Pair, random_bundle: Bundle, tmp_path: Path, capfd: pytest.CaptureFixture[str]
):
    data = random_bundle.profile.dump()
    data["action"]["topic"] = "mpc_planner/command"
    profile = tmp_path / "no_gate.yaml"
    profile.write_text(yaml.safe_dump(data))
    given = {"bundle": str(random_bundle.path), "robot": str(profile)}
    world = WorldModelNode(
        parameter_overrides=[Parameter(name, value=value) for name, value in given.items()]
    )
    planner = MpcPlannerNode(world)
    try:
        world.trigger_configure()
        planner.trigger_configure()
        assert planner.lifecycle_state == State.PRIMARY_STATE_UNCONFIGURED
        assert (
            "'mpc_planner/command', where the planner commands the gate" in capfd.readouterr().err
        )
    finally:
        for node in (planner, world):
            node.make_safe()
            node.destroy_node()


def _refuse(frames: Any) -> Any:
    raise WmError("it is black.")


def _late(verdicts: list[Any]) -> list[float]:
    return [float(unpack(message)[1]["late"][0, 0]) for message in verdicts]


def test_a_late_plan_is_bridged_by_the_shifted_last_one_and_counted(pair: Pair):
    robot = pair.robot
    pair.planner.set_parameters([Parameter("late_limit", value=10)])
    misses = pair.planner._counts["deadline_misses"]
    verdicts, commands = robot.fresh(VERDICT), robot.fresh(COMMAND)
    pair.engine.release.clear()
    robot.await_(lambda: any(_late(verdicts)), "a late cycle")
    pair.engine.release.set()
    index = next(k for k, late in enumerate(_late(verdicts)) if late)
    stamp, fields = unpack(verdicts[index])
    assert fields["late"][0, 0] == 1.0  # the last plan, one tick on
    assert np.isnan(fields["plan_ms"]).all()
    robot.await_(lambda: any(stamp_to_ns(m.header.stamp) == stamp for m in commands), "its command")
    assert pair.planner._counts["deadline_misses"] > misses
    robot.await_(lambda: len(_late(verdicts)) > index + 3 and not _late(verdicts)[-1], "in time")


def test_a_hung_engine_ends_the_commands_and_lets_the_plan_stamp_stand_still(pair: Pair):
    robot = pair.robot
    pair.engine.release.clear()
    robot.await_reason("PLAN_LATE")
    beats, commands = robot.fresh(BEAT), robot.fresh(COMMAND)
    robot.await_(lambda: len(beats) >= 20, "heartbeats")
    assert {beat.frame_id for beat in beats} == {"PLAN_LATE"}
    assert len({stamp_to_ns(beat.stamp) for beat in beats}) == 1
    assert commands == []
    pair.engine.release.set()
    robot.await_reason("OK")
    robot.await_(lambda: commands, "commands again")


def test_plans_that_are_always_late_end_the_commands(pair: Pair):
    pair.engine.pause_s = 0.2
    pair.robot.await_reason("PLAN_LATE")
    pair.engine.pause_s = 0.0
    pair.robot.await_reason("OK")


def test_a_search_that_is_too_large_gives_way_to_a_smaller_one_and_comes_back(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
):
    planner, robot = pair.planner, pair.robot
    monkeypatch.setattr("wm_node.planning.effort.PATIENCE", 10)
    large = planner._ladder[0]
    monkeypatch.setattr(planner, "_effort", Effort([large, replace(large, candidates=4)]))

    def searched(candidates: int) -> Any:
        return lambda text, values: values["candidates"] == str(candidates)

    pair.engine.pause_from, pair.engine.pause_s = 8, 0.2
    robot.await_diagnostics(PLANNER, searched(4))
    robot.await_reason("OK")
    assert planner._effort.steps_down >= 1  # a busy machine may be late again on its own
    pair.engine.pause_s = 0.0
    robot.await_diagnostics(PLANNER, searched(8))
    robot.await_reason("OK")


def test_predictions_that_are_not_finite_end_the_commands(pair: Pair):
    robot = pair.robot
    pair.engine.spoil = True
    robot.await_reason("ENGINE_ERROR")
    beats, commands = robot.fresh(BEAT), robot.fresh(COMMAND)
    robot.await_(lambda: len(beats) >= 10, "heartbeats")
    assert commands == []
    pair.engine.spoil = False
    robot.await_reason("OK")


def test_an_engine_that_raises_is_reported_and_survived(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
):
    def lost(graph: str, inputs: Any) -> Any:
        raise RuntimeError("device lost")

    with monkeypatch.context() as patch:
        patch.setattr(pair.engine, "run", lost)
        pair.robot.await_reason("ENGINE_ERROR")
        pair.robot.await_diagnostics(PLANNER, lambda text, v: "device lost" in text)
    pair.robot.await_reason("OK")


def test_risk_that_is_not_available_is_passed_on_as_such(
    pair: Pair, monkeypatch: pytest.MonkeyPatch
):
    assert pair.world.foresight is not None
    model = pair.world.foresight.model
    outcomes_of = model._outcomes  # of rollouts and of compiled searches alike

    def without_risk(*args: Any, **more: Any) -> Any:
        outcomes = outcomes_of(*args, **more)
        return replace(outcomes, risk=np.full_like(outcomes.risk, np.nan))

    monkeypatch.setattr(model, "_outcomes", without_risk)
    verdicts = pair.robot.fresh(VERDICT)
    pair.robot.await_(
        lambda: verdicts and np.isnan(unpack(verdicts[-1])[1]["risk_fell"]).all(), "NaN risk"
    )


def test_the_executor_stays_free_while_the_engine_works(pair: Pair):
    """Heartbeats keep their period of 30 ms although every plan takes three times as long."""
    pair.planner.set_parameters([Parameter("late_limit", value=10)])
    pair.engine.pause_s = 0.09
    arrivals: list[float] = []
    listener = pair.robot.node.create_subscription(
        Header, BEAT, lambda message: arrivals.append(time.monotonic()), HEARTBEAT_QOS
    )
    pair.robot.await_(lambda: len(arrivals) >= 60, "60 heartbeats")
    pair.robot.node.destroy_subscription(listener)
    # Were the plan made in the executor, every third gap would be longer than the plan; single
    # gaps of a busy test machine do not count.
    assert np.percentile(np.diff(arrivals), 80) < 0.08
