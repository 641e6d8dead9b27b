"""Keeps built engines on disk, keyed by everything that they depend on.

    <graph>-<key>.engine   the serialised engine
    <graph>-<key>.json     sidecar: the key in words, size and sha256 of the engine
    lock                   held while one is built or removed

An engine is written under another name and renamed, its sidecar last, so that a power cut leaves
either a whole entry or none that is taken. An entry that is not what its sidecar says, or whose
sidecar does not hold the very key that was asked for, is built again.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from wm_node.errors import WmError

MAX_BYTES = 4 << 30
MAX_SIDECAR_BYTES = 1 << 16
log = logging.getLogger("wm_node.engine_cache")


@dataclass(frozen=True)
class EngineKey:
    """Everything that an engine depends on; two engines with equal keys are interchangeable."""

    graph: str
    onnx_sha256: str
    weights_sha256: str
    tensorrt: str
    """Edition and full version."""
    cuda: str
    """Newest version that the driver supports; empty for a target named ahead of time."""
    device: str
    """Name of the GPU; empty likewise."""
    target: str
    """Compute capability, such as ``sm_86``."""
    precision: str
    axes: dict[str, list[int]]
    """Free axis -> least, usual and largest size."""
    workspace_mb: int
    recipe: int

    def digest(self) -> str:
        """Return its hexadecimal sha256."""
        return hashlib.sha256(json.dumps(asdict(self), sort_keys=True).encode()).hexdigest()


@dataclass(frozen=True)
class CachedEngine:
    """An engine that was checked against its sidecar, or has just been built."""

    key: EngineKey
    data: bytes
    path: Path
    built: bool
    """Whether it had to be built."""


def default_folder() -> Path:
    """Return ``$XDG_CACHE_HOME/wm_node/engines``, by default below ``~/.cache``."""
    base = os.environ.get("XDG_CACHE_HOME")
    return (Path(base) if base else Path.home() / ".cache") / "wm_node" / "engines"


class EngineCache:
    """A folder of engines, bounded in size. Processes may share it."""

    def __init__(self, folder: Path | None = None, max_bytes: int = MAX_BYTES) -> None:
        """Use a folder (default: :func:`default_folder`), which is made when first written to.

        Args:
            folder: where the engines lie.
            max_bytes: of all engines together; beyond it those not used for longest are removed.
        """
        self.folder = folder or default_folder()
        self.max_bytes = max_bytes

    def get(self, key: EngineKey, build: Callable[[], bytes]) -> CachedEngine:
        """Return the engine of a key; build and keep it if there is none that can be taken.

        Only one process builds at a time: builders measure kernels, and two would disturb each
        other. One that had to wait looks again before it builds.

        Raises:
            WmError: the folder cannot be written; and whatever ``build`` raises.
        """
        path = self.folder / f"{key.graph}-{key.digest()[:32]}.engine"
        if (data := self._read(key, path, report=False)) is not None:
            return CachedEngine(key, data, path, built=False)
        with self._locked():
            if (data := self._read(key, path, report=True)) is not None:
                return CachedEngine(key, data, path, built=False)
            data = build()
            with self._writable():
                self._write(key, path, data)
                self._shrink(path)
        return CachedEngine(key, data, path, built=True)

    def _read(self, key: EngineKey, path: Path, report: bool) -> bytes | None:
        """Return the engine if the entry is whole and of this key."""
        sidecar = path.with_suffix(".json")
        try:
            with sidecar.open("rb") as file:
                said = json.loads(file.read(MAX_SIDECAR_BYTES))
            data = path.read_bytes()
        except FileNotFoundError:
            fault = "is incomplete" if path.exists() or sidecar.exists() else ""
        except (OSError, ValueError):
            fault = "has an unreadable sidecar"
        else:
            fault = _fault(said, key, data)
            if not fault:
                with contextlib.suppress(OSError):  # a read-only cache still serves
                    os.utime(path)
                return data
        if fault and report:
            log.warning("engine cache: %s %s; it is built again", path, fault)
        return None

    def _write(self, key: EngineKey, path: Path, data: bytes) -> None:
        said = {
            "key": asdict(key),
            "bytes": len(data),
            "sha256": hashlib.sha256(data).hexdigest(),
        }
        sidecar = path.with_suffix(".json")
        sidecar.unlink(missing_ok=True)  # it must never vouch for another engine
        _replace(path, data)
        _replace(sidecar, json.dumps(said, indent=2).encode())

    def _shrink(self, newest: Path) -> None:
        """Remove what a killed builder left, then the engines not used for longest."""
        for left in self.folder.glob(".*.writing"):
            left.unlink(missing_ok=True)
        entries = []
        for path in self.folder.glob("*.engine"):
            found = path.stat()
            entries.append((found.st_mtime_ns, found.st_size, path))
        total = sum(size for _, size, _ in entries)
        for _, size, path in sorted(entries):
            if total <= self.max_bytes:
                return
            if path == newest:
                continue
            path.with_suffix(".json").unlink(missing_ok=True)
            path.unlink(missing_ok=True)
            total -= size
            log.info("engine cache: removed %s, not used for longest", path)
        if total > self.max_bytes:
            log.warning("engine cache: %s alone is larger than %d bytes", newest, self.max_bytes)

    @contextlib.contextmanager
    def _writable(self) -> Iterator[None]:
        try:
            yield
        except OSError as error:
            raise WmError(
                f"the engine cache {self.folder} cannot be written: {error}; name another folder."
            ) from error

    @contextlib.contextmanager
    def _locked(self) -> Iterator[None]:
        with self._writable():
            self.folder.mkdir(parents=True, exist_ok=True, mode=0o700)
            file = (self.folder / "lock").open("w")
        with file:
            try:
                fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                log.info("engine cache: waiting for another process that builds in %s", self.folder)
                fcntl.flock(file, fcntl.LOCK_EX)
            yield


def _fault(said: Any, key: EngineKey, data: bytes) -> str:
    """Return what is wrong with an entry, empty if nothing is."""
    if not isinstance(said, dict):
        return "has an unreadable sidecar"
    if said.get("key") != asdict(key):
        return "was built for something else"
    if said.get("bytes") != len(data) or said.get("sha256") != hashlib.sha256(data).hexdigest():
        return "is damaged"
    return ""


def _replace(path: Path, data: bytes) -> None:
    """Write a file whole or not at all, also through a power cut."""
    temporary = path.with_name(f".{path.name}.writing")
    with temporary.open("wb") as file:
        file.write(data)
        file.flush()
        os.fsync(file.fileno())
    temporary.replace(path)
