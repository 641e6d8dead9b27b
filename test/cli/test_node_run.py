"""What wm demo and wm replay share: processes, and the reason of a refusal."""

from __future__ import annotations

import io
import os
import sys
import time
from pathlib import Path

import psutil
import pytest
from rich.console import Console

from wm_node.cli.node_run import log_folder, running, with_reasons
from wm_node.cli.processes import last_fault
from wm_node.errors import WmError

FAULT = "[ERROR] [1.0] [world_model]: the bundle is damaged."
SAYS = [sys.executable, "-S", "-c", f"print({FAULT!r}, flush=True); import time; time.sleep(60)"]


def test_a_failed_run_ends_its_processes_and_its_environment(tmp_path: Path) -> None:
    before = dict(os.environ)
    console = Console(file=io.StringIO())
    pids: list[int] = []

    def fail() -> None:
        with running({"world_model": SAYS}, tmp_path, console, "a test") as processes:
            pids.extend(processes.pids.values())
            assert os.environ["ROS_DOMAIN_ID"] in console.file.getvalue()  # type: ignore[attr-defined]
            log = log_folder(tmp_path) / "world_model.log"
            deadline = time.monotonic() + 20
            while last_fault(log) is None:
                assert time.monotonic() < deadline
                time.sleep(0.01)
            with with_reasons(processes):
                raise WmError("the node refused.")

    with pytest.raises(WmError, match=r"the node refused. It says: the bundle is damaged\."):
        fail()
    assert pids
    assert not any(psutil.pid_exists(pid) for pid in pids)
    assert dict(os.environ) == before
