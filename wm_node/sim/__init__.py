"""The simulated table-top robot: MuJoCo scene, tasks, behaviours and the task suite (no ROS here).

MuJoCo and Mesa read these variables once, when they are loaded: the package sets them before its
modules import ``mujoco``. EGL renders without a display. Mesa's software renderer otherwise starts
a thread a core in each process, which fights with the other processes of a two-core machine.
"""

import os

os.environ.setdefault("MUJOCO_GL", "egl")
os.environ.setdefault("LP_NUM_THREADS", "0")
