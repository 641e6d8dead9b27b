"""Episodes that the planner plays: data of what a planner does with its model's mistakes.

A search finds the futures that a model judges too well, which scripted behaviours hardly ever try.
Trained on what truly follows there, the next model no longer believes in them. A search that does
not mind risk (``careless``) meets with events that another believes it avoids.
"""

from __future__ import annotations

from functools import lru_cache, partial
from math import hypot
from pathlib import Path

import numpy as np
from numpy.typing import NDArray

from wm_node.bundle import PRESETS
from wm_node.errors import WmError
from wm_node.planning.planner import PlannerConfig
from wm_node.sim.behaviours import Behaviour
from wm_node.sim.loop import NS, START_NS, Observation
from wm_node.sim.mix import CARELESS, PLANNED, MakeBehaviour, make_behaviour
from wm_node.sim.scene import TABLE_BOUNDS
from wm_node.sim.tabletop import TabletopSim
from wm_node.sim.task import TICK_S, Task, sample_task
from wm_node.training.policies import MpcPolicy, PlanSettings

NEAR_M = 0.012  # of the target, where the next one is drawn
NOISE_M_S = (0.0, 0.02, 0.06)  # deviations of the noise on the commands, one an episode
BRINK_SHARE = 0.5  # of the targets, those nearest to the table's edge of as many as
BRINK_DRAWS = 6
# The smallest search that bundles hold as a graph: it pushes as well as the default, and what takes
# most of the time of collecting takes a third of it.
BRIEF = PRESETS["plan_brief"]
SEARCH = PlannerConfig(BRIEF.candidates, BRIEF.iterations)


def draw_target(sim: TabletopSim, rng: np.random.Generator) -> Task:
    """Draw a target as the task does, half of the time one where a mistake ends in a fall.

    Raises:
        WmError: no target is valid from where the mug stands.
    """
    if rng.random() >= BRINK_SHARE:
        return sample_task(sim, rng)
    tasks = [sample_task(sim, rng) for _ in range(BRINK_DRAWS)]
    return min(tasks, key=lambda task: TABLE_BOUNDS.clearance(*task.goal))


class PlannedPlay:
    """Pushes the mug to one target of the task after the other, by planning with a bundle.

    A command takes effect one tick after the frame that it was planned from, as on the robot.
    """

    def __init__(self, policy: MpcPolicy) -> None:
        self._policy = policy
        self._applied: list[tuple[int, NDArray[np.float64]]] = []
        self._next = self._noise = np.zeros(2)
        self._deviation = 0.0
        self._goal = (0.0, 0.0)

    def reset(self, sim: TabletopSim, rng: np.random.Generator) -> None:
        """Draw the first target and how noisy this episode's commands are."""
        self._applied = []
        self._next = self._noise = np.zeros(2)
        self._deviation = float(rng.choice(NOISE_M_S))
        task = self._first_target(sim, rng)
        self._goal = task.goal
        self._policy.reset(task, sim)

    def act(self, sim: TabletopSim, rng: np.random.Generator) -> NDArray[np.float64]:
        """Return the command planned one tick ago, with noise, and plan the next one."""
        kick = rng.normal(0.0, self._deviation, 2)
        self._noise = 0.7 * self._noise + 0.71 * kick
        command = self._next + self._noise
        x, y, _, _ = sim.mug_pose()
        arrived = hypot(x - self._goal[0], y - self._goal[1]) < NEAR_M
        if arrived and not (sim.fell() or sim.in_zone()):
            self._aim_anew(sim, rng)
        stamp = START_NS + round(sim.time_s * NS)
        self._applied.append((stamp, command))
        observation = Observation(stamp, sim.render(), sim.joint_positions(), tuple(self._applied))
        self._next = np.asarray(self._policy.act(observation), dtype=np.float64)
        return command

    @staticmethod
    def _first_target(sim: TabletopSim, rng: np.random.Generator) -> Task:
        try:
            return draw_target(sim, rng)
        except WmError:  # among other things hardly any may be fit: what it tries is data too
            x, y, _, _ = sim.mug_pose()
            return Task(sim.seed, (x, y), (0.0, 0.0))

    def _aim_anew(self, sim: TabletopSim, rng: np.random.Generator) -> None:
        try:
            task = draw_target(sim, rng)
        except WmError:  # beside the zone no path is free: stay with the target
            return
        self._goal = task.goal
        self._policy.aim(task, sim)


@lru_cache(maxsize=len(PLANNED))
def _play(bundle: str, name: str) -> PlannedPlay:
    """This process's player: engines take long to compile."""
    # Neither hold nor brake for risk: what follows from going on is what the data are for.
    careless = {"risk": 0.0} if name == CARELESS else {}
    settings = PlanSettings(SEARCH, careless, latency_s=TICK_S, deployed=False)
    return PlannedPlay(MpcPolicy(bundle, "openvino", "state", settings))


def _make(bundle: str, name: str) -> Behaviour:
    return _play(bundle, name) if name in PLANNED else make_behaviour(name)


def behaviours_with_planner(bundle: Path) -> MakeBehaviour:
    """Return what builds behaviours by name, ``planner`` and ``careless`` among them."""
    return partial(_make, str(bundle))
