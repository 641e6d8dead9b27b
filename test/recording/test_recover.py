"""``wm recover``: saves what is sound, never touches the original, says what is gone."""

from __future__ import annotations

import json
import shutil
import sqlite3
import struct
import time
from pathlib import Path

import pytest
import yaml
from mcap.writer import CompressionType, Writer
from rosbags.highlevel import AnyReader

from wm_node.cli.main import main as wm
from wm_node.errors import WmError
from wm_node.recording.definitions import message_definition
from wm_node.recording.recorder import BagRecorder, RecorderConfig
from wm_node.recording.recover import recover

SECOND = 1_000_000_000


def texts(bag: Path) -> dict[str, list[str]]:
    with AnyReader([bag]) as reader:
        found: dict[str, list[str]] = {}
        for connection, _, data in reader.messages():
            found.setdefault(connection.topic, []).append(
                reader.deserialize(data, connection.msgtype).data
            )
    return found


@pytest.fixture
def bag(tmp_path: Path, make_topic, cdr) -> Path:
    """Two files of 50 messages each, 0.1 s apart, in chunks of about 10."""
    folder = tmp_path / "bag"
    config = RecorderConfig(folder, min_free_bytes=0, chunk_bytes=1 << 10)
    start = time.time_ns()
    recorder = BagRecorder(config, {"robot": "r"}, {"n.txt": ("text/plain", b"n")})
    recorder.start()
    topic = make_topic("/t")
    for i in range(100):
        if i == 50:
            recorder.split()
        recorder.write(topic, start + i * SECOND // 10, 5, cdr(f"{i:060d}"))
    recorder.close()
    return folder


def chunks(path: Path) -> list[tuple[int, int]]:
    """Return (offset, end) of each chunk of a sound file."""
    data = path.read_bytes()
    at, found = 8, []
    while data[at] != 0x0F:
        (length,) = struct.unpack_from("<Q", data, at + 1)
        if data[at] == 0x06:
            found.append((at, at + 9 + length))
        at += 9 + length
    return found


def snapshot(folder: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in folder.iterdir()}


def test_a_sound_bag_is_left_alone(bag, capsys):
    before = snapshot(bag)
    assert wm(["recover", str(bag)]) == 0
    assert "is healthy: 100 messages, nothing to repair." in capsys.readouterr().out
    assert wm(["recover", str(bag / "bag_1.mcap")]) == 0
    assert snapshot(bag) == before
    assert [path.name for path in bag.parent.iterdir()] == ["bag"]


def test_a_cut_file_gives_all_whole_chunks_and_whole_messages(bag, capsys):
    last = bag / "bag_1.mcap"
    pieces = chunks(last)
    cut_at = (pieces[3][0] + pieces[3][1]) // 2
    last.write_bytes(last.read_bytes()[:cut_at])
    before = snapshot(bag)
    figures = bag.parent / "figures" / "r.json"
    assert wm(["recover", str(bag), "--json", str(figures)]) == 0
    assert snapshot(bag) == before

    out = bag.parent / "bag_recovered"
    found = [int(text) for text in texts(out)["/t"]]
    assert found == list(range(len(found)))
    assert len(found) >= 50 + 3 * 10
    document = json.loads(figures.read_text())
    assert document["saved"] == {"/t": len(found)}
    assert document["missing"] == {"/t": 100 - len(found)}
    assert [file["action"] for file in document["files"]] == ["kept", "repaired"]
    assert document["open_chunk_s"] == 0.5
    said = capsys.readouterr().out
    assert f"saved {len(found)} messages into {out}" in said
    assert "at most 0.5 s still in memory" in said
    assert recover(out).healthy
    info = yaml.safe_load((out / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    topic = info["topics_with_message_count"][0]["topic_metadata"]
    assert topic["offered_qos_profiles"][0]["reliability"] == "reliable"
    assert topic["type_description_hash"].startswith("RIHS01_")
    assert info["custom_data"] == {"robot": "r"}


def test_a_damaged_chunk_costs_itself_and_its_time_is_told(bag):
    first = bag / "bag_0.mcap"
    data = bytearray(first.read_bytes())
    start, end = chunks(first)[1]
    data[end - 20] ^= 0xFF
    first.write_bytes(data)
    report = recover(bag, bag.parent / "out")
    found = [int(text) for text in texts(bag.parent / "out")["/t"]]
    missing = sorted(set(range(100)) - set(found))
    assert missing
    assert missing == list(range(missing[0], missing[-1] + 1))
    assert report.lost_s == pytest.approx(0.1 * (len(missing) + 1), abs=1e-3)
    assert report.open_chunk_s == 0.0
    assert f"a chunk is damaged (its checksum does not match) at byte {start}" in " ".join(
        report.files[0].problems
    ) or "decompress" in " ".join(report.files[0].problems)


def test_the_search_goes_on_behind_bytes_that_are_no_record(bag):
    first = bag / "bag_0.mcap"
    data = first.read_bytes()
    (start, end), *_ = chunks(first)[2:]
    first.write_bytes(data[:start] + b"\xee" * 777 + data[end:])
    report = recover(bag, bag.parent / "out")
    found = [int(text) for text in texts(bag.parent / "out")["/t"]]
    assert 80 <= len(found) < 100
    assert found[-1] == 99
    assert report.files[0].action == "repaired"
    # The chunk that declares the channel may be the one that is gone: the summary has it too.
    start, end = chunks(bag / "bag_1.mcap")[0]
    data = (bag / "bag_1.mcap").read_bytes()
    (bag / "bag_1.mcap").write_bytes(data[: start + 60] + bytes(end - start - 60) + data[end:])
    report = recover(bag, bag.parent / "again")
    assert report.saved["/t"] > 60


def test_in_place_replaces_the_damaged_file_only(bag):
    last = bag / "bag_1.mcap"
    last.write_bytes(last.read_bytes()[:-200])
    (bag / "metadata.yaml").unlink()
    kept = (bag / "bag_0.mcap").read_bytes()
    report = recover(bag, in_place=True)
    assert report.out == bag
    assert report.metadata_problem == "metadata.yaml is missing"
    assert (bag / "bag_0.mcap").read_bytes() == kept
    assert [int(text) for text in texts(bag)["/t"]] == list(range(100))
    assert recover(bag).healthy
    assert sorted(path.name for path in bag.iterdir()) == [
        "bag_0.mcap",
        "bag_1.mcap",
        "metadata.yaml",
    ]


def test_an_interrupted_repair_in_place_leaves_the_bag_as_it_was(bag):
    last = bag / "bag_1.mcap"
    last.write_bytes(last.read_bytes()[:-200])
    before = snapshot(bag)

    def interrupt(done: int, total: int) -> None:
        if list(bag.glob("*.recovering")):  # the copy has been begun
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        recover(bag, in_place=True, progress=interrupt)
    assert snapshot(bag) == before


def test_a_repair_in_place_begins_anew_after_one_that_was_killed(bag):
    last = bag / "bag_1.mcap"
    last.write_bytes(last.read_bytes()[:-200])
    (bag / "bag_1.mcap.recovering").write_bytes(b"half a copy")
    assert recover(bag, in_place=True).saved == {"/t": 100}
    assert sorted(path.name for path in bag.glob("*mcap*")) == ["bag_0.mcap", "bag_1.mcap"]


def test_metadata_alone_is_rebuilt_from_sound_files(bag):
    (bag / "metadata.yaml").write_text("rosbag2_bagfile_information: {version: [")
    report = recover(bag)
    assert "is not valid YAML" in str(report.metadata_problem)
    assert all(file.action == "kept" for file in report.files)
    assert len(texts(bag.parent / "bag_recovered")["/t"]) == 100


def test_a_file_without_anything_is_left_out(bag):
    (bag / "bag_2.mcap").write_bytes(b"")
    (bag / "bag_3.mcap").write_bytes(bytes(4096))
    report = recover(bag)
    actions = {file.name: file.action for file in report.files}
    assert actions["bag_2.mcap"] == actions["bag_3.mcap"] == "left out"
    assert sum(report.saved.values()) == 100


@pytest.mark.parametrize("compression", list(CompressionType))
def test_files_of_other_writers_are_repaired_too(tmp_path, cdr, compression):
    """Old QoS numbers, two channels of one schema, a channel without any, any compression."""
    path = tmp_path / "foreign.mcap"
    with path.open("wb") as file:
        writer = Writer(file, chunk_size=2000, compression=compression)
        writer.start(profile="ros2", library="other")
        definition = message_definition("std_msgs/msg/String").encode()
        schema = writer.register_schema("std_msgs/msg/String", "ros2msg", definition)
        qos = {"offered_qos_profiles": yaml.safe_dump([{"history": 3, "reliability": 1}])}
        channels = [writer.register_channel(f"/{n}", "cdr", schema, qos) for n in "ab"]
        for i in range(200):
            writer.add_message(channels[i % 2], (i + 1) * 1000, cdr(str(i)), 0, sequence=i)
        writer.finish()
    whole = path.read_bytes()
    path.write_bytes(whole[: chunks(path)[-1][1] + 10])
    report = recover(path)
    assert report.out == tmp_path / "foreign_recovered"
    assert report.saved == {"/a": 100, "/b": 100}
    assert report.open_chunk_s is None
    info = yaml.safe_load((report.out / "metadata.yaml").read_text())
    topic = info["rosbag2_bagfile_information"]["topics_with_message_count"][0]["topic_metadata"]
    assert topic["offered_qos_profiles"] == [{"history": "unknown", "reliability": "reliable"}]


def test_what_is_no_mcap_bag_is_refused(tmp_path, capsys):
    text = tmp_path / "notes.mcap"
    text.write_text("these are notes, not a recording")
    old = tmp_path / "old"
    old.mkdir()
    sqlite3.connect(old / "old_0.db3").close()
    packed = tmp_path / "packed"
    packed.mkdir()
    (packed / "packed_0.mcap.zstd").write_bytes(b"x")
    empty = tmp_path / "empty"
    empty.mkdir()
    hollow = tmp_path / "hollow.mcap"
    hollow.write_bytes(b"\x89MCAP0\r\n" + bytes(64))
    for bag, sentence in [
        (text, "is no MCAP file"),
        (old, "is a sqlite3 bag; 'wm recover' repairs MCAP bags only"),
        (packed, "holds compressed files; unpack them"),
        (empty, "holds no MCAP file"),
        (tmp_path / "nowhere", "there is no bag at"),
        (hollow, "holds no whole message; there is nothing to save"),
    ]:
        assert wm(["recover", str(bag)]) == 1
        assert sentence in capsys.readouterr().err


def test_nothing_is_overwritten_and_a_full_disk_leaves_no_half_bag(bag, small_disk):
    (bag / "metadata.yaml").unlink()
    with pytest.raises(WmError, match="exists already; choose another folder"):
        recover(bag, bag.parent)
    with pytest.raises(WmError, match="not both"):
        recover(bag, bag.parent / "x", in_place=True)
    (small_disk / "filler").write_bytes(bytes((8 << 20) - 8192))
    with pytest.raises(WmError, match="No space left"):
        recover(bag, small_disk / "out")
    assert not (small_disk / "out").exists()
    shutil.copytree(bag, bag.parent / "copy")
    seen: list[tuple[int, int]] = []
    recover(bag.parent / "copy", progress=lambda done, total: seen.append((done, total)))
    assert [done for done, _ in seen] == sorted(done for done, _ in seen)
    assert seen[-1][0] == seen[-1][1]
