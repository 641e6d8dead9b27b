"""Writes rosbag2 bags (MCAP) that ``ros2 bag`` reads: for simulated episodes and for tests."""

from __future__ import annotations

import shutil
from dataclasses import dataclass
from functools import lru_cache
from pathlib import Path
from types import TracebackType
from typing import Any

import yaml
from mcap.writer import CompressionType, Writer

from wm_node.data.messages import serialize, typestore
from wm_node.errors import WmError

# Depth 1, reliable, transient local: what a latched topic offers, in rosbag2's own words.
_LATCHED_QOS: dict[str, Any] = {
    "history": "keep_last",
    "depth": 1,
    "reliability": "reliable",
    "durability": "transient_local",
    "deadline": {"sec": 9223372036, "nsec": 854775807},
    "lifespan": {"sec": 9223372036, "nsec": 854775807},
    "liveliness": "automatic",
    "liveliness_lease_duration": {"sec": 9223372036, "nsec": 854775807},
    "avoid_ros_namespace_conventions": False,
}


@lru_cache(maxsize=64)
def _definition(msgtype: str) -> tuple[str, str]:
    """Return the full definition and the type hash of a message type."""
    types = typestore()
    if msgtype not in types.types:
        raise WmError(f"'{msgtype}' is not a message type of ROS 2 Jazzy's common interfaces.")
    definition, _ = types.generate_msgdef(msgtype, ros_version=2)
    return definition, types.hash_rihs01(msgtype)


@dataclass
class _Topic:
    name: str
    msgtype: str
    channel: int
    qos: list[dict[str, Any]]
    count: int = 0


class BagWriter:
    """One rosbag2 directory: ``<path>/<name>.mcap`` with zstd chunks, and ``metadata.yaml``.

    Use as a context manager; leaving it by an exception removes the bag.

        with BagWriter(folder) as bag:
            bag.add_topic("/joint_states", "sensor_msgs/msg/JointState")
            bag.write("/joint_states", joint_state(stamp, names, positions), stamp)
    """

    def __init__(self, path: str | Path, compress: bool = True, chunk_bytes: int = 1 << 20) -> None:
        """Create the bag's directory.

        Args:
            path: the directory, which must not exist.
            compress: zstd chunks; without, writing is faster and raw images take more room.
            chunk_bytes: size at which a chunk is closed.

        Raises:
            WmError: the directory exists or cannot be made.
        """
        self.path = Path(path)
        try:
            self.path.mkdir(parents=True)
        except FileExistsError as error:
            raise WmError(f"the bag {self.path} exists already; remove it first.") from error
        except OSError as error:
            raise WmError(f"cannot create the bag {self.path}: {error.strerror}.") from error
        self._file_name = f"{self.path.name}.mcap"
        self._file = (self.path / self._file_name).open("wb")
        self._writer = Writer(
            self._file,
            chunk_size=chunk_bytes,
            compression=CompressionType.ZSTD if compress else CompressionType.NONE,
        )
        self._writer.start(profile="ros2", library="wm_node")
        self._schemas: dict[str, int] = {}
        self._topics: dict[str, _Topic] = {}
        self._first_ns: int | None = None
        self._last_ns = 0
        self._open = True

    def add_topic(self, topic: str, msgtype: str, latched: bool = False) -> None:
        """Announce a topic; every topic is announced before its first message.

        Args:
            topic: absolute name, such as ``/joint_states``.
            msgtype: such as ``sensor_msgs/msg/JointState``.
            latched: recorded with transient-local durability, so that players republish it so.

        Raises:
            WmError: the topic exists already, or the type is unknown.
        """
        if not topic.startswith("/") or topic in self._topics:
            raise WmError(f"topic '{topic}' must be absolute and announced once.")
        definition, _ = _definition(msgtype)
        if msgtype not in self._schemas:
            self._schemas[msgtype] = self._writer.register_schema(
                msgtype, "ros2msg", definition.encode()
            )
        qos = [_LATCHED_QOS] if latched else []
        channel = self._writer.register_channel(
            topic, "cdr", self._schemas[msgtype], {"offered_qos_profiles": _to_yaml(qos)}
        )
        self._topics[topic] = _Topic(topic, msgtype, channel, qos)

    def write(self, topic: str, message: Any, log_time_ns: int) -> None:
        """Write one message.

        Args:
            topic: a topic that was announced.
            message: a message of :mod:`wm_node.data.messages`, or CDR bytes.
            log_time_ns: time of reception.
        """
        entry = self._topics[topic]
        cdr = isinstance(message, bytes | bytearray | memoryview)
        data = bytes(message) if cdr else serialize(message, entry.msgtype)
        self._writer.add_message(
            entry.channel, log_time=log_time_ns, data=data, publish_time=log_time_ns
        )
        entry.count += 1
        first = self._first_ns
        self._first_ns = log_time_ns if first is None else min(first, log_time_ns)
        self._last_ns = max(self._last_ns, log_time_ns)

    def close(self) -> None:
        """Finish the file and write ``metadata.yaml``."""
        if not self._open:
            return
        self._open = False
        self._writer.finish()
        self._file.close()
        metadata = self.path / "metadata.yaml"
        partial = metadata.with_suffix(".tmp")
        partial.write_text(_to_yaml(self._metadata()), encoding="utf-8")
        partial.rename(metadata)

    def abort(self) -> None:
        """Remove the bag; nothing happens after :meth:`close`."""
        if self._open:
            self._open = False
            self._file.close()
            shutil.rmtree(self.path, ignore_errors=True)

    def __enter__(self) -> BagWriter:
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if kind is None:
            self.close()
        else:
            self.abort()

    def _metadata(self) -> dict[str, Any]:
        start = self._first_ns or 0
        duration = max(0, self._last_ns - start)
        count = sum(topic.count for topic in self._topics.values())
        return {
            "rosbag2_bagfile_information": {
                "version": 9,
                "storage_identifier": "mcap",
                "relative_file_paths": [self._file_name],
                "duration": {"nanoseconds": duration},
                "starting_time": {"nanoseconds_since_epoch": start},
                "message_count": count,
                "topics_with_message_count": [
                    {
                        "topic_metadata": {
                            "name": topic.name,
                            "type": topic.msgtype,
                            "serialization_format": "cdr",
                            "offered_qos_profiles": topic.qos,
                            "type_description_hash": _definition(topic.msgtype)[1],
                        },
                        "message_count": topic.count,
                    }
                    for topic in self._topics.values()
                ],
                "compression_format": "",
                "compression_mode": "",
                "files": [
                    {
                        "path": self._file_name,
                        "starting_time": {"nanoseconds_since_epoch": start},
                        "duration": {"nanoseconds": duration},
                        "message_count": count,
                    }
                ],
                "custom_data": None,
                "ros_distro": "jazzy",
            }
        }


def _to_yaml(data: Any) -> str:
    dumper = getattr(yaml, "CSafeDumper", yaml.SafeDumper)
    return str(yaml.dump(data, Dumper=dumper, sort_keys=False)) if data else ""
