"""Only the flight recorder: collect bags of a robot that somebody else drives."""

from launch import LaunchDescription

from wm_node.launching import arguments, in_namespace, lifecycle_walk, node_process


def generate_launch_description() -> LaunchDescription:
    """Start the recorder; a bundle is not needed, its hash is noted where one is given."""
    return LaunchDescription(
        [
            *arguments(bundle=""),
            *in_namespace(
                [
                    node_process(
                        "flight_recorder",
                        configs=["config/flight_recorder.yaml"],
                        needed=True,
                    ),
                    lifecycle_walk(["flight_recorder"]),
                ]
            ),
        ]
    )
