"""``kill -9`` of the real world model process while it moves the simulated robot.

Its model has random weights: where it moves the arm does not matter here, that it does is enough.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from wm_node.bundle import Bundle
from wm_node.profile import RobotProfile, load_profile, parse_profile

ONSET_S = 0.100


@pytest.fixture
def files(
    tmp_path: Path, random_bundle_of: Callable[[RobotProfile, Path], Bundle]
) -> tuple[Path, Path]:
    """A bundle of random weights, and a profile that takes no foreseen risk for too high."""
    data = load_profile("tabletop").dump()
    data["safety"]["risk_threshold"] = dict.fromkeys(data["safety"]["risk_threshold"], 1.0)
    profile_file = tmp_path / "reckless.yaml"
    profile_file.write_text(yaml.safe_dump(data), encoding="utf-8")
    profile = parse_profile(data, "test")
    return random_bundle_of(profile, tmp_path / "bundle").path, profile_file


@pytest.fixture
def arm(bench: Any, files: tuple[Path, Path]) -> Iterator[Any]:
    """Robot, gate and world model, active, with a goal."""
    bundle, profile = files
    for name in tuple(bench.processes):
        bench.kill(name)
    bench.start_robot(camera_rate=20.0)
    bench.start_gate("-p", f"robot:={profile}")
    words = [f"robot:={profile}", "candidates:=16", "iterations:=1"]
    words += ["uncertainty_limit:=1000000.0", "surprise_limit:=1000000.0", "goal_reached:=0.001"]
    # Without these, standing still looks best to a model that tells actions hardly apart.
    words += ["weights.smoothness:=0.0", "weights.risk:=0.0"]
    bench.start_model(bundle, *words)
    bench.caller.set_parameter("mpc_planner", "goal_state", [0.1, 0.05])
    yield bench
    for name in tuple(bench.processes):
        bench.kill(name)


def test_kill_9_of_the_world_model_brakes_within_100_ms(
    arm: Any, measure: Callable[[str, float], None]
) -> None:
    arm.diagnostics.clear()
    arm.wait(
        lambda: arm.commands and arm.commands[-1].value > 0.1 and arm.speeds[-1].value > 0.1,
        "the arm did not move",
        timeout_s=30.0,
    )
    killed_s = arm.kill("world_model")
    arm.wait(arm.latched, "the gate did not latch")
    told = [d for d in arm.diagnostics if d.value.message.endswith("HEARTBEAT_LOST")]
    assert told[0].value.message in ("BRAKE HEARTBEAT_LOST", "HOLD HEARTBEAT_LOST")
    onset_s = told[0].stamp_s
    after = [c.value for c in arm.commands if c.stamp_s >= killed_s + ONSET_S]
    assert np.all(np.diff(after) <= 0)  # slower and slower from then on
    assert after[-1] == 0.0
    still_s = arm.standstill()
    measure("onset_ms", 1e3 * (onset_s - killed_s))
    measure("standstill_ms", 1e3 * (still_s - onset_s))
    assert onset_s - killed_s <= ONSET_S
    assert still_s - onset_s <= arm.profile.safety.stopping_time_s
