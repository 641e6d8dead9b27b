"""What there is to know about the NVIDIA GPU of this machine, through ``cuda-bindings``."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from wm_node.errors import WmError


@dataclass(frozen=True)
class CudaDevice:
    """The first GPU. An engine that was built for one device is not taken for another."""

    name: str
    """As the driver calls it, such as ``Orin``."""
    target: str
    """Its compute capability, such as ``sm_87``."""
    cuda: str
    """Newest CUDA version that the driver supports, such as ``12.6``."""


def cuda_runtime() -> Any:
    """Return the module ``cuda.bindings.runtime``.

    Raises:
        WmError: it is not installed.
    """
    try:
        from cuda.bindings import runtime
    except ImportError as error:
        raise WmError(
            "the NVIDIA backend needs the package cuda-bindings; install the one of your CUDA "
            "version: pip install 'cuda-bindings==12.*' (JetPack 6) or 'cuda-bindings==13.*'."
        ) from error
    return runtime


def checked(result: tuple[Any, ...], what: str) -> Any:
    """Return the value of a CUDA runtime call: none, one, or a tuple of several.

    Args:
        result: what the call returned: its error code, then its values.
        what: was attempted, for the message.

    Raises:
        WmError: the error code is not success.
    """
    code, *values = result
    if int(code) != 0:
        raise WmError(f"{what} failed: CUDA reports {code.name} ({int(code)}).")
    if len(values) > 1:
        return tuple(values)
    return values[0] if values else None


def current_device(remedy: str) -> CudaDevice:
    """Return the first GPU of this machine.

    Args:
        remedy: what to do where there is none, for the message.

    Raises:
        WmError: there is none, or no driver, or ``cuda-bindings`` is not installed.
    """
    runtime = cuda_runtime()
    code, count = runtime.cudaGetDeviceCount()
    if int(code) != 0 or not count:
        raise WmError(f"no NVIDIA GPU can be used here (CUDA reports {code.name}); {remedy}.")
    found = checked(runtime.cudaGetDeviceProperties(0), "asking for the GPU's properties")
    version = int(checked(runtime.cudaDriverGetVersion(), "asking for the driver's version"))
    return CudaDevice(
        name=found.name.decode(errors="replace").rstrip("\0"),
        target=f"sm_{found.major}{found.minor}",
        cuda=f"{version // 1000}.{version % 1000 // 10}",
    )
