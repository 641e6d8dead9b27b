"""Which middleware ROS runs on, for tools that are no nodes themselves."""

from __future__ import annotations

from rclpy.utilities import get_rmw_implementation_identifier


def middleware_name() -> str:
    """Return the name of the ROS middleware in use, such as ``rmw_fastrtps_cpp``.

    Raises:
        RuntimeError: none can be loaded.
    """
    return str(get_rmw_implementation_identifier())
