"""wm replay: a real bag through the real nodes, and bags that lack what the model needs."""

from __future__ import annotations

import json
import signal
import subprocess
import sys
import time
from pathlib import Path

import psutil
import pytest

from wm_node.bundle import Bundle
from wm_node.cli.main import main
from wm_node.cli.replay import match_topics
from wm_node.data.overlay import RobotOverlay, write_overlay
from wm_node.errors import WmError
from wm_node.model.export import untrained_bundle
from wm_node.profile import load_profile

TABLETOP = {
    "/image_raw": "sensor_msgs/msg/Image",
    "/joint_states": "sensor_msgs/msg/JointState",
    "/command": "geometry_msgs/msg/TwistStamped",
    "/sim_robot/mug_pose": "geometry_msgs/msg/PoseStamped",
    "/sim_robot/tip": "geometry_msgs/msg/PointStamped",
    "/events/fell": "std_msgs/msg/Bool",
    "/rosout": "rcl_interfaces/msg/Log",
}


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return untrained_bundle(load_profile("tabletop"), tmp_path_factory.mktemp("b") / "bundle", 0)


@pytest.fixture(scope="module")
def bag(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("bags") / "collected"
    words = ["--episodes", "1", "--workers", "1", "--images", "compressed", "--seed", "4"]
    assert main(["collect", "--out", str(out), *words]) == 0
    (metadata,) = out.glob("*/metadata.yaml")
    return metadata.parent


def _processes_of(out: Path) -> list[int]:
    found = []
    for process in psutil.process_iter(["cmdline", "status"]):
        words = process.info["cmdline"] or []
        node = any(word.startswith("wm_node.nodes.") for word in words)
        alive = process.info["status"] != psutil.STATUS_ZOMBIE
        if node and alive and any(str(out) in word for word in words):
            found.append(process.pid)
    return found


def _overlay(path: Path, robot: str) -> Path:
    entry = RobotOverlay(action_delay_s={"tip_vy": 0.05}, camera_latency_s={"front": 0.02})
    write_overlay(path, robot, entry)
    return path


def test_a_bag_is_played_predicted_and_reported(bag: Path, bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["replay", str(bag), "--bundle", str(bundle.path), "--out", str(out)]
    words += ["--overlay", str(_overlay(tmp_path / "delays.yaml", "tabletop"))]
    done = subprocess.run(
        [sys.executable, "-m", "wm_node.cli.main", *words],
        capture_output=True,
        text=True,
        timeout=110,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    assert _processes_of(out) == []
    summary = json.loads((out / "summary.json").read_text())
    assert summary["frames_played"] > 100  # 6 s at 20 Hz
    assert 0 < summary["frames_received"] <= summary["frames_played"]
    assert summary["outcomes"] > 0
    prediction = summary["prediction"]
    assert prediction["moments"] >= 3
    assert len(prediction["joint_rmse"]) == 8
    assert set(summary["of_limit"]) == {"surprise", "uncertainty"}
    assert all(0 < share["p50"] <= share["max"] for share in summary["of_limit"].values())
    assert summary["bundle_sha256"] == bundle.sha256
    page = (out / "report.html").read_text()
    assert "Imagined against real" in page
    assert "nothing was commanded" in page
    assert "frame to command: p50" in page
    given = load_profile(out / "log" / "robot.yaml")
    assert given.action.delay_s == (0.0, 0.05)
    assert given.cameras[0].latency_s == 0.02
    # What was recorded carries the recording's own time, not today's.
    from wm_node.reporting.run_log import read_run

    again = read_run(out / "bag", bundle.profile)
    first = read_run(bag, bundle.profile)
    assert abs(again.start_ns - first.start_ns) < 2e9
    assert set(again.frames["front"]) <= set(first.frames["front"])


def test_an_interrupted_replay_leaves_no_process(bag: Path, bundle: Bundle, tmp_path: Path) -> None:
    out = tmp_path / "out"
    words = ["replay", str(bag), "--bundle", str(bundle.path), "--out", str(out), "--rate", "0.05"]
    process = subprocess.Popen(
        [sys.executable, "-m", "wm_node.cli.main", *words],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )
    deadline = time.monotonic() + 60
    while not (out / "bag" / "metadata.yaml").exists() and time.monotonic() < deadline:
        assert process.poll() is None
        time.sleep(0.05)
    process.send_signal(signal.SIGINT)
    _, errors = process.communicate(timeout=30)
    assert process.returncode == 130
    assert "Traceback" not in errors
    assert _processes_of(out) == []


def test_an_overlay_of_another_robot_is_refused_before_anything_starts(
    bag: Path, bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    out = tmp_path / "out"
    words = ["replay", str(bag), "--bundle", str(bundle.path), "--out", str(out)]
    assert main([*words, "--overlay", str(_overlay(tmp_path / "delays.yaml", "arm_3"))]) == 1
    assert "no entry for the robot 'tabletop', only: arm_3" in capsys.readouterr().err
    assert not out.exists()


def test_a_bag_without_joints_is_named_before_anything_starts(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    from wm_node.data.bag_writer import BagWriter
    from wm_node.data.messages import boolean

    with BagWriter(tmp_path / "bag") as bag:
        bag.add_topic("/events/fell", "std_msgs/msg/Bool")
        bag.write("/events/fell", boolean(False), 1)
    out = tmp_path / "out"
    words = ["replay", str(tmp_path / "bag"), "--bundle", str(bundle.path), "--out", str(out)]
    assert main(words) == 1
    text = capsys.readouterr().err
    assert "the frames of camera 'front'" in text
    assert "/events/fell" in text
    assert not out.exists()


def test_no_bag_is_one_sentence(
    bundle: Bundle, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert main(["replay", str(tmp_path / "none"), "--bundle", str(bundle.path)]) == 1
    assert "there is no bag at" in capsys.readouterr().err


def test_topics_are_found_in_any_namespace_and_transport() -> None:
    recorded = {f"/left{name}": kind for name, kind in TABLETOP.items()}
    del recorded["/left/image_raw"]
    recorded["/left/image_raw/compressed"] = "sensor_msgs/msg/CompressedImage"
    profile, topics = match_topics(load_profile("tabletop"), recorded)
    assert profile.cameras[0].topic == "/left/image_raw/compressed"
    assert profile.cameras[0].transport == "compressed"
    assert profile.joints.topic == "/left/joint_states"
    assert profile.action.readback.topic == "/left/command"
    assert profile.labels[0].topic == "/left/sim_robot/mug_pose"
    assert "/left/rosout" not in topics
    assert set(topics) == set(recorded) - {"/left/rosout"}


def test_the_planner_cannot_answer_on_the_recorded_topic() -> None:
    profile, topics = match_topics(load_profile("tabletop"), TABLETOP)
    assert profile.action.readback.topic == "/command"
    assert profile.action.topic not in topics


@pytest.mark.parametrize(
    ("missing", "told"),
    [
        ("/image_raw", "frames of camera 'front'"),
        ("/joint_states", "joint positions"),
        ("/command", "applied actions"),
    ],
)
def test_what_is_missing_is_said(missing: str, told: str) -> None:
    recorded = {name: kind for name, kind in TABLETOP.items() if name != missing}
    with pytest.raises(WmError, match=told):
        match_topics(load_profile("tabletop"), recorded)


@pytest.mark.parametrize("namespace", ["", "/left"])
def test_the_planners_own_commands_are_not_those_that_acted(namespace: str) -> None:
    planned = {f"{namespace}/mpc_planner/command": TABLETOP["/command"]}
    recorded = planned | {f"{namespace}{name}": kind for name, kind in TABLETOP.items()}
    profile, topics = match_topics(load_profile("tabletop"), recorded)
    assert profile.action.readback.topic == f"{namespace}/command"
    assert not set(planned) & set(topics)
    del recorded[f"{namespace}/command"]
    with pytest.raises(WmError, match="applied actions"):
        match_topics(load_profile("tabletop"), recorded)


def test_a_topic_of_another_type_does_not_count() -> None:
    recorded = TABLETOP | {"/joint_states": "std_msgs/msg/Bool"}
    with pytest.raises(WmError, match=r"/joint_states \(std_msgs/msg/Bool\)"):
        match_topics(load_profile("tabletop"), recorded)
