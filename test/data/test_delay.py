"""Delays of commands and cameras, on signals whose delay is known and on the real recordings."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from scipy.signal import lfilter

from wm_node.data import messages
from wm_node.data.calibration import calibrate_delays
from wm_node.data.delay import Estimate, Track, estimate_command_delays
from wm_node.data.overlay import (
    Overlay,
    RiskCalibration,
    RobotOverlay,
    apply_overlay,
    load_overlay,
    with_overlay,
    write_overlay,
)
from wm_node.errors import WmError
from wm_node.profile import RobotProfile, load_profile

NS = 10**9
STEP = 33_333_340  # about 30 Hz


def smooth_noise(rng: np.random.Generator, count: int, width: int) -> np.ndarray:
    noise = rng.normal(size=(count, width))
    slow = lfilter([0.05], [1, -0.95], lfilter([0.2], [1, -0.8], noise, axis=0), axis=0)
    return np.asarray(slow / slow.std(axis=0))


def make_track(
    rng: np.random.Generator, delays: list[float], constants: list[float], noise: float = 0.02
) -> Track:
    """Joints that follow held commands after a dead time as first-order systems."""
    count, fine = 600, 20
    commands = smooth_noise(rng, count, len(delays))
    # Commands that come with jitter: in step with the joints, a delay is only known to a step.
    stamps = np.arange(count, dtype=np.int64) * STEP + rng.integers(0, STEP, count)
    instants = np.arange(count * fine, dtype=np.int64) * (STEP // fine)
    joints = []
    for channel, (delay, constant) in enumerate(zip(delays, constants, strict=True)):
        place = np.searchsorted(stamps, instants - round(delay * NS), side="right") - 1
        held = commands[np.clip(place, 0, None), channel]
        if constant > 0:
            keep = np.exp(-(STEP / fine / NS) / constant)
            held = lfilter([1 - keep], [1, -keep], held)
        joints.append(held[::fine] + noise * rng.normal(size=count))
    part = slice(40, None)
    times = np.arange(count, dtype=np.int64) * STEP
    return Track(times[part], np.stack(joints, 1)[part], stamps, commands)


def estimate(tracks: list[Track], count: int) -> list[Estimate]:
    return estimate_command_delays(
        tracks,
        [f"j{i}" for i in range(count)],
        [[i] for i in range(count)],
        np.full(count, 4.0),
        velocity=False,
        timeout_s=None,
        max_delay_s=0.6,
    )


def test_pure_delays_are_found_below_the_sample_step() -> None:
    rng = np.random.default_rng(0)
    delays = [0.0, 0.05, 0.2, 0.413]
    found = estimate([make_track(rng, delays, [0.0] * 4) for _ in range(3)], 4)
    for item, delay in zip(found, delays, strict=True):
        assert item.reason is None
        assert item.lag_s == pytest.approx(delay, abs=0.008)  # a quarter of a sample
        assert item.dead_time_s == pytest.approx(delay, abs=0.017)
        assert item.low_s - 0.008 <= delay <= item.high_s + 0.008
        assert item.fit > 0.95


def test_dead_time_is_told_from_slowness() -> None:
    rng = np.random.default_rng(1)
    found = estimate([make_track(rng, [0.1, 0.2], [0.15, 0.08]) for _ in range(4)], 2)
    for item, (dead, constant) in zip(found, [(0.1, 0.15), (0.2, 0.08)], strict=True):
        assert item.reason is None
        assert item.dead_time_s == pytest.approx(dead, abs=0.025)
        assert item.time_constant_s == pytest.approx(constant, rel=0.35)
        assert dead < item.lag_s <= dead + constant + 0.01


def test_still_and_deaf_joints_are_not_identifiable() -> None:
    rng = np.random.default_rng(2)
    track = make_track(rng, [0.1, 0.1, 0.1], [0.0] * 3)
    commands, joints = track.commands.copy(), track.joints.copy()
    commands[:, 1] = 0.3
    joints[:, 2] = rng.normal(size=len(joints))
    found = estimate([Track(track.times, joints, track.command_stamps, commands)], 3)
    assert found[0].reason is None
    assert found[1].reason == "does not move"
    assert found[2].reason is not None
    assert "explains only" in found[2].reason


def twist_recording(record: Callable[..., Any], delay_s: float, latency_s: float) -> Any:
    """A table-top whose joints answer to twists after a delay, filmed by a late camera."""
    rng = np.random.default_rng(3)
    recording = record(0.1)
    recording.items = []
    start, seconds = 1_700_000_000 * NS, 25.0
    command = 0.2 * np.clip(smooth_noise(rng, int(seconds * 10), 2), -1, 1)
    fine = np.arange(int(seconds * 1000)) / 1000
    place = np.clip(np.floor((fine - delay_s) * 10 + 1e-9).astype(int), -1, None)
    velocity = np.where(place[:, None] >= 0, command[np.clip(place, 0, None)], 0.0)
    mix = np.array([[1.0, 0.2, 0.5, -0.3], [0.1, 1.0, -0.7, 0.4]])
    joints = np.cumsum(velocity @ mix, axis=0) / 1000
    travelled = np.cumsum(np.abs(velocity @ mix).sum(axis=1)) / 1000
    names = ["base_yaw", "shoulder", "elbow", "wrist"]
    for k in range(int(seconds * 100)):
        stamp = start + k * NS // 100
        message = messages.joint_state(stamp, names, joints[k * 10])
        recording.add("/joint_states", "sensor_msgs/msg/JointState", stamp, message)
    for k in range(int(seconds * 10)):
        stamp = start + k * NS // 10
        message = messages.twist_stamped(stamp, "table", (command[k, 0], command[k, 1], 0.0))
        recording.add("/command", "geometry_msgs/msg/TwistStamped", stamp, message)
    columns = np.arange(80)
    for k in range(4, int(seconds * 20)):
        stamp = start + k * NS // 20
        moved = travelled[int(k * 50 - latency_s * 1000)]
        row = 127 + 100 * np.sin(columns / 6 + 40 * moved)
        picture = np.repeat(np.repeat(row[None, :, None], 60, 0), 3, 2).astype(np.uint8)
        recording.add(
            "/image_raw", "sensor_msgs/msg/Image", stamp, messages.image(stamp, "camera", picture)
        )
    return recording


def test_bags_give_delays_and_camera_latency(
    tmp_path: Path, tabletop: RobotProfile, record: Callable[..., Any]
) -> None:
    twist_recording(record, 0.13, 0.06).save(tmp_path / "bag")
    broken = record(2.0)
    broken.drop("/command")
    broken.save(tmp_path / "broken")
    result = calibrate_delays([tmp_path], tabletop)
    assert result.bags == 1
    assert list(result.skipped) == ["broken"]
    assert [item.name for item in result.channels] == ["tip_vx", "tip_vy"]
    for item in result.channels:
        assert item.reason is None
        assert item.lag_s == pytest.approx(0.13, abs=0.01)
    (camera,) = result.cameras
    assert camera.reason is None
    assert camera.lag_s == pytest.approx(0.06, abs=0.015)
    entry = result.overlay(None)
    assert set(entry.action_delay_s) == {"tip_vx", "tip_vy"}
    assert entry.camera_latency_s["front"] == round(camera.lag_s, 4)
    with pytest.raises(WmError, match="broken"):
        calibrate_delays([tmp_path / "broken"], tabletop)


def test_real_commands_lead_by_four_to_twelve_frames(g1_bags: Path) -> None:
    bags = sorted(path for path in g1_bags.iterdir() if path.is_dir())[:6]
    result = calibrate_delays(bags, load_profile("g1_bottle"))
    right = [c for c in result.channels if c.name.startswith("kRight") and c.reason is None]
    assert len(right) >= 10
    for item in right:
        assert 3 <= item.lag_s * 30 <= 13, item
        assert item.dead_time_s <= item.lag_s + 0.02
    hands = [c.lag_s for c in right if "Hand" in c.name]
    arms = [c.lag_s for c in right if "Hand" not in c.name]
    assert min(hands) > max(arms)


def test_overlays_are_kept_by_robot_and_checked(tmp_path: Path, tabletop: RobotProfile) -> None:
    path = tmp_path / "deep" / "overlay.yaml"
    write_overlay(path, "other", RobotOverlay(action_delay_s={"x": 0.5}))
    entry = RobotOverlay(
        bundle="a" * 64, action_delay_s={"tip_vy": 0.2}, camera_latency_s={"front": 0.03}
    )
    write_overlay(path, "tabletop", entry)
    overlay = load_overlay(path)
    assert set(overlay.robots) == {"other", "tabletop"}
    profile = apply_overlay(tabletop, overlay, "a" * 64)
    assert profile.action.delay_s == (0.0, 0.2)
    assert profile.cameras[0].latency_s == 0.03
    assert apply_overlay(tabletop, overlay) == profile
    with pytest.raises(WmError, match="measured for bundle"):
        apply_overlay(tabletop, overlay, "b" * 64)
    wrong = Overlay(format=1, robots={"tabletop": RobotOverlay(action_delay_s={"nose": 0.1})})
    with pytest.raises(WmError, match="does not have"):
        apply_overlay(tabletop, wrong)
    with pytest.raises(WmError, match="no entry"):
        apply_overlay(tabletop, Overlay(format=1, robots={"other": entry}))
    path.write_text("format: 1\nrobots: {tabletop: {delay: 3}}\n")
    with pytest.raises(WmError, match="not an overlay"):
        load_overlay(path)
    path.write_text("format: [1\n")
    with pytest.raises(WmError, match="not an overlay"):
        load_overlay(path)
    with pytest.raises(WmError, match="cannot read"):
        load_overlay(tmp_path / "nowhere.yaml")


def test_thresholds_of_risk_are_of_one_bundle_and_leave_the_delays_alone(
    tmp_path: Path, tabletop: RobotProfile
) -> None:
    path = tmp_path / "overlay.yaml"
    write_overlay(path, "tabletop", RobotOverlay(action_delay_s={"tip_vy": 0.2}))
    risk = RiskCalibration(bundle="a" * 64, threshold={"fell": 0.2}, miss_rate=0.1)
    write_overlay(path, "tabletop", RobotOverlay(risk=risk))
    profile = with_overlay(tabletop, path, "a" * 64)
    assert profile.action.delay_s == (0.0, 0.2)
    before = tabletop.safety.risk_threshold
    assert profile.safety.risk_threshold == {**before, "fell": 0.2}
    # The gate knows no bundle; the world model's process, which does, refuses another one's.
    assert with_overlay(tabletop, path).safety == profile.safety
    with pytest.raises(WmError, match="run 'wm calibrate --risk' again"):
        with_overlay(tabletop, path, "b" * 64)
    unknown = RiskCalibration(bundle="a" * 64, threshold={"spilt": 0.2}, miss_rate=0.1)
    wrong = Overlay(format=1, robots={"tabletop": RobotOverlay(risk=unknown)})
    with pytest.raises(WmError, match="names events that the profile does not have"):
        apply_overlay(tabletop, wrong)
    path.write_text(path.read_text().replace("fell: 0.2", "fell: 1.2"))
    with pytest.raises(WmError, match="not an overlay"):
        load_overlay(path)
