"""What killed ROS processes leave in shared memory, and that the living are left alone."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from wm_node.cli.doctor import check_shared_memory
from wm_node.cli.main import main
from wm_node.cli.processes import private_domain
from wm_node.cli.shared_memory import FOLDER, size_of, stale_segments

NODE = (
    "import rclpy, sys; rclpy.init(); node = rclpy.create_node('one'); "
    "print('up', flush=True); sys.stdin.read()"
)


@contextmanager
def node(domain: int) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, "-c", NODE],
        env={**os.environ, "ROS_DOMAIN_ID": str(domain)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline() == "up\n"
        yield process
    finally:
        process.kill()
        process.wait(20)


def segments() -> set[Path]:
    return {path for path in FOLDER.glob("fastrtps_*") if not path.name.startswith("fastrtps_port")}


def test_segments_of_the_killed_are_freed_and_those_of_the_living_stay(capsys):
    with private_domain() as domain:
        first = segments()
        with node(domain) as living:
            kept = segments() - first
            assert kept, "Fast DDS keeps no segments: look at what it does now"
            with node(domain) as killed:
                added = segments() - first - kept
                assert not added & set(stale_segments())
                killed.kill()
                killed.wait(20)
            stale = set(stale_segments())
            assert added <= stale
            assert not kept & stale
            assert main(["doctor", "--clean"]) in (0, 1)
            assert "MB of shared memory of killed processes freed" in capsys.readouterr().out
            assert not added & segments()
            assert kept <= segments()
            assert living.poll() is None


def test_sizes_leave_out_what_is_gone(tmp_path):
    (tmp_path / "one").write_bytes(bytes(7))
    assert size_of([tmp_path / "one", tmp_path / "gone"]) == 7


def test_much_that_is_stale_is_told(monkeypatch, tmp_path):
    import wm_node.cli.doctor as doctor

    (tmp_path / "fastrtps_1").write_bytes(bytes(3 << 20))
    (tmp_path / "fastrtps_1_el").touch()
    monkeypatch.setattr(doctor, "stale_segments", lambda: stale_segments(tmp_path))
    monkeypatch.setattr(doctor, "SHM_STALE_MB", 2)
    finding = check_shared_memory()
    assert finding.level == "warn"
    assert "3 MB belong to processes that were killed" in finding.text
    assert "wm doctor --clean" in finding.remedy
