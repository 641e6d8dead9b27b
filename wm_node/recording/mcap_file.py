"""One MCAP file of a bag, written so that a killed process costs the open chunk and no more."""

from __future__ import annotations

import os
from collections.abc import Mapping
from pathlib import Path

from mcap.writer import CompressionType, Writer

from wm_node import __version__
from wm_node.recording.metadata import FileInfo, Topic

COMPRESSIONS: dict[str, CompressionType] = {
    "none": CompressionType.NONE,
    "lz4": CompressionType.LZ4,
    "zstd": CompressionType.ZSTD,
}
LIBRARY = f"wm_node {__version__}"
# Name of the MCAP metadata record that tells what was recorded and how.
METADATA_NAME = "wm_node"

# Bytes of a message record around its payload: opcode, length, channel, sequence, two times.
_RECORD_OVERHEAD = 31


class _Sink:
    """A file that only ever ends at a commit.

    What the MCAP writer emits is held in memory until :meth:`commit` puts all of it on disk in
    one piece. A commit that fails (disk full) cuts the file back to the last one and keeps the
    bytes, so that it can be tried again and the file stays readable meanwhile.
    """

    def __init__(self, path: Path) -> None:
        self._file = path.open("xb", buffering=0)
        self._pending = bytearray()
        self.committed = 0

    def write(self, data: bytes) -> int:
        self._pending += data
        return len(data)

    def tell(self) -> int:
        return self.committed + len(self._pending)

    def flush(self) -> None:
        """The MCAP writer's flush; bytes reach the disk in :meth:`commit`."""

    @property
    def pending(self) -> int:
        return len(self._pending)

    def commit(self) -> None:
        view = memoryview(self._pending)
        try:
            written = 0
            while written < len(view):
                written += self._file.write(view[written:]) or 0
        except OSError:
            self._file.seek(self.committed)
            self._file.truncate()
            raise
        finally:
            view.release()
        self.committed += len(self._pending)
        self._pending = bytearray()

    def sync(self) -> None:
        os.fsync(self._file.fileno())

    def close(self) -> None:
        self._file.close()


class McapFile:
    """A rosbag2 MCAP file in the making.

    The caller bounds chunks: everything written since the last :meth:`commit` is one chunk.
    Channels are registered when their first message comes.
    """

    def __init__(self, path: Path, compression: str) -> None:
        """Create the file.

        Raises:
            OSError: it exists, or cannot be created or written.
        """
        self.path = path
        self.info = FileInfo(path.name)
        self.uncommitted_bytes = 0
        self._sink = _Sink(path)
        self._writer = Writer(
            self._sink,  # type: ignore[arg-type]
            chunk_size=1 << 62,  # never by itself: see commit()
            compression=COMPRESSIONS[compression],
        )
        self._schemas: dict[tuple[str, str], int] = {}
        self._channels: dict[str, int] = {}
        self._finished = False
        self._open_chunk: dict[str, int] = {}
        self._writer.start(profile="ros2", library=LIBRARY)
        try:
            self._sink.commit()
        except OSError:
            self._sink.close()
            path.unlink(missing_ok=True)
            raise

    @property
    def bytes_written(self) -> int:
        """Bytes on disk."""
        return self._sink.committed

    def add_metadata(self, name: str, data: Mapping[str, str]) -> None:
        """Add a metadata record; it reaches the disk with the next commit."""
        self._writer.add_metadata(name, dict(data))

    def add_attachment(self, name: str, media_type: str, data: bytes, time_ns: int) -> None:
        """Add an attachment; it reaches the disk with the next commit."""
        self._writer.add_attachment(time_ns, time_ns, name, media_type, data)

    def write(self, topic: Topic, log_ns: int, publish_ns: int, data: bytes) -> None:
        """Add one message to the open chunk."""
        channel = self._channels.get(topic.name)
        if channel is None:
            channel = self._register(topic)
        self._writer.add_message(channel, log_ns, data, publish_ns)
        self.info.add(topic.name, log_ns)
        self._open_chunk[topic.name] = self._open_chunk.get(topic.name, 0) + 1
        self.uncommitted_bytes += len(data) + _RECORD_OVERHEAD

    def _register(self, topic: Topic) -> int:
        key = (topic.type, topic.definition)
        schema = self._schemas.get(key)
        if schema is None:
            schema = self._writer.register_schema(topic.type, "ros2msg", topic.definition.encode())
            self._schemas[key] = schema
        channel: int = self._writer.register_channel(
            topic.name,
            topic.encoding,
            schema,
            {"offered_qos_profiles": topic.qos_text(), "topic_type_hash": topic.type_hash},
        )
        self._channels[topic.name] = channel
        return channel

    def commit(self) -> None:
        """Close the chunk and hand it to the operating system.

        Raises:
            OSError: disk full or failing. The file ends at the last commit; the chunk is kept,
                and the next commit tries again.
        """
        self._writer.flush()
        self.uncommitted_bytes = 0
        self._sink.commit()
        self._open_chunk.clear()

    def sync(self) -> None:
        """Put what was committed on the disk itself, safe from a loss of power."""
        self._sink.sync()

    def close(self, text: str) -> None:
        """Write the summary and close; may be called again after it raised.

        ``text`` is the bag's metadata as YAML, which rosbag2 looks for in single files.

        Raises:
            OSError: no room for the last chunk and the summary; both are kept for another try.
        """
        if not self._finished:
            self._writer.add_metadata("rosbag2", {"serialized_metadata": text})
            self._writer.finish()
            self._finished = True
        self._sink.commit()
        self._open_chunk.clear()
        self._sink.sync()
        self._sink.close()

    def abandon(self) -> dict[str, int]:
        """Close without a summary; what was committed can be recovered.

        Returns the messages that never reached the disk, by topic.
        """
        self._sink.close()
        for topic, count in self._open_chunk.items():
            self.info.counts[topic] -= count
        return dict(self._open_chunk)
