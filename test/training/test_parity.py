"""Backends are compared by what their chosen plans cost."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from wm_node.bundle import Bundle
from wm_node.errors import WmError
from wm_node.planning.planner import PlannerConfig
from wm_node.profile import RobotProfile, load_profile
from wm_node.training.parity import compare_choices

BundleOf = Callable[[RobotProfile, Path], Bundle]


def test_the_reference_chooses_as_itself_and_no_backend_is_left_out(
    random_bundle_of: BundleOf, tmp_path: Path
) -> None:
    bundle = random_bundle_of(load_profile("tabletop"), tmp_path / "bundle")
    told: list[tuple[int, int]] = []
    figures = compare_choices(
        bundle.path,
        ["torch", "openvino"],
        PlannerConfig(16, 2),
        states=3,
        workers=1,
        advance=lambda done, total: told.append((done, total)),
    )
    assert told == [(1, 3), (2, 3), (3, 3)]
    assert figures["states"] == 3
    assert figures["torch"] == {"within": 1.0, "same": 1.0, "mean": 0.0, "p99": 0.0}
    assert set(figures["openvino"]) == {"within", "same", "mean", "p99"}


def test_another_robot_has_no_states(random_bundle_of: BundleOf, tmp_path: Path) -> None:
    bundle = random_bundle_of(load_profile("g1_bottle"), tmp_path / "bundle")
    with pytest.raises(WmError, match="with other labels or events"):
        compare_choices(bundle.path, ["openvino"], PlannerConfig(16, 2), states=1)
