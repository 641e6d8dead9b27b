"""Reads an MCAP file record by record, without trusting anything in it.

The usual readers start at the summary at the end of the file, which a killed recorder never
wrote, and stop at the first damaged byte. This one walks from the front, checks every chunk's
checksum, takes whole messages out of a chunk that is cut short, and looks for the next chunk
behind damage. Memory is bounded by the largest chunk accepted, :data:`MAX_CHUNK_BYTES`.
"""

from __future__ import annotations

import mmap
import re
import struct
import zlib
from collections.abc import Iterator
from dataclasses import dataclass
from io import BytesIO
from pathlib import Path
from typing import Any, TypeAlias

import lz4.frame  # type: ignore[import-untyped]
import zstandard
from mcap.data_stream import ReadDataStream
from mcap.exceptions import McapError
from mcap.opcode import Opcode
from mcap.records import Attachment, Channel, Footer, Header, Message, Metadata, Schema, Statistics

from wm_node.errors import WmError

MAGIC = b"\x89MCAP0\r\n"
MAX_CHUNK_BYTES = 1 << 30
# A record of data or summary other than a chunk or an attachment is far smaller.
MAX_RECORD_BYTES = 1 << 30

_RECORD_HEAD = struct.Struct("<BQ")
_CHUNK_HEAD = struct.Struct("<QQQI")  # start, end, uncompressed size, crc
_MESSAGE_HEAD = struct.Struct("<HIQQ")  # channel, sequence, log time, publish time
_FOOTER_BYTES = 9 + 20 + len(MAGIC)
# In a chunk record, the compression's name follows opcode, length and head.
_NAME_AT = _RECORD_HEAD.size + _CHUNK_HEAD.size
# A chunk's opcode and, behind four bytes, the upper half of its length, which is zero.
_CHUNK_START = re.compile(rb"\x06(?=[\s\S]{4}\x00{4})")

_PARSE_ERRORS = (
    McapError,
    ValueError,
    struct.error,
    EOFError,
    KeyError,
    IndexError,
    TypeError,
    OverflowError,
    MemoryError,
    RuntimeError,
    zstandard.ZstdError,
)


@dataclass(frozen=True)
class Damage:
    """A stretch of the file that gave no messages: byte offset and what is wrong."""

    offset: int
    reason: str


@dataclass(frozen=True)
class Cut:
    """The file ends early: where its sound part ends, and why.

    ``until_ns`` is the last log time that the cut chunk announces, where it is cut behind that.
    """

    offset: int
    reason: str
    until_ns: int | None = None


@dataclass(frozen=True)
class End:
    """The regular end of the data section; ``statistics`` is the summary's, if it has one."""

    statistics: Statistics | None


Item: TypeAlias = Header | Schema | Channel | Message | Metadata | Attachment | Damage | Cut | End


def scan(path: Path) -> Iterator[tuple[int, Item]]:
    """Yield (bytes passed, item) for everything readable, in file order.

    The last item is :class:`End` for a complete file and :class:`Cut` for one that is not. Just
    before it come the schemas and channels of the summary, for messages whose own are damaged.

    Raises:
        WmError: the file is empty or no MCAP.
        OSError: it cannot be read.
    """
    size = path.stat().st_size
    if size < len(MAGIC):
        raise WmError(f"{path} has {size} bytes and is no MCAP file; there is nothing to save.")
    with path.open("rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
        if data[: len(MAGIC)] != MAGIC:
            raise WmError(f"{path} is no MCAP file; 'wm recover' repairs MCAP bags only.")
        yield from _walk(data, size)


def _walk(data: mmap.mmap, size: int) -> Iterator[tuple[int, Item]]:
    offset = len(MAGIC)
    while True:
        if offset + _RECORD_HEAD.size > size:
            yield size, Cut(offset, "the file ends without a summary")
            return
        opcode, length = _RECORD_HEAD.unpack_from(data, offset)
        body = offset + _RECORD_HEAD.size
        end = body + length
        plausible = _known(opcode) and length <= MAX_RECORD_BYTES
        if opcode == Opcode.DATA_END and plausible and end <= size:
            yield from _tail(data, offset, size)
            return
        whole = plausible and end <= size and (end == size or _known(data[end]))
        if not whole or (opcode == Opcode.CHUNK and not _is_chunk(data, offset, size)):
            found = _next_chunk(data, offset + 1, size)
            if found is None:
                what = "inside a record" if plausible else "in bytes that are no MCAP record"
                until_ns = None
                if plausible and opcode == Opcode.CHUNK and end > size:
                    until_ns, items = _cut_chunk(data[body:size])
                    for item in items:
                        yield size, item
                yield size, Cut(offset, f"the file ends {what}", until_ns)
                return
            yield found, Damage(offset, f"{found - offset} bytes are no MCAP records")
            offset = found
            continue
        for item in _record(opcode, data[body:end], offset):
            yield end, item
        offset = end


def _known(opcode: int) -> bool:
    """Whether a byte can begin a record: one that MCAP defines, or an application's own."""
    return 0 < opcode <= Opcode.DATA_END or opcode >= 0x80


def _record(opcode: int, content: bytes, offset: int) -> Iterator[Item]:
    """Yield what a complete record holds, or the damage in it."""
    if opcode == Opcode.CHUNK:
        yield from _chunk(content, offset)
        return
    parsers: dict[int, Any] = {
        Opcode.HEADER: Header.read,
        Opcode.SCHEMA: Schema.read,
        Opcode.CHANNEL: Channel.read,
        Opcode.METADATA: Metadata.read,
        Opcode.ATTACHMENT: Attachment.read,
    }
    try:
        if opcode == Opcode.MESSAGE:
            yield _message(content)
        elif opcode == Opcode.ATTACHMENT and not _attachment_is_sound(content):
            yield Damage(offset, "an attachment's checksum does not match")
        elif opcode in parsers:
            yield parsers[opcode](ReadDataStream(BytesIO(content)))
    except _PARSE_ERRORS as error:
        yield Damage(offset, f"a record of kind {opcode} cannot be read ({_short(error)})")


def _attachment_is_sound(content: bytes) -> bool:
    (crc,) = struct.unpack("<I", content[-4:])
    return crc in (0, zlib.crc32(content[:-4]))


def _message(content: bytes) -> Message:
    channel, sequence, log_time, publish_time = _MESSAGE_HEAD.unpack_from(content)
    return Message(
        channel_id=channel,
        sequence=sequence,
        log_time=log_time,
        publish_time=publish_time,
        data=content[_MESSAGE_HEAD.size :],
    )


def _chunk(content: bytes, offset: int) -> Iterator[Item]:
    try:
        _, _, size, crc = _CHUNK_HEAD.unpack_from(content)
        name, packed = _compressed(content)
        records = _decompress(name, packed, size)
        if len(records) != size:
            raise ValueError(f"it unpacks to {len(records)} bytes instead of {size}")
        if crc and zlib.crc32(records) != crc:
            raise ValueError("its checksum does not match")
    except _PARSE_ERRORS as error:
        yield Damage(offset, f"a chunk is damaged ({_short(error)})")
        return
    yield from _records(records, offset)


def _records(records: bytes, offset: int) -> Iterator[Item]:
    """Yield the schemas, channels and messages of an unpacked chunk, as far as they are whole."""
    at = 0
    while at + _RECORD_HEAD.size <= len(records):
        opcode, length = _RECORD_HEAD.unpack_from(records, at)
        body = at + _RECORD_HEAD.size
        if body + length > len(records):
            return
        if opcode in (Opcode.SCHEMA, Opcode.CHANNEL, Opcode.MESSAGE):
            yield from _record(opcode, records[body : body + length], offset)
        elif opcode == 0:
            return  # zeros, as a file system leaves them after a loss of power
        at = body + length


def _compressed(content: bytes) -> tuple[str, bytes]:
    """Return the compression's name and the packed bytes that are there of a chunk record."""
    stream = ReadDataStream(BytesIO(content[_CHUNK_HEAD.size :]))
    (name_length,) = struct.unpack("<I", stream.read(4))
    if name_length > 16:
        raise ValueError("its compression has no name")
    name = stream.read(name_length).decode("ascii")
    (packed_length,) = struct.unpack("<Q", stream.read(8))
    at = _CHUNK_HEAD.size + 4 + name_length + 8
    return name, content[at : at + packed_length]


def _decompress(name: str, packed: bytes, size: int, partly: bool = False) -> bytes:
    """Unpack what is there, at most ``size`` + 1 bytes; ``partly``: only up to the first fault."""
    if size > MAX_CHUNK_BYTES:
        raise ValueError(f"it claims {size} bytes")
    if name == "":
        return packed
    if name == "zstd":
        with zstandard.ZstdDecompressor().stream_reader(BytesIO(packed)) as reader:
            return _read_up_to(reader, size + 1, partly)
    if name == "lz4":
        return bytes(lz4.frame.LZ4FrameDecompressor().decompress(packed, max_length=size + 1))
    raise ValueError(f"its compression '{name}' is not known")


def _read_up_to(reader: Any, size: int, partly: bool) -> bytes:
    parts = []
    while size > 0:
        try:
            part = reader.read(min(size, 1 << 16))
        except zstandard.ZstdError:
            if not partly:
                raise
            break
        if not part:
            break
        parts.append(part)
        size -= len(part)
    return b"".join(parts)


def _cut_chunk(content: bytes) -> tuple[int | None, list[Item]]:
    """Return the end time and the whole records at the front of a chunk whose end is missing."""
    try:
        start_ns, end_ns, size, _ = _CHUNK_HEAD.unpack_from(content)
        name, packed = _compressed(content)
        records = _decompress(name, packed, size, partly=True)
    except _PARSE_ERRORS:
        return None, []
    return (end_ns if end_ns >= start_ns else None), list(_records(records, 0))


def _next_chunk(data: mmap.mmap, start: int, size: int) -> int | None:
    """Return the offset of the next chunk that is whole by its own lengths."""
    for match in _CHUNK_START.finditer(data, start, size):
        if _is_chunk(data, match.start(), size):
            return match.start()
    return None


def _is_chunk(data: mmap.mmap, offset: int, size: int) -> bool:
    """Whether a chunk lies at ``offset`` whose lengths agree with each other and the file's."""
    opcode, length = _RECORD_HEAD.unpack_from(data, offset)
    if opcode != Opcode.CHUNK or length > size - offset - _RECORD_HEAD.size:
        return False
    name_at = offset + _NAME_AT
    if name_at + 4 > size:
        return False
    (name_length,) = struct.unpack_from("<I", data, name_at)
    packed_at = name_at + 4 + name_length
    if packed_at + 8 > size:
        return False
    (packed_length,) = struct.unpack_from("<Q", data, packed_at)
    return bool(packed_at + 8 + packed_length == offset + _RECORD_HEAD.size + length)


def _tail(data: mmap.mmap, data_end: int, size: int) -> Iterator[tuple[int, Item]]:
    """Yield the summary's schemas and channels, then End, or Cut if the summary is not sound."""
    broken = Cut(data_end, "the summary is cut or damaged")
    footer_at = size - _FOOTER_BYTES
    if footer_at < data_end or data[size - len(MAGIC) : size] != MAGIC:
        yield size, broken
        return
    opcode, length = _RECORD_HEAD.unpack_from(data, footer_at)
    if opcode != Opcode.FOOTER or length != 20:
        yield size, broken
        return
    footer = Footer.read(ReadDataStream(BytesIO(data[footer_at + 9 : footer_at + 29])))
    statistics: Statistics | None = None
    if footer.summary_start:
        if not data_end < footer.summary_start <= footer_at:
            yield size, broken
            return
        # The checksum covers the summary and the footer up to itself.
        if footer.summary_crc and footer.summary_crc != zlib.crc32(
            data[footer.summary_start : footer_at + 9 + 16]
        ):
            yield size, broken
            return
        at = footer.summary_start
        while at + _RECORD_HEAD.size <= footer_at:
            opcode, length = _RECORD_HEAD.unpack_from(data, at)
            body = at + _RECORD_HEAD.size
            if body + length > footer_at:
                yield size, broken
                return
            content = data[body : body + length]
            if opcode == Opcode.STATISTICS:
                try:
                    statistics = Statistics.read(ReadDataStream(BytesIO(content)))
                except _PARSE_ERRORS:
                    yield size, broken
                    return
            elif opcode in (Opcode.SCHEMA, Opcode.CHANNEL):
                for item in _record(opcode, content, at):
                    yield at, item
            at = body + length
    yield size, End(statistics)


def _short(error: BaseException) -> str:
    return " ".join(str(error).split())[:120] or type(error).__name__
