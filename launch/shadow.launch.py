"""Shadow mode: everything looks on, predicts, decides and records; nothing commands the robot.

For a first day on a new robot, and beside another controller: compare what the gate would have
done (`safety_gate/shadow_command`, `/diagnostics`) with what happened.
"""

from launch import LaunchDescription

from wm_node.launching import arguments, in_namespace, lifecycle_walk, node_process

SHADOW = {"shadow": True}


def generate_launch_description() -> LaunchDescription:
    """Start all nodes with their ``shadow`` parameter set."""
    return LaunchDescription(
        [
            *arguments(),
            *in_namespace(
                [
                    node_process(
                        "safety_gate", configs=["config/safety_gate.yaml"], parameters=SHADOW
                    ),
                    node_process("flight_recorder", configs=["config/flight_recorder.yaml"]),
                    node_process(
                        "world_model",
                        configs=["config/world_model.yaml", "config/mpc_planner.yaml"],
                        parameters=SHADOW,
                    ),
                    lifecycle_walk(
                        ["flight_recorder", "safety_gate", "world_model", "mpc_planner"]
                    ),
                ]
            ),
        ]
    )
