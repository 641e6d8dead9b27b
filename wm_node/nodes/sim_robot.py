"""``/sim_robot``: the simulated table-top arm behind a real robot's topics, in real time.

A steady-clock timer drives the physics. A machine that cannot keep up makes simulated time slip
against real time, which is counted and shown in the diagnostics, never hidden by dropping samples.
"""

from __future__ import annotations

import array
import json
import sys
import threading
import time
from collections import Counter
from collections.abc import Callable, Sequence
from functools import partial
from math import isfinite
from typing import Any

from builtin_interfaces.msg import Time
from geometry_msgs.msg import PointStamped, PoseStamped, TwistStamped
from rclpy.parameter import Parameter
from rosgraph_msgs.msg import Clock
from sensor_msgs.msg import Image, JointState
from std_msgs.msg import Bool, String
from std_srvs.srv import Trigger
from trajectory_msgs.msg import JointTrajectory

from wm_node.errors import WmError
from wm_node.nodes.common import (
    COMMAND_QOS,
    ERROR,
    LATCHED_QOS,
    NANOSECONDS,
    OK,
    RELIABLE_QOS,
    WARN,
    Diagnostics,
    ManagedNode,
    qos_overrides,
    run_node,
    set_stamp,
    steady_clock,
)
from wm_node.nodes.frame_thread import FrameThread, Picture
from wm_node.profile import RobotProfile, load_profile
from wm_node.sim.events import EVENTS
from wm_node.sim.level_names import PLAYED_TEXT
from wm_node.sim.levels import find_played_level
from wm_node.sim.scene import TIP_HEIGHT
from wm_node.sim.tabletop import COMMAND_TIMEOUT_S, DRIVER_STEP_S, JOINT_NAMES, TabletopSim
from wm_node.sim.task import Task, task_for_seed

STEP_NS = round(DRIVER_STEP_S * NANOSECONDS)
TRUTH_EVERY = 2  # steps: ground truth at 50 Hz
EVENT_EVERY = 10  # steps between repeats of an unchanged event
CATCH_UP_STEPS = 5  # at most this many in one timer callback, so that commands are heard between
MAX_BACKLOG_STEPS = 25  # further behind than this, simulated time slips
SLOW_FACTOR = 0.95


class SimRobot(ManagedNode):
    """Lifecycle node around :class:`~wm_node.sim.tabletop.TabletopSim`; time flows while active."""

    def __init__(self, **options: Any) -> None:
        super().__init__("sim_robot", **options)
        self.declare("robot", "tabletop", "Robot profile: a path or a shipped name.")
        self.declare(
            "camera_width", 0, "Pixels; 0: the profile's.", minimum=0, maximum=1920, read_only=True
        )
        self.declare(
            "camera_height", 0, "Pixels; 0: the profile's.", minimum=0, maximum=1920, read_only=True
        )
        self.declare(
            "camera_rate", 0.0, "Hz; 0: the profile's.", minimum=0.0, maximum=100.0, read_only=True
        )
        self.declare(
            "actuation_delay_s",
            0.0,
            "From a command to its effect; applies from the next reset on.",
            minimum=0.0,
            maximum=2.0,
        )
        self.declare(
            "command_timeout_s",
            0.0,
            "Until the driver brakes; 0: the profile's; applies from the next reset on.",
            minimum=0.0,
            maximum=2.0,
        )
        self.declare(
            "publish_clock", False, "Publish /clock, stamp with simulated time.", read_only=True
        )
        self.declare(
            "level",
            "basic",
            f"Scene: {PLAYED_TEXT} of the task suite.",
            read_only=True,
        )
        self.declare("seed", 0, "Of the next reset's episode; each reset adds one.", minimum=0)
        self.declare(
            "episode_seconds",
            0.0,
            "Reset by itself after this long; 0: never.",
            minimum=0.0,
            maximum=86400.0,
        )
        self._diagnostics = Diagnostics(self, "simulation", hardware_id="wm_node tabletop")
        self._frames: FrameThread | None = None
        self._model_lock = threading.Lock()
        self._cleanups: list[Callable[[], None]] = []
        self._step_timer: Any = None
        self._status_timer: Any = None

    # ---- lifecycle -------------------------------------------------------------------------

    def configure(self) -> None:
        """Build the scene and the camera, announce the topics, begin the first episode."""
        profile = load_profile(str(self._value("robot")))
        if tuple(profile.joints.names) != JOINT_NAMES or profile.action.kind != "twist":
            raise WmError(
                f"the profile '{profile.name}' does not describe the simulated arm: its joints are "
                f"{', '.join(JOINT_NAMES)} and it is driven by a twist."
            )
        camera = profile.cameras[0]
        size = (
            int(self._value("camera_width")) or camera.width,
            int(self._value("camera_height")) or camera.height,
        )
        rate = float(self._value("camera_rate")) or camera.rate_hz
        self._profile = profile
        self._frame_period_ns = round(NANOSECONDS / rate)
        self._simulated_clock = bool(self._value("publish_clock"))
        self._sim = TabletopSim(
            size,
            render=False,  # the frame thread does
            level=find_played_level(str(self._value("level"))),
        )
        self._refused: Counter[str] = Counter()
        self._commands = 0
        self._steps = 0
        self._slipped_steps = 0
        self._announce(profile)
        self._frames = FrameThread(self._sim.make_camera, self._model_lock)
        self._begin_episode(int(self._value("seed")))

    def _announce(self, profile: RobotProfile) -> None:
        camera, action = profile.cameras[0], profile.action

        def publisher(kind: type, topic: str, qos: Any = RELIABLE_QOS) -> Any:
            made = self.create_lifecycle_publisher(
                kind, topic, qos, qos_overriding_options=qos_overrides()
            )
            self._cleanups.append(partial(self.destroy_lifecycle_publisher, made))
            return made

        self._image_publisher = publisher(Image, camera.topic.removesuffix("/compressed"))
        self._joint_publisher = publisher(JointState, profile.joints.topic)
        self._mug_publisher = publisher(PoseStamped, "sim_robot/mug_pose")
        self._tip_publisher = publisher(PointStamped, "sim_robot/tip")
        self._other_publishers = {
            name: publisher(PointStamped, f"sim_robot/{name}") for name in self._sim.level.adds
        }
        self._event_publishers = {
            event.name: publisher(Bool, event.topic)
            for event in profile.events
            if event.name in EVENTS
        }
        self._violation_publisher = publisher(String, "sim_robot/violation")
        self._goal_publisher = publisher(PointStamped, "sim_robot/goal", LATCHED_QOS)
        self._goal_image_publisher = publisher(Image, "goal_image", LATCHED_QOS)
        if self._simulated_clock:
            self._clock_publisher = publisher(Clock, "/clock")
        for kind, topic, callback in (
            (TwistStamped, action.topic, self._on_twist),
            (JointTrajectory, f"{action.topic}_trajectory", self._on_trajectory),
        ):
            subscription = self.create_subscription(kind, topic, callback, COMMAND_QOS)
            self._cleanups.append(partial(self.destroy_subscription, subscription))
        for name, handler in (("reset", self._on_reset), ("render_goal", self._on_render_goal)):
            service = self.create_service(Trigger, f"sim_robot/{name}", handler)
            self._cleanups.append(partial(self.destroy_service, service))

    def activate(self) -> None:
        """Let time flow."""
        self._anchor_ns = time.monotonic_ns() - self._steps * STEP_NS
        self._next_frame_ns = self._steps * STEP_NS
        self._window = (time.monotonic(), self._steps, 0, 0)
        self._publish_goal()
        self._step_timer = self.create_timer(DRIVER_STEP_S, self._on_timer, clock=steady_clock())
        self._status_timer = self.create_timer(1.0, self._report, clock=steady_clock())

    def deactivate(self) -> None:
        """Brake, then stop time."""
        for timer in (self._step_timer, self._status_timer):
            if timer is not None:
                self.destroy_timer(timer)
        if self._step_timer is not None:
            self._sim.command_tip_velocity((0.0, 0.0))
            self._sim.advance(0.3)
            if self._frames is not None:
                self._frames.drain()
            self._report()
        self._step_timer = self._status_timer = None

    def cleanup(self) -> None:
        """Release the camera and the topics."""
        if self._frames is not None:
            self._frames.close()
            self._frames = None
        while self._cleanups:
            self._cleanups.pop()()

    # ---- episodes --------------------------------------------------------------------------

    def _begin_episode(self, seed: int) -> None:
        sim, action = self._sim, self._profile.action
        sim.actuation_delay_s = float(self._value("actuation_delay_s"))
        timeout = float(self._value("command_timeout_s")) or action.command_timeout_s
        sim.command_timeout_s = timeout if timeout is not None else COMMAND_TIMEOUT_S
        self._episode_limit_s = float(self._value("episode_seconds"))
        with self._model_lock:
            self._task: Task = task_for_seed(sim, seed)
        self._episode_started = self._steps
        self._events_sent: dict[str, bool] = {}
        self._violation_sent = ""

    def _next_episode(self) -> None:
        seed = int(self._value("seed"))
        self._begin_episode(seed)
        self.set_parameters([Parameter("seed", value=seed + 1)])
        if self.is_active:
            self._publish_goal()

    def _task_text(self) -> str:
        task = self._task
        return json.dumps({"seed": task.seed, "goal": list(task.goal), "ticks": task.ticks})

    def _publish_goal(self) -> None:
        self._publish_point(self._goal_publisher, self._stamp_ns(), (*self._task.goal, 0.0))

    def _on_reset(self, request: Trigger.Request, response: Trigger.Response) -> Trigger.Response:
        self._next_episode()
        response.success = True
        response.message = self._task_text()
        return response

    def _on_render_goal(
        self, request: Trigger.Request, response: Trigger.Response
    ) -> Trigger.Response:
        response.success = self.is_active and self._frames is not None
        if not response.success or self._frames is None:
            response.message = "sim_robot is not active: no picture is published."
            return response
        stamp_ns = self._stamp_ns()
        self._frames.request(
            self._sim.goal_pose(self._task.goal),
            lambda picture: self._publish_image(self._goal_image_publisher, stamp_ns, picture),
            self._sim.mover_pose(0.0),
        )
        response.message = self._task_text()
        return response

    # ---- commands --------------------------------------------------------------------------

    def _on_twist(self, message: TwistStamped) -> None:
        linear, angular = message.twist.linear, message.twist.angular
        values = (linear.x, linear.y, linear.z, angular.x, angular.y, angular.z)
        if message.header.frame_id != self._profile.action.frame_id:
            return self._refuse("wrong_frame", f"frame_id is '{message.header.frame_id}'")
        if not all(isfinite(value) for value in values):
            return self._refuse("not_finite", "a value is not finite")
        if any(values[2:]):
            return self._refuse("out_of_plane", "the tip moves in x and y only")
        self._accept(lambda: self._sim.command_tip_velocity((linear.x, linear.y)))
        return None

    def _on_trajectory(self, message: JointTrajectory) -> None:
        names = list(message.joint_names)
        if sorted(names) != sorted(JOINT_NAMES):
            return self._refuse("wrong_joints", f"its joints are {', '.join(names) or 'none'}")
        order = [names.index(name) for name in JOINT_NAMES]
        if any(len(point.positions) != len(names) for point in message.points):
            return self._refuse("wrong_length", "a point does not give every position")
        times = [
            point.time_from_start.sec + point.time_from_start.nanosec / NANOSECONDS
            for point in message.points
        ]
        positions = [[point.positions[k] for k in order] for point in message.points]
        self._accept(lambda: self._sim.command_joints(times, positions))
        return None

    def _accept(self, apply: Callable[[], None]) -> None:
        if not self.is_active:
            return
        try:
            apply()
        except WmError as error:
            self._refuse("invalid", str(error))
            return
        self._commands += 1

    def _refuse(self, reason: str, detail: str) -> None:
        self._refused[reason] += 1
        self.get_logger().warning(
            f"a command was refused: {detail}", throttle_duration_sec=2.0, skip_first=False
        )

    # ---- time ------------------------------------------------------------------------------

    def _on_timer(self) -> None:
        if self._step_timer is None:
            return  # a callback that was already due when time was stopped
        due = (time.monotonic_ns() - self._anchor_ns) // STEP_NS - self._steps
        if due > MAX_BACKLOG_STEPS:
            lost = due - CATCH_UP_STEPS
            self._anchor_ns += lost * STEP_NS
            self._slipped_steps += lost
        for _ in range(min(due, CATCH_UP_STEPS)):
            self._step()

    def _stamp_ns(self) -> int:
        """Return the present sample's time: ROS time at which it is due, or simulated time."""
        simulated = self._steps * STEP_NS
        if self._simulated_clock:
            return simulated
        offset = int(self.get_clock().now().nanoseconds) - time.monotonic_ns()
        return self._anchor_ns + simulated + offset

    def _step(self) -> None:
        sim = self._sim
        sim.advance(DRIVER_STEP_S)
        self._steps += 1
        stamp_ns = self._stamp_ns()
        if self._simulated_clock:
            clock = Clock()
            set_stamp(clock.clock, stamp_ns)
            self._clock_publisher.publish(clock)
        joints = JointState(
            name=list(JOINT_NAMES),
            position=sim.joint_positions().tolist(),
            velocity=sim.joint_velocities().tolist(),
        )
        self._stamp(joints.header, stamp_ns)
        self._joint_publisher.publish(joints)
        if self._steps % TRUTH_EVERY == 0:
            self._publish_truth(stamp_ns)
        self._publish_events()
        if self._steps * STEP_NS >= self._next_frame_ns and self._frames is not None:
            self._next_frame_ns += self._frame_period_ns
            self._frames.offer_frame(
                sim.pose(),
                lambda picture: self._publish_image(self._image_publisher, stamp_ns, picture),
                sim.mover_pose(),
            )
        elapsed_s = (self._steps - self._episode_started) * DRIVER_STEP_S
        if self._episode_limit_s and elapsed_s >= self._episode_limit_s:
            self._next_episode()

    def _publish_truth(self, stamp_ns: int) -> None:
        pose = PoseStamped()
        self._stamp(pose.header, stamp_ns)
        pose.header.frame_id = "table"
        position, turn = pose.pose.position, pose.pose.orientation
        position.x, position.y, position.z, _ = self._sim.mug_pose()
        turn.x, turn.y, turn.z, turn.w = self._sim.mug_orientation().tolist()
        self._mug_publisher.publish(pose)
        tip_x, tip_y = self._sim.tip().tolist()
        self._publish_point(self._tip_publisher, stamp_ns, (tip_x, tip_y, TIP_HEIGHT))
        for name, (x, y) in self._sim.others().items():
            self._publish_point(self._other_publishers[name], stamp_ns, (x, y, 0.0))

    def _publish_point(
        self, publisher: Any, stamp_ns: int, point: tuple[float, float, float]
    ) -> None:
        message = PointStamped()
        self._stamp(message.header, stamp_ns)
        message.header.frame_id = "table"
        message.point.x, message.point.y, message.point.z = point
        publisher.publish(message)

    def _publish_events(self) -> None:
        events, repeat = self._sim.events(), self._steps % EVENT_EVERY == 0
        if repeat or events != self._events_sent:
            for name, topic in self._event_publishers.items():
                topic.publish(Bool(data=events[name]))
            self._events_sent = events
        violation = self._sim.violation()
        if repeat or violation != self._violation_sent:
            self._violation_publisher.publish(String(data=violation))
            self._violation_sent = violation

    def _publish_image(self, publisher: Any, stamp_ns: int, picture: Picture) -> None:
        height, width, _ = picture.shape
        data = array.array("B")
        data.frombytes(picture.tobytes())
        message = Image(
            height=height, width=width, encoding="rgb8", is_bigendian=0, step=3 * width, data=data
        )
        self._stamp(message.header, stamp_ns)
        message.header.frame_id = self._profile.cameras[0].name
        publisher.publish(message)

    # ---- reports ---------------------------------------------------------------------------

    def _report(self) -> None:
        if self._frames is None:
            return
        began, steps, skipped, slipped = self._window
        now = time.monotonic()
        wall_s = max(now - began, 1e-6)
        factor = (self._steps - steps) * DRIVER_STEP_S / wall_s
        new_skips, new_slips = self._frames.skipped - skipped, self._slipped_steps - slipped
        self._window = (now, self._steps, self._frames.skipped, self._slipped_steps)
        level, message = OK, "running in real time"
        if self._frames.fault is not None:
            level, message = ERROR, "the camera has failed"
        elif wall_s > 0.5 and factor < SLOW_FACTOR:
            level, message = WARN, "slower than real time"
        elif new_skips:
            level, message = WARN, "frames skipped"
        self._diagnostics.report(
            level,
            message,
            {
                "real_time_factor": round(factor, 3),
                "simulated_s": round(self._steps * DRIVER_STEP_S, 2),
                "slipped_s": round(self._slipped_steps * DRIVER_STEP_S, 2),
                "slipped_last_s": round(new_slips * DRIVER_STEP_S, 2),
                "frames_published": self._frames.rendered,
                "frames_skipped": self._frames.skipped,
                "camera_fault": self._frames.fault or "",
                "commands": self._commands,
                **{f"refused_{reason}": count for reason, count in sorted(self._refused.items())},
                "seed": self._task.seed,
                "mug_fell": self._sim.fell(),
                "mug_in_zone": self._sim.in_zone(),
                "violation": self._sim.violation(),
                "level": self._sim.level.name,
            },
        )

    # ---- small helpers ---------------------------------------------------------------------

    def _value(self, name: str) -> Any:
        return self.get_parameter(name).value

    @staticmethod
    def _stamp(header: Any, stamp_ns: int) -> None:
        stamp = Time()
        set_stamp(stamp, stamp_ns)
        header.stamp = stamp


def main(args: Sequence[str] | None = None) -> int:
    """Run the node until it is stopped; return the exit status."""
    return run_node(SimRobot, args)


if __name__ == "__main__":
    sys.exit(main())
