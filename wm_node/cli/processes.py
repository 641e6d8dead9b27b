"""Starts node processes in a private ROS domain, notices when one dies, leaves none behind."""

from __future__ import annotations

import ctypes
import fcntl
import importlib.util
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from pathlib import Path
from types import FrameType
from typing import IO, Any

import yaml

from wm_node.errors import WmError
from wm_node.profile import RobotProfile
from wm_node.resources import resource

# What a run of a command leaves in its folder.
OUTPUTS = ("summary.json", "report.html", "bag", "log")

_PR_SET_PDEATHSIG = 1
_PROBED_PARTICIPANTS = 8
_LOG_TAIL_BYTES = 16_384
# Lines such as "[ERROR] [1763.2] [world_model]: the bundle is damaged."
_FAULT = re.compile(r"\[(?:ERROR|FATAL)\] \[[\d.]+\] \[(?P<logger>[^\]]+)\]: (?P<text>.+)")


@contextmanager
def private_domain() -> Iterator[int]:
    """Reserve a ROS domain that nobody on this machine uses; yields its number (1 to 100).

    A lock file keeps two of our own runs apart, a probe of the domain's first UDP ports keeps us
    away from any other ROS program.

    Raises:
        WmError: every domain is taken.
    """
    first = os.getpid() % 100
    for offset in range(100):
        domain = 1 + (first + offset) % 100
        path = Path(tempfile.gettempdir()) / f"wm_node_domain_{domain}.lock"
        try:
            lock = path.open("a")
        except PermissionError:  # another user's lock file: that domain is theirs
            continue
        with lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                continue
            if _domain_is_free(domain):
                yield domain
                return
    raise WmError("all ROS domains from 1 to 100 are in use; stop other ROS programs first.")


def _domain_is_free(domain: int) -> bool:
    # RTPS: each participant of a domain listens on a port of its own; the first may be gone.
    for participant in range(_PROBED_PARTICIPANTS):
        with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as probe:
            try:
                probe.bind(("", 7400 + 250 * domain + 10 + 2 * participant))
            except OSError:
                return False
    return True


def node_environment(domain: int, log_dir: Path) -> dict[str, str]:
    """Return the environment of our processes: own domain, this machine only, bounded threads."""
    environment = dict(os.environ)
    environment |= {
        "ROS_DOMAIN_ID": str(domain),
        "ROS_AUTOMATIC_DISCOVERY_RANGE": "LOCALHOST",
        "RMW_IMPLEMENTATION": "rmw_fastrtps_cpp",
        "FASTRTPS_DEFAULT_PROFILES_FILE": str(resource("config/fastdds_large_images.xml")),
        "ROS_LOG_DIR": str(log_dir / "ros"),
        # Spinning OpenMP threads beside another busy process cost ten times their gain.
        "OMP_NUM_THREADS": "1",
        "OPENBLAS_NUM_THREADS": "1",
        "OMP_WAIT_POLICY": "PASSIVE",
        # Software rendering in the simulator's own thread.
        "LP_NUM_THREADS": "0",
        "PYTHONUNBUFFERED": "1",
    }
    environment.setdefault("MUJOCO_GL", "egl")
    # ROS_LOCALHOST_ONLY and peers of the caller would override the discovery range.
    for name in ("ROS_LOCALHOST_ONLY", "ROS_STATIC_PEERS", "ROS_DISCOVERY_SERVER"):
        environment.pop(name, None)
    return environment


@contextmanager
def own_environment(environment: dict[str, str]) -> Iterator[None]:
    """Give this process the nodes' environment for a while: it takes part as a node as well."""
    before = dict(os.environ)
    _set_environment(environment)
    try:
        yield
    finally:
        _set_environment(before)


def _set_environment(wanted: Mapping[str, str]) -> None:
    """Make this process's environment equal to the wanted one."""
    for name in set(os.environ) - set(wanted):
        del os.environ[name]
    os.environ.update(wanted)


def prepare_output(out: Path, command: str) -> Path:
    """Make a command's output folder and clear away the results of an older run of it.

    Args:
        out: the folder; it may exist.
        command: name of the command; a marker file says that a folder is its own.

    Raises:
        WmError: the folder holds files of somebody else, or cannot be written.
    """
    out = out.expanduser().resolve()
    marker = out / f".wm_{command}"
    try:
        if out.exists() and any(out.iterdir()) and not marker.exists():
            raise WmError(
                f"{out} holds files that 'wm {command}' did not write; choose another --out folder."
            )
        out.mkdir(parents=True, exist_ok=True)
        marker.touch()
        for name in OUTPUTS:
            path = out / name
            if path.is_dir() and not path.is_symlink():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
    except OSError as error:
        raise WmError(f"cannot write to {out}: {error.strerror or error}.") from error
    return out


def require(*modules: tuple[str, str]) -> None:
    """Make sure that optional libraries are installed before any work is done.

    Args:
        modules: (module, extra of this package that installs it).

    Raises:
        WmError: one is missing; says how to install it.
    """
    for module, extra in modules:
        if importlib.util.find_spec(module) is None:
            hint = " or source your ROS 2 installation" if module == "rclpy" else ""
            raise WmError(f"'{module}' is not installed; run pip install 'wm_node[{extra}]'{hint}.")


def write_profile(path: Path, profile: RobotProfile) -> None:
    """Write a profile for the node processes to load (WmError: the disk refuses it)."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        text = yaml.safe_dump(profile.dump(), sort_keys=False, allow_unicode=True)
        path.write_text(text, encoding="utf-8")
    except OSError as error:
        raise WmError(f"cannot write {path}: {error.strerror or error}.") from error


def ros_arguments(parameters: dict[str, Any], *files: str) -> list[str]:
    """Return the command-line words that give a node its parameter files and parameters."""
    words = ["--ros-args"]
    for file in files:
        words += ["--params-file", file]
    for name, value in parameters.items():
        text = str(value).lower() if isinstance(value, bool) else str(value)
        words += ["-p", f"{name}:={text}"]
    return words


def node_command(module: str, arguments: Sequence[str] = ()) -> list[str]:
    """Return the command line that runs a node module with this interpreter."""
    return [sys.executable, "-m", f"wm_node.nodes.{module}", *arguments]


@dataclass
class _Child:
    name: str
    process: subprocess.Popen[bytes]
    log: Path


class ProcessGroup:
    """Child processes that live and die together; use it in a ``with`` block.

    Each child leads its own process group, gets SIGTERM from the kernel if we are killed, and
    writes to ``log_dir/<name>.log``.
    """

    def __init__(self, environment: dict[str, str], log_dir: Path) -> None:
        self._environment = environment
        self._log_dir = log_dir
        self._children: list[_Child] = []

    def __enter__(self) -> ProcessGroup:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop()

    @property
    def pids(self) -> dict[str, int]:
        """Process ids by name."""
        return {child.name: child.process.pid for child in self._children}

    def start(self, name: str, command: Sequence[str]) -> None:
        """Start one process.

        Raises:
            WmError: the program cannot be started or its log cannot be written.
        """
        log = self._log_dir / f"{name}.log"
        try:
            log.parent.mkdir(parents=True, exist_ok=True)
            with log.open("wb") as output:
                process = self._spawn(command, output)
        except OSError as error:
            raise WmError(f"cannot start {name}: {error}.") from error
        self._children.append(_Child(name, process, log))

    def _spawn(self, command: Sequence[str], output: IO[bytes]) -> subprocess.Popen[bytes]:
        return subprocess.Popen(
            command,
            env=self._environment,
            stdin=subprocess.DEVNULL,
            stdout=output,
            stderr=subprocess.STDOUT,
            start_new_session=True,
            preexec_fn=_die_with_parent(os.getpid()),
        )

    def check(self) -> None:
        """Make sure that every child still runs.

        Raises:
            WmError: one has ended; with its last words.
        """
        for child in self._children:
            how = _how_it_ended(child.process.pid)
            if how is not None:
                said = last_fault(child.log) or last_line(child.log)
                raise WmError(
                    f"the process {child.name} {how}; its log is {child.log}"
                    + (f" and ends with: {said}" if said else ".")
                )

    def fault(self, name: str) -> str | None:
        """Return the last error that a child logged, if any."""
        for child in self._children:
            if child.name == name:
                return last_fault(child.log)
        return None

    def stop(self, grace_s: float = 8.0) -> None:
        """End all children: ask, ask again, then kill whole process groups. Never leaves one."""
        if not self._children:
            return
        try:
            for number, seconds in ((signal.SIGINT, grace_s), (signal.SIGTERM, 2.0)):
                self._signal(number)
                if self._wait(seconds):
                    break
        finally:  # also when a second Ctrl-C ends the waiting
            self._signal(signal.SIGKILL)
            for child in self._children:
                child.process.wait()
            self._children.clear()

    def _signal(self, number: int) -> None:
        for child in self._children:
            # None is reaped before the end of stop(), so the number of its group, in which it may
            # have left children of its own, is still theirs.
            try:
                os.killpg(child.process.pid, number)
            except ProcessLookupError:
                continue

    def _wait(self, seconds: float) -> bool:
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            if all(_how_it_ended(child.process.pid) is not None for child in self._children):
                return True
            time.sleep(0.02)
        return False


def _die_with_parent(parent: int) -> Callable[[], None]:
    libc = ctypes.CDLL(None, use_errno=True)

    def ask_kernel() -> None:
        libc.prctl(_PR_SET_PDEATHSIG, signal.SIGTERM)
        if os.getppid() != parent:  # it died before the request took effect
            os._exit(1)

    return ask_kernel


def _how_it_ended(pid: int) -> str | None:
    """Say how a child ended, None while it runs; the child is not reaped."""
    state = os.waitid(os.P_PID, pid, os.WEXITED | os.WNOHANG | os.WNOWAIT)
    if state is None:
        return None
    if state.si_code == os.CLD_EXITED:
        return f"ended by itself with status {state.si_status}"
    return f"was killed by {signal.Signals(state.si_status).name}"


def _tail(log: Path) -> list[str]:
    try:
        with log.open("rb") as stream:
            stream.seek(0, os.SEEK_END)
            stream.seek(max(0, stream.tell() - _LOG_TAIL_BYTES))
            return stream.read().decode("utf-8", "replace").splitlines()
    except OSError:
        return []


def last_fault(log: Path) -> str | None:
    """Return the text of the last ERROR or FATAL line of a node's log."""
    for line in reversed(_tail(log)):
        if match := _FAULT.search(line):
            return match["text"].strip()
    return None


def last_line(log: Path) -> str | None:
    """Return the last line of a log that holds more than blanks."""
    return next((line.strip() for line in reversed(_tail(log)) if line.strip()), None)


@contextmanager
def interrupts_on_termination() -> Iterator[None]:
    """Treat SIGTERM and SIGHUP like Ctrl-C inside the block, so that cleanup code runs.

    One that is ignored stays so: under ``nohup`` a run is to outlive its terminal.
    """

    def interrupt(number: int, frame: FrameType | None) -> None:
        raise KeyboardInterrupt

    previous: dict[int, Any] = {}
    for number in (signal.SIGTERM, signal.SIGHUP):
        if signal.getsignal(number) is not signal.SIG_IGN:
            previous[number] = signal.signal(number, interrupt)
    try:
        yield
    finally:
        for caught, handler in previous.items():
            signal.signal(caught, handler)
