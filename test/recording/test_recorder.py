"""What is handed to the recorder is in the bag, or counted by topic and reason."""

from __future__ import annotations

import os
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import yaml
from mcap.reader import make_reader
from rosbags.highlevel import AnyReader

from wm_node.errors import WmError
from wm_node.recording.metadata import Qos
from wm_node.recording.recorder import BagRecorder, RecorderConfig
from wm_node.recording.recover import recover


def config(folder: Path, **changes: object) -> RecorderConfig:
    return RecorderConfig(folder, **{"min_free_bytes": 0, "metadata_s": 0.1, **changes})  # type: ignore[arg-type]


def read(bag: Path) -> dict[str, list[str]]:
    """Return the strings of each topic in the order of their log time."""
    with AnyReader([bag]) as reader:
        found: dict[str, list[str]] = {}
        for connection, _, data in reader.messages():
            text = reader.deserialize(data, connection.msgtype).data
            found.setdefault(connection.topic, []).append(text)
    return found


def wait(condition: Callable[[], bool], timeout_s: float = 10.0) -> None:
    deadline = time.monotonic() + timeout_s
    while not condition():
        assert time.monotonic() < deadline, "it did not happen"
        time.sleep(0.01)


def test_many_threads_write_and_nothing_is_lost(tmp_path, make_topic, cdr):
    recorder = BagRecorder(
        config(tmp_path / "bag"), {"robot": "r"}, {"a.txt": ("text/plain", b"x")}
    )
    recorder.start()

    def publish(topic):
        for i in range(500):
            assert recorder.write(topic, time.time_ns(), 7, cdr(str(i)))

    threads = [threading.Thread(target=publish, args=[make_topic(f"/t{i}")]) for i in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    status = recorder.close()
    assert status.written == {f"/t{i}": 500 for i in range(4)}
    assert status.dropped_total == 0
    found = read(tmp_path / "bag")
    assert all(sorted(map(int, texts)) == list(range(500)) for texts in found.values())
    with next((tmp_path / "bag").glob("*.mcap")).open("rb") as file:
        reader = make_reader(file)
        _, channel, message = next(iter(reader.iter_messages()))
        assert message.publish_time == 7
        assert yaml.safe_load(channel.metadata["offered_qos_profiles"])[0]["depth"] == 10
        assert [one.metadata for one in reader.iter_metadata() if one.name == "wm_node"] == [
            {"robot": "r", "chunk_s": "0.5"}
        ]
    assert recorder.write(make_topic("/late"), 1, 1, b"") is False
    assert recorder.status().dropped == {"/late": {"closed": 1}}


def test_a_queue_that_overflows_is_counted(tmp_path, make_topic, cdr):
    limits = {"queue_bytes": 1 << 16, "chunk_bytes": 1 << 16}
    recorder = BagRecorder(config(tmp_path / "bag", **limits))
    recorder.start()
    topic, huge = make_topic("/flood"), make_topic("/huge")
    accepted = sum(recorder.write(topic, i + 1, 0, cdr("x" * 8000)) for i in range(300))
    assert not recorder.write(huge, 1, 0, bytes(1 << 17))
    status = recorder.close()
    assert accepted < 300
    assert status.written == {"/flood": accepted}
    assert status.dropped == {"/flood": {"queue": 300 - accepted}, "/huge": {"queue": 1}}
    assert len(read(tmp_path / "bag")["/flood"]) == accepted


def test_each_file_repeats_what_is_latched(tmp_path, make_topic, cdr):
    recorder = BagRecorder(config(tmp_path / "bag"))
    recorder.start()
    one, two = make_topic("/one", latched=True), make_topic("/two", latched=True, keep=2)
    for text in ("a", "b"):
        recorder.write(one, time.time_ns(), 1, cdr(text))
    for text in ("a", "b", "c", "b"):
        recorder.write(two, time.time_ns(), 1, cdr(text))
    assert recorder.split() == "bag_1.mcap"
    recorder.write(make_topic("/plain"), time.time_ns(), 1, cdr("p"))
    recorder.close()
    assert sorted(file.name for file in (tmp_path / "bag").iterdir()) == [
        "bag_0.mcap",
        "bag_1.mcap",
        "metadata.yaml",
    ]
    assert read(tmp_path / "bag" / "bag_1.mcap") == {
        "/one": ["b"],
        "/two": ["c", "b"],
        "/plain": ["p"],
    }
    info = yaml.safe_load((tmp_path / "bag" / "metadata.yaml").read_text())
    files = info["rosbag2_bagfile_information"]["files"]
    assert [file["message_count"] for file in files] == [6, 4]


def test_a_topic_is_described_alike_in_all_files(tmp_path, make_topic, cdr):
    """A publisher that joins with another QoS must not hide the topic from readers."""
    recorder = BagRecorder(config(tmp_path / "bag"))
    recorder.start()
    first = make_topic("/t")
    changed = replace(first, qos=(Qos(), Qos(reliability="best_effort")))
    for i, topic in enumerate((first, changed, changed)):
        if i == 2:
            recorder.split()
        recorder.write(topic, i + 1, 0, cdr(str(i)))
    recorder.close()
    assert read(tmp_path / "bag") == {"/t": ["0", "1", "2"]}
    (tmp_path / "bag" / "metadata.yaml").unlink()
    assert read(recover(tmp_path / "bag").out) == {"/t": ["0", "1", "2"]}


def test_files_split_by_size_and_by_time(tmp_path, make_topic):
    topic = make_topic("/noise")
    noise = np.random.default_rng(0).bytes(60_000)
    limits = {"chunk_bytes": 1 << 16, "split_bytes": 1 << 18, "chunk_s": 0.1}
    by_size = BagRecorder(config(tmp_path / "size", **limits))
    by_size.start()
    for i in range(12):
        by_size.write(topic, i + 1, 0, noise)
        wait(lambda: by_size.status().queue_messages == 0)
    wait(lambda: by_size.status().files >= 2)
    assert by_size.close().written == {"/noise": 12}

    by_time = BagRecorder(config(tmp_path / "time", split_s=0.2))
    by_time.start()
    wait(lambda: by_time.status().files >= 3)
    by_time.close()
    for bag in ("size", "time"):
        assert recover(tmp_path / bag).healthy


def test_a_chunk_is_on_disk_within_half_a_second(tmp_path, make_topic, cdr):
    """What a kill -9 leaves is what another process sees in the file."""
    recorder = BagRecorder(config(tmp_path / "bag"))
    recorder.start()
    assert recorder.write(make_topic("/t"), 1, 1, cdr("x"))
    start = time.monotonic()
    wait(lambda: (tmp_path / "bag" / "bag_0.mcap").stat().st_size > 300)
    assert time.monotonic() - start <= 0.6
    wait(lambda: "message_count: 1" in (tmp_path / "bag" / "metadata.yaml").read_text())
    recorder.close()


def test_a_disk_that_fills_up_all_the_same_loses_nothing_that_was_written(small_disk, make_topic):
    """Without the guard, writes fail in the middle of a chunk: the file stays readable."""
    recorder = BagRecorder(config(small_disk / "bag", resume_margin_bytes=2 << 20))
    recorder.start()
    topic = make_topic("/noise")
    random = np.random.default_rng(0)
    sent = 0

    def send(count: int) -> None:
        nonlocal sent
        for _ in range(count):
            recorder.write(topic, time.time_ns(), 0, random.bytes(100_000))
            sent += 1
            wait(lambda: recorder.status().queue_messages == 0)

    filler = small_disk / "filler"
    filler.write_bytes(bytes(5 << 20))
    send(60)
    wait(lambda: recorder.status().state == "paused")
    assert "the disk is full" in recorder.status().reason
    filler.unlink()
    wait(lambda: recorder.status().state == "recording")
    send(3)
    status = recorder.close()
    dropped = status.dropped["/noise"]["disk"]
    assert dropped > 0
    assert status.written["/noise"] == sent - dropped
    with AnyReader([small_disk / "bag"]) as reader:
        assert sum(1 for _ in reader.messages()) == sent - dropped
    assert recover(small_disk / "bag").healthy


_FAILING = """
import resource, sys, time
from pathlib import Path
from wm_node.recording.metadata import Topic
from wm_node.recording.metadata import Qos
from wm_node.recording.recorder import BagRecorder, RecorderConfig
import random
bag = Path(sys.argv[1])
config = RecorderConfig(bag, min_free_bytes=0, chunk_bytes=1 << 14)
recorder = BagRecorder(config)
recorder.start()
resource.setrlimit(resource.RLIMIT_FSIZE, (200_000, 200_000))
topic = Topic("/t", "std_msgs/msg/String", "string data")
accepted = 0
for i in range(60):
    accepted += recorder.write(topic, i + 1, 0, random.randbytes(10_000))
    time.sleep(0.005)
status = recorder.close()
print(status.written["/t"], status.dropped["/t"]["failed"], status.unfinished, status.reason)
"""


def test_a_disk_that_fails_is_told_and_counted(tmp_path):
    """A file size limit stands for the failing disk: the write returns an error."""
    words = [sys.executable, "-c", _FAILING, str(tmp_path / "bag")]
    out = subprocess.run(words, capture_output=True, text=True, timeout=60, check=True).stdout
    written, failed = map(int, out.split()[:2])
    assert written + failed == 60
    assert failed > 0
    assert "File too large" in out
    assert "check the disk" in out
    report = recover(tmp_path / "bag")
    assert report.saved == {"/t": written}


@pytest.mark.parametrize(
    ("changes", "sentence"),
    [
        ({"min_free_bytes": 1 << 60}, "make room or lower min_free_mb"),
        ({"compression": "rar"}, "unknown compression 'rar'"),
        ({"chunk_s": 2.0}, "between 0.1 and 0.5 s"),
        ({"queue_bytes": 10}, "queue_bytes is smaller than chunk_bytes"),
    ],
)
def test_impossible_limits_are_refused(tmp_path, changes, sentence):
    with pytest.raises(WmError, match=sentence):
        BagRecorder(config(tmp_path / "bag", **changes)).start()


def test_folders_that_cannot_take_a_bag_are_refused(tmp_path):
    (tmp_path / "file").write_text("x")
    with pytest.raises(WmError, match="already holds files"):
        BagRecorder(config(tmp_path)).start()
    with pytest.raises(WmError, match="cannot record into"):
        BagRecorder(config(tmp_path / "file" / "bag")).start()
    with pytest.raises(WmError, match="cannot split: the recorder is closed"):
        BagRecorder(config(tmp_path / "new")).split()
    assert not os.path.lexists(tmp_path / "new")
