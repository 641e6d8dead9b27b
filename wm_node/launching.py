"""What the launch files share: their arguments, the node processes, the lifecycle walk.

Imports ``launch`` and ``launch_ros``, which come with a ROS installation; only launch files use
this module.
"""

from __future__ import annotations

import sys
from collections.abc import Sequence
from pathlib import Path

from launch import LaunchContext, LaunchDescriptionEntity, Substitution
from launch.action import Action
from launch.actions import (
    DeclareLaunchArgument,
    GroupAction,
    OpaqueFunction,
    SetEnvironmentVariable,
    Shutdown,
)
from launch.conditions import IfCondition
from launch.event import Event
from launch.events.process import ProcessExited
from launch.substitutions import EnvironmentVariable, LaunchConfiguration
from launch_ros.actions import Node, PushRosNamespace
from launch_ros.parameter_descriptions import ParameterValue

from wm_node.errors import WmError
from wm_node.resources import BUNDLE, resource

_XML = "FASTRTPS_DEFAULT_PROFILES_FILE"


def arguments(robot: str | None = None, bundle: str | None = None) -> list[Action]:
    """Declare the arguments that all launch files take; those without a default are required."""
    return [
        DeclareLaunchArgument("namespace", default_value="", description="ROS namespace"),
        DeclareLaunchArgument(
            "params_file",
            default_value="",
            description="YAML file whose parameters override the shipped config/<node>.yaml",
        ),
        DeclareLaunchArgument(
            "robot",
            description="robot profile: a path, or the name of one in config/robots",
            default_value=robot,
        ),
        DeclareLaunchArgument(
            "bundle",
            description="path of the bundle",
            default_value=bundle,
        ),
        DeclareLaunchArgument(
            "use_sim_time",
            default_value="false",
            choices=["true", "false"],
            description="take ROS time from /clock",
        ),
        DeclareLaunchArgument(
            "autostart",
            default_value="true",
            choices=["true", "false"],
            description="configure and activate the nodes",
        ),
        DeclareLaunchArgument("log_level", default_value="info", description="log level"),
    ]


def shipped_bundle() -> str:
    """Return the path of the bundle that ships, empty where this installation has none."""
    try:
        return str(resource(BUNDLE))
    except WmError:
        return ""


def shutdown_on_exit(event: Event, context: LaunchContext) -> list[LaunchDescriptionEntity]:
    """End the launch when a process that it cannot do without has ended."""
    if context.is_shutdown:
        return []
    name = event.process_name if isinstance(event, ProcessExited) else "a process"
    return [Shutdown(reason=f"{name} has ended")]


def _shutdown_on_failure(event: Event, context: LaunchContext) -> list[LaunchDescriptionEntity]:
    if isinstance(event, ProcessExited) and event.returncode == 0:
        return []
    return shutdown_on_exit(event, context)


def node_process(
    module: str,
    *,
    configs: Sequence[str] = (),
    parameters: dict[str, object] | None = None,
    needed: bool = False,
) -> Action:
    """One node process, run by the interpreter that runs launch.

    Args:
        module: name under ``wm_node.nodes``.
        configs: shipped parameter files, relative to the package's share.
        parameters: further parameters; ``robot``, ``bundle`` and ``use_sim_time`` come from the
            launch arguments. (Values for a node by its full name in ``params_file`` win.)
        needed: whether the whole launch ends when the process does.
    """

    def build(context: LaunchContext) -> list[Action]:
        given: list[object] = [str(resource(name)) for name in configs]
        if params_file := LaunchConfiguration("params_file").perform(context):
            if not Path(params_file).is_file():
                raise WmError(f"the params_file '{params_file}' does not exist.")
            given.append(params_file)
        own: dict[str, object] = {
            "robot": ParameterValue(LaunchConfiguration("robot"), value_type=str),
            "bundle": ParameterValue(LaunchConfiguration("bundle"), value_type=str),
            "use_sim_time": ParameterValue(LaunchConfiguration("use_sim_time"), value_type=bool),
        }
        given.append(own | (parameters or {}))
        return [
            Node(
                executable=sys.executable,
                arguments=["-m", f"wm_node.nodes.{module}"],
                exec_name=module,
                parameters=given,
                ros_arguments=["--log-level", LaunchConfiguration("log_level")],
                output="screen",
                on_exit=shutdown_on_exit if needed else None,
            )
        ]

    return OpaqueFunction(function=build)


def lifecycle_walk(names: Sequence[str]) -> Action:
    """Configure and activate nodes in order if ``autostart``; end the launch if one refuses."""
    return Node(
        executable=sys.executable,
        arguments=["-m", "wm_node.nodes.lifecycle", *names],
        exec_name="lifecycle",
        output="screen",
        on_exit=_shutdown_on_failure,
        condition=IfCondition(LaunchConfiguration("autostart")),
    )


def in_namespace(actions: Sequence[Action]) -> list[Action]:
    """Put actions into the namespace; large images get a Fast DDS profile unless one is set."""
    profile: list[Substitution] = [
        EnvironmentVariable(_XML, default_value=str(resource("config/fastdds_large_images.xml")))
    ]
    return [
        GroupAction(
            [
                SetEnvironmentVariable(_XML, profile),
                PushRosNamespace(LaunchConfiguration("namespace")),
                *actions,
            ]
        )
    ]
