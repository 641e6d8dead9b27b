"""/mpc_planner with an engine that is slow, hangs or lies: in this process, over real DDS."""

from __future__ import annotations

import threading
import time
from collections.abc import Iterator
from contextlib import suppress
from dataclasses import replace
from typing import Any

import numpy as np
import pytest
from lifecycle_msgs.msg import State
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.parameter import Parameter
from std_msgs.msg import Header

from wm_node.bundle import Bundle
from wm_node.nodes.common import HEARTBEAT_QOS, stamp_to_ns
from wm_node.nodes.mpc_planner import MpcPlannerNode
from wm_node.nodes.pointcloud import unpack
from wm_node.nodes.world_model import WorldModelNode

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
        self.release = threading.Event()
        self.release.set()
        self.spoil = False

    def prepare(self, graph: str, inputs: Any) -> None:
        self._engine.prepare(graph, inputs)

    def run(self, graph: str, inputs: Any) -> Any:
        if graph in PLANNING:
            time.sleep(self.pause_s)
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
    yield made
    made.close()


@pytest.fixture(scope="module")
def running(random_bundle: Bundle, robot: Robot) -> Iterator[Pair]:
    made = Pair(random_bundle, robot)
    yield made
    made.close()


@pytest.fixture
def pair(running: Pair) -> Iterator[Pair]:
    """Both nodes at work, with a sound engine; put back afterwards."""
    running.robot.await_reason("OK")
    yield running
    running.engine.release.set()
    running.engine.pause_s, running.engine.spoil = 0.0, False
    running.planner.set_parameters([Parameter("late_limit", value=4)])


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
