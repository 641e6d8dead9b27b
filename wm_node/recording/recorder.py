"""A bag that records itself: bounded queue in, one writer thread, files that split, disk guard.

Nothing is lost silently. Every message that was handed in and did not reach the bag is counted by
topic and by reason: ``queue`` (the writer could not keep up), ``disk`` (too little free space),
``failed`` (the disk returned an error) or ``closed``.
"""

from __future__ import annotations

import errno
import os
import threading
import time
from collections import deque
from collections.abc import Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import NamedTuple

from wm_node.errors import WmError
from wm_node.recording.mcap_file import COMPRESSIONS, METADATA_NAME, McapFile
from wm_node.recording.metadata import (
    FileInfo,
    Topic,
    bag_document,
    dump_yaml,
    write_metadata,
)

RECORDING = "recording"
PAUSED = "paused"
FAILED = "failed"
CLOSED = "closed"

DROP_QUEUE = "queue"
DROP_DISK = "disk"
DROP_FAILED = "failed"
DROP_CLOSED = "closed"

_FULL = (errno.ENOSPC, errno.EDQUOT)
_POLL_S = 0.05  # the writer looks at the queue this often, or at once when much is waiting
_SPACE_PERIOD_S = 0.25


@dataclass(frozen=True)
class RecorderConfig:
    """Limits of a recording; sizes in bytes, times in seconds of the steady clock."""

    folder: Path
    chunk_bytes: int = 1 << 20
    chunk_s: float = 0.5
    fsync_s: float = 2.0
    metadata_s: float = 5.0
    split_bytes: int = 2 << 30
    split_s: float = 300.0
    queue_bytes: int = 128 << 20
    min_free_bytes: int = 2 << 30
    resume_margin_bytes: int = 256 << 20
    compression: str = "zstd"

    def __post_init__(self) -> None:
        if self.compression not in COMPRESSIONS:
            raise WmError(
                f"unknown compression '{self.compression}'; use one of {', '.join(COMPRESSIONS)}."
            )
        if not 0.1 <= self.chunk_s <= 0.5:
            raise WmError(f"chunk_s is {self.chunk_s}; it must lie between 0.1 and 0.5 s.")
        for name in ("fsync_s", "metadata_s", "split_s"):
            if not getattr(self, name) >= 0.1:
                raise WmError(f"{name} is {getattr(self, name)}; it must be at least 0.1 s.")
        if not 1 << 10 <= self.chunk_bytes <= 64 << 20:
            raise WmError(
                f"chunk_bytes is {self.chunk_bytes}; it must lie between 1 KiB and 64 MiB."
            )
        for name in ("split_bytes", "queue_bytes"):
            if getattr(self, name) < self.chunk_bytes:
                raise WmError(f"{name} is smaller than chunk_bytes ({self.chunk_bytes}); raise it.")
        if self.min_free_bytes < 0 or self.resume_margin_bytes < 0:
            raise WmError("min_free_bytes and resume_margin_bytes must not be negative.")


@dataclass(frozen=True)
class RecorderStatus:
    """What the recorder is doing, at one moment. Counts are since the start of the bag."""

    state: str
    reason: str
    folder: Path
    file: str
    files: int
    bytes_written: int
    free_bytes: int
    queue_bytes: int
    queue_messages: int
    written: dict[str, int] = field(default_factory=dict)
    dropped: dict[str, dict[str, int]] = field(default_factory=dict)
    unfinished: tuple[str, ...] = ()

    @property
    def dropped_total(self) -> int:
        """All messages that did not reach the bag."""
        return sum(sum(reasons.values()) for reasons in self.dropped.values())


class _Message(NamedTuple):
    topic: Topic
    log_ns: int
    publish_ns: int
    data: bytes
    queued_s: float


class _Split(NamedTuple):
    """Asks the writer to begin a new file; ``done`` is set when it has."""

    done: threading.Event


class BagRecorder:
    """Writes messages of many threads into one rosbag2 bag of MCAP files.

    A chunk ends after ``chunk_bytes`` or ``chunk_s``, whichever is first; that is all that a
    ``kill -9`` can cost. Every file can be read alone: latched topics, the metadata and the
    attachments are repeated in each.
    """

    def __init__(
        self,
        config: RecorderConfig,
        metadata: Mapping[str, str] | None = None,
        attachments: Mapping[str, tuple[str, bytes]] | None = None,
        now_ns: Callable[[], int] = time.time_ns,
    ) -> None:
        """Prepare a recording; nothing is written before :meth:`start`.

        Args:
            config: limits.
            metadata: text by key, for the bag's ``custom_data`` and each file's metadata record.
            attachments: file name -> (media type, bytes), repeated in every file.
            now_ns: clock of the log times, used to stamp what is repeated in a new file.
        """
        self._config = config
        self._metadata = dict(metadata or {})
        self._attachments = dict(attachments or {})
        self._now_ns = now_ns
        self._lock = threading.Lock()
        self._wake = threading.Event()
        self._stop = False
        self._queue: deque[_Message | _Split] = deque()
        self._queue_bytes = 0
        self._state = CLOSED
        self._reason = "not started"
        self._written: dict[str, int] = {}
        self._dropped: dict[str, dict[str, int]] = {}
        self._free_bytes = 0
        self._thread: threading.Thread | None = None
        # From here on: only the writer thread, once it runs.
        self._file: McapFile | None = None
        self._stuck: McapFile | None = None
        self._done: list[FileInfo] = []
        self._done_bytes = 0
        self._unfinished: list[str] = []
        self._topics: dict[str, Topic] = {}
        self._latched: dict[str, deque[_Message]] = {}
        self._chunk_since = 0.0
        self._file_since = 0.0
        self._last_sync = 0.0
        self._last_metadata = 0.0
        self._last_space = 0.0
        self._next_index = 0

    # ---------------------------------------------------------------- any thread

    def start(self) -> None:
        """Create the bag and its first file, and begin to write.

        Raises:
            WmError: the folder holds something, cannot be created, or has too little free space.
        """
        folder = self._config.folder
        try:
            folder.mkdir(parents=True, exist_ok=True)
            if any(folder.iterdir()):
                raise WmError(f"{folder} already holds files; record into a new folder.")
            free = _free_bytes(folder)
            if free <= self._config.min_free_bytes:
                raise WmError(
                    f"only {_mb(free)} MB are free at {folder}, below the limit of "
                    f"{_mb(self._config.min_free_bytes)} MB; make room or lower min_free_mb."
                )
            self._free_bytes = free
            self._open_file()
            self._write_metadata(sync=True)
        except OSError as error:
            raise WmError(f"cannot record into {folder}: {error.strerror or error}.") from error
        self._set_state(RECORDING, "")
        self._thread = threading.Thread(target=self._run, name="bag_writer", daemon=True)
        self._thread.start()

    def write(self, topic: Topic, log_ns: int, publish_ns: int, data: bytes) -> bool:
        """Queue one serialised message; returns False, and counts it, if it had to be dropped."""
        message = _Message(topic, log_ns, publish_ns, data, time.monotonic())
        with self._lock:
            if self._state == CLOSED or self._stop:
                return self._drop(topic.name, DROP_CLOSED)
            if self._state != RECORDING and not topic.latched:
                return self._drop(topic.name, DROP_DISK if self._state == PAUSED else DROP_FAILED)
            if self._queue_bytes + len(data) > self._config.queue_bytes:
                return self._drop(topic.name, DROP_QUEUE)
            self._queue.append(message)
            self._queue_bytes += len(data)
            much = self._queue_bytes > self._config.chunk_bytes
        if much:
            self._wake.set()
        return True

    def split(self, timeout_s: float = 10.0) -> str:
        """Finish the current file and begin the next; returns the new file's name.

        Raises:
            WmError: not recording, or the writer did not get to it in time.
        """
        request = _Split(threading.Event())
        with self._lock:
            if self._state != RECORDING or self._stop:
                raise WmError(f"cannot split: the recorder is {self._state} ({self._reason}).")
            self._queue.append(request)
        self._wake.set()
        if not request.done.wait(timeout_s):
            raise WmError(f"the writer did not split within {timeout_s:g} s; the disk is too slow.")
        status = self.status()
        if status.state != RECORDING:
            raise WmError(f"cannot split: the recorder is {status.state} ({status.reason}).")
        return status.file

    def status(self) -> RecorderStatus:
        """Return a snapshot for diagnostics."""
        with self._lock:
            file = self._file
            return RecorderStatus(
                state=self._state,
                reason=self._reason,
                folder=self._config.folder,
                file=file.path.name if file else "",
                files=len(self._done) + (file is not None),
                bytes_written=self._done_bytes + (file.bytes_written if file else 0),
                free_bytes=self._free_bytes,
                queue_bytes=self._queue_bytes,
                queue_messages=len(self._queue),
                written=dict(self._written),
                dropped={topic: dict(reasons) for topic, reasons in self._dropped.items()},
                unfinished=tuple(self._unfinished),
            )

    def close(self, timeout_s: float = 30.0) -> RecorderStatus:
        """Write everything that is queued, finish the bag and return the final status.

        Raises:
            WmError: the disk did not take it within ``timeout_s``.
        """
        thread = self._thread
        if thread is not None:
            with self._lock:
                self._stop = True
            self._wake.set()
            thread.join(timeout_s)
            if thread.is_alive():
                raise WmError(
                    f"the disk did not finish {self._config.folder} within {timeout_s:g} s; "
                    "'wm recover' repairs it."
                )
            self._thread = None
        return self.status()

    def _drop(self, topic: str, reason: str) -> bool:
        """Count a dropped message; the lock is held."""
        reasons = self._dropped.setdefault(topic, {})
        reasons[reason] = reasons.get(reason, 0) + 1
        return False

    def _set_state(self, state: str, reason: str) -> None:
        with self._lock:
            self._state, self._reason = state, reason

    # ---------------------------------------------------------------- writer thread

    def _run(self) -> None:
        try:
            while True:
                self._wake.wait(_POLL_S)
                self._wake.clear()
                stopping = self._stop  # before the queue is read, so that nothing stays behind
                self._guarded(self._drain)
                self._guarded(self._periodic)
                if stopping:
                    break
        except Exception as error:
            self._set_state(FAILED, f"the bag writer stopped on {error!r}; please report it")
            raise
        finally:
            self._finish()

    def _guarded(self, step: Callable[[], None]) -> None:
        try:
            step()
        except OSError as error:
            if error.errno in _FULL:
                self._pause(f"the disk is full ({_mb(self._free_bytes)} MB free)")
            else:
                text = f"{error.strerror or error} at {self._config.folder}"
                self._abandon_file()
                self._set_state(FAILED, f"{text}; check the disk and start a new recording")

    def _drain(self) -> None:
        """Move what is queued now into the open file."""
        for _ in range(len(self._queue)):
            with self._lock:
                item = self._queue.popleft()
                if isinstance(item, _Message):
                    self._queue_bytes -= len(item.data)
                state = self._state
            if isinstance(item, _Split):
                try:
                    if state == RECORDING:
                        self._next_file()
                finally:
                    item.done.set()
                continue
            if item.topic.latched:
                self._remember(item)
            file = self._file
            if file is None:
                if state == PAUSED and item.topic.latched:
                    continue  # kept for the file that follows the pause
                with self._lock:
                    self._drop(item.topic.name, DROP_DISK if state == PAUSED else DROP_FAILED)
                continue
            if file.uncommitted_bytes == 0:
                self._chunk_since = item.queued_s
            self._put(file, item)
            if file.uncommitted_bytes >= self._config.chunk_bytes:
                self._commit()

    def _put(self, file: McapFile, message: _Message) -> None:
        # A topic is described alike in all files: readers match them with metadata.yaml by that.
        topic = self._topics.setdefault(message.topic.name, message.topic)
        file.write(topic, message.log_ns, message.publish_ns, message.data)
        with self._lock:
            self._written[topic.name] = self._written.get(topic.name, 0) + 1

    def _remember(self, message: _Message) -> None:
        """Keep the last distinct messages of a latched topic for the files to come."""
        kept = self._latched.setdefault(message.topic.name, deque())
        for old in kept:
            if old.data == message.data:
                kept.remove(old)
                break
        kept.append(message)
        while len(kept) > max(1, message.topic.keep):
            kept.popleft()

    def _periodic(self) -> None:
        now = time.monotonic()
        if now - self._last_space >= _SPACE_PERIOD_S:
            self._last_space = now
            self._watch_space()
        file = self._file
        if file is None:
            return
        # One poll early: messages may wait that long for the next look at the chunk.
        if file.uncommitted_bytes and now - self._chunk_since >= self._config.chunk_s - _POLL_S:
            self._commit()
        if now - self._last_sync >= self._config.fsync_s:
            file.sync()
            self._last_sync = now
        if now - self._last_metadata >= self._config.metadata_s:
            self._write_metadata(sync=False)
        size = file.bytes_written + file.uncommitted_bytes
        if size >= self._config.split_bytes or now - self._file_since >= self._config.split_s:
            self._next_file()

    def _commit(self) -> None:
        if self._file is not None:
            self._file.commit()

    def _watch_space(self) -> None:
        """Pause before the disk is full, resume when there is room again."""
        free = _free_bytes(self._config.folder)
        with self._lock:
            self._free_bytes = free
            state = self._state
        limit = self._config.min_free_bytes
        if state == RECORDING and free <= limit:
            self._pause(f"only {_mb(free)} MB are free, below the limit of {_mb(limit)} MB")
        elif state == PAUSED and free > limit + self._config.resume_margin_bytes:
            self._close_stuck()
            self._open_file()
            self._set_state(RECORDING, "")

    def _pause(self, why: str) -> None:
        reason = f"recording is stopped: {why} at {self._config.folder}; it resumes with room"
        self._set_state(PAUSED, reason)
        file, self._file = self._file, None
        if file is None:
            return
        self._stuck = file
        try:
            self._close_stuck()
            self._write_metadata(sync=True)
        except OSError:
            return  # not even room for the summary: tried again when there is

    def _close_stuck(self) -> None:
        if self._stuck is not None:
            self._close_file(self._stuck)
            self._stuck = None

    def _abandon_file(self) -> None:
        for file in (self._file, self._stuck):
            if file is not None:
                lost = file.abandon()
                with self._lock:
                    for topic, count in lost.items():
                        self._written[topic] -= count
                        reasons = self._dropped.setdefault(topic, {})
                        reasons[DROP_FAILED] = reasons.get(DROP_FAILED, 0) + count
                self._unfinished.append(file.path.name)
                self._done.append(file.info)
                self._done_bytes += file.bytes_written
        self._file = self._stuck = None

    def _next_file(self) -> None:
        file, self._file = self._file, None
        if file is not None:
            self._stuck = file  # so that a full disk does not lose its last chunk
            self._close_stuck()
        self._open_file()
        self._write_metadata(sync=True)

    def _close_file(self, file: McapFile) -> None:
        document = bag_document([file.info], self._known_topics([file.info]), self._metadata)
        file.close(dump_yaml(document["rosbag2_bagfile_information"]))
        with self._lock:
            self._done.append(file.info)
            self._done_bytes += file.bytes_written

    def _open_file(self) -> None:
        """Begin the next file with everything that makes it readable alone."""
        config = self._config
        path = config.folder / f"{config.folder.name}_{self._next_index}.mcap"
        self._next_index += 1
        file = McapFile(path, config.compression)
        now_ns = self._now_ns()
        self._file = file
        self._file_since = self._chunk_since = time.monotonic()
        if self._metadata:
            file.add_metadata(METADATA_NAME, self._metadata | {"chunk_s": f"{config.chunk_s:g}"})
        for name, (media_type, data) in self._attachments.items():
            file.add_attachment(name, media_type, data, now_ns)
        for kept in self._latched.values():
            for message in kept:
                self._put(file, message._replace(log_ns=now_ns))
        file.commit()

    def _known_topics(self, files: list[FileInfo]) -> list[tuple[Topic, None]]:
        names = {name for info in files for name in info.counts}
        return [(topic, None) for name, topic in sorted(self._topics.items()) if name in names]

    def _write_metadata(self, sync: bool) -> None:
        files = list(self._done)
        files += [file.info for file in (self._stuck, self._file) if file is not None]
        document = bag_document(files, self._known_topics(files), self._metadata)
        write_metadata(self._config.folder, document, sync)
        self._last_metadata = time.monotonic()

    def _finish(self) -> None:
        """Close the last file and write the final metadata."""
        reason = "closed"
        try:
            file, self._file = self._file, None
            self._stuck = self._stuck or file
            self._close_stuck()
            self._write_metadata(sync=True)
        except OSError as error:
            self._abandon_file()
            reason = f"the last file was not finished ({error.strerror or error}): 'wm recover'"
        with self._lock:
            while self._queue:
                item = self._queue.popleft()
                if isinstance(item, _Split):
                    item.done.set()
                else:
                    self._drop(item.topic.name, DROP_CLOSED)
            self._queue_bytes = 0
            if self._state == FAILED:
                reason = self._reason
            self._state, self._reason = CLOSED, reason


def _free_bytes(folder: Path) -> int:
    stat = os.statvfs(folder)
    return stat.f_bavail * stat.f_frsize


def _mb(count: int) -> int:
    return count // 1_000_000
