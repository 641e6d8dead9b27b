"""What machine this is, for figures that are kept."""

from __future__ import annotations

import os
import platform
from pathlib import Path


def machine_name() -> str:
    """Name this machine's processor and the cores that this process may use, in one line."""
    model = platform.processor() or platform.machine()
    try:
        for line in Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines():
            if line.startswith("model name"):
                model = line.partition(":")[2].strip()
                break
    except OSError:
        pass  # not Linux: the generic name stays
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    return f"{model}, {cores} cores"
