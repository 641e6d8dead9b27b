"""The search as one graph chooses the plan that the search by rollouts chooses."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from wm_node.bundle import SEARCH_TERMS, Bundle
from wm_node.engine import load_engine
from wm_node.errors import WmError
from wm_node.planning.objective import Goal, Weights
from wm_node.planning.planner import MpcPlanner, Plan, PlannerConfig
from wm_node.planning.world_model import Context, WorldModel
from wm_node.profile import RobotProfile, load_profile

PROFILE = load_profile("tabletop")
LATENT = 32  # of the small random model
COMPILED = Weights()  # all that are not 0 by default are terms of the graph
STEPS = PROFILE.model.context_steps


@pytest.fixture(scope="module")
def bundle(
    random_bundle_of: Callable[[RobotProfile, Path], Bundle],
    tmp_path_factory: pytest.TempPathFactory,
) -> Bundle:
    return random_bundle_of(PROFILE, tmp_path_factory.mktemp("bundles") / "small")


@pytest.fixture(scope="module", params=["torch", "openvino"])
def model(bundle: Bundle, request: pytest.FixtureRequest) -> WorldModel:
    model = WorldModel(bundle, load_engine(bundle, request.param))
    model.prepare((64,), (64, 3))
    model._uncertainty_scale = 0.75  # candidates of the random model lie on both sides of it
    model._search_inputs["usual_uncertainty"][:] = 0.75
    return model


class ByRollouts:
    """The same model without its compiled searches."""

    def __init__(self, model: WorldModel) -> None:
        self.rollout = model.rollout


def _refused(*args: object, **more: object) -> None:
    raise AssertionError("the compiled search cannot do this")


def _context(random: np.random.Generator) -> Context:
    return Context(
        10_000_000_000,
        random.normal(size=(STEPS, LATENT)).astype(np.float32),
        random.normal(0.5, 0.3, (STEPS, 4)).astype(np.float32),
        random.normal(0.0, 0.1, (STEPS, 2, 2)).astype(np.float32),
    )


def _plan(model: object, case: int, weights: Weights, goal: Goal) -> Plan:
    random = np.random.default_rng(case)
    context = _context(random)
    planner = MpcPlanner(PROFILE, PlannerConfig(), seed=case)
    # A previous plan and a proposal, so that both searches have all their seeds.
    planner._previous = (context.stamp_ns - 100_000_000, random.normal(0.0, 0.1, (16, 2)))
    proposal = (
        random.normal(0.0, 0.1, (16, 2)).astype(np.float32),
        np.full((16, 2), 0.1, np.float32),
    )
    committed = random.normal(0.0, 0.1, (3, 2))
    return planner.plan(model, context, goal, committed, 0.13, weights, proposal)  # type: ignore[arg-type]


@pytest.mark.parametrize("case", range(6))
def test_both_searches_choose_the_same_plan(model: WorldModel, case: int) -> None:
    goal = Goal(state=np.array([0.3, -0.2], np.float32))
    one = _plan(model, case, COMPILED, goal)
    many = _plan(ByRollouts(model), case, COMPILED, goal)
    assert one.source == many.source
    np.testing.assert_allclose(one.actions, many.actions, atol=1e-4)
    np.testing.assert_allclose(one.applied, many.applied, atol=1e-4)
    assert one.cost == pytest.approx(many.cost, rel=1e-3)
    for name, term in many.terms.items():
        assert one.terms[name] == pytest.approx(term, rel=1e-3, abs=1e-4), name
    np.testing.assert_allclose(one.outcomes.state, many.outcomes.state, atol=2e-3)
    np.testing.assert_allclose(one.outcomes.risk, many.outcomes.risk, atol=1e-3)
    np.testing.assert_allclose(one.outcomes.uncertainty, many.outcomes.uncertainty, rtol=0.02)


def test_without_a_goal_nothing_pulls(model: WorldModel) -> None:
    one, many = (
        _plan(m, 0, replace(COMPILED, risk=0.0), Goal()) for m in (model, ByRollouts(model))
    )
    np.testing.assert_allclose(one.actions, many.actions, atol=1e-4)
    assert one.terms["goal"] == one.terms["push"] == one.terms["risk"] == 0.0


def test_a_learned_distance_is_searched_by_rollouts(
    model: WorldModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "run_search", _refused)
    goal = Goal(latent=np.zeros(LATENT, np.float32))
    plan = _plan(model, 1, Weights(value=1.0), goal)
    assert np.isfinite(plan.terms["value"])


def test_a_graph_without_a_term_of_the_cost_is_not_used(bundle: Bundle, model: WorldModel) -> None:
    spec = bundle.graphs["plan_fast"]
    assert spec.search is not None
    assert spec.search.terms == SEARCH_TERMS
    older = replace(spec, search=replace(spec.search, terms=SEARCH_TERMS[:-1]))
    former = WorldModel(replace(bundle, graphs={"plan_fast": older}), model.engine)
    assert former.compiled_search(64, 3) is None


def test_doubt_chooses_another_plan(model: WorldModel) -> None:
    goal = Goal(state=np.array([0.3, -0.2], np.float32))
    bold, wary = (_plan(model, 2, Weights(uncertainty=u), goal) for u in (0.0, 50.0))
    assert bold.terms["uncertainty"] == 0.0
    assert wary.outcomes.uncertainty.mean() < bold.outcomes.uncertainty.mean()


def test_other_sizes_are_searched_by_rollouts(model: WorldModel) -> None:
    assert model.compiled_search(64, 3) is not None
    assert model.compiled_search(65, 3) is None


def test_another_share_of_elites_is_searched_by_rollouts(
    model: WorldModel, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(model, "run_search", _refused)
    planner = MpcPlanner(PROFILE, PlannerConfig(elite_share=0.5))
    goal = Goal(state=np.zeros(2, np.float32))
    context = _context(np.random.default_rng(0))
    plan = planner.plan(model, context, goal, np.zeros((1, 2)), 0.1, COMPILED)
    assert np.isfinite(plan.cost)


def test_predictions_that_are_not_finite_are_refused(model: WorldModel) -> None:
    context = _context(np.random.default_rng(0))
    broken = Context(context.stamp_ns, context.latents * np.nan, context.joints, context.actions)
    planner = MpcPlanner(PROFILE, PlannerConfig())
    goal = Goal(state=np.zeros(2, np.float32))
    for searched in (model, ByRollouts(model)):
        with pytest.raises(WmError, match="not finite"):
            planner.plan(  # type: ignore[arg-type]
                searched, broken, goal, np.zeros((1, 2)), 0.1, COMPILED
            )
