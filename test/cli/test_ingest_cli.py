"""``wm ingest`` and ``wm calibrate`` as a user runs them."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from wm_node.cli.main import main
from wm_node.data import messages
from wm_node.data.bag_writer import BagWriter
from wm_node.data.dataset import Dataset
from wm_node.profile import load_profile

NAMES = ["base_yaw", "shoulder", "elbow", "wrist"]


def make_bag(path: Path, seconds: float = 6.0, with_command: bool = True) -> Path:
    """A table-top recording in which the arm swings as commanded."""
    start = 1_700_000_000_000_000_000
    with BagWriter(path) as bag:
        bag.add_topic("/image_raw", "sensor_msgs/msg/Image")
        bag.add_topic("/joint_states", "sensor_msgs/msg/JointState")
        if with_command:
            bag.add_topic("/command", "geometry_msgs/msg/TwistStamped")
        for k in range(int(seconds * 100) + 1):
            stamp, t = start + k * 10_000_000, k / 100
            angles = np.array([1 - np.cos(2 * t), np.sin(t), 0.0, 0.0]) * 0.1
            bag.write("/joint_states", messages.joint_state(stamp, NAMES, angles), stamp)
            if k % 5 == 0:
                picture = np.full((60, 80, 3), k % 200, np.uint8)
                bag.write("/image_raw", messages.image(stamp, "camera", picture), stamp)
            if k % 10 == 0 and with_command:
                velocity = (0.2 * np.sin(2 * t), 0.1 * np.cos(t), 0.0)
                bag.write("/command", messages.twist_stamped(stamp, "table", velocity), stamp)
    return path


def test_ingest_summarises_and_names_what_it_skips(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    make_bag(tmp_path / "bags" / "good")
    make_bag(tmp_path / "bags" / "mute", with_command=False)
    out, figures = tmp_path / "data", tmp_path / "figures.json"
    words = ["ingest", str(tmp_path / "bags"), "--robot", "tabletop", "--out", str(out)]
    assert main([*words, "--workers", "1", "--json", str(figures)]) == 0
    text = capsys.readouterr().out
    assert "1 of 2 used" in text
    assert "skipped mute: no topic '/command'" in text
    document = json.loads(figures.read_text())
    assert document["episodes"] == 1
    assert document["skipped"].keys() == {"mute"}
    assert Path(document["contact_sheet"]).is_file()
    assert Dataset.open(out).num_ticks == 61
    assert main([*words, "--workers", "1"]) == 1
    assert "--overwrite" in capsys.readouterr().err
    assert main([*words, "--workers", "1", "--overwrite"]) == 0


def test_errors_are_one_sentence(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    mute = make_bag(tmp_path / "mute", with_command=False)
    out = str(tmp_path / "data")
    for words, expected in (
        ([str(tmp_path / "nowhere"), "--robot", "tabletop"], "there is no bag"),
        ([str(mute), "--robot", "tabletop"], "no topic '/command'"),
        ([str(mute), "--robot", "unheard_of"], "unheard_of"),
        ([str(mute), "--robot", "tabletop", "--workers", "0"], "--workers"),
        ([str(mute), "--robot", "tabletop", "--overlay", "no.yaml"], "cannot read the overlay"),
        ([str(mute), "--robot", "tabletop", "--namespace", "arm"], "'/arm/image_raw'"),
    ):
        assert main(["ingest", *words, "--out", out]) == 1
        error = capsys.readouterr().err.strip()
        assert error.startswith("wm ingest: ")
        assert expected in error
        assert "\n" not in error
    assert not Path(out).exists()


def test_calibrate_writes_an_overlay_that_ingest_uses(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bag = make_bag(tmp_path / "bag", seconds=12.0)
    overlay, figures = tmp_path / "overlay.yaml", tmp_path / "figures.json"
    words = ["calibrate", "--delay", str(bag), "--robot", "tabletop", "--max-delay", "0.5"]
    assert main([*words, "--out", str(overlay), "--json", str(figures)]) == 0
    document = json.loads(figures.read_text())
    assert {item["name"] for item in document["channels"]} == {"tip_vx", "tip_vy"}
    assert "latency of camera front" in capsys.readouterr().out
    out = tmp_path / "data"
    words = ["ingest", str(bag), "--robot", "tabletop", "--out", str(out), "--workers", "1"]
    assert main([*words, "--overlay", str(overlay)]) == 0
    profile = Dataset.open(out).profile
    delays = document["action_delay_s"]
    assert profile.action.delay_s == tuple(delays[name] for name in profile.action.names)
    assert load_profile("tabletop").action.delay_s is None
    assert main(["calibrate", "--delay", str(bag), "--robot", "tabletop", "--max-delay", "9"]) == 1
    assert "--max-delay" in capsys.readouterr().err


def test_new_bags_are_put_onto_a_dataset_without_reading_its_bags_again(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    one, two = make_bag(tmp_path / "one"), make_bag(tmp_path / "two", seconds=9.0)
    robot = ["--robot", "tabletop", "--workers", "1", "--out"]
    whole, first, both = tmp_path / "whole", tmp_path / "first", tmp_path / "both"
    assert main(["ingest", str(one), str(two), *robot, str(whole)]) == 0
    assert main(["ingest", str(one), *robot, str(first)]) == 0
    before = Dataset.open(first).fingerprint
    assert main(["ingest", str(two), *robot, str(both), "--onto", str(first)]) == 0
    assert "1 episodes, 61 ticks" in capsys.readouterr().out
    expected, got = Dataset.open(whole), Dataset.open(both)
    assert [e.name for e in got.episodes] == [e.name for e in expected.episodes] == ["one", "two"]
    for name in ("stamps", "joints", "actions", "labels", "events", "frame_valid"):
        np.testing.assert_array_equal(getattr(got, name), getattr(expected, name))
    np.testing.assert_array_equal(got.frames("front")[:], expected.frames("front")[:])
    assert got.fingerprint not in (before, expected.fingerprint)
    assert Dataset.open(first).fingerprint == before, "it stays as it is"

    again = ["ingest", str(one), *robot, str(tmp_path / "x"), "--onto", str(first)]
    assert main(again) == 1
    assert "'one' is in" in capsys.readouterr().err
    overlay = tmp_path / "overlay.yaml"
    overlay.write_text("format: 1\nrobots: {tabletop: {camera_latency_s: {front: 0.05}}}\n")
    assert main([*again[:1], str(two), *again[2:], "--overlay", str(overlay)]) == 1
    assert "was ingested with another profile" in capsys.readouterr().err
    assert not (tmp_path / "x").exists()
