"""Child processes: none is left behind, whatever ends the parent."""

from __future__ import annotations

import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import psutil
import pytest

from wm_node.cli.processes import (
    ProcessGroup,
    interrupts_on_termination,
    last_fault,
    last_line,
    node_environment,
    own_environment,
    private_domain,
    require,
)
from wm_node.errors import WmError

SLEEP = [sys.executable, "-S", "-c", "import time; time.sleep(60)"]
DEAF = [
    sys.executable,
    "-S",
    "-c",
    "import signal, time\n"
    "for s in (signal.SIGINT, signal.SIGTERM): signal.signal(s, signal.SIG_IGN)\n"
    "print('deaf', flush=True)\n"
    "time.sleep(60)",
]
# A child that starts one of its own, deaf to all but SIGKILL, and tells its number.
PARENT_OF_ONE = [
    sys.executable,
    "-S",
    "-c",
    "import subprocess, sys, time\n"
    f"child = subprocess.Popen({DEAF!r}, stdout=subprocess.PIPE)\n"
    "child.stdout.readline()\n"
    "print(child.pid, flush=True)\n"
    "time.sleep(60)",
]


def _eventually(done: Callable[[], bool], seconds: float = 10.0) -> bool:
    deadline = time.monotonic() + seconds
    while time.monotonic() < deadline:
        if done():
            return True
        time.sleep(0.01)
    return done()


def _gone(pid: int) -> bool:
    try:
        return psutil.Process(pid).status() == psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return True


def _check_until_it_fails(group: ProcessGroup) -> None:
    deadline = time.monotonic() + 10.0
    while time.monotonic() < deadline:
        group.check()
        time.sleep(0.01)


@pytest.fixture
def group(tmp_path: Path) -> ProcessGroup:
    return ProcessGroup(dict(os.environ), tmp_path / "log")


def test_leaving_the_block_ends_all_children(group: ProcessGroup) -> None:
    with group:
        group.start("a", SLEEP)
        group.start("b", SLEEP)
        group.check()
        pids = list(group.pids.values())
        assert all(psutil.pid_exists(pid) for pid in pids)
    assert all(_gone(pid) for pid in pids)


def test_an_exception_ends_all_children(group: ProcessGroup) -> None:
    pids: list[int] = []

    def fail() -> None:
        with group:
            group.start("a", SLEEP)
            pids.extend(group.pids.values())
            raise RuntimeError

    with pytest.raises(RuntimeError):
        fail()
    assert all(_gone(pid) for pid in pids)


def test_a_child_that_ignores_signals_is_killed(group: ProcessGroup, tmp_path: Path) -> None:
    group.start("deaf", DEAF)
    assert _eventually(lambda: last_line(tmp_path / "log" / "deaf.log") == "deaf")
    pid = group.pids["deaf"]
    group.stop(grace_s=0.2)
    assert _gone(pid)


def test_grandchildren_end_too(group: ProcessGroup, tmp_path: Path) -> None:
    log = tmp_path / "log" / "parent.log"
    group.start("parent", PARENT_OF_ONE)
    assert _eventually(lambda: (last_line(log) or "").isdigit())
    grandchild = int(last_line(log) or "0")
    group.stop(grace_s=0.5)
    assert _eventually(lambda: _gone(grandchild), 5.0)


def test_a_killed_child_is_named_with_its_last_words(group: ProcessGroup, tmp_path: Path) -> None:
    with group:
        group.start("deaf", DEAF)
        log = tmp_path / "log" / "deaf.log"
        assert _eventually(lambda: last_line(log) == "deaf")
        os.kill(group.pids["deaf"], signal.SIGKILL)
        with pytest.raises(WmError, match=r"deaf was killed by SIGKILL.*ends with: deaf"):
            _check_until_it_fails(group)


def test_a_child_that_ends_by_itself_is_named(group: ProcessGroup) -> None:
    with group:
        group.start("short", [sys.executable, "-S", "-c", "raise SystemExit(3)"])
        with pytest.raises(WmError, match="short ended by itself with status 3"):
            _check_until_it_fails(group)


def test_children_end_when_the_parent_is_killed(tmp_path: Path) -> None:
    script = (
        "import os, time\n"
        "from pathlib import Path\n"
        "from wm_node.cli.processes import ProcessGroup\n"
        f"group = ProcessGroup(dict(os.environ), Path({str(tmp_path)!r}))\n"
        f"group.start('a', {SLEEP!r})\n"
        "print(group.pids['a'], flush=True)\n"
        "time.sleep(60)\n"
    )
    with subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE) as parent:
        assert parent.stdout is not None
        child = int(parent.stdout.readline())
        assert psutil.pid_exists(child)
        parent.kill()
        parent.wait()
    assert _eventually(lambda: _gone(child))


def test_a_program_that_does_not_exist_is_one_sentence(group: ProcessGroup) -> None:
    with group, pytest.raises(WmError, match="cannot start ghost"):
        group.start("ghost", ["/nonexistent/program"])


def test_sigterm_is_like_ctrl_c_inside_the_block_only() -> None:
    before = signal.getsignal(signal.SIGTERM)

    def terminated() -> None:
        with interrupts_on_termination():
            os.kill(os.getpid(), signal.SIGTERM)
            time.sleep(5)

    with pytest.raises(KeyboardInterrupt):
        terminated()
    assert signal.getsignal(signal.SIGTERM) is before


def test_a_signal_that_is_ignored_stays_ignored() -> None:
    """``nohup wm replay`` outlives its terminal; SIGTERM still ends it."""
    before = signal.signal(signal.SIGHUP, signal.SIG_IGN)
    try:
        with interrupts_on_termination():
            assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
            os.kill(os.getpid(), signal.SIGHUP)
            assert callable(signal.getsignal(signal.SIGTERM))
        assert signal.getsignal(signal.SIGHUP) is signal.SIG_IGN
    finally:
        signal.signal(signal.SIGHUP, before)


def test_two_runs_get_two_domains() -> None:
    with private_domain() as first, private_domain() as second:
        assert first != second
        assert {first, second} <= set(range(1, 101))


def test_a_domain_whose_first_program_has_gone_is_not_free() -> None:
    with private_domain() as domain:
        pass
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as second_participant:
        second_participant.bind(("", 7400 + 250 * domain + 12))
        with private_domain() as another:
            assert another != domain


def test_nodes_are_kept_on_this_machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("ROS_STATIC_PEERS", "10.0.0.1")
    environment = node_environment(7, tmp_path)
    assert environment["ROS_DOMAIN_ID"] == "7"
    assert environment["ROS_AUTOMATIC_DISCOVERY_RANGE"] == "LOCALHOST"
    assert Path(environment["FASTRTPS_DEFAULT_PROFILES_FILE"]).is_file()
    assert environment["OMP_NUM_THREADS"] == "1"
    assert "ROS_STATIC_PEERS" not in environment


def test_this_process_gets_the_environment_of_the_nodes_and_no_more(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("ROS_DISCOVERY_SERVER", "10.0.0.1:11811")
    monkeypatch.setenv("ROS_DOMAIN_ID", "3")
    before = dict(os.environ)
    environment = node_environment(7, tmp_path)
    with own_environment(environment):
        assert dict(os.environ) == environment
        assert "ROS_DISCOVERY_SERVER" not in os.environ
        assert os.environ["ROS_DOMAIN_ID"] == "7"
    assert dict(os.environ) == before


def test_what_is_not_installed_is_said_with_its_remedy() -> None:
    require(("json", "x"))
    with pytest.raises(WmError, match=r"'no_such_module' is not installed.*wm_node\[report\]"):
        require(("json", "x"), ("no_such_module", "report"))


def test_the_last_fault_of_a_log_is_found(tmp_path: Path) -> None:
    log = tmp_path / "x.log"
    log.write_text(
        "[INFO] [1700000000.1] [world_model]: hello\n"
        "[ERROR] [1700000000.2] [world_model]: configure failed: there is no bundle at x.\n"
        "[INFO] [1700000000.3] [world_model]: bye\n\n"
    )
    assert last_fault(log) == "configure failed: there is no bundle at x."
    assert last_line(log) == "[INFO] [1700000000.3] [world_model]: bye"
    assert last_fault(tmp_path / "none.log") is None
