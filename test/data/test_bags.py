"""Writing, finding and reading bags."""

from __future__ import annotations

import contextlib
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from rosbags.highlevel import AnyReader
from rosbags.interfaces import QosDurability

from wm_node.data import messages
from wm_node.data.bag_writer import BagWriter
from wm_node.data.bags import Bag, BagError, BagSource, find_bags, header_stamp_ns, resolve_topic
from wm_node.errors import WmError

Record = Callable[..., Any]


def read_all(path: Path) -> list[tuple[str, int, bytes]]:
    with Bag(BagSource("bag", path)) as bag:
        return list(bag.messages(list(bag.topics)))


def test_the_writer_makes_bags_that_rosbag2_readers_take(tmp_path: Path) -> None:
    path = tmp_path / "bag"
    with BagWriter(path, chunk_bytes=200) as bag:
        bag.add_topic("/tip", "geometry_msgs/msg/PointStamped")
        bag.add_topic("/fell", "std_msgs/msg/Bool", latched=True)
        for stamp in range(10, 50):
            bag.write("/tip", messages.point_stamped(stamp, "table", (1.0, 2.0, stamp)), stamp + 1)
        bag.write("/fell", messages.boolean(True), 60)
    with AnyReader([path]) as reader:
        found = [
            (c.topic, t, reader.deserialize(raw, c.msgtype)) for c, t, raw in reader.messages()
        ]
        qos = {c.topic: c.ext.offered_qos_profiles for c in reader.connections}
    assert [t for _, t, _ in found] == [*range(11, 51), 60]
    assert found[3][2].point.z == 13.0
    assert found[-1][2].data is True
    assert qos["/tip"] == []
    assert qos["/fell"][0].durability is QosDurability.TRANSIENT_LOCAL
    info = yaml.safe_load((path / "metadata.yaml").read_text())["rosbag2_bagfile_information"]
    assert info["message_count"] == 41
    assert info["duration"]["nanoseconds"] == 49
    assert {
        t["topic_metadata"]["name"]: t["message_count"] for t in info["topics_with_message_count"]
    } == {"/tip": 40, "/fell": 1}


def test_an_interrupted_writer_leaves_nothing(tmp_path: Path) -> None:
    with BagWriter(tmp_path / "bag") as bag:
        bag.abort()
    assert list(tmp_path.iterdir()) == []


def test_the_writer_refuses_what_it_cannot_do(tmp_path: Path) -> None:
    (tmp_path / "there").mkdir()
    with pytest.raises(WmError, match="exists already"):
        BagWriter(tmp_path / "there")
    with BagWriter(tmp_path / "bag") as bag:
        with pytest.raises(WmError, match="absolute"):
            bag.add_topic("tip", "std_msgs/msg/Bool")
        with pytest.raises(WmError, match="not a message type"):
            bag.add_topic("/tip", "my_msgs/msg/Unknown")


def test_bags_are_found_in_any_form_with_unique_names(tmp_path: Path, record: Record) -> None:
    recording = record(0.2)
    for name in ("a/run", "b/run", "b/other"):
        (tmp_path / name).parent.mkdir(exist_ok=True)
        recording.save(tmp_path / name)
    recording.save(tmp_path / "c", "sqlite3")
    shutil.copy(tmp_path / "a" / "run" / "run.mcap", tmp_path / "loose.mcap")
    shutil.copytree(tmp_path / "a" / "run", tmp_path / "killed")
    (tmp_path / "killed" / "metadata.yaml").unlink()
    (tmp_path / "notes.txt").write_text("no bag")
    found = find_bags([tmp_path, tmp_path / "b"])
    assert [bag.name for bag in found] == [
        "a/run",
        "other",
        "b/run",
        "c",
        "run.mcap",
        "loose.mcap",
    ]
    assert {len(read_all(bag.path)) for bag in found} == {len(recording.items)}
    with pytest.raises(WmError, match="no bag at"):
        find_bags([tmp_path / "nowhere"])
    (tmp_path / "empty").mkdir()
    with pytest.raises(WmError, match="holds no rosbag2 bag"):
        find_bags([tmp_path / "empty"])


def test_what_cannot_be_looked_into_is_told(tmp_path: Path) -> None:
    (tmp_path / "link").symlink_to(tmp_path / "nowhere")
    for path in (tmp_path, Path("/dev/null")):
        with pytest.raises(WmError, match="holds no rosbag2 bag"):
            find_bags([path])
    with pytest.raises(WmError, match=r"cannot look for bags at .* too long"):
        find_bags(["a" * 5000])


@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_messages_come_in_order_whatever_the_storage(
    tmp_path: Path, record: Record, storage: str
) -> None:
    recording = record(0.5)
    found = read_all(recording.save(tmp_path / "bag", storage))
    assert [t for _, t, _ in found] == [t for t, _, _ in recording.items]
    joints = [raw for topic, _, raw in found if topic == "/joint_states"]
    expected = [m for _, topic, m in recording.items if topic == "/joint_states"]
    stamps = [m.header.stamp.sec * 10**9 + m.header.stamp.nanosec for m in expected]
    assert [header_stamp_ns(raw) for raw in joints] == stamps


@pytest.mark.parametrize("keep", [0, 5, 100, 0.5, 0.95])
@pytest.mark.parametrize("storage", ["mcap", "sqlite3"])
def test_truncated_bags_are_errors_not_crashes(
    tmp_path: Path, record: Record, keep: float, storage: str
) -> None:
    path = record(0.5).save(tmp_path / "bag", storage)
    (file,) = [f for f in path.iterdir() if f.suffix in (".mcap", ".db3")]
    data = file.read_bytes()
    file.write_bytes(data[: int(keep if keep > 1 or keep == 0 else keep * len(data))])
    with pytest.raises(BagError):
        read_all(path)


def test_flipped_bytes_never_escape_as_other_errors(tmp_path: Path, record: Record) -> None:
    path = record(0.3).save(tmp_path / "bag")
    file = path / "bag.mcap"
    data = file.read_bytes()
    for at in range(8, len(data), max(1, len(data) // 150)):
        damaged = bytearray(data)
        damaged[at] ^= 0xFF
        file.write_bytes(bytes(damaged))
        with contextlib.suppress(BagError):
            read_all(path)


def test_topics_resolve_as_ros_does() -> None:
    assert resolve_topic("image_raw", "") == "/image_raw"
    assert resolve_topic("image_raw", "robot1") == "/robot1/image_raw"
    assert resolve_topic("image_raw", "/fleet/robot1/") == "/fleet/robot1/image_raw"
    assert resolve_topic("/tf", "robot1") == "/tf"
    with pytest.raises(WmError, match="private"):
        resolve_topic("~/image", "")
