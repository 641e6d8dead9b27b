"""Faults of the real world model process while it moves the simulated robot.

Its model has random weights: where it moves the arm does not matter here, that it does is enough.
"""

from __future__ import annotations

import signal
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

from wm_node.bundle import Bundle
from wm_node.errors import WmError
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


def wait_for_motion(arm: Any) -> None:
    arm.commands.clear()
    arm.diagnostics.clear()
    arm.wait(
        lambda: arm.commands and arm.commands[-1].value > 0.1 and arm.speeds[-1].value > 0.1,
        "the arm did not move",
        timeout_s=30.0,
    )


def test_kill_9_of_the_world_model_brakes_within_100_ms(
    arm: Any, measure: Callable[[str, float], None]
) -> None:
    wait_for_motion(arm)
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
    assert arm.ran_s(killed_s, onset_s) <= ONSET_S
    assert arm.ran_s(onset_s, still_s) <= arm.profile.safety.stopping_time_s


def test_a_process_that_gets_no_processor_time_stops_the_robot_and_may_come_back(
    arm: Any, measure: Callable[[str, float], None]
) -> None:
    wait_for_motion(arm)
    limit_s = arm.profile.safety.max_heartbeat_age_s
    stopped_s = time.time()
    arm.processes["world_model"].send_signal(signal.SIGSTOP)
    try:
        arm.wait(lambda: arm.commands[-1].value == 0.0, "the gate did not brake")
        still_s = arm.standstill()
    finally:
        arm.processes["world_model"].send_signal(signal.SIGCONT)
    told = [
        d
        for d in arm.diagnostics
        if d.stamp_s > stopped_s and not d.value.message.startswith(("PASS", "LIMIT"))
    ]
    # Which of them speaks first is a matter of milliseconds: all that came from there is late.
    assert told[0].value.message.split()[1] in (
        "HEARTBEAT_LOST",
        "COMMAND_STALE",
        "PLAN_STALE",
    )
    measure("onset_ms", 1e3 * (told[0].stamp_s - stopped_s))
    measure("standstill_ms", 1e3 * (still_s - told[0].stamp_s))
    assert arm.ran_s(stopped_s, told[0].stamp_s) <= limit_s + 0.1
    assert arm.ran_s(stopped_s, still_s) <= limit_s + arm.profile.safety.stopping_time_s + 0.15
    # What it had planned before is not followed now: the robot moves on fresh plans alone.
    arm.wait(lambda: arm.passes() or arm.commands[-1].value > 0.05, "it did not come back")
    wait_for_motion(arm)


def test_a_bundle_that_is_overwritten_under_the_running_process_changes_nothing(
    arm: Any, files: tuple[Path, Path]
) -> None:
    bundle, _ = files
    wait_for_motion(arm)
    for file in bundle.iterdir():  # in place, as a careless copy does, and shorter than before
        with file.open("r+b") as stream:
            stream.truncate(1000)
            stream.write(b"\xff" * 1000)
    for _ in range(3):
        wait_for_motion(arm)
    assert arm.processes["world_model"].poll() is None
    # Configured again, it is found out.
    for node in ("/mpc_planner", "/world_model"):
        arm.caller.change(node, "deactivate")
        arm.caller.change(node, "cleanup")
    arm.wait(lambda: arm.commands[-1].value == 0.0, "the gate did not brake")
    with pytest.raises(WmError, match="refused to configure"):
        arm.caller.change("/world_model", "configure")
    assert arm.processes["world_model"].poll() is None


def test_parameters_of_nonsense_are_refused_while_the_arm_moves(arm: Any) -> None:
    wait_for_motion(arm)
    for name, value in (
        ("weights.risk", float("nan")),
        ("weights.goal", float("inf")),
        ("weights.push", -1.0),
        ("surprise_limit", 0.0),
        ("goal_reached", "near"),
        ("late_limit", 1e9),
        ("goal_state", [float("nan"), 0.0]),
        ("goal_state", [0.1]),
        ("source", "nobody"),
        ("no_such_parameter", 1.0),
    ):
        with pytest.raises(WmError):
            arm.caller.set_parameter("mpc_planner", name, value)
    wait_for_motion(arm)
    assert not arm.latched()
