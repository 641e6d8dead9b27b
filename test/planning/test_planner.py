"""The planner on a model whose best plan is known, and the timing of commands."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from wm_node.errors import WmError
from wm_node.planning.objective import Goal, Objective, Weights
from wm_node.planning.planner import MpcPlanner, PlannerConfig, delayed, spline_basis
from wm_node.planning.world_model import Context, Floats, Futures, Outcomes
from wm_node.profile import load_profile, parse_profile

PROFILE = load_profile("tabletop")
TICKS, STEPS = PROFILE.model.horizon_ticks, PROFILE.model.context_steps
CONTEXT = Context(
    0,
    np.zeros((STEPS, 4), np.float32),
    np.zeros((STEPS, 4), np.float32),
    np.zeros((STEPS, 2, 2), np.float32),
)


class Carried:
    """The mug moves with the tip, exactly as commanded; inside x > 0.1 the first event happens."""

    def rollout(
        self,
        context: Context,
        actions: Floats,
        goal_latent: Floats | None = None,
        lean: bool = False,
    ) -> Outcomes:
        path = np.cumsum(actions * 0.1, axis=1)[:, 1::2]
        count, steps = path.shape[:2]
        risk = np.zeros((count, steps, 2), np.float32)
        risk[..., 0] = np.maximum.accumulate(path[..., 0] > 0.1, axis=1)
        return Outcomes(
            latents=np.zeros((count, steps, 4), np.float32),
            joints=np.zeros((count, steps, 4), np.float32),
            state=np.concatenate([path, path], -1).astype(np.float32),
            risk=risk,
            uncertainty=np.zeros((count, steps), np.float32),
            time_to_goal=np.full((count, steps), np.nan, np.float32),
        )


class Uncertain(Carried):
    """As told, or, in one of four cases, with the first event from the fifth step on."""

    def futures(self, context: Context, actions: Floats) -> Futures:
        outcomes = self.rollout(context, np.repeat(actions, 2, 0))
        outcomes.risk[1, 4:, 0] = 1.0
        return Futures(outcomes, np.array([0.75, 0.25], np.float32))


def plan_to(goal: tuple[float, float], seed: int = 0, delay_s: float = 0.0):  # type: ignore[no-untyped-def]
    planner = MpcPlanner(PROFILE, PlannerConfig(), seed)
    return planner.plan(
        Carried(),
        CONTEXT,
        Goal(state=np.array(goal, np.float32)),
        np.zeros((1, 2)),
        delay_s,
        Weights(push=0.0),
    )


def test_the_plan_reaches_the_goal() -> None:
    plan = plan_to((-0.15, 0.1))
    assert np.linalg.norm(plan.outcomes.state[0, -1, :2] - [-0.15, 0.1]) < 0.02


def test_the_plan_stops_before_what_must_not_happen() -> None:
    plan = plan_to((0.3, 0.0))
    assert plan.outcomes.risk[0, -1, 0] == 0.0
    assert plan.outcomes.state[0, -1, 0] > 0.05, "it still goes as far as it may"


class Pictured(Carried):
    """Knows no labels; the time to the picture is the way left to its latent, a position."""

    def rollout(
        self,
        context: Context,
        actions: Floats,
        goal_latent: Floats | None = None,
        lean: bool = False,
    ) -> Outcomes:
        out = super().rollout(context, actions, goal_latent, lean)
        path, unknown = out.state[..., :2], out.time_to_goal
        to_go = unknown if goal_latent is None else np.linalg.norm(path - goal_latent, axis=-1)
        return replace(out, state=out.state[..., :0], time_to_goal=(to_go / 0.05).astype("f"))


def test_a_robot_without_labels_follows_a_picture() -> None:
    data = PROFILE.dump()
    del data["objective"]
    data["labels"] = []
    planner = MpcPlanner(parse_profile(data, "test"), PlannerConfig(iterations=6), 0)
    picture = Goal(latent=np.array([-0.15, 0.1], np.float32))
    plan = planner.plan(Pictured(), CONTEXT, picture, np.zeros((1, 2)), 0.0)
    assert plan.terms["value"] > 0.0
    assert plan.outcomes.time_to_goal[0, -1] < 0.2, "it stands far from the picture"


def test_the_time_to_a_picture_has_no_weight_where_labels_tell_the_goal() -> None:
    assert Weights.of(PROFILE).value == 0.0
    data = PROFILE.dump()
    data["objective"]["weights"] = {"value": 0.5}
    assert Weights.of(parse_profile(data, "test")).value == 0.5


def test_the_same_seed_gives_the_same_plan() -> None:
    first, second = plan_to((0.05, -0.1), seed=3), plan_to((0.05, -0.1), seed=3)
    np.testing.assert_array_equal(first.actions, second.actions)


def test_actions_stay_within_the_limits() -> None:
    plan = plan_to((5.0, 5.0))
    assert (np.abs(plan.actions) <= np.asarray(PROFILE.action.upper) + 1e-6).all()


def test_without_a_goal_the_robot_brakes() -> None:
    planner = MpcPlanner(PROFILE, PlannerConfig(), 0)
    plan = planner.plan(Carried(), CONTEXT, Goal(), np.zeros((1, 2)), 0.1)
    assert plan.source == "brake"
    np.testing.assert_array_equal(plan.actions, 0.0)


def test_predictions_that_are_not_finite_are_never_chosen() -> None:
    class Broken(Carried):
        def rollout(
            self,
            context: Context,
            actions: Floats,
            goal_latent: Floats | None = None,
            lean: bool = False,
        ) -> Outcomes:
            out = super().rollout(context, actions, goal_latent)
            out.state[:] = np.nan
            return out

    planner = MpcPlanner(PROFILE, PlannerConfig(), 0)
    goal = Goal(state=np.zeros(2, np.float32))
    with pytest.raises(WmError, match="not finite"):
        planner.plan(Broken(), CONTEXT, goal, np.zeros((1, 2)), 0.1)


def test_the_shifted_plan_moves_on_by_the_elapsed_ticks() -> None:
    planner = MpcPlanner(PROFILE, PlannerConfig(), 0)
    goal = Goal(state=np.array([0.05, 0.1], np.float32))
    plan = planner.plan(Carried(), CONTEXT, goal, np.zeros((1, 2)), 0.0, Weights(push=0.0))
    shifted = planner.shifted(200_000_000)
    assert shifted is not None
    np.testing.assert_allclose(shifted[:-2], plan.actions[2:], atol=1e-6)
    assert planner.shifted(10_000_000_000) is None
    planner.reset()
    assert planner.shifted(0) is None


@given(
    delay=st.floats(0.0, 0.45),
    count=st.integers(1, 6),
    seed=st.integers(0, 99),
)
def test_delayed_conserves_what_is_commanded(delay: float, count: int, seed: int) -> None:
    random = np.random.default_rng(seed)
    actions = random.normal(size=(3, TICKS, 2))
    committed = random.normal(size=(count, 2))
    applied = delayed(actions, committed, delay, 0.1)
    # Reference: sample the held command finely and average it over each tick.
    fine = 200
    times = (np.arange(TICKS * fine) + 0.5) / fine * 0.1
    index = np.floor((times - delay) / 0.1 + 1e-12).astype(int)
    line = np.concatenate([np.repeat(committed[:1], 8, 0), committed])
    for row in range(3):
        held = np.where(
            (index >= 0)[:, None],
            actions[row][np.clip(index, 0, TICKS - 1)],
            line[np.clip(len(line) + index, 0, len(line) - 1)],
        )
        mean = held.reshape(TICKS, fine, 2).mean(1)
        np.testing.assert_allclose(applied[row], mean, atol=0.04)


def test_no_delay_changes_nothing() -> None:
    actions = np.random.default_rng(0).normal(size=(2, TICKS, 2)).astype(np.float32)
    np.testing.assert_allclose(delayed(actions, np.ones((1, 2)), 0.0, 0.1), actions)


@pytest.mark.parametrize(("ticks", "knots"), [(16, 6), (8, 2), (30, 30)])
def test_spline_rows_sum_to_one(ticks: int, knots: int) -> None:
    basis = spline_basis(ticks, knots)
    assert basis.shape == (ticks, knots)
    np.testing.assert_allclose(basis.sum(1), 1.0)
    assert (basis >= 0).all()


def test_push_term_prefers_the_far_side() -> None:
    objective = Objective(PROFILE)
    goal = Goal(state=np.array([0.2, 0.0], np.float32))
    state = np.zeros((2, 8, 4), np.float32)
    state[0, :, 2] = -0.06  # behind the mug, seen from the goal
    state[1, :, 2] = 0.06
    base = Carried().rollout(CONTEXT, np.zeros((2, TICKS, 2), np.float32))
    outcomes = Outcomes(
        base.latents, base.joints, state, base.risk, base.uncertainty, base.time_to_goal
    )
    cost, terms = objective(outcomes, np.zeros((2, TICKS, 2), np.float32), goal, Weights())
    assert cost[0] < cost[1]
    assert terms["push"][0] == pytest.approx(0.0, abs=1e-6)


def test_risk_that_is_not_available_neither_adds_nor_hides() -> None:
    objective = Objective(PROFILE)
    base = Carried().rollout(CONTEXT, np.zeros((1, TICKS, 2), np.float32))
    base.risk[..., 0] = np.nan
    base.risk[..., 1] = 0.5
    cost, terms = objective(base, np.zeros((1, TICKS, 2), np.float32), Goal(), Weights())
    assert terms["risk"][0] == pytest.approx(Weights().risk * 0.5)
    assert np.isfinite(cost).all()


def test_the_plan_notes_its_futures_and_their_risk_where_it_is_higher() -> None:
    planner = MpcPlanner(PROFILE, PlannerConfig(), 0)
    goal = Goal(state=np.array((0.05, 0.05), np.float32))
    plan = planner.plan(Uncertain(), CONTEXT, goal, np.zeros((1, 2)), 0.0, Weights(push=0.0))
    assert plan.futures is not None
    np.testing.assert_allclose(plan.outcomes.risk[0, :, 0], [0.0] * 4 + [0.25] * 4)
    assert plan_to((0.05, 0.05)).futures is None
