"""Chooses a backend by name and lets it run only if it reproduces the bundle's golden arrays."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wm_node.bundle import GOLDEN, Bundle
from wm_node.engine.protocol import Engine
from wm_node.errors import WmError

MAX_GOLDEN_BYTES = 200_000_000
# Largest error allowed against the reference, as a share of the output's own deviation. bf16 keeps
# 8 bits of mantissa, 0.4 % a product and a few times that through the layers; what depends most on
# it, log-odds of risk and costs that weigh them, are off by 0.08 for recurrent dynamics on random
# inputs (0.2 for a transformer). A joints' law in bf16, which must not pass, was off by 0.44.
# fp16 keeps 11 and is used for products alone: 0.0074 at most on the shipped bundle, in numpy.
TOLERANCE = {"f32": 2e-3, "f16": 2e-2, "bf16": 0.25}


def _openvino(bundle: Bundle, threads: int) -> Engine:
    from wm_node.engine.openvino_backend import OpenVinoEngine

    return OpenVinoEngine(bundle, threads)


def _torch(bundle: Bundle, threads: int) -> Engine:
    from wm_node.engine.torch_backend import TorchEngine

    return TorchEngine(bundle, threads)


def _torch_cuda(bundle: Bundle, threads: int) -> Engine:
    from wm_node.engine.torch_cuda_backend import TorchCudaEngine

    return TorchCudaEngine(bundle, threads)


def _tensorrt(bundle: Bundle, threads: int, precision: str = "fp32") -> Engine:
    from wm_node.engine.tensorrt_backend import TensorRtEngine

    return TensorRtEngine(bundle, threads, precision)


BACKENDS: dict[str, Callable[[Bundle, int], Engine]] = {
    "openvino": _openvino,
    "torch": _torch,
    "torch-cuda": _torch_cuda,
    "tensorrt": _tensorrt,
    "tensorrt-fp16": partial(_tensorrt, precision="fp16"),
}


def load_engine(bundle: Bundle, backend: str = "openvino", threads: int = 1) -> Engine:
    """Load a bundle into a backend and check it against the golden arrays.

    Args:
        bundle: a checked bundle.
        backend: ``openvino`` (CPU default), ``torch`` (reference), and for NVIDIA GPUs, not yet
            executed on one as they are: ``torch-cuda``, ``tensorrt``, ``tensorrt-fp16``.
        threads: CPU threads that inference may use.

    Raises:
        WmError: unknown or missing backend, or one that does not reproduce the golden arrays.
    """
    if backend not in BACKENDS:
        raise WmError(f"unknown backend '{backend}'; choose one of {', '.join(BACKENDS)}.")
    try:
        engine = BACKENDS[backend](bundle, threads)
    except ImportError as error:
        raise WmError(
            f"backend '{backend}' is not installed ({error}); install it or choose another of "
            f"{', '.join(BACKENDS)}."
        ) from error
    # Whole searches take long to compile: each is checked when it is prepared for use.
    check_golden(bundle, engine, [n for n, spec in bundle.graphs.items() if spec.search is None])
    return engine


def read_golden(bundle: Bundle) -> dict[str, dict[str, dict[str, NDArray[Any]]]]:
    """Return graph -> {"in", "out"} -> name -> array.

    Raises:
        WmError: the file is not what the exporter writes.
    """
    path = bundle.file(GOLDEN)
    if path.stat().st_size > MAX_GOLDEN_BYTES:
        raise WmError(f"the bundle {bundle.path} is damaged: {GOLDEN} is far too large.")
    golden: dict[str, dict[str, dict[str, NDArray[Any]]]] = {}
    try:
        with np.load(path, allow_pickle=False) as arrays:
            for key in arrays.files:
                graph, direction, name = key.split("/")
                golden.setdefault(graph, {"in": {}, "out": {}})[direction][name] = arrays[key]
    except (ValueError, KeyError, OSError) as error:
        raise WmError(f"the bundle {bundle.path} is damaged: cannot read {GOLDEN}.") from error
    return golden


def check_golden(
    bundle: Bundle, engine: Engine, graphs: Sequence[str], tolerance: float | None = None
) -> float:
    """Run graphs on the golden inputs; return the largest error in deviations.

    Args:
        bundle: with the golden arrays.
        engine: what runs its graphs.
        graphs: names of those to check.
        tolerance: largest error allowed; None: that of the engine's precision.

    Raises:
        WmError: an output is missing, non-finite or too far from the reference.
    """
    tolerance = TOLERANCE[engine.precision] if tolerance is None else tolerance
    worst = 0.0
    golden = read_golden(bundle)
    for graph in graphs:
        if graph not in golden:
            raise WmError(f"the bundle {bundle.path} has no golden arrays for graph '{graph}'.")
        outputs = engine.run(graph, golden[graph]["in"])
        for name, reference in golden[graph]["out"].items():
            actual, expected = _comparable(name, outputs[name]), _comparable(name, reference)
            scale = float(expected.std()) + 1e-3 * float(np.abs(expected).max()) + 1e-6
            error = float(np.abs(actual - expected).max()) / scale
            worst = max(worst, error)
            if actual.shape != expected.shape or not error <= tolerance:
                raise WmError(
                    f"backend '{engine.name}' does not reproduce the bundle {bundle.path}: output "
                    f"'{name}' of graph '{graph}' is off by {error:.3g} deviations "
                    f"(allowed {tolerance:g}); it must not run."
                )
    return worst


def _comparable(name: str, values: NDArray[Any]) -> NDArray[Any]:
    """Risks as log-odds, in which they are computed; anything else as it is.

    Deviations of risks say nothing where all are small. Above 0.9997 fp32 has no bits left to tell
    log-odds apart.
    """
    if name != "risk":
        return values
    with np.errstate(divide="ignore", invalid="ignore"):
        odds = np.log(values) - np.log1p(-np.minimum(values, 1.0 - 1e-7))
    comparable: NDArray[Any] = np.clip(odds, -80.0, 8.0)
    return comparable
