"""Finding and reading rosbag2 bags: MCAP and sqlite3, whole directories and bare files.

Nothing in a bag is executed. Whatever is wrong with one becomes a :class:`BagError` that says so.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from rosbags.interfaces import Connection, MessageDefinitionFormat
from rosbags.rosbag2 import Reader
from rosbags.typesys import get_types_from_msg

from wm_node.data.float_fields import FloatFields, float_fields
from wm_node.data.messages import new_typestore, typestore
from wm_node.errors import WmError

SUFFIXES = (".mcap", ".db3")
MAX_CHUNK_BYTES = 1 << 30  # rosbag2's default is below 1 MB
MAX_MESSAGE_BYTES = 512 << 20

_T = TypeVar("_T")


class BagError(WmError):
    """One bag cannot be used; the text is the reason, to be shown behind the bag's name."""


@dataclass(frozen=True)
class BagSource:
    """A bag that was found: a rosbag2 directory or a bare ``.mcap`` or ``.db3`` file."""

    name: str
    path: Path

    @property
    def size_bytes(self) -> int:
        """Bytes on disk."""
        files = [self.path] if self.path.is_file() else list(self.path.iterdir())
        return sum(file.stat().st_size for file in files if file.is_file())


def find_bags(paths: Sequence[str | Path]) -> list[BagSource]:
    """Find the bags in the given files and folders, sorted by path within each of them.

    Args:
        paths: bags, or folders that hold bags at any depth.

    Returns:
        Sources with unique names: the bag's own name, with folders before it where needed.

    Raises:
        WmError: a path does not exist, cannot be looked into, or holds no bag.
    """
    found: list[Path] = []
    for path in map(Path, paths):
        try:
            if not path.exists():
                raise WmError(f"there is no bag at {path}.")
            here = _bags_under(path)
        except OSError as error:
            raise WmError(f"cannot look for bags at {path}: {error.strerror}.") from error
        if not here:
            raise WmError(
                f"{path} holds no rosbag2 bag: no metadata.yaml, .mcap or .db3 was found in it."
            )
        found += here
    unique = list(dict.fromkeys(path.resolve() for path in found))
    return [BagSource(name, path) for name, path in zip(_names(unique), unique, strict=True)]


def _bags_under(path: Path) -> list[Path]:
    if path.is_file():
        return [path] if path.suffix in SUFFIXES else []
    if (path / "metadata.yaml").is_file():
        return [path]
    if not path.is_dir():  # a link to nowhere, a device
        return []
    # Without metadata.yaml (the recorder was killed) each file is a bag of its own.
    return [bag for child in sorted(path.iterdir()) for bag in _bags_under(child)]


def _names(paths: Sequence[Path]) -> list[str]:
    depth = [1] * len(paths)
    while True:
        names = ["/".join(path.parts[-n:]) for path, n in zip(paths, depth, strict=True)]
        counts: dict[str, int] = {}
        for name in names:
            counts[name] = counts.get(name, 0) + 1
        twice = [i for i, name in enumerate(names) if counts[name] > 1]
        if not twice:
            return names
        for i in twice:
            depth[i] += 1


@dataclass(frozen=True)
class TopicInfo:
    """A topic of a bag."""

    name: str
    msgtype: str
    count: int
    connections: tuple[Connection, ...] = field(repr=False)


class Bag:
    """A bag opened for reading; use as a context manager.

    Raises:
        BagError: the bag is damaged, truncated, or of a kind that cannot be read.
    """

    def __init__(self, source: BagSource) -> None:
        """Prepare reading; the bag is opened on entering the context."""
        self.source = source
        self.topics: dict[str, TopicInfo] = {}
        self.message_count = 0
        self._reader: Reader | None = None
        self._types = typestore()

    def __enter__(self) -> Bag:
        def open_reader() -> Reader:
            reader = Reader(self.source.path)
            reader.open()
            return reader

        self._reader = _guard(open_reader, "cannot be opened")
        try:
            self._read_index(self._reader)
        except BaseException:
            self._reader.close()
            raise
        return self

    def __exit__(
        self,
        kind: type[BaseException] | None,
        error: BaseException | None,
        trace: TracebackType | None,
    ) -> None:
        if self._reader is not None:
            self._reader.close()
            self._reader = None

    @property
    def held(self) -> dict[str, str]:
        """Message type by topic, of the topics that hold messages."""
        return {name: info.msgtype for name, info in self.topics.items() if info.count}

    @property
    def duration_s(self) -> float:
        """Seconds from the first message of the open bag to its last."""
        return float(self._opened().duration) * 1e-9

    def _read_index(self, reader: Reader) -> None:
        grouped: dict[str, list[Connection]] = {}
        for connection in reader.connections:
            grouped.setdefault(connection.topic, []).append(connection)
        for topic, connections in grouped.items():
            kinds = {connection.msgtype for connection in connections}
            if len(kinds) > 1:
                raise BagError(f"topic '{topic}' carries several types: {sorted(kinds)}")
            self.topics[topic] = TopicInfo(
                topic,
                kinds.pop(),
                sum(connection.msgcount for connection in connections),
                tuple(connections),
            )
        self.message_count = reader.message_count
        storages = getattr(reader.storage, "storages", [reader.storage])
        for chunk in (c for storage in storages for c in getattr(storage, "chunks", ())):
            if chunk.uncompressed_size > MAX_CHUNK_BYTES:
                raise BagError(
                    f"damaged: a chunk claims {chunk.uncompressed_size} bytes, more than any "
                    "recorder writes"
                )

    def messages(self, topics: Sequence[str]) -> Iterator[tuple[str, int, bytes]]:
        """Yield (topic, log time in ns, CDR bytes) of the given topics in order of log time."""
        reader = self._opened()
        wanted = [connection for topic in topics for connection in self.topics[topic].connections]
        if not wanted:
            return
        try:  # around the whole loop: this runs for every message
            for connection, log_ns, raw in reader.messages(connections=wanted):
                if len(raw) > MAX_MESSAGE_BYTES:
                    raise BagError(
                        f"a message of '{connection.topic}' has {len(raw)} bytes, too many to read"
                    )
                yield connection.topic, log_ns, raw
        except (WmError, MemoryError):
            raise
        except Exception as error:
            raise _bag_error(error, "is truncated or damaged") from error

    def deserialize(self, topic: str, raw: bytes) -> Any:
        """Turn CDR bytes of a topic into its message."""
        kind = self.topics[topic].msgtype
        try:
            return self._types.deserialize_cdr(raw, kind)
        except Exception as error:
            raise _bag_error(error, f"holds a message of '{topic}' that is no {kind}") from error

    def has_header(self, topic: str) -> bool:
        """Tell whether the messages of a topic begin with a ``std_msgs/Header``."""
        kind = self.topics[topic].msgtype
        self._know(topic, kind)
        fields = self._types.fielddefs[kind][1]
        return bool(fields) and fields[0][0] == "header"

    def float_fields(self, topic: str, paths: Sequence[str]) -> FloatFields | None:
        """Return a fast reader of fields of a topic, None where its type does not allow one."""
        kind = self.topics[topic].msgtype
        self._know(topic, kind)
        return float_fields(self._types, kind, paths)

    def _know(self, topic: str, kind: str) -> None:
        """Take a message definition from the bag when the type is not a common one."""
        if kind in self._types.types:
            return
        definition = next(
            (
                connection.msgdef
                for connection in self.topics[topic].connections
                if connection.msgdef.format == MessageDefinitionFormat.MSG
            ),
            None,
        )
        if definition is None:
            raise BagError(f"topic '{topic}' has type '{kind}', whose definition is not known")
        parsed = _guard(
            lambda: get_types_from_msg(definition.data, kind),
            f"holds a definition of '{kind}' that cannot be read",
        )
        # Bags may define the same name differently: what one adds stays with it.
        self._types = new_typestore() if self._types is typestore() else self._types
        new = {name: fields for name, fields in parsed.items() if name not in self._types.types}
        self._types.register(new)

    def _opened(self) -> Reader:
        if self._reader is None:
            raise RuntimeError("the bag is not open")
        return self._reader


def header_stamp_ns(raw: bytes) -> int:
    """Read the stamp of a CDR message that begins with a ``std_msgs/Header``, in nanoseconds.

    Raises:
        BagError: the message is too short to hold one.
    """
    if len(raw) < 12:
        raise BagError(f"a message of {len(raw)} bytes is too short for its header: damaged")
    order = "little" if raw[1] & 1 else "big"
    seconds = int.from_bytes(raw[4:8], order, signed=True)  # type: ignore[arg-type]
    return seconds * 1_000_000_000 + int.from_bytes(raw[8:12], order)  # type: ignore[arg-type]


def resolve_topic(topic: str, namespace: str) -> str:
    """Return the absolute name of a topic: relative ones are put into the namespace.

    Raises:
        WmError: the name is private (``~/``), which a bag cannot resolve.
    """
    if topic.startswith("~"):
        raise WmError(f"topic '{topic}' is private to a node; name it in full in the profile.")
    if topic.startswith("/"):
        return topic
    return "/" + "/".join(part for part in [*namespace.split("/"), topic] if part)


def _guard(action: Callable[[], _T], what: str) -> _T:
    """Run a call into the bag library, whose faults are many, and name the fault."""
    try:
        return action()
    except WmError:
        raise
    except MemoryError as error:  # a damaged length asks for petabytes
        raise BagError(f"{what}: it claims more bytes than fit in memory") from error
    except Exception as error:
        raise _bag_error(error, what) from error


def _bag_error(error: Exception, what: str) -> BagError:
    """Name a fault of the bag library, which raises whatever damaged bytes lead it to."""
    text = " ".join(str(error).split()).rstrip(".") or type(error).__name__
    return BagError(f"{what}: {text[:200]}")
