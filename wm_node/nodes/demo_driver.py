"""Plays the operator of ``wm demo``: resets the scene, sets goals, watches the ground truth.

It sees the robot only through its topics and services. The ground truth that scores an episode
comes from the simulator's private topics; neither the model nor the planner reads them.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

from diagnostic_msgs.msg import DiagnosticStatus
from geometry_msgs.msg import PoseStamped
from rclpy.qos import QoSProfile
from std_msgs.msg import Bool, Header, String
from std_srvs.srv import Trigger

from wm_node.errors import WmError
from wm_node.nodes.common import HEARTBEAT_QOS, LATCHED_QOS, SENSOR_QOS, stamp_to_ns
from wm_node.nodes.conductor import Conductor
from wm_node.reporting.summary import Episode
from wm_node.sim.task import TICK_S, ScoreKeeper, Task

# All are configured first; the robot is activated last, so that everybody sees its first frame.
CONFIGURE_ORDER = ("flight_recorder", "safety_gate", "sim_robot", "world_model", "mpc_planner")
ACTIVATE_ORDER = ("flight_recorder", "safety_gate", "world_model", "mpc_planner", "sim_robot")
# The recorder goes last: it notes how the others stopped.
DEACTIVATE_ORDER = ("mpc_planner", "safety_gate", "sim_robot", "world_model", "flight_recorder")

READY_S = 15.0  # for the planner's context to fill after a reset
EPISODE_MARGIN_S = 10.0  # beyond what an episode may take, before the ground truth is missed


@dataclass(frozen=True)
class Progress:
    """What the live display shows: distance in m between object and target, state of the gate."""

    distance: float
    gate: str


class DemoDriver(Conductor):
    """Drives all nodes of the demo through their lifecycle and through episodes.

    Args:
        goal: ``state`` (target as numbers) or ``image`` (target as a picture of the goal).
        watch: called while waiting; raises WmError when a process has died or time is up.
    """

    def __init__(self, goal: str, watch: Callable[[], None]) -> None:
        super().__init__("wm_demo", watch)
        self._goal_kind = goal
        self._keeper: ScoreKeeper | None = None
        self._next_tick_ns = 0
        self._mug: tuple[float, float] | None = None
        self._mug_ns = 0
        self._events = {"fell": False, "zone": False}
        self._seen_events = {"fell": False, "zone": False}
        self._broken = ""
        self._planner_reason = ""
        self._gate = ""
        subscribe = self._subscribe
        subscribe(PoseStamped, "sim_robot/mug_pose", self._on_mug, SENSOR_QOS)
        for name in self._events:
            subscribe(Bool, f"events/{name}", self._event_handler(name), SENSOR_QOS)
        subscribe(String, "sim_robot/violation", self._on_violation, SENSOR_QOS)
        subscribe(Header, "mpc_planner/heartbeat", self._on_heartbeat, HEARTBEAT_QOS)
        subscribe(DiagnosticStatus, "safety_gate/status", self._on_gate, LATCHED_QOS)

    def _subscribe(
        self, kind: type, topic: str, callback: Callable[[Any], None], qos: QoSProfile
    ) -> None:
        self._node.create_subscription(kind, topic, callback, qos)

    # ------------------------------------------------------------------ what is heard

    def _on_mug(self, message: PoseStamped) -> None:
        position = message.pose.position
        self._mug = (float(position.x), float(position.y))
        self._mug_ns = stamp_to_ns(message.header.stamp)
        keeper = self._keeper
        # A pose that is late by several ticks counts for each of them.
        while keeper is not None and not keeper.done and self._mug_ns >= self._next_tick_ns:
            fell, zone = self._seen_events["fell"], self._seen_events["zone"]
            keeper.update(self._mug, fell, zone, self._broken)
            self._seen_events, self._broken = dict(self._events), ""
            self._next_tick_ns += round(TICK_S * 1e9)

    def _event_handler(self, name: str) -> Callable[[Bool], None]:
        def handle(message: Bool) -> None:
            self._events[name] = bool(message.data)
            self._seen_events[name] |= bool(message.data)

        return handle

    def _on_violation(self, message: String) -> None:
        # Kept until the next tick: a touch may be shorter than one.
        self._broken = self._broken or str(message.data)

    def _on_heartbeat(self, message: Header) -> None:
        self._planner_reason = str(message.frame_id)

    def _on_gate(self, message: DiagnosticStatus) -> None:
        self._gate = str(message.message)

    # ------------------------------------------------------------------ what is done

    def bring_up(self) -> None:
        """Configure and activate all nodes (WmError: one refused or did not answer)."""
        self._change(CONFIGURE_ORDER, "configure")
        self._change(ACTIVATE_ORDER, "activate")

    def take_down(self) -> None:
        """Deactivate all nodes, letting each say its last figures before the recorder stops."""
        self._change(DEACTIVATE_ORDER[:-1], "deactivate")
        self._hear_last_figures()
        self._change(DEACTIVATE_ORDER[-1:], "deactivate")

    def run_episode(self, number: int, show: Callable[[Progress], None]) -> Episode:
        """Reset the scene, give the goal, score until the outcome is decided.

        Args:
            number: counted from 1.
            show: told the present state about ten times a second.

        Raises:
            WmError: the planner did not become ready, or the ground truth went silent.
        """
        self._set_goal(())
        task = self._reset()
        self._caller.spin_until(
            lambda: self._planner_reason == "NO_GOAL",
            READY_S,
            "the planner did not become ready after the reset (it says "
            f"'{self._planner_reason or 'nothing'}')",
        )
        self._give_goal(task)
        keeper = ScoreKeeper(task)
        start_ns = self._mug_ns
        self._seen_events, self._broken = dict(self._events), ""
        self._next_tick_ns = start_ns + round(TICK_S * 1e9)
        self._keeper = keeper

        def decided() -> bool:
            mug = self._mug or task.start
            away = math.hypot(mug[0] - task.goal[0], mug[1] - task.goal[1])
            show(Progress(away, self._gate))
            return keeper.done

        try:
            limit = task.ticks * TICK_S + EPISODE_MARGIN_S
            self._caller.spin_until(decided, limit, "the simulator's ground truth went silent")
        finally:
            self._keeper = None
        self._set_goal(())
        score = keeper.score()
        return Episode(
            number=number,
            seed=score.seed,
            goal=score.goal,
            start_ns=start_ns,
            end_ns=self._mug_ns,
            success=score.success,
            fell=score.fell,
            zone=score.zone,
            reason=score.reason,
            ticks=score.ticks,
            start_distance=score.start_distance,
            final_distance=score.final_distance,
            least_distance=score.least_distance,
        )

    def _set_goal(self, goal: Sequence[float]) -> None:
        self._caller.set_parameter("mpc_planner", "goal_state", list(goal))

    def _give_goal(self, task: Task) -> None:
        if self._goal_kind == "image":
            self._trigger("sim_robot/render_goal")
        else:
            self._set_goal(task.goal)

    def _reset(self) -> Task:
        """Put the scene into its next episode and wait until it is seen there."""
        answer = self._trigger("sim_robot/reset")
        try:
            data = json.loads(answer)
            seed = int(data["seed"])
            goal = (float(data["goal"][0]), float(data["goal"][1]))
            ticks = int(data["ticks"])
        except (ValueError, KeyError, TypeError, IndexError) as error:
            raise WmError(f"the simulator's reset answered '{answer}', not a task.") from error
        # The scene jumped, and no frame can tell: the model must not stitch the two together.
        self._trigger("world_model/reset")
        # Poses published since then are surely of the new scene.
        after = self._mug_ns + round(2e8)
        self._caller.spin_until(
            lambda: self._mug_ns > after, READY_S, "the simulator published no pose"
        )
        if self._mug is None:
            raise WmError("the simulator published no pose.")
        if self._is_latched():
            self._trigger("safety_gate/reset")
        self._planner_reason = ""
        return Task(seed, self._mug, goal, ticks)

    def _is_latched(self) -> bool:
        return self.values.get("safety_gate", {}).get("latched", "").lower() == "true"

    def _trigger(self, service: str) -> str:
        # A reset that is asked for again only leads to the next episode.
        response = self._caller.call(Trigger, service, Trigger.Request(), resend_s=3.0)
        if not response.success:
            raise WmError(f"the service '{service}' refused: {response.message}")
        return str(response.message)
