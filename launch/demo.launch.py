"""The simulated table-top robot with everything that runs on a real one.

``wm demo`` also sets goals, scores episodes and writes a report; this file only brings up the
nodes, for RViz, Foxglove or your own planner.
"""

from launch import LaunchDescription

from wm_node.launching import (
    arguments,
    in_namespace,
    lifecycle_walk,
    node_process,
    shipped_bundle,
)


def generate_launch_description() -> LaunchDescription:
    """Start the simulator first: the other nodes check their topics when they are activated."""
    return LaunchDescription(
        [
            *arguments(robot="tabletop", bundle=shipped_bundle()),
            *in_namespace(
                [
                    node_process("sim_robot", configs=["config/sim_robot.yaml"], needed=True),
                    node_process("safety_gate", configs=["config/safety_gate.yaml"], needed=True),
                    node_process("flight_recorder", configs=["config/flight_recorder.yaml"]),
                    node_process(
                        "world_model",
                        configs=["config/world_model.yaml", "config/mpc_planner.yaml"],
                    ),
                    lifecycle_walk(
                        [
                            "flight_recorder",
                            "sim_robot",
                            "safety_gate",
                            "world_model",
                            "mpc_planner",
                        ]
                    ),
                ]
            ),
        ]
    )
