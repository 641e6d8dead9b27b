"""Worker processes: in order, and none is left when the command that started them is killed."""

from __future__ import annotations

import subprocess
import sys

import psutil
import pytest

from wm_node.errors import WmError
from wm_node.sim.processes import in_processes

AT_WORK = """
import time
from wm_node.sim.processes import in_processes

if __name__ == "__main__":
    for _ in in_processes(time.sleep, [0.0, 0.0, 600.0, 600.0], 2):
        print("under way", flush=True)
"""


def test_results_keep_the_order_of_the_jobs():
    assert list(in_processes(abs, range(-9, 0), 2)) == list(range(9, 0, -1))


def test_no_worker_is_refused():
    with pytest.raises(WmError, match="at least 1"):
        next(in_processes(abs, [1], 0))


def test_workers_end_with_a_command_that_is_killed(tmp_path):
    script = tmp_path / "at_work.py"
    script.write_text(AT_WORK)
    command = subprocess.Popen([sys.executable, str(script)], stdout=subprocess.PIPE, text=True)
    assert command.stdout is not None
    assert "under way" in command.stdout.readline()
    workers = psutil.Process(command.pid).children(recursive=True)
    assert len(workers) >= 2
    command.kill()
    command.wait()
    _, alive = psutil.wait_procs(workers, timeout=20)
    for process in alive:
        process.kill()
    assert alive == []
