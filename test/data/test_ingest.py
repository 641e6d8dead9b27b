"""Ingestion of real bags: alignment, cuts, reasons, order, memory."""

from __future__ import annotations

import json
import os
import shutil
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rosbags.rosbag2 import StoragePlugin, Writer
from rosbags.typesys import get_types_from_msg

from wm_node.data import messages
from wm_node.data.bag_writer import BagWriter
from wm_node.data.dataset import Dataset
from wm_node.data.ingest import CONTACT_SHEET, IngestResult, ingest
from wm_node.data.overlay import Overlay, RobotOverlay, apply_overlay
from wm_node.errors import WmError
from wm_node.profile import RobotProfile, load_profile, parse_profile

MS = 1_000_000
START = 1_700_000_000_000_000_000
Record = Callable[..., Any]


def changed(profile: RobotProfile, **changes: Any) -> RobotProfile:
    data = profile.dump()
    for path, value in changes.items():
        node = data
        *parents, last = path.split("__")
        for key in parents:
            node = node[int(key)] if key.isdigit() else node[key]
        node[last] = value
    return parse_profile(data, "test")


def run(path: Path, profile: RobotProfile, out: Path, **options: Any) -> tuple[Dataset, dict]:
    result: IngestResult = ingest([path], profile, out, **options)
    return Dataset.open(out), result.summary


def reason(path: Path, profile: RobotProfile, out: Path, **options: Any) -> str:
    """Why the only bag was skipped."""
    with pytest.raises(WmError) as caught:
        ingest([path], profile, out, **options)
    assert not out.exists()
    assert list(out.parent.glob(f".{out.name}*")) == []
    return str(caught.value)


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
@pytest.mark.parametrize("compressed", [False, True])
@pytest.mark.parametrize("namespace", ["", "/robot1"])
def test_streams_land_on_their_ticks(
    tmp_path: Path,
    tabletop: RobotProfile,
    record: Record,
    storage: str,
    compressed: bool,
    namespace: str,
) -> None:
    bag = record(4.0, compressed=compressed, namespace=namespace).save(tmp_path / "bag", storage)
    data, summary = run(bag, tabletop, tmp_path / "data", namespace=namespace)
    (episode,) = data.episodes
    assert (episode.name, episode.length) == ("bag", 41)
    seconds = (data.stamps - START) / 1e9
    np.testing.assert_allclose(seconds, np.arange(41) * 0.1, atol=1e-9)
    # joints in the profile's order, interpolated to the tick
    np.testing.assert_allclose(data.joints, seconds[:, None] + np.arange(4), atol=1e-5)
    # frames of the tick: the camera runs at 20 Hz, so every second frame
    brightness = data.frames("front")[:, 40:, 40:].mean(axis=(1, 2, 3))
    np.testing.assert_allclose(brightness, (np.arange(41) * 2 * 3) % 250, atol=2)
    # the command given at the tick acts until the next tick
    expected = 0.001 * np.arange(41)
    np.testing.assert_allclose(data.actions, np.stack([expected, -expected], 1), atol=1e-7)
    np.testing.assert_allclose(data.labels[:, 0], 0.1 * seconds, atol=1e-6)
    np.testing.assert_allclose(data.labels[:, 3], 0.3 * seconds, atol=1e-6)
    assert data.events[:, 0].tolist() == [0] * 30 + [1] * 11
    assert data.events[:, 1].tolist() == [0] * 41
    assert data.frame_valid.all()
    assert summary["bags_used"] == summary["episodes"] == 1
    assert summary["hours"] == pytest.approx(41 * 0.1 / 3600)
    assert summary["topics"][f"{namespace}/joint_states"]["rate_hz"] == pytest.approx(100)
    assert summary["events"] == {
        "fell": {"onsets": 1, "ticks": 11, "bags": 1},
        "zone": {"onsets": 0, "ticks": 0, "bags": 0},
    }
    assert summary["joints"]["base_yaw"]["max"] == pytest.approx(4.0, abs=1e-5)
    assert summary["actions"]["tip_vx"]["max"] == pytest.approx(0.04, abs=1e-6)
    assert any("no header" in note for note in summary["notes"])
    assert (tmp_path / "data" / CONTACT_SHEET).stat().st_size > 500
    assert data.info == json.loads(json.dumps(summary))


def test_a_bare_file_without_metadata_is_a_bag(
    tmp_path: Path, tabletop: RobotProfile, record: Record
) -> None:
    bag = record(3.0).save(tmp_path / "bag")
    data, _ = run(bag / "bag.mcap", tabletop, tmp_path / "data")
    assert data.num_ticks == 31


def test_delays_move_commands(tmp_path: Path, tabletop: RobotProfile, record: Record) -> None:
    bag = record(4.0).save(tmp_path / "bag")
    delayed = apply_overlay(
        tabletop,
        Overlay(format=1, robots={"tabletop": RobotOverlay(action_delay_s={"tip_vy": 0.15})}),
    )
    data, summary = run(bag, delayed, tmp_path / "data")
    number = np.arange(5, 35)
    np.testing.assert_allclose(data.actions[5:35, 0], 0.001 * number, atol=1e-7)
    np.testing.assert_allclose(data.actions[5:35, 1], -0.001 * (number - 1.5), atol=1e-7)
    assert summary["action_delay_s"] == [0.0, 0.15]


def test_camera_latency_moves_frames(
    tmp_path: Path, tabletop: RobotProfile, record: Record
) -> None:
    bag = record(4.0).save(tmp_path / "bag")
    data, _ = run(bag, changed(tabletop, cameras__0__latency_s=0.05), tmp_path / "data")
    # The first frame shows the scene 50 ms before its stamp, so ticks begin there and joints,
    # which begin at their stamp, are complete from the second tick on.
    assert data.stamps[0] == START + 50 * MS
    np.testing.assert_allclose(data.joints[:, 0], 0.05 + 0.1 * np.arange(data.num_ticks), atol=1e-5)


def test_commands_end_at_the_drivers_timeout(
    tmp_path: Path, tabletop: RobotProfile, record: Record
) -> None:
    recording = record(4.0)
    recording.keep(lambda t, topic: topic != "/command" or t < START + 1050 * MS)
    data, summary = run(recording.save(tmp_path / "bag"), tabletop, tmp_path / "data")
    assert data.num_ticks == 41  # silence of commands is no gap: the driver brakes
    np.testing.assert_allclose(data.actions[9:14, 0], [0.009, 0.01, 0.01, 0, 0], atol=1e-7)
    assert summary["gaps"]["action"] == 0


def test_gaps_split_and_short_pieces_are_dropped(
    tmp_path: Path, tabletop: RobotProfile, record: Record
) -> None:
    recording = record(9.0)

    def outside(t: int, low: float, high: float) -> bool:
        return not START + low * 1e9 < t < START + high * 1e9

    recording.keep(
        lambda t, topic: {
            "/image_raw": outside(t, 2.52, 2.98),  # frames 2.55 .. 2.95 are lost
            "/joint_states": outside(t, 5.502, 6.0) and outside(t, 6.5, 6.52),
        }.get(topic, True)
    )
    data, summary = run(recording.save(tmp_path / "bag"), tabletop, tmp_path / "data")
    assert [e.name for e in data.episodes] == ["bag#0", "bag#1", "bag#2"]
    first, second, third = data.episodes
    assert first.length == 26  # ticks 0.0 to 2.5
    assert data.stamps[second.start] == START + 3000 * MS
    assert second.length == 26  # ticks 3.0 to 5.5
    assert third.length == 31  # ticks 6.0 to 9.0: two lost joint samples are bridged
    assert summary["gaps"] == {"frame": 1, "joints": 1, "action": 0, "damaged frame": 0}
    assert summary["frames_missing"] == {"front": 9}
    recording.keep(lambda t, topic: outside(t, 7.9, 8.1))
    data, summary = run(recording.save(tmp_path / "bag2"), tabletop, tmp_path / "data2")
    assert len(data.episodes) == 2
    assert summary["short_segments"] == 2


def test_one_lost_frame_at_a_tick_is_a_gap_and_one_between_ticks_is_not(
    tmp_path: Path, tabletop: RobotProfile, record: Record
) -> None:
    recording = record(6.0)
    gone = START + 3053 * MS  # recorded 3 ms after its stamp, between two ticks
    recording.keep(lambda t, topic: topic != "/image_raw" or t != gone)
    data, summary = run(recording.save(tmp_path / "a"), tabletop, tmp_path / "data_a")
    assert [e.length for e in data.episodes] == [61]
    recording.keep(lambda t, topic: topic != "/image_raw" or t != START + 3003 * MS)
    data, summary = run(recording.save(tmp_path / "b"), tabletop, tmp_path / "data_b")
    assert [e.length for e in data.episodes] == [30, 30]
    assert summary["gaps"]["frame"] == 1


def test_labels_and_events_may_be_absent(
    tmp_path: Path, tabletop: RobotProfile, record: Record
) -> None:
    recording = record(3.0)
    recording.drop("/sim_robot/mug_pose")
    recording.drop("/events/zone")
    recording.keep(lambda t, topic: topic != "/events/fell" or t > START + 1000 * MS)
    data, summary = run(recording.save(tmp_path / "bag"), tabletop, tmp_path / "data")
    assert np.isnan(data.labels[:, :2]).all()
    assert np.isfinite(data.labels[:, 2:]).all()
    assert data.events[:, 0].tolist() == [255] * 11 + [0] * 19 + [1]
    assert (data.events[:, 1] == 255).all()
    assert summary["labels"] == {"mug_x": 0, "mug_y": 0, "tip_x": 31, "tip_y": 31}


def test_a_label_that_falls_silent_is_unknown(
    tmp_path: Path, tabletop: RobotProfile, record: Record
) -> None:
    """At 100 Hz, a tenth of a second without a place means that there is no such thing."""
    recording = record(3.0)
    silent = range(START + 950 * MS, START + 1095 * MS)
    recording.keep(lambda t, topic: topic != "/sim_robot/mug_pose" or t not in silent)
    data, _ = run(recording.save(tmp_path / "bag"), tabletop, tmp_path / "data")
    assert np.flatnonzero(np.isnan(data.labels[:, 0])).tolist() == [10]
    assert np.isfinite(data.labels[:, 2]).all()


def test_messages_without_header_follow_the_header_clock(
    tmp_path: Path, tabletop: RobotProfile, record: Record
) -> None:
    recording = record(4.0)
    recording.items = [(t + 5_000_000_000_000, topic, m) for t, topic, m in recording.items]
    data, summary = run(recording.save(tmp_path / "bag"), tabletop, tmp_path / "data")
    assert data.events[:, 0].sum() in (11, 12)  # recorded some ms after its header's clock
    assert any("less 5000.0" in note for note in summary["notes"])


@pytest.mark.parametrize("topic", ["/image_raw", "/joint_states", "/command"])
def test_missing_and_silent_topics_are_named(
    tmp_path: Path, tabletop: RobotProfile, record: Record, topic: str
) -> None:
    recording = record(3.0)
    kind = recording.types[topic]
    recording.drop(topic)
    assert topic in reason(recording.save(tmp_path / "a"), tabletop, tmp_path / "data")
    recording.announce(topic, kind)
    text = reason(recording.save(tmp_path / "b"), tabletop, tmp_path / "data")
    assert topic in text
    assert "messages" in text
    recording.drop(topic)
    recording.add(topic, "std_msgs/msg/String", START, messages.string("no"))
    text = reason(recording.save(tmp_path / "c"), tabletop, tmp_path / "data")
    assert topic in text
    assert "std_msgs/msg/String" in text


def replace(recording: Any, topic: str, change: Callable[[Any], Any]) -> Any:
    recording.items = [
        (t, name, change(message) if name == topic else message)
        for t, name, message in recording.items
    ]
    return recording


def test_what_is_wrong_with_the_messages_is_named(
    tmp_path: Path, tabletop: RobotProfile, record: Record
) -> None:
    image = messages.message_class("sensor_msgs/msg/Image")
    joint = messages.message_class("sensor_msgs/msg/JointState")

    def depth(m: Any) -> Any:
        return image(m.header, m.height, m.width // 2, "16UC1", 0, m.width, m.data)

    def other_joint(m: Any) -> Any:
        return joint(m.header, ["x", *m.name[1:]], m.position, m.velocity, m.effort)

    def no_positions(m: Any) -> Any:
        return joint(m.header, m.name, m.velocity, m.velocity, m.effort)

    def no_stamp(m: Any) -> Any:
        return joint(messages.header(0), m.name, m.position, m.velocity, m.effort)

    def not_finite(m: Any) -> Any:
        return joint(m.header, m.name, m.position * np.nan, m.velocity, m.effort)

    for number, (topic, change, expected) in enumerate(
        [
            ("/image_raw", depth, "16UC1"),
            ("/joint_states", other_joint, "'wrist'"),
            ("/joint_states", no_positions, "0 values"),
            ("/joint_states", no_stamp, "stamp"),
            ("/joint_states", not_finite, "no finite values"),
        ]
    ):
        recording = replace(record(3.0), topic, change)
        text = reason(recording.save(tmp_path / str(number)), tabletop, tmp_path / "data")
        assert expected in text, text


def test_other_reasons(tmp_path: Path, tabletop: RobotProfile, record: Record) -> None:
    out = tmp_path / "data"
    assert "too short" in reason(record(1.0).save(tmp_path / "short"), tabletop, out)
    slow = changed(tabletop, joints__rate_hz=1000, cameras__0__latency_s=0.055)
    text = reason(record(3.0).save(tmp_path / "slow"), slow, out)
    assert "measured 100.0 Hz, the profile says 1000 Hz" in text
    wide = reason(record(3.0, size=(128, 48)).save(tmp_path / "wide"), tabletop, out)
    assert "another shape" in wide
    twice = record(3.0)
    twice.items += [(t + 4 * 10**9, topic, m) for t, topic, m in twice.items]
    assert "jumps back by 3.0 s" in reason(twice.save(tmp_path / "twice"), tabletop, out)
    cut = record(3.0).save(tmp_path / "cut")
    file = cut / "cut.mcap"
    file.write_bytes(file.read_bytes()[:-100])
    assert "cannot be opened" in reason(cut, tabletop, out)


def test_damaged_frames_cost_their_tick_only(
    tmp_path: Path, tabletop: RobotProfile, record: Record
) -> None:
    recording = record(6.0, compressed=True)
    kind = messages.message_class("sensor_msgs/msg/CompressedImage")

    def damage(m: Any) -> Any:
        at = m.header.stamp.sec * 10**9 + m.header.stamp.nanosec - START
        return kind(m.header, m.format, m.data[:100]) if at == 3000 * MS else m

    replace(recording, "/image_raw/compressed", damage)
    data, summary = run(recording.save(tmp_path / "bag"), tabletop, tmp_path / "data")
    assert [e.length for e in data.episodes] == [30, 30]
    assert summary["frames_damaged"] == 1
    assert summary["gaps"]["damaged frame"] == 1


def test_a_message_that_claims_a_huge_image_is_refused(
    tmp_path: Path, tabletop: RobotProfile, record: Record
) -> None:
    image = messages.message_class("sensor_msgs/msg/Image")

    def claim(m: Any) -> Any:
        return image(m.header, 2**31, 2**31, "rgb8", 0, 2**31, m.data[:10])

    recording = replace(record(3.0), "/image_raw", claim)
    text = reason(recording.save(tmp_path / "bag"), tabletop, tmp_path / "data")
    assert "damaged frame" in text


def test_good_bags_are_used_and_bad_ones_named_in_a_fixed_order(
    tmp_path: Path, tabletop: RobotProfile, record: Record
) -> None:
    bags = tmp_path / "bags"
    bags.mkdir()
    for number in range(6):
        recording = record(3.0 + 0.2 * number, start=START + number * 10**10)
        if number == 2:
            recording.drop("/command")
        recording.save(bags / f"bag_{number}")
    seen: list[tuple[int, int, str]] = []
    results = [
        ingest(
            [bags],
            tabletop,
            tmp_path / f"data_{workers}",
            workers=workers,
            progress=lambda done, total, report: seen.append((done, total, report.name)),
        )
        for workers in (1, 2)
    ]
    assert seen[:6] == seen[6:] == [(i + 1, 6, f"bag_{i}") for i in range(6)]
    for result in results:
        assert list(result.summary["skipped"]) == ["bag_2"]
        assert "/command" in result.summary["skipped"]["bag_2"]
    one, two = (Dataset.open(result.path) for result in results)
    assert [e.name for e in one.episodes] == ["bag_0", "bag_1", "bag_3", "bag_4", "bag_5"]
    assert one.episodes == two.episodes
    assert one.fingerprint == two.fingerprint
    for key in ("joints", "actions", "labels", "events", "stamps"):
        np.testing.assert_array_equal(getattr(one, key), getattr(two, key))
    np.testing.assert_array_equal(one.frames("front")[:], two.frames("front")[:])


def test_arms_and_hands_may_publish_apart(
    tmp_path: Path, tabletop: RobotProfile, record: Record
) -> None:
    recording = record(3.0)
    joint = messages.message_class("sensor_msgs/msg/JointState")

    def part(m: Any, low: int, high: int) -> Any:
        empty = m.velocity
        return joint(m.header, m.name[low:high], m.position[low:high], empty, empty)

    items = []
    for t, topic, message in recording.items:
        if topic == "/joint_states":
            items += [(t, topic, part(message, 0, 2)), (t, topic, part(message, 2, 4))]
        else:
            items.append((t, topic, message))
    recording.items = items
    data, _ = run(recording.save(tmp_path / "bag"), tabletop, tmp_path / "data")
    seconds = np.arange(31)[:, None] * 0.1
    np.testing.assert_allclose(data.joints, seconds + np.arange(4), atol=1e-5)


def test_a_silent_camera_of_two_is_masked(
    tmp_path: Path, tabletop: RobotProfile, record: Record
) -> None:
    data = tabletop.dump()
    data["cameras"].append({**data["cameras"][0], "name": "wrist", "topic": "wrist/image"})
    two = parse_profile(data, "test")
    recording = record(5.0)
    second = [
        (t, "/wrist/image", message)
        for t, topic, message in recording.items
        if topic == "/image_raw" and t < START + 2000 * MS
    ]
    recording.types["/wrist/image"] = "sensor_msgs/msg/Image"
    recording.items += second
    dataset, summary = run(recording.save(tmp_path / "bag"), two, tmp_path / "data")
    assert dataset.num_ticks == 51
    assert dataset.frame_valid[:, 0].all()
    assert dataset.frame_valid[:, 1].tolist() == [1] * 20 + [0] * 31
    np.testing.assert_array_equal(dataset.frames("wrist")[:20], dataset.frames("front")[:20])
    assert not dataset.frames("wrist")[20:].any()
    assert summary["frames_masked"] == {"front": 0, "wrist": 31}
    recording.drop("/wrist/image")
    dataset, summary = run(recording.save(tmp_path / "bag2"), two, tmp_path / "data2")
    assert not dataset.frame_valid[:, 1].any()


def test_trajectories_are_read_as_set_points(
    tmp_path: Path, tabletop: RobotProfile, record: Record
) -> None:
    profile = changed(
        tabletop,
        action={
            "kind": "joint_position",
            "names": ["shoulder", "elbow"],
            "units": ["rad", "rad"],
            "lower": [-9, -9],
            "upper": [99, 99],
            "rate_hz": 10,
            "topic": "command",
            "message": "trajectory_msgs/msg/JointTrajectory",
            "fields": ["positions"],
            "readback": {
                "topic": "command",
                "message": "trajectory_msgs/msg/JointTrajectory",
                "fields": ["positions"],
            },
        },
    )
    trajectory = messages.message_class("trajectory_msgs/msg/JointTrajectory")
    point = messages.message_class("trajectory_msgs/msg/JointTrajectoryPoint")
    duration = messages.message_class("builtin_interfaces/msg/Duration")
    empty = np.zeros(0)
    recording = record(4.0)
    recording.drop("/command")
    for half in range(8):  # every 0.5 s: ten points of 0.1 s each, of which five are travelled to
        stamp = START + half * 500 * MS
        points = [
            point(
                np.array([float(half * 5 + k), -float(half * 5 + k)]),
                empty,
                empty,
                empty,
                duration((k + 1) // 10, (k + 1) % 10 * 100 * MS),
            )
            for k in range(10)
        ]
        message = trajectory(messages.header(stamp), ["elbow", "shoulder"], points)
        recording.add("/command", "trajectory_msgs/msg/JointTrajectory", stamp + MS, message)
    data, _ = run(recording.save(tmp_path / "bag"), profile, tmp_path / "data")
    np.testing.assert_allclose(data.actions[:40, 1], np.arange(40))
    np.testing.assert_allclose(data.actions[:40, 0], -np.arange(40))


def test_message_types_of_ones_own_are_read_by_the_bags_definition(
    tmp_path: Path, tabletop: RobotProfile, record: Record
) -> None:
    kind = "my_msgs/msg/Drive"
    readback = {"topic": "drive", "message": kind, "fields": ["vx", "vy"]}
    profile = changed(tabletop, action__readback=readback)
    for number, definition in enumerate(("float64 vx\nfloat64 vy", "string why\nfloat32[2] v")):
        types = messages.new_typestore()
        types.register(get_types_from_msg(f"std_msgs/Header header\n{definition}\n", kind))
        recording = record(3.0)
        recording.drop("/command")
        path = recording.save(tmp_path / str(number), "sqlite3")
        shutil.rmtree(path)
        with Writer(path, version=9, storage_plugin=StoragePlugin.MCAP) as bag:
            connections = {
                topic: bag.add_connection(topic, name, typestore=types)
                for topic, name in {**recording.types, "/drive": kind}.items()
            }
            for t, topic, message in recording.items:
                data = messages.serialize(message, recording.types[topic])
                bag.write(connections[topic], t, data)
            for k in range(31):
                stamp = START + k * 100 * MS
                header = messages.header(stamp)
                values = (0.001 * k, 0.002 * k) if number == 0 else ("x", np.zeros(2, "f4"))
                data = types.serialize_cdr(types.types[kind](header, *values), kind)
                bag.write(connections["/drive"], stamp, data)
        if number == 0:
            dataset, _ = run(path, profile, tmp_path / "data")
            expected = np.arange(31)[:, None] * [0.001, 0.002]
            np.testing.assert_allclose(dataset.actions, expected, atol=1e-6)
        else:  # the same name, defined otherwise: told apart from the first
            assert "no field 'vx'" in reason(path, profile, tmp_path / "other")


def test_a_full_disk_is_one_sentence(
    tmp_path: Path, tabletop: RobotProfile, record: Record
) -> None:
    record(6.0).save(tmp_path / "bag")
    script = (
        "import resource, signal, sys\n"
        "from wm_node.cli.main import main\n"
        "signal.signal(signal.SIGXFSZ, signal.SIG_IGN)\n"
        "resource.setrlimit(resource.RLIMIT_FSIZE, (300_000, 300_000))\n"
        "sys.exit(main(sys.argv[1:]))\n"
    )
    words = ["ingest", tmp_path / "bag", "--robot", "tabletop", "--out", tmp_path / "data"]
    done = subprocess.run(
        [sys.executable, "-c", script, *map(str, words), "--workers", "1"],
        capture_output=True,
        text=True,
        timeout=60,
    )
    assert done.returncode == 1
    assert "cannot write the dataset" in done.stderr
    assert "Traceback" not in done.stderr
    assert sorted(p.name for p in tmp_path.iterdir()) == ["bag"]


def peak_megabytes(bag: Path, out: Path) -> float:
    script = (
        "import resource, sys\n"
        "from wm_node.data.ingest import ingest\n"
        "from wm_node.profile import load_profile\n"
        "ingest([sys.argv[1]], load_profile('tabletop'), sys.argv[2])\n"
        "sys.stdout.write(str(resource.getrusage(resource.RUSAGE_SELF).ru_maxrss / 1024))\n"
    )
    done = subprocess.run(
        [sys.executable, "-c", script, str(bag), str(out)],
        capture_output=True,
        text=True,
        timeout=100,
        check=True,
        env={**os.environ, "OMP_NUM_THREADS": "1"},
    )
    return float(done.stdout)


def test_memory_does_not_grow_with_the_bag(tmp_path: Path, record: Record) -> None:
    peaks = []
    for frames in (100, 300):
        recording = record(frames / 20)
        recording.drop("/image_raw")
        picture = np.zeros((480, 640, 3), np.uint8)
        with BagWriter(tmp_path / str(frames)) as bag:
            for topic, kind in {**recording.types, "/image_raw": "sensor_msgs/msg/Image"}.items():
                bag.add_topic(topic, kind)
            for t, topic, message in recording.items:
                bag.write(topic, message, t)
            for number in range(frames):
                stamp = START + number * 50 * MS
                bag.write("/image_raw", messages.image(stamp, "camera", picture), stamp)
        peaks.append(peak_megabytes(tmp_path / str(frames), tmp_path / f"data_{frames}"))
    # 200 more frames are 184 MB of pixels
    assert peaks[1] - peaks[0] < 60, peaks


def test_the_real_recordings(tmp_path: Path, g1_bags: Path) -> None:
    profile = load_profile("g1_bottle")
    bags = sorted(path for path in g1_bags.iterdir() if path.is_dir())[:3]
    result = ingest(bags, profile, tmp_path / "data", workers=2)
    data = Dataset.open(result.path)
    assert result.summary["bags_used"] == len(data.episodes) == 3
    assert all(episode.length > 60 for episode in data.episodes)
    assert result.summary["topics"]["/joint_states"]["rate_hz"] == pytest.approx(30, rel=0.01)
    assert np.isfinite(data.joints).all()
    assert np.isfinite(data.actions).all()
    # Joints follow their commands: after the dead time a command and its joint stay close.
    moved = np.ptp(data.joints, axis=0) > 0.2
    error = np.abs(data.joints[1:, moved] - data.actions[:-1, moved]).mean()
    assert error < 0.1
    camera = profile.cameras[0].name
    assert 30 < data.frames(camera)[:].mean() < 220
