"""``wm collect``: bags that every reader reads, the same as the fast path, resumable."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import numpy as np
import pytest
from mcap.reader import make_reader
from mcap_ros2.decoder import DecoderFactory
from rosbags.highlevel import AnyReader

from wm_node.cli.main import main as wm
from wm_node.data.dataset import Dataset
from wm_node.data.images import decode_image, resize_area
from wm_node.data.ingest import ingest
from wm_node.profile import load_profile
from wm_node.sim.episode import record_episode
from wm_node.sim.generate import generate_episode
from wm_node.sim.levels import find_level
from wm_node.sim.mix import DEFAULT_MIX, Mix
from wm_node.sim.tabletop import TabletopSim

SEED = 21
TOPICS = {
    "/image_raw": "sensor_msgs/msg/Image",
    "/joint_states": "sensor_msgs/msg/JointState",
    "/command": "geometry_msgs/msg/TwistStamped",
    "/sim_robot/mug_pose": "geometry_msgs/msg/PoseStamped",
    "/sim_robot/tip": "geometry_msgs/msg/PointStamped",
    "/events/fell": "std_msgs/msg/Bool",
    "/events/zone": "std_msgs/msg/Bool",
}


def collect(out: Path, *words: str) -> int:
    given = ["collect", "--out", str(out), "--seed", str(SEED), "--workers", "1", *words]
    return wm(given)


@pytest.fixture(scope="module")
def bags(tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("collect") / "bags"
    assert collect(out, "--episodes", "2", "--json", str(out.parent / "figures.json")) == 0
    return out


def test_figures_are_written(bags):
    figures = json.loads((bags.parent / "figures.json").read_text())
    assert figures["episodes"] == figures["written"] == 2
    assert sum(figures["behaviours"].values()) == 2
    assert figures["bytes"] > 0


def test_both_readers_read_every_stream(bags):
    sim = TabletopSim((320, 240))
    streams = record_episode(sim, SEED, DEFAULT_MIX, 20)
    stamps: dict[str, list[int]] = {topic: [] for topic in TOPICS}
    pictures, joints, commands, mugs = [], [], [], []
    bag = bags / f"episode_{SEED:08d}"
    with AnyReader([bag]) as reader:
        assert {c.topic: c.msgtype for c in reader.connections} == TOPICS
        for connection, time, data in reader.messages():
            message = reader.deserialize(data, connection.msgtype)
            stamps[connection.topic].append(time)
            if connection.topic == "/image_raw":
                pictures.append(decode_image(message))
            elif connection.topic == "/joint_states":
                joints.append(message.position)
            elif connection.topic == "/command":
                assert message.header.frame_id == "table"
                commands.append((message.twist.linear.x, message.twist.linear.y))
            elif connection.topic == "/sim_robot/mug_pose":
                mugs.append((message.pose.position.x, message.pose.position.y))
            if hasattr(message, "header"):
                at = message.header.stamp
                assert at.sec * 10**9 + at.nanosec == time
    np.testing.assert_array_equal(np.stack(pictures), streams.frames)
    np.testing.assert_array_equal(np.stack(joints), streams.joints)
    np.testing.assert_array_equal(np.array(commands), streams.commands)
    np.testing.assert_array_equal(np.array(mugs), streams.mug_position[:, :2])
    assert stamps["/joint_states"] == streams.stamps.tolist()
    assert stamps["/image_raw"] == streams.frame_stamps.tolist()
    assert stamps["/command"] == streams.command_stamps.tolist()

    counts = dict.fromkeys(TOPICS, 0)
    with (bag / f"{bag.name}.mcap").open("rb") as file:
        for _, channel, _, _ in make_reader(
            file, decoder_factories=[DecoderFactory()]
        ).iter_decoded_messages():
            counts[channel.topic] += 1
    assert counts == {topic: len(times) for topic, times in stamps.items()}


def test_ingested_bags_equal_the_fast_path(bags, tmp_path):
    profile = load_profile("tabletop")
    ingest([bags], profile, tmp_path / "dataset")
    dataset = Dataset.open(tmp_path / "dataset")
    assert len(dataset.episodes) == 2
    for number, episode in enumerate(dataset.episodes):
        fast = generate_episode(profile, SEED + number)
        window = dataset.window(episode.start, episode.length)
        first = int(np.searchsorted(fast.stamps, window.stamps[0]))
        same = slice(first, first + episode.length)
        assert episode.length >= len(fast.stamps) - 2
        np.testing.assert_array_equal(window.stamps, fast.stamps[same])
        np.testing.assert_array_equal(window.frames["front"], fast.frames["front"][same])
        np.testing.assert_array_equal(window.frame_valid, fast.frame_valid[same])
        np.testing.assert_allclose(window.joints, fast.joints[same], atol=1e-6)
        np.testing.assert_allclose(window.actions, fast.actions[same], atol=1e-6)
        np.testing.assert_allclose(window.labels, fast.labels[same], atol=1e-6)
        np.testing.assert_array_equal(window.events, fast.events[same])


def test_an_interrupted_run_goes_on(bags, tmp_path, capsys):
    out = tmp_path / "bags"
    shutil.copytree(bags, out)
    kept = out / f"episode_{SEED:08d}" / "metadata.yaml"
    before = kept.stat().st_mtime_ns
    (out / f"episode_{SEED + 1:08d}" / "metadata.yaml").unlink()  # as after a kill
    assert collect(out, "--episodes", "2", "--json", str(tmp_path / "f.json")) == 0
    figures = json.loads((tmp_path / "f.json").read_text())
    assert (figures["written"], figures["kept"]) == (1, 1)
    assert kept.stat().st_mtime_ns == before
    assert (out / f"episode_{SEED + 1:08d}" / "metadata.yaml").is_file()
    assert collect(out, "--episodes", "2", "--image-size", "160x120") == 1
    assert "other settings" in capsys.readouterr().err


def test_compressed_images_of_another_size(tmp_path):
    out = tmp_path / "bags"
    words = ["--images", "compressed", "--image-size", "64x48", "--camera-rate", "10"]
    assert collect(out, "--episodes", "1", *words) == 0
    with AnyReader([out / f"episode_{SEED:08d}"]) as reader:
        wanted = [c for c in reader.connections if c.topic == "/image_raw/compressed"]
        (connection,) = wanted
        assert connection.msgtype == "sensor_msgs/msg/CompressedImage"
        _, _, data = next(reader.messages(connections=wanted))
        assert decode_image(reader.deserialize(data, connection.msgtype)).shape == (48, 64, 3)
        assert connection.msgcount == 61


def test_a_level_plays_in_its_scene_and_tells_what_is_hit(tmp_path):
    out = tmp_path / "bags"
    words = ["--level", "clutter", "--robot", "tabletop_hazards", "--behaviours", "aimed"]
    words += ["--camera-rate", "10", "--episodes", "4", "--json", str(tmp_path / "f.json")]
    assert collect(out, *words) == 0
    profile = load_profile("tabletop_hazards")
    sim = TabletopSim((320, 240), level=find_level("clutter"))
    ingest([out], profile, tmp_path / "dataset")
    dataset, hits = Dataset.open(tmp_path / "dataset"), 0
    at = profile.event_names.index("hit")
    for number, episode in enumerate(dataset.episodes):
        streams = record_episode(sim, SEED + number, Mix({"aimed": 1.0}), 10)
        window = dataset.window(episode.start, episode.length)
        np.testing.assert_array_equal(
            window.frames["front"][0], resize_area(streams.frames[0], 64, 64)
        )
        assert (window.events[:, at] == 1).any() == streams.hit.any()
        labels = dict(zip(profile.label_names, window.labels.T, strict=True))
        place = streams.others["second_mug"][0]
        assert (labels["second_mug_x"][0], labels["second_mug_y"][0]) == pytest.approx(place)
        assert np.isnan(labels["hand_x"]).all()  # there is none
        hits += streams.hit.any()
    assert 0 < hits < 4
    assert json.loads((tmp_path / "f.json").read_text())["hits"] == hits
    assert collect(out, *words, "--level", "basic") == 1  # another scene, the same folder


def test_scattered_scenes_are_labelled_each_by_itself(tmp_path):
    out = tmp_path / "bags"
    words = ["--level", "scattered", "--robot", "tabletop_hazards", "--camera-rate", "10"]
    assert collect(out, *words, "--episodes", "1") == 0
    profile = load_profile("tabletop_hazards")
    ingest([out], profile, tmp_path / "dataset")
    dataset = Dataset.open(tmp_path / "dataset")
    sim = TabletopSim((320, 240), level=find_level("scattered"))
    streams = record_episode(sim, SEED, Mix({"aimed": 1.0}), 10)
    labels = dict(zip(profile.label_names, dataset.labels.T, strict=True))
    at = np.searchsorted(streams.stamps, dataset.stamps)
    np.testing.assert_allclose(labels["mug_x"], streams.mug_position[at, 0], atol=1e-6)
    for name, places in streams.others.items():
        np.testing.assert_allclose(labels[f"{name}_x"], places[at, 0], atol=1e-6)
        assert 0 < np.isnan(labels[f"{name}_x"]).sum() < len(at)
    for frame, wanted in zip(dataset.frames("front"), streams.frames, strict=True):
        np.testing.assert_array_equal(frame, resize_area(wanted, 64, 64))


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--episodes", "0"], "--episodes"),
        (["--workers", "0"], "--workers"),
        (["--image-size", "big"], "320x240"),
        (["--image-size", "9999x10"], "--image-size"),
        (["--behaviours", "dance"], "dance"),
        (["--seed", "-1"], "--seed"),
        (["--level", "hell"], "there is no level 'hell'"),
        (["--camera-rate", "30"], "divide"),
    ],
)
def test_wrong_arguments_are_one_sentence(tmp_path, capsys, words, told):
    out = tmp_path / "bags"
    assert wm(["collect", "--out", str(out), *words]) == 1
    assert told in capsys.readouterr().err
    assert not out.exists()


def test_a_place_that_cannot_be_written_is_one_sentence(tmp_path, capsys):
    (tmp_path / "file").write_text("")
    assert collect(tmp_path / "file" / "bags", "--episodes", "1") == 1
    assert "cannot write" in capsys.readouterr().err
