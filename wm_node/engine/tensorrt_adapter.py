"""The one place that knows the editions of TensorRT, from 10.3 to 11, and what differs.

``tensorrt`` is the classic edition, which JetPack brings; it builds on the GPU that will run the
engine. ``tensorrt_rtx`` is TensorRT for RTX, which also builds ahead of time for a named GPU on a
machine without one. Both have the same Python API.
"""

from __future__ import annotations

import functools
import importlib
import logging
import re
from collections.abc import Callable
from dataclasses import dataclass
from typing import Any

from wm_node.errors import WmError

CURRENT = "current"
MINIMUM = (10, 3)  # of the classic edition: JetPack 6
INSTALL = (
    "install TensorRT: JetPack brings it to a Jetson (apt-get install python3-libnvinfer); "
    "elsewhere pip install 'wm_node[tensorrt]'"
)
log = logging.getLogger("wm_node.tensorrt")

Watch = Callable[[str, int, int], None]
"""Told the builder's phase, the steps done in it and their number, from any thread. What it
raises ends the build and comes out of it."""


@dataclass(frozen=True)
class TensorRt:
    """An edition of TensorRT that was found."""

    module: Any
    edition: str
    """``tensorrt`` or ``tensorrt_rtx``."""
    version: str
    """In full, such as ``10.3.0.30``."""

    @property
    def rtx(self) -> bool:
        """Whether it builds ahead of time."""
        return self.edition == "tensorrt_rtx"

    @property
    def targets(self) -> tuple[str, ...]:
        """GPUs that it can build for on any machine, such as ``sm_86``."""
        names = getattr(self.module, "ComputeCapability", None) if self.rtx else None
        members = names.__members__ if names is not None else ()
        return tuple(f"sm_{name[2:]}" for name in members if re.fullmatch(r"SM\d+", name))


def find_tensorrt(target: str = CURRENT) -> TensorRt:
    """Return the edition of TensorRT that builds for a target.

    Args:
        target: ``current`` for the GPU of this machine (the classic edition where both are
            installed), or a compute capability such as ``sm_86``.

    Raises:
        WmError: none is installed, it is too old, or it does not build for the target.
    """
    ahead = target != CURRENT
    if ahead and not re.fullmatch(r"sm_\d{2,3}", target):
        raise WmError(
            f"'{target}' is not a target; use {CURRENT} or a compute capability such as sm_86."
        )
    faults = []
    names = ("tensorrt_rtx", "tensorrt_rtx_bindings")
    for name in names if ahead else ("tensorrt", *names):
        try:
            module = importlib.import_module(name)
            edition = "tensorrt_rtx" if name.startswith("tensorrt_rtx") else name
            found = TensorRt(module, edition, str(module.__version__))
        except (ImportError, OSError, AttributeError) as error:  # not there, or a broken library
            faults.append(f"{name}: {error}")
            continue
        _check(found, target)
        return found
    edition = "TensorRT for RTX" if ahead else "TensorRT"
    raise WmError(f"{edition} cannot be loaded ({'; '.join(faults)}); {INSTALL}.")


def _check(found: TensorRt, target: str) -> None:
    version = tuple(int(part) for part in re.findall(r"\d+", found.version)[:2])
    if not found.rtx and version < MINIMUM:
        raise WmError(
            f"TensorRT {found.version} is too old; wm_node needs {'.'.join(map(str, MINIMUM))} "
            "(JetPack 6) or newer."
        )
    if target != CURRENT and target not in found.targets:
        raise WmError(
            f"TensorRT for RTX {found.version} cannot build for {target} ahead of time, only for "
            f"{', '.join(found.targets)}; on the robot itself use --target {CURRENT}."
        )


class LogBridge:
    """Hands TensorRT's messages to Python's logging, and keeps the first error since ``begin``."""

    def __init__(self, module: Any) -> None:
        severity = module.ILogger.Severity
        levels = {
            severity.INTERNAL_ERROR: logging.ERROR,
            severity.ERROR: logging.ERROR,
            severity.WARNING: logging.WARNING,
            severity.INFO: logging.DEBUG,  # one line a layer or so: too much for INFO
            severity.VERBOSE: logging.DEBUG,
        }
        bridge = self
        self.first_error = ""

        class Logger(module.ILogger):  # type: ignore[name-defined, misc]
            def __init__(self) -> None:
                super().__init__()  # pybind11 asks for this very call

            def log(self, level: Any, message: str) -> None:
                if levels[level] == logging.ERROR:
                    # What fails is told once, by the exception that it ends in.
                    bridge.first_error = bridge.first_error or message.strip()
                    log.debug("error: %s", message)
                elif level != severity.VERBOSE:
                    log.log(levels[level], "%s", message)

        self.logger = Logger()

    def begin(self) -> None:
        """Forget the errors of what was done before."""
        self.first_error = ""


@functools.cache
def log_bridge(module: Any) -> LogBridge:
    """Return the bridge of a TensorRT module: one, because TensorRT keeps the first logger only."""
    return LogBridge(module)


class BuildMonitor:
    """Follows a build through TensorRT's ``IProgressMonitor``, and can end it."""

    def __init__(self, module: Any, watch: Watch | None) -> None:
        self.fault: BaseException | None = None
        """What ``watch`` raised; it ends the build, but must not travel through TensorRT."""
        self._watch = watch
        self._cancelled = False
        self._steps: dict[str, int] = {}
        self.monitor: Any = None
        """To be set as the builder's ``progress_monitor``; None where the API has none."""
        base = getattr(module, "IProgressMonitor", None)
        if base is None:
            return
        told = self

        class Monitor(base):  # type: ignore[valid-type, misc]
            def __init__(self) -> None:
                super().__init__()

            def phase_start(self, phase: str, parent: str | None, steps: int) -> None:
                told._steps[phase] = steps
                told._tell(phase, 0)

            def step_complete(self, phase: str, step: int) -> bool:
                return told._tell(phase, step + 1)

            def phase_finish(self, phase: str) -> None:
                told._tell(phase, told._steps.get(phase, 0))

        self.monitor = Monitor()

    def cancel(self) -> None:
        """End the build at its next step."""
        self._cancelled = True

    def _tell(self, phase: str, done: int) -> bool:
        """Tell the watcher; return whether the build goes on."""
        if self._watch is not None and not self._cancelled:
            try:
                self._watch(phase, done, self._steps.get(phase, done))
            except BaseException as error:
                self.fault, self._cancelled = error, True
        return not self._cancelled
