"""One control cycle on arrays: decisions, their reasons, committed commands, goals."""

from __future__ import annotations

import time
from collections.abc import Callable
from dataclasses import replace
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wm_node.bundle import Bundle, load_bundle
from wm_node.engine import load_engine
from wm_node.errors import WmError
from wm_node.model.export import export_again
from wm_node.nodes.cycle import (
    CommandSchedule,
    ControlCycle,
    Decision,
    ExternalCommand,
    Limits,
)
from wm_node.nodes.foresight import Foresight, Listeners, Observation, Tick
from wm_node.planning.context import NotReady
from wm_node.planning.hold import HoldLimits
from wm_node.planning.planner import PlannerConfig, rest_action
from wm_node.planning.ways import FILE, PlaceMap, save_places
from wm_node.planning.world_model import Context, Goal, WorldModel
from wm_node.profile import RobotProfile
from wm_node.safety.reasons import Reason

MS, S = 1_000_000, 1_000_000_000
NOW = 1_700_000_000 * S


@pytest.fixture(scope="module")
def model(random_bundle: Bundle) -> WorldModel:
    return WorldModel(random_bundle, load_engine(random_bundle, "openvino", 1))


class Cycles:
    """A cycle on a real model, and what it decided."""

    def __init__(self, bundle: Bundle, model: WorldModel, latency_s: float = 0.1) -> None:
        self.shared: list[tuple[int, Any]] = []
        listeners = Listeners(
            outcomes=lambda stamp, outcomes, cost: self.shared.append((stamp, cost)),
            picture=lambda stamp, picture: None,
            refused=lambda text, count: None,
        )
        self.foresight = Foresight(bundle, model, listeners)
        self.decided: list[Decision] = []
        config = PlannerConfig(candidates=12, iterations=1)
        self.cycle = ControlCycle(self.foresight, config, latency_s, self.decided.append)
        self.cycle.limits = Limits(surprise=5.0, hold=HoldLimits(reached=1e-6, resume=1e-6))

    def run(
        self,
        stamp_ns: int = NOW,
        surprise: float = 1.0,
        context: Any = None,
        moved: float = 0.0,
        picture: int = 0,
        strangeness: tuple[float, str] = (0.0, ""),
    ) -> Decision:
        size = self.foresight.model.latent_size
        latent = np.full(size, 0.1, np.float32)
        if context is None:
            rates = self.cycle.profile.model
            steps, ticks = rates.context_steps, rates.ticks_per_step
            context = Context(
                stamp_ns,
                np.repeat(latent[None], steps, 0),
                np.full((steps, 4), 0.1 + moved, np.float32),
                np.full((steps, ticks, 2), 0.05, np.float32),
            )
        frame = np.full((64, 64, 3), picture, np.uint8)
        tick = Tick(stamp_ns, 0, {})
        seen = Observation(tick, {"front": frame}, latent, context, surprise, strangeness)
        self.cycle.run(seen)
        return self.decided[-1]


@pytest.fixture
def cycles(random_bundle: Bundle, model: WorldModel) -> Cycles:
    return Cycles(random_bundle, model)


FAR = Goal(state=np.array([3.0, 3.0], np.float32))


def test_without_a_goal_the_future_of_going_on_is_told_but_nothing_planned(cycles: Cycles):
    decision = cycles.run()
    assert decision.reason is Reason.NO_GOAL
    assert decision.actions is None
    assert decision.outcomes is not None
    assert decision.outcomes.state.shape == (1, 8, 4)
    assert cycles.shared == [(NOW, None)]


def test_a_goal_behind_what_is_not_free_is_planned_to_by_a_way_point(
    random_bundle: Bundle, model: WorldModel, tmp_path: Path
):
    latent = np.full(model.latent_size, 0.1, np.float32)
    x, y = map(float, model.read(latent)[:2])  # where this model sees the mug
    free = np.ones((101, 101), bool)
    free[60:64, 30:71] = False  # a wall 10 cm from it
    places = PlaceMap(free, (x - 0.5, y - 0.5), 0.01)
    export_again(random_bundle, tmp_path / "b", {FILE: partial(save_places, places)})
    cycles = Cycles(load_bundle(tmp_path / "b"), model)
    goal = Goal(state=np.array([x + 0.3, y], np.float32))
    cycles.cycle.set_goal(goal)
    decision = cycles.run()
    assert decision.reason is Reason.OK
    assert decision.goal is goal
    assert decision.way_point is not None
    assert abs(float(decision.way_point[1]) - y) > 0.05
    cycles.cycle.use_ways = False
    assert cycles.run(NOW + S).way_point is None
    cycles.cycle.use_ways = True
    cycles.cycle.set_goal(Goal(state=np.array([x - 0.3, y], np.float32)))
    assert cycles.run(NOW + 2 * S).way_point is None


def test_a_goal_gives_a_plan_within_the_limits(cycles: Cycles):
    cycles.cycle.set_goal(FAR)
    decision = cycles.run()
    assert decision.reason is Reason.OK
    assert decision.actions is not None
    assert decision.actions.shape == (16, 2)
    assert np.abs(decision.actions).max() <= 0.25 + 1e-6
    assert np.isfinite(decision.plan_ms)
    assert cycles.shared[0][1] == pytest.approx([decision.cost])


def test_what_was_decided_is_committed_for_the_next_plan(cycles: Cycles, monkeypatch: Any):
    given: list[np.ndarray] = []
    plan = cycles.cycle.planner.plan

    def noted(model: Any, context: Any, goal: Any, committed: Any, *rest: Any) -> Any:
        given.append(committed)
        return plan(model, context, goal, committed, *rest)

    monkeypatch.setattr(cycles.cycle.planner, "plan", noted)
    cycles.cycle.set_goal(FAR)
    first = cycles.run()
    second = cycles.run(NOW + 100 * MS)
    cycles.run(NOW + 200 * MS)
    assert first.actions is not None
    assert second.actions is not None
    assert given[0] == pytest.approx(np.zeros((2, 2)))
    assert given[1][-1] == pytest.approx(first.actions[0])
    assert given[2] == pytest.approx(np.stack([first.actions[0], second.actions[0]]))


def test_no_context_no_plan(cycles: Cycles):
    cycles.cycle.set_goal(FAR)
    decision = cycles.run(context=NotReady("joints"))
    assert decision.reason is Reason.CONTEXT_EMPTY
    assert decision.detail == "the context lacks joints"
    decision = cycles.run(context=NotReady("actions"))
    assert decision.reason is Reason.CONTEXT_EMPTY
    assert decision.detail == "the context lacks actions: nothing is read back on 'command'"
    assert cycles.shared == []


def test_lasting_surprise_brakes_and_ends_by_itself(cycles: Cycles):
    cycles.cycle.set_goal(FAR)
    surprises = [1.0, 6.0, 6.0, 1.0, 6.0, 6.0, 6.0, 1.0]
    reasons = [
        cycles.run(NOW + k * 100 * MS, surprise).reason for k, surprise in enumerate(surprises)
    ]
    assert reasons == [Reason.OK] * 6 + [Reason.SURPRISE, Reason.OK]


def test_surprise_that_is_not_available_does_not_brake(cycles: Cycles):
    cycles.cycle.set_goal(FAR)
    assert [cycles.run(NOW + k, float("nan")).reason for k in range(4)] == [Reason.OK] * 4


def _broken(model: WorldModel, breaks: Callable[[Any], Any]) -> Any:
    class Broken(WorldModel):
        def __init__(self) -> None:
            self.__dict__.update(model.__dict__)

        def rollout(self, *args: Any, **more: Any) -> Any:
            return breaks(model.rollout(*args, **more))

        def run_search(self, *args: Any, **more: Any) -> Any:
            out, outcomes = model.run_search(*args, **more)
            return out, breaks(outcomes)

    return Broken()


def test_predictions_that_are_not_finite_are_an_engine_error(
    random_bundle: Bundle, model: WorldModel
):
    broken = _broken(model, lambda out: replace(out, latents=np.full_like(out.latents, np.nan)))
    cycles = Cycles(random_bundle, broken)
    cycles.cycle.set_goal(FAR)
    decision = cycles.run()
    assert decision.reason is Reason.ENGINE_ERROR
    assert "not finite" in decision.detail
    assert decision.actions is None


def test_an_engine_that_raises_is_an_engine_error_and_is_not_hidden(
    random_bundle: Bundle, model: WorldModel
):
    def breaks(_: Any) -> Any:
        raise RuntimeError("device lost")

    cycles = Cycles(random_bundle, _broken(model, breaks))
    cycles.cycle.set_goal(FAR)
    with pytest.raises(RuntimeError, match="device lost"):
        cycles.run()
    assert cycles.decided[-1].reason is Reason.ENGINE_ERROR
    assert cycles.decided[-1].detail == "device lost"


def test_a_tick_that_gives_no_observation_has_a_reason(cycles: Cycles):
    tick = Tick(NOW, 0, {})
    cycles.cycle.failed(tick, WmError("encoding '16UC1' cannot be shown as RGB."))
    assert cycles.decided[-1].reason is Reason.FRAMES_STALE
    cycles.cycle.failed(tick, RuntimeError("device lost"))
    assert cycles.decided[-1].reason is Reason.ENGINE_ERROR


def test_at_the_goal_it_holds_and_leaves_only_when_clearly_off(cycles: Cycles, model: WorldModel):
    latent = np.full(model.latent_size, 0.1, np.float32)
    here = cycles.cycle.objective.goal_values(model.read(latent))
    cycles.cycle.limits = Limits(hold=HoldLimits(reached=0.5, resume=0.8))
    tolerance = cycles.cycle.objective.tolerance

    def reason_at(share: float) -> Reason:
        state = cycles.cycle._goal
        away = np.array([share * tolerance, 0.0], np.float32)
        object.__setattr__(state.goal, "state", here + away)
        return cycles.run().reason

    cycles.cycle.set_goal(Goal(state=here + 1.0))
    assert reason_at(0.6) is Reason.OK
    assert reason_at(0.4) is Reason.GOAL_REACHED
    assert reason_at(0.7) is Reason.GOAL_REACHED
    assert reason_at(0.9) is Reason.OK
    assert reason_at(0.7) is Reason.OK


def test_a_goal_that_does_not_fit_is_refused(cycles: Cycles):
    for state in ([1.0], [1.0, float("nan")]):
        with pytest.raises(WmError, match="takes 2 finite ones: mug_x, mug_y"):
            cycles.cycle.set_goal(Goal(state=np.array(state, np.float32)))
    assert cycles.cycle.goal is None


def test_external_candidates_are_costed_for_the_goal(cycles: Cycles, model: WorldModel):
    actions = np.zeros((3, 16, 2), np.float32)
    steps = cycles.cycle.profile.model.context_steps
    context = Context(
        NOW,
        np.zeros((steps, model.latent_size), np.float32),
        np.zeros((steps, 4), np.float32),
        np.zeros((steps, 2, 2), np.float32),
    )
    outcomes = model.rollout(context, actions)
    assert cycles.cycle.cost(outcomes, actions) is None
    cycles.cycle.set_goal(FAR)
    cost = cycles.cycle.cost(outcomes, actions)
    assert cost is not None
    assert cost.shape == (3,)


def test_the_schedule_gives_what_is_in_force_before_a_plan_takes_effect():
    schedule = CommandSchedule(timeout_ns=200 * MS)
    rest = np.array([0.0])
    for k, value in enumerate([1.0, 2.0, 3.0]):
        schedule.put(NOW + k * 100 * MS, np.array([value]))

    def before(effect_ms: int, count: int) -> list[float]:
        return list(schedule.committed(NOW + effect_ms * MS, count, 100 * MS, rest)[:, 0])

    assert before(300, 3) == [1.0, 2.0, 3.0]
    assert before(300, 5) == [0.0, 0.0, 1.0, 2.0, 3.0]
    # A command is held until the driver's own timeout, then the robot rests.
    assert before(500, 3) == [3.0, 3.0, 0.0]


def test_a_command_replaces_those_that_were_to_come_after_it():
    schedule = CommandSchedule(timeout_ns=None)
    for at, value in ((0, 1.0), (100, 2.0), (200, 3.0), (100, 9.0)):
        schedule.put(NOW + at * MS, np.array([value]))
    got = schedule.committed(NOW + 400 * MS, 3, 100 * MS, np.array([0.0]))
    assert list(got[:, 0]) == [9.0, 9.0, 9.0]
    schedule.clear()
    assert schedule.committed(NOW, 1, 100 * MS, np.array([0.5]))[0, 0] == 0.5


def test_an_arm_in_joint_positions_plans_from_where_it_is(
    tmp_path: Path,
    arm_profile: RobotProfile,
    random_bundle_of: Callable[[RobotProfile, Path], Bundle],
):
    bundle = random_bundle_of(arm_profile, tmp_path / "arm")
    cycles = Cycles(bundle, WorldModel(bundle, load_engine(bundle, "openvino", 1)))
    here = np.linspace(-0.3, 0.3, 7, dtype=np.float32)
    steps = arm_profile.model.context_steps
    context = Context(
        NOW,
        np.zeros((steps, cycles.foresight.model.latent_size), np.float32),
        np.tile(here, (steps, 1)),
        np.tile(here, (steps, 2, 1)),
    )
    assert rest_action(cycles.cycle.profile, context) == pytest.approx(here)
    cycles.cycle.set_goal(Goal(latent=np.ones(cycles.foresight.model.latent_size, np.float32)))
    decision = cycles.run(context=context)
    assert decision.reason in (Reason.OK, Reason.GOAL_REACHED)
    assert decision.outcomes is not None
    assert decision.outcomes.joints.shape == (1, 8, 7)
    cycles.cycle.set_goal(FAR)
    decision = cycles.run(context=context)
    assert decision.reason is Reason.OK
    assert decision.actions is not None
    assert decision.actions.shape == (16, 7)


def external(values: list[float], age_s: float = 0.0, **more: Any) -> ExternalCommand:
    return ExternalCommand(time.monotonic_ns() - round(age_s * S), np.array(values), **more)


def test_an_external_command_is_foreseen_and_followed_without_a_goal(cycles: Cycles):
    cycles.cycle.supervising = True
    assert cycles.run().reason is Reason.NO_COMMAND
    cycles.cycle.external = external([0.1, -0.05])
    decision = cycles.run(NOW + 100 * MS)
    assert decision.reason is Reason.OK
    assert decision.actions is not None
    assert decision.actions[0] == pytest.approx(decision.speed * np.array([0.1, -0.05]))
    assert decision.outcomes is not None
    assert decision.outcomes.risk.shape == (1, 8, 2)
    # What was handed on is in force when the next one is foreseen.
    effect_ns = NOW + 200 * MS + cycles.cycle.latency_ns
    committed = cycles.cycle.schedule.committed(effect_ns, 1, 100 * MS, np.zeros(2))
    assert committed[0] == pytest.approx(decision.actions[0])


def test_external_commands_that_cannot_be_followed_have_a_reason(cycles: Cycles):
    cycles.cycle.supervising = True
    cycles.cycle.set_goal(FAR)  # of the planner, which must not command meanwhile
    for command, reason in (
        (external([0.1, 0.0], age_s=0.3), Reason.COMMAND_STALE),
        (external([0.0, 0.0], reason=Reason.COMMAND_NOT_FINITE), Reason.COMMAND_NOT_FINITE),
        (external([0.0, 0.0], reason=Reason.COMMAND_MALFORMED), Reason.COMMAND_MALFORMED),
    ):
        cycles.cycle.external = command
        decision = cycles.run()
        assert decision.reason is reason
        assert decision.actions is None
        assert decision.outcomes is not None


def test_lasting_surprise_ends_external_commands_too(cycles: Cycles):
    cycles.cycle.supervising = True
    reasons = []
    for k in range(3):
        cycles.cycle.external = external([0.1, 0.0])
        reasons.append(cycles.run(NOW + k * 100 * MS, 6.0).reason)
    assert reasons == [Reason.OK, Reason.OK, Reason.SURPRISE]


def test_a_future_of_an_external_command_that_is_not_finite_is_an_engine_error(
    random_bundle: Bundle, model: WorldModel
):
    broken = _broken(model, lambda out: replace(out, latents=np.full_like(out.latents, np.nan)))
    cycles = Cycles(random_bundle, broken)
    cycles.cycle.supervising = True
    cycles.cycle.external = external([0.1, 0.0])
    decision = cycles.run()
    assert decision.reason is Reason.ENGINE_ERROR
    assert decision.actions is None


@pytest.mark.parametrize("supervising", [False, True])
def test_a_frame_like_nothing_in_the_training_data_ends_the_commands(
    cycles: Cycles, supervising: bool
):
    cycles.cycle.set_goal(FAR)
    cycles.cycle.supervising = supervising
    reasons = []
    for k, strangeness in enumerate((1.0, 3.9, 4.1, 0.8)):
        cycles.cycle.external = external([0.1, 0.0])
        seen = (strangeness, "front")
        reasons.append(cycles.run(NOW + k * 100 * MS, picture=k, strangeness=seen).reason)
    assert reasons == [Reason.OK, Reason.OK, Reason.FRAMES_STRANGE, Reason.OK]
    assert "camera 'front': 4.1 times" in cycles.decided[-2].detail
    assert cycles.decided[-2].actions is None


@pytest.mark.parametrize("supervising", [False, True])
def test_a_camera_that_repeats_its_picture_while_the_robot_moves_is_frozen(
    cycles: Cycles, supervising: bool
):
    cycles.cycle.set_goal(FAR)
    cycles.cycle.supervising = supervising

    def reason(tick: int, moved: float, picture: int) -> Reason:
        cycles.cycle.external = external([0.1, 0.0])
        return cycles.run(NOW + tick * 100 * MS, moved=moved, picture=picture).reason

    # Nothing moves: the picture of a simulated camera stays what it is.
    assert [reason(k, 0.0, 1) for k in range(6)] == [Reason.OK] * 6
    # The robot moves and is seen to.
    assert [reason(6 + k, 0.02 * k, 2 + k) for k in range(6)] == [Reason.OK] * 6
    # The robot moves, the picture does not; 0.3 s may pass until that counts.
    reasons = [reason(12 + k, 0.1 + 0.02 * k, 9) for k in range(6)]
    assert reasons == [Reason.OK] * 4 + [Reason.FRAMES_FROZEN] * 2
    assert "camera 'front' sends the same picture" in cycles.decided[-1].detail
    assert cycles.decided[-1].actions is None
    assert reason(18, 0.3, 10) is Reason.OK
