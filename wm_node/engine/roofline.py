"""What a graph must cost at least on this machine: operations over rate, bytes over bandwidth."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np
import openvino as ov
import openvino.opset13 as ops

from wm_node.bundle import Bundle

Shapes = Mapping[str, tuple[int, ...]]

GEMM_SIDE = 1536
"""Of the square matrices whose product measures the rate: far more work than any overhead."""
GPU_GEMM_SIDE = 8192
COPY_BYTES = 1 << 28
"""Far beyond the last cache."""


@dataclass(frozen=True)
class Work:
    """What one call of a graph has to do."""

    flop: int
    """Of its matrix products and convolutions, two a multiply-add."""
    weights: int
    """Numbers that are read at least once."""


@dataclass(frozen=True)
class MachineRates:
    """Measured in the run that they judge."""

    gemm_flop_s: float
    """Of a large matrix product with the same runtime and threads, in the engine's precision."""
    copy_bytes_s: float
    """Read and written by a large copy in one thread."""
    weight_bytes: int = 4
    """Of a weight in that precision."""

    def floor_s(self, work: Work) -> float:
        """Return the least time for the work: whichever of the two takes longer."""
        read = work.weights * self.weight_bytes
        return max(work.flop / self.gemm_flop_s, read / self.copy_bytes_s)


def graph_work(bundle: Bundle, graph: str, shapes: Shapes) -> Work:
    """Count what a graph of a bundle does for inputs of these shapes.

    Args:
        bundle: with the graph.
        graph: its name.
        shapes: of all its inputs.
    """
    model = ov.Core().read_model(bundle.file(bundle.graphs[graph].file))
    model.reshape({name: list(shape) for name, shape in shapes.items()})
    flop, weights = 0, 0
    for node in model.get_ordered_ops():
        kind = node.get_type_name()
        if kind == "Constant":
            weights += int(np.prod(node.output(0).get_shape()))
        elif kind == "MatMul":
            left = list(node.input(0).get_shape())
            inner = left[-2] if node.get_attributes()["transpose_a"] else left[-1]
            flop += 2 * int(np.prod(node.output(0).get_shape())) * inner
        elif kind == "Convolution":
            kernel = list(node.input(1).get_shape())  # out, in, height, width
            flop += 2 * int(np.prod(node.output(0).get_shape())) * int(np.prod(kernel[1:]))
    return Work(flop, weights)


def measure_rates(threads: int, precision: str = "f32") -> MachineRates:
    """Measure the rates of this machine with OpenVINO; takes about a second.

    ``precision`` is that of an engine: ``bf16``, else the product is in fp32.
    """
    narrow = precision == "bf16"
    side = GEMM_SIDE
    random = np.random.default_rng(0)
    left = ops.parameter([side, side], np.float32, name="left")
    right = ops.constant(random.random((side, side), np.float32))  # laid out once, as weights are
    model = ov.Model([ops.matmul(left, right, False, False)], [left])
    options = {
        "PERFORMANCE_HINT": "LATENCY",
        "INFERENCE_NUM_THREADS": threads,
        "INFERENCE_PRECISION_HINT": "bf16" if narrow else "f32",
        "ENABLE_CPU_PINNING": False,
    }
    request = ov.Core().compile_model(model, "CPU", options).create_infer_request()
    inputs = [random.random((side, side), np.float32)]
    product = _fastest(lambda: request.infer(inputs, share_inputs=True), 8)
    source = np.ones(COPY_BYTES // 4, np.float32)
    target = np.empty_like(source)
    copy = _fastest(lambda: np.copyto(target, source), 4)
    return MachineRates(2 * side**3 / product, 2 * COPY_BYTES / copy, 2 if narrow else 4)


def measure_gpu_rates() -> MachineRates:
    """Measure the rates of torch's first GPU, in fp32 without TF32; takes about a second."""
    import torch

    def timed(call: Callable[[], object]) -> float:
        def finished() -> None:
            call()
            torch.cuda.synchronize()

        return _fastest(finished, 8)

    side = GPU_GEMM_SIDE
    left, right = torch.rand(2, side, side, device="cuda")
    source = torch.ones(COPY_BYTES // 4, device="cuda")
    target = torch.empty_like(source)
    product = timed(lambda: torch.mm(left, right))
    copy = timed(lambda: target.copy_(source))
    return MachineRates(2 * side**3 / product, 2 * COPY_BYTES / copy)


def _fastest(call: Callable[[], object], times: int) -> float:
    """Seconds of the fastest of several calls, after one to warm up."""
    call()
    best = np.inf
    for _ in range(times):
        began = time.perf_counter()
        call()
        best = min(best, time.perf_counter() - began)
    return float(best)
