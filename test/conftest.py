"""The environment of the whole suite, set before anything that reads it is imported."""

from __future__ import annotations

import os

from hypothesis import settings

# MuJoCo renders without a display; it reads this at its import.
os.environ.setdefault("MUJOCO_GL", "egl")
# Nothing of a test may be heard by, or hear, another machine.
os.environ["ROS_AUTOMATIC_DISCOVERY_RANGE"] = "LOCALHOST"
# Spinning OpenMP threads of several processes on two cores cost ten times their gain.
os.environ.setdefault("OMP_NUM_THREADS", "1")

# `make verify` looks harder: properties that set no number of examples get many more.
settings.register_profile("verify", max_examples=2000, deadline=None)
if os.environ.get("WM_VERIFY"):
    settings.load_profile("verify")
