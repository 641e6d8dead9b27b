"""The safety gate on plain arrays: named reasons, limits, the state machine. No ROS, no torch."""
