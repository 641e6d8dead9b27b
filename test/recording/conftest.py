"""Bags to record, to break and to repair."""

from __future__ import annotations

import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from wm_node.recording.definitions import message_definition, type_hash
from wm_node.recording.metadata import Qos, Topic

STRING = "std_msgs/msg/String"


def string_cdr(text: str) -> bytes:
    """Serialise a std_msgs/String by hand: this folder needs no ROS."""
    data = text.encode() + b"\0"
    return b"\0\1\0\0" + len(data).to_bytes(4, "little") + data


@pytest.fixture(scope="session")
def cdr() -> Callable[[str], bytes]:
    return string_cdr


@pytest.fixture(scope="session")
def make_topic() -> Callable[..., Topic]:
    def make(name: str, latched: bool = False, keep: int = 1) -> Topic:
        durability = "transient_local" if latched else "volatile"
        return Topic(
            name,
            STRING,
            message_definition(STRING),
            (Qos(durability=durability),),
            type_hash(STRING),
            latched,
            keep,
        )

    return make


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 8 MB."""
    disk = tmp_path / "disk"
    disk.mkdir()
    words = ["mount", "-t", "tmpfs", "-o", "size=8m", "tmpfs", str(disk)]
    try:
        mounted = subprocess.run(words, capture_output=True, check=False).returncode == 0
    except FileNotFoundError:
        mounted = False
    if not mounted:
        pytest.skip("a small file system cannot be mounted here")
    yield disk
    subprocess.run(["umount", str(disk)], check=True)
