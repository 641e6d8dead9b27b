"""One enum of named reasons: why a robot moves, is limited, brakes or holds.

The planner and the gate use the same names, on diagnostics, in heartbeats and in reports.
"""

from __future__ import annotations

from enum import Enum


class Reason(Enum):
    """A named reason. The value says what it means; :attr:`remedy` says what to do."""

    meaning: str
    remedy: str
    latching: bool

    def __new__(cls, meaning: str, remedy: str, latching: bool = False) -> Reason:
        """Attach remedy and latching; the enum's value is the meaning."""
        reason = object.__new__(cls)
        reason._value_ = meaning
        reason.meaning, reason.remedy, reason.latching = meaning, remedy, latching
        return reason

    # Nothing wrong.
    OK = ("commands pass", "nothing to do")
    INACTIVE = ("the node is not active", "activate it")
    NO_COMMAND = ("no command has arrived yet", "start the planner and give it a goal")

    # The operator's lock.
    LOCKED = ("the lock is engaged or silent", "release the lock; see that its publisher runs")

    # The planner says so in its heartbeat: it holds or brakes.
    PLANNER_INACTIVE = ("the planner is not active", "activate the planner")
    NO_GOAL = ("the planner has no goal", "set goal_state or goal_clip, or publish a goal image")
    GOAL_REACHED = ("the goal is reached", "nothing to do, or set the next goal")
    SHADOW = ("the planner runs in shadow mode", "set its parameter 'shadow' to false")
    FRAMES_STALE = ("no fresh camera frame", "check the camera and its topic")
    FRAMES_FUTURE = ("a camera's frames are stamped in the future", "synchronise the clocks")
    FRAMES_FROZEN = ("a camera repeats its last picture", "restart the camera's driver")
    FRAMES_STRANGE = ("a camera sees nothing like the training data", "look at lens, light, camera")
    CONTEXT_EMPTY = ("the model's context is not full yet", "wait; check frame and joint rates")
    ENGINE_ERROR = ("the model's engine failed", "read the planner's log and restart it")
    SECOND_SOURCE = ("two nodes send external commands", "stop one of them")
    PLAN_LATE = ("plans are late too often", "lighten the planner's preset or the machine's load")

    # The command itself.
    COMMAND_STALE = ("no fresh command", "check the planner's rate and the machine's load")
    COMMAND_FUTURE = ("a command is stamped in the future", "synchronise the clocks")
    COMMAND_OLD = ("a command is stamped too far in the past", "synchronise clocks; check delays")
    COMMAND_NOT_FINITE = ("a command holds NaN or infinity", "read the planner's log")
    COMMAND_FOREIGN_FRAME = ("a command is in another frame", "check frame_id in the profile")
    COMMAND_FLOOD = ("commands come far too fast", "find what floods the planner's topic")
    COMMAND_MALFORMED = ("a command lacks values or joints", "check joint names in the profile")

    # Limits of the profile.
    POSITION_LIMIT = ("a joint is at or near its position limit", "move the goal or the joint away")
    VELOCITY_LIMIT = ("a velocity limit is reached", "nothing to do; lower the planner's limits")
    ACCELERATION_LIMIT = ("an acceleration limit is reached", "raise the planner's smoothness")

    WORKSPACE = ("a command leads out of the workspace", "command the way back; move the goal")
    KEEP_OUT = ("a command leads into a volume kept free", "command the way back; move the goal")

    # The robot's state.
    JOINTS_STALE = ("no fresh joint state", "check the robot's driver and the joint topic")
    JOINTS_FUTURE = ("a joint state is stamped in the future", "synchronise the clocks")
    JOINTS_NOT_FINITE = ("a joint state holds NaN or infinity", "check the robot's driver")
    JOINT_NAMES = ("a joint state lacks joints of the profile", "check the profile's joint names")

    # The clock.
    CLOCK_STOPPED = ("the ROS clock stands still", "start the source of /clock")

    # What the model foresees.
    UNVERIFIED = ("a command has no verdict of its own stamp", "check the world model's node")
    RISK = ("a predicted risk is above its threshold", "move the goal or the obstacle")
    UNCERTAINTY = ("the model is too uncertain", "leave the unknown situation; record it")
    SURPRISE = ("the model is surprised", "look at the scene; record it")

    # Something is broken: latched until reset.
    HEARTBEAT_LOST = ("the planner died or hangs", "restart the planner, then reset", True)
    PLAN_STALE = ("the planner lives, but completes no plan", "restart the planner, reset", True)
    CLOCK_JUMP = ("the ROS clock jumped", "find out what set the clock, then reset", True)
    TRACKING_LOST = ("a joint is not where it was commanded", "find out why, then reset", True)
    SECOND_PUBLISHER = ("another node commands the robot", "stop that node, then reset", True)
    SECOND_PLANNER = ("two planners command the gate", "stop one of them, then reset", True)
    OPERATOR_STOP = ("an operator stopped the robot", "reset when it is safe", True)


# Holding for one of these is ordinary operation; for any other reason it is an intervention.
ORDINARY: frozenset[Reason] = frozenset(
    {
        Reason.OK,
        Reason.INACTIVE,
        Reason.NO_COMMAND,
        Reason.PLANNER_INACTIVE,
        Reason.NO_GOAL,
        Reason.GOAL_REACHED,
        Reason.SHADOW,
    }
)
