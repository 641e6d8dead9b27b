"""Brings up the world model, its planner, the safety gate and the flight recorder on a robot."""

from launch import LaunchDescription

from wm_node.launching import arguments, in_namespace, lifecycle_walk, node_process


def generate_launch_description() -> LaunchDescription:
    """Start the processes; the gate goes first, so that nothing commands the robot without it."""
    return LaunchDescription(
        [
            *arguments(),
            *in_namespace(
                [
                    node_process("safety_gate", configs=["config/safety_gate.yaml"], needed=True),
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
