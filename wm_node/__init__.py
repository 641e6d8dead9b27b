"""Robots with foresight: a learned video world model, its planner and its safety gate on ROS 2."""

__version__ = "0.1.0"
