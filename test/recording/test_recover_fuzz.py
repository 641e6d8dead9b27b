"""Whatever is done to a bag's bytes, repairing and reading it end well: a result or a sentence."""

from __future__ import annotations

import shutil
import time
from collections import Counter
from pathlib import Path

import numpy as np
import pytest
from hypothesis import HealthCheck, example, given, settings
from hypothesis import strategies as st
from mcap.reader import make_reader
from mcap.writer import CompressionType, Writer
from rosbags.highlevel import AnyReader

from wm_node.data.bags import Bag, BagError, BagSource
from wm_node.errors import WmError
from wm_node.recording.definitions import message_definition
from wm_node.recording.metadata import FileInfo, bag_document, write_metadata
from wm_node.recording.recover import recover
from wm_node.recording.scan import Cut, Damage, scan

COUNT = 120
# A repair or a reading of these few kB that takes longer hangs on a length that it believed.
LIMIT_S = 5.0

# What can happen to a file: (kind, where as a fraction of its size, how much).
DAMAGE = st.tuples(
    st.sampled_from(["cut", "flip", "zero", "drop", "insert", "length"]),
    st.floats(0.0, 1.0),
    st.integers(1, 600),
)
FUZZ = settings(
    max_examples=settings.default.max_examples,
    deadline=None,
    derandomize=True,
    suppress_health_check=[HealthCheck.function_scoped_fixture],
)

Message = tuple[str, int, bytes]


class Original:
    """A sound bag file and what is in it; not a dataclass, so that reports stay short."""

    def __init__(self, data: bytes, messages: list[Message]) -> None:
        self.data = data
        self.messages = messages


def _original(cdr, compression: CompressionType, path: Path) -> list[Message]:
    """Write a small bag with several chunks, metadata and an attachment."""
    random = np.random.default_rng(3)
    definition = message_definition("std_msgs/msg/String").encode()
    messages = []
    with path.open("wb") as file:
        writer = Writer(file, chunk_size=1500, compression=compression)
        writer.start(profile="ros2", library="test")
        writer.add_metadata("wm_node", {"chunk_s": "0.5"})
        writer.add_attachment(1, 1, "profile.yaml", "application/yaml", b"name: x" * 20)
        schema = writer.register_schema("std_msgs/msg/String", "ros2msg", definition)
        channels = {t: writer.register_channel(t, "cdr", schema) for t in ("/a", "/b")}
        for i in range(COUNT):
            topic = "/a" if i % 3 else "/b"
            data = cdr(random.bytes(20).hex())
            writer.add_message(channels[topic], 1000 + i, data, 1000 + i)
            messages.append((topic, 1000 + i, data))
        writer.finish()
    return messages


@pytest.fixture(scope="module", params=list(CompressionType), ids=lambda one: one.name)
def original(request, cdr, tmp_path_factory) -> Original:
    path = tmp_path_factory.mktemp("original") / "one.mcap"
    messages = _original(cdr, request.param, path)
    return Original(path.read_bytes(), messages)


def damaged(data: bytes, damage: tuple[str, float, int]) -> bytes:
    """Apply one kind of damage."""
    kind, where, amount = damage
    at = min(int(where * len(data)), len(data) - 1)
    if kind == "cut":
        return data[:at]
    if kind == "flip":
        return data[:at] + bytes([data[at] ^ (amount % 255 + 1)]) + data[at + 1 :]
    if kind == "zero":
        return data[:at] + bytes(min(amount, len(data) - at)) + data[at + amount :]
    if kind == "drop":
        return data[:at] + data[at + amount :]
    if kind == "insert":
        return data[:at] + bytes(range(256)) * (amount // 256) + bytes(amount % 256) + data[at:]
    huge = (amount * 2**54 + amount).to_bytes(8, "little")  # where a length may be
    return data[:at] + huge + data[at + 8 :]


def read(path: Path) -> list[Message]:
    with AnyReader([path]) as reader:
        return [(c.topic, log_ns, bytes(data)) for c, log_ns, data in reader.messages()]


@FUZZ
@given(damage=DAMAGE)
@example(damage=("drop", 0.003, 251))  # the header, which no checksum guards
@example(damage=("drop", 0.75, 2))  # inside an uncompressed chunk
def test_recovery_invents_nothing_and_its_result_is_sound(original, tmp_path, damage):
    data, messages = original.data, original.messages
    bag = tmp_path / "bag.mcap"
    out = tmp_path / "out"
    shutil.rmtree(out, ignore_errors=True)
    broken = damaged(data, damage)
    bag.write_bytes(broken)
    start = time.monotonic()
    try:
        report = recover(bag, out)
    except WmError:
        assert not out.exists()
        return
    assert time.monotonic() - start < LIMIT_S
    assert bag.read_bytes() == broken
    if report.healthy:  # the damage is where no checksum reaches, or outside every record
        assert sum(report.saved.values()) == COUNT
        return
    saved = read(out)
    assert not Counter(saved) - Counter(messages)
    assert len(saved) == sum(report.saved.values())
    with (out / bag.name).open("rb") as file:
        assert sum(1 for _ in make_reader(file, validate_crcs=True).iter_messages()) == len(saved)
    assert recover(out).healthy


@FUZZ
@given(damages=st.lists(DAMAGE, min_size=2, max_size=6))
def test_recovery_of_much_damage_ends_with_a_sound_bag_or_a_sentence(original, tmp_path, damages):
    broken = original.data
    for damage in damages:
        broken = damaged(broken, damage) or b"\0"
    bag = tmp_path / "bag.mcap"
    out = tmp_path / "out"
    shutil.rmtree(out, ignore_errors=True)
    bag.write_bytes(broken)
    start = time.monotonic()
    try:
        report = recover(bag, out)
    except WmError:
        assert not out.exists()
        return
    assert time.monotonic() - start < LIMIT_S
    assert report.healthy or recover(out).healthy


@FUZZ
@given(where=st.floats(0.0, 1.0))
def test_a_cut_costs_only_what_was_behind_it(original, tmp_path, where):
    data, messages = original.data, original.messages
    size = int(where * len(data))
    bag = tmp_path / "bag.mcap"
    out = tmp_path / "out"
    shutil.rmtree(out, ignore_errors=True)
    bag.write_bytes(data)
    whole = 0  # messages of the chunks that end before the cut
    passed = 0
    for end, item in scan(bag):
        assert not isinstance(item, (Cut, Damage))
        if end <= size and hasattr(item, "log_time") and hasattr(item, "channel_id"):
            whole += 1
        passed = end
    assert passed == len(data)
    bag.write_bytes(data[:size])
    try:
        report = recover(bag, out)
    except WmError:
        assert whole == 0
        return
    assert sum(report.saved.values()) >= whole
    if not report.healthy:
        assert read(out) == messages[: sum(report.saved.values())]


@FUZZ
@given(text=st.text(max_size=200), where=st.floats(0.0, 1.0), keep=st.booleans())
def test_any_metadata_file_is_rebuilt(original, tmp_path, text, where, keep):
    folder = tmp_path / "bag"
    out = tmp_path / "bag_recovered"
    shutil.rmtree(out, ignore_errors=True)
    folder.mkdir(exist_ok=True)
    (folder / "one.mcap").write_bytes(original.data)
    write_metadata(folder, bag_document([FileInfo("one.mcap")], [], {}))
    sound = (folder / "metadata.yaml").read_text()
    at = int(where * len(sound))
    (folder / "metadata.yaml").write_text((sound[:at] if keep else "") + text + sound[at:])
    report = recover(folder)
    assert report.metadata_problem is not None
    assert len(read(report.out)) == COUNT


@FUZZ
@given(damage=DAMAGE)
def test_the_bag_reader_gives_true_messages_or_says_what_is_wrong(original, tmp_path, damage):
    data = original.data
    path = tmp_path / "bag.mcap"
    path.write_bytes(damaged(data, damage))
    start = time.monotonic()
    count = 0
    try:
        with Bag(BagSource("bag", path)) as bag:
            for topic, _, raw in bag.messages(sorted(bag.topics)):
                count += 1
                bag.deserialize(topic, raw)
    except BagError:
        pass
    assert count <= COUNT
    assert time.monotonic() - start < LIMIT_S
