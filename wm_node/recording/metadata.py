"""What a rosbag2 bag says of itself: ``metadata.yaml``, in the format of ROS 2 Jazzy (9)."""

from __future__ import annotations

import os
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import yaml

from wm_node.errors import WmError

FILE_NAME = "metadata.yaml"
VERSION = 9
ROS_DISTRO = "jazzy"
MAX_METADATA_BYTES = 64_000_000

# rmw's "infinite" duration, as rosbag2 writes it.
INFINITE = (9_223_372_036, 854_775_807)

_DUMPER: Any = getattr(yaml, "CSafeDumper", yaml.SafeDumper)


class _NoAliases(_DUMPER):  # type: ignore[misc]
    """Writes equal parts out in full: readers of rosbag2 do not follow YAML anchors."""

    def ignore_aliases(self, data: Any) -> bool:
        return True


@dataclass(frozen=True)
class Qos:
    """Quality of service that a publisher offered, in rosbag2's words; times in (s, ns)."""

    reliability: str = "reliable"
    durability: str = "volatile"
    history: str = "keep_last"
    depth: int = 10
    liveliness: str = "automatic"
    deadline: tuple[int, int] = INFINITE
    lifespan: tuple[int, int] = INFINITE
    lease: tuple[int, int] = INFINITE

    def document(self) -> dict[str, Any]:
        """Return the YAML form."""
        deadline, lifespan, lease = (
            {"sec": sec, "nsec": nsec} for sec, nsec in (self.deadline, self.lifespan, self.lease)
        )
        return {
            "history": self.history,
            "depth": self.depth,
            "reliability": self.reliability,
            "durability": self.durability,
            "deadline": deadline,
            "lifespan": lifespan,
            "liveliness": self.liveliness,
            "liveliness_lease_duration": lease,
            "avoid_ros_namespace_conventions": False,
        }


@dataclass(frozen=True)
class Topic:
    """A recorded topic.

    A bag describes a topic as its first message did: a later QoS, type hash or definition under
    the same name is not noted. ``definition`` is its ``ros2msg`` text. ``latched`` topics are
    repeated at the start of every file of the bag: their last ``keep`` distinct messages.
    """

    name: str
    type: str
    definition: str
    qos: tuple[Qos, ...] = ()
    type_hash: str = ""
    latched: bool = False
    keep: int = 1
    encoding: str = "cdr"

    def qos_text(self) -> str:
        """Return the offered QoS as the YAML text that an MCAP channel carries."""
        return dump_yaml([qos.document() for qos in self.qos]) if self.qos else ""


@dataclass
class FileInfo:
    """Span and counts of one file of a bag; ``counts`` by topic name, times in ns."""

    name: str
    start_ns: int | None = None
    end_ns: int | None = None
    counts: dict[str, int] = field(default_factory=dict)

    def add(self, topic: str, log_ns: int) -> None:
        """Count one message."""
        self.counts[topic] = self.counts.get(topic, 0) + 1
        self.start_ns = log_ns if self.start_ns is None else min(self.start_ns, log_ns)
        self.end_ns = log_ns if self.end_ns is None else max(self.end_ns, log_ns)

    @property
    def message_count(self) -> int:
        """All messages of the file."""
        return sum(self.counts.values())

    @property
    def duration_ns(self) -> int:
        """Time from the first message to the last."""
        if self.start_ns is None or self.end_ns is None:
            return 0
        return self.end_ns - self.start_ns


def dump_yaml(data: Any) -> str:
    """Return plain data as block YAML without anchors."""
    return str(yaml.dump(data, Dumper=_NoAliases, sort_keys=False, default_flow_style=False))


def bag_document(
    files: Iterable[FileInfo],
    topics: Iterable[tuple[Topic, list[dict[str, Any]] | None]],
    custom: Mapping[str, str],
) -> dict[str, Any]:
    """Return the content of ``metadata.yaml``.

    ``topics`` pairs each topic with its QoS in YAML form where it was read from another bag, or
    None to write ``Topic.qos``.
    """
    files = list(files)
    starts = [info.start_ns for info in files if info.start_ns is not None]
    ends = [info.end_ns for info in files if info.end_ns is not None]
    start = min(starts, default=0)
    counts: dict[str, int] = {}
    for info in files:
        for name, count in info.counts.items():
            counts[name] = counts.get(name, 0) + count
    return {
        "rosbag2_bagfile_information": {
            "version": VERSION,
            "storage_identifier": "mcap",
            "duration": {"nanoseconds": max(ends, default=0) - start},
            "starting_time": {"nanoseconds_since_epoch": start},
            "message_count": sum(counts.values()),
            "topics_with_message_count": [
                {
                    "topic_metadata": {
                        "name": topic.name,
                        "type": topic.type,
                        "serialization_format": topic.encoding,
                        "offered_qos_profiles": (
                            [one.document() for one in topic.qos] if qos is None else qos
                        ),
                        "type_description_hash": topic.type_hash,
                    },
                    "message_count": counts.get(topic.name, 0),
                }
                for topic, qos in topics
            ],
            "compression_format": "",
            "compression_mode": "",
            "relative_file_paths": [info.name for info in files],
            "files": [
                {
                    "path": info.name,
                    "starting_time": {"nanoseconds_since_epoch": info.start_ns or 0},
                    "duration": {"nanoseconds": info.duration_ns},
                    "message_count": info.message_count,
                }
                for info in files
            ],
            "custom_data": dict(custom),
            "ros_distro": ROS_DISTRO,
        }
    }


def write_metadata(folder: Path, document: Mapping[str, Any], sync: bool = False) -> None:
    """Write ``metadata.yaml`` so that a reader sees the old or the new one, never half of one.

    Raises:
        OSError: the disk is full or not writable; an older file is left as it was.
    """
    temporary = folder / (FILE_NAME + ".tmp")
    try:
        with temporary.open("w", encoding="utf-8") as file:
            file.write(dump_yaml(document))
            file.flush()
            if sync:
                os.fsync(file.fileno())
        temporary.replace(folder / FILE_NAME)
    except OSError:
        temporary.unlink(missing_ok=True)
        raise


def read_metadata(folder: Path) -> dict[str, Any]:
    """Return ``rosbag2_bagfile_information`` of a bag.

    Raises:
        WmError: missing, not YAML, or not rosbag2's.
    """
    path = folder / FILE_NAME
    try:
        if path.stat().st_size > MAX_METADATA_BYTES:
            raise WmError(f"{path} is far too large to be the metadata of a bag.")
        data = yaml.safe_load(path.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise WmError(f"cannot read {path}: {error}.") from error
    except (yaml.YAMLError, ValueError, RecursionError) as error:
        raise WmError(f"{path} is not valid YAML: {' '.join(str(error).split())}.") from error
    info = data.get("rosbag2_bagfile_information") if isinstance(data, dict) else None
    if not isinstance(info, dict):
        raise WmError(f"{path} does not describe a rosbag2 bag.")
    return info
