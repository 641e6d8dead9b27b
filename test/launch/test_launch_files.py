"""The launch files, run by the real launch system; skipped where ROS does not provide it."""

from __future__ import annotations

import os
import signal
import threading
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
import rclpy
from geometry_msgs.msg import TwistStamped
from rcl_interfaces.srv import GetParameters
from rclpy.signals import SignalHandlerOptions

launch_pytest = pytest.importorskip(
    "launch_pytest", reason="launch_pytest comes with a ROS installation, not with Python wheels"
)

from launch import LaunchContext, LaunchDescription, LaunchService  # noqa: E402
from launch.actions import (  # noqa: E402
    DeclareLaunchArgument,
    IncludeLaunchDescription,
    RegisterEventHandler,
)
from launch.event_handlers import OnProcessExit, OnProcessStart  # noqa: E402
from launch.launch_description_sources import (  # noqa: E402
    PythonLaunchDescriptionSource,
    get_launch_description_from_python_launch_file,
)

from wm_node.bundle import Bundle  # noqa: E402
from wm_node.cli.processes import private_domain  # noqa: E402
from wm_node.model.export import untrained_bundle  # noqa: E402
from wm_node.nodes.common import COMMAND_QOS  # noqa: E402
from wm_node.nodes.lifecycle import Caller  # noqa: E402
from wm_node.profile import load_profile  # noqa: E402
from wm_node.resources import resource  # noqa: E402

FILES = ("bringup", "demo", "shadow", "record")
ARGUMENTS = {
    "namespace",
    "params_file",
    "robot",
    "bundle",
    "use_sim_time",
    "autostart",
    "log_level",
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return untrained_bundle(load_profile("tabletop"), tmp_path_factory.mktemp("b") / "bundle", 0)


@pytest.fixture(autouse=True)
def _private(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> Iterator[None]:
    with private_domain() as domain:
        monkeypatch.setenv("ROS_DOMAIN_ID", str(domain))
        monkeypatch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
        monkeypatch.setenv("ROS_LOG_DIR", str(tmp_path / "ros_log"))
        monkeypatch.setenv("OMP_NUM_THREADS", "1")
        monkeypatch.setenv("MUJOCO_GL", "egl")
        yield


@pytest.mark.parametrize("name", FILES)
def test_every_launch_file_takes_the_same_arguments(name: str) -> None:
    path = str(resource(f"launch/{name}.launch.py"))
    description = get_launch_description_from_python_launch_file(path)
    declared = {
        entity.name for entity in description.entities if isinstance(entity, DeclareLaunchArgument)
    }
    assert declared == ARGUMENTS


class Launched:
    """One launch file under a launch service in a thread, with what became of its processes."""

    def __init__(self, name: str, **arguments: str) -> None:
        self.pids: dict[str, int] = {}
        self.exits: dict[str, int] = {}
        self.status: int | None = None
        self._changed = threading.Condition()
        source = PythonLaunchDescriptionSource(str(resource(f"launch/{name}.launch.py")))
        self._service = LaunchService(noninteractive=True)
        self._service.include_launch_description(
            LaunchDescription(
                [
                    RegisterEventHandler(OnProcessStart(on_start=self._on_start)),
                    RegisterEventHandler(OnProcessExit(on_exit=self._on_exit)),
                    IncludeLaunchDescription(source, launch_arguments=arguments.items()),
                ]
            )
        )

    def _on_start(self, event: Any, context: LaunchContext) -> None:
        with self._changed:
            self.pids[event.process_name.rpartition("-")[0]] = event.pid
            self._changed.notify_all()

    def _on_exit(self, event: Any, context: LaunchContext) -> None:
        with self._changed:
            self.exits[event.process_name.rpartition("-")[0]] = event.returncode
            self._changed.notify_all()

    def run(self, then: Callable[[Launched], None]) -> None:
        """Run the service here, and ``then`` in a thread; shut down when that has ended."""
        faults: list[BaseException] = []

        def work() -> None:
            try:
                then(self)
            except BaseException as error:
                faults.append(error)
            finally:
                self._service.shutdown()

        thread = threading.Thread(target=work)
        thread.start()
        self.status = self._service.run()
        thread.join()
        if faults:
            raise faults[0]

    def wait(self, done: Callable[[Launched], bool], seconds: float) -> None:
        """Wait until a condition on the processes is true."""
        with self._changed:
            assert self._changed.wait_for(lambda: done(self), seconds), (self.pids, self.exits)


@pytest.fixture
def params(tmp_path: Path) -> str:
    path = tmp_path / "params.yaml"
    path.write_text(
        "/**/flight_recorder:\n"
        "  ros__parameters:\n"
        f"    output_dir: {tmp_path / 'bags'}\n"
        "    min_free_mb: 10\n"
    )
    return str(path)


@pytest.mark.parametrize("namespace", ["", "left/arm"])
def test_the_demo_comes_up_and_goes_down(
    bundle: Bundle, params: str, tmp_path: Path, namespace: str
) -> None:
    launched = Launched("demo", bundle=str(bundle.path), params_file=params, namespace=namespace)
    launched.run(lambda it: it.wait(lambda it: "lifecycle" in it.exits, 90))
    assert launched.exits.pop("lifecycle") == 0  # all nodes are active
    assert set(launched.exits) == {"sim_robot", "safety_gate", "flight_recorder", "world_model"}
    assert set(launched.exits.values()) == {0}
    assert launched.status == 0
    (bag,) = (tmp_path / "bags").iterdir()  # params_file was heard
    assert (bag / "metadata.yaml").is_file()


def test_bringup_with_a_wrong_bundle_ends_by_itself(params: str, tmp_path: Path) -> None:
    launched = Launched(
        "bringup", robot="tabletop", bundle=str(tmp_path / "none"), params_file=params
    )
    launched.run(lambda it: it.wait(lambda it: len(it.exits) == 4, 90))
    assert launched.exits["lifecycle"] == 1


def test_the_end_of_the_gate_ends_bringup(bundle: Bundle, params: str) -> None:
    launched = Launched(
        "bringup",
        robot="tabletop",
        bundle=str(bundle.path),
        params_file=params,
        autostart="false",
    )

    def kill_the_gate(it: Launched) -> None:
        it.wait(lambda it: len(it.pids) == 3, 30)
        os.kill(it.pids["safety_gate"], signal.SIGKILL)
        it.wait(lambda it: len(it.exits) == 3, 30)

    launched.run(kill_the_gate)
    assert launched.exits.pop("safety_gate") == -signal.SIGKILL
    assert set(launched.exits) == {"flight_recorder", "world_model"}


@pytest.fixture
def caller(_private: None) -> Iterator[Caller]:
    """A node of the test's own, beside those that are launched."""
    rclpy.init(signal_handler_options=SignalHandlerOptions.NO)  # signals are the launch service's
    node = rclpy.create_node("onlooker")
    one = Caller(node)
    yield one
    one.close()
    node.destroy_node()
    rclpy.shutdown()


def test_shadow_comes_up_commands_nothing_and_goes_down(
    bundle: Bundle, params: str, caller: Caller
) -> None:
    commands: list[TwistStamped] = []
    shadows: list[TwistStamped] = []
    for topic, heard in (("command", commands), ("safety_gate/shadow_command", shadows)):
        caller.node.create_subscription(TwistStamped, topic, heard.append, COMMAND_QOS)

    def look_on(it: Launched) -> None:
        it.wait(lambda it: "lifecycle" in it.exits, 90)
        request = GetParameters.Request(names=["shadow"])
        response = caller.call(GetParameters, "/safety_gate/get_parameters", request)
        assert response.values[0].bool_value
        # The gate sends something in every step, so a second without shadow would be heard.
        caller.spin_until(lambda: len(shadows) > 0, 10, "the gate decided nothing")
        caller.spin_for(1.0)

    launched = Launched("shadow", robot="tabletop", bundle=str(bundle.path), params_file=params)
    launched.run(look_on)
    assert not commands
    assert launched.exits.pop("lifecycle") == 0
    assert set(launched.exits.values()) == {0}


def test_record_needs_no_bundle(params: str, tmp_path: Path) -> None:
    launched = Launched("record", robot="tabletop", params_file=params)
    launched.run(lambda it: it.wait(lambda it: "lifecycle" in it.exits, 60))
    assert launched.exits == {"lifecycle": 0, "flight_recorder": 0}
    (bag,) = (tmp_path / "bags").iterdir()
    assert (bag / "metadata.yaml").is_file()


@launch_pytest.fixture
def record_description(params: str) -> LaunchDescription:
    """The recorder under launch_pytest itself, as the tests of a robot's own package would."""
    source = PythonLaunchDescriptionSource(str(resource("launch/record.launch.py")))
    return LaunchDescription(
        [
            IncludeLaunchDescription(
                source,
                launch_arguments={"robot": "tabletop", "params_file": params}.items(),
            ),
            launch_pytest.actions.ReadyToTest(),
        ]
    )


@pytest.mark.launch(fixture=record_description)
def test_under_launch_pytest(tmp_path: Path) -> None:
    deadline = time.monotonic() + 60
    bags = tmp_path / "bags"
    while not list(bags.glob("*/metadata.yaml")) and time.monotonic() < deadline:
        time.sleep(0.1)
    assert list(bags.glob("*/metadata.yaml"))
