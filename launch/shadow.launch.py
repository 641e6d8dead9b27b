"""Shadow mode: everything looks on, predicts, decides and records; nothing commands the robot.

For a first day on a new robot, and beside another controller: compare what the gate would have
done (`safety_gate/shadow_command`, `/diagnostics`) with what happened.

The gate alone is in shadow mode: it is the only one that talks to the robot, and it judges what the
planner commands. (A planner in shadow mode, as in `wm replay`, would leave it nothing to judge.)
"""

from pathlib import Path

import yaml
from launch import LaunchContext, LaunchDescription
from launch.actions import OpaqueFunction
from launch.substitutions import LaunchConfiguration

from wm_node.errors import WmError
from wm_node.launching import arguments, in_namespace, lifecycle_walk, node_process

SHADOW = {"shadow": True}


def generate_launch_description() -> LaunchDescription:
    """Start all nodes, the gate with its parameter ``shadow`` set."""
    return LaunchDescription(
        [
            *arguments(),
            OpaqueFunction(function=check_params_file),
            *in_namespace(
                [
                    node_process(
                        "safety_gate", configs=["config/safety_gate.yaml"], parameters=SHADOW
                    ),
                    node_process("flight_recorder", configs=["config/flight_recorder.yaml"]),
                    node_process(
                        "world_model",
                        configs=["config/world_model.yaml", "config/mpc_planner.yaml"],
                    ),
                    lifecycle_walk(
                        ["flight_recorder", "safety_gate", "world_model", "mpc_planner"]
                    ),
                ]
            ),
        ]
    )


def check_params_file(context: LaunchContext) -> list[object]:
    """Refuse a params_file that could let the gate command: some of its values win over ours.

    Raises:
        WmError: it sets ``shadow`` to anything but true.
    """
    path = LaunchConfiguration("params_file").perform(context)
    if path and Path(path).is_file() and ends_shadow(yaml.safe_load(Path(path).read_text())):
        raise WmError(
            f"the params_file '{path}' sets 'shadow' to false, but shadow.launch.py is to command "
            "nothing; leave that line out (false is the default elsewhere)."
        )
    return []


def ends_shadow(values: object) -> bool:
    """Whether what was read from a parameter file takes a node other than the planner out of it."""
    if not isinstance(values, dict):
        return False
    return any(
        value is not True if key == "shadow" else ends_shadow(value)
        for key, value in values.items()
        if not str(key).endswith("mpc_planner")
    )
