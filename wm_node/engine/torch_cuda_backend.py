"""torch on an NVIDIA GPU: each graph is captured once as a CUDA graph and replayed.

A whole search is some thousand small kernels in sequence, which take ten times as long to launch
one by one as to compute (docs/performance.md, "On a GPU"). Products are in fp32, TF32 off: bf16
gained nothing there, since its casts are kernels too.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor

from wm_node.bundle import Bundle
from wm_node.engine.protocol import Arrays, Key, shape_key
from wm_node.engine.torch_backend import functions_of
from wm_node.errors import WmError

WARM_UP = 3
"""Calls before a capture, in which libraries choose their kernels and take their workspace."""


@dataclass(frozen=True)
class _Side:
    """Tensors on the device, each with a page-locked copy on the host, by name."""

    host: dict[str, Tensor]
    device: dict[str, Tensor]

    @staticmethod
    def of(tensors: dict[str, Tensor]) -> _Side:
        """Lay out the host's copies of tensors on the device."""
        host = {
            name: torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True)
            for name, tensor in tensors.items()
        }
        return _Side(host, tensors)


@dataclass(frozen=True)
class _Captured:
    """One graph for one set of shapes; replaying it reads and writes always the same memory."""

    graph: torch.cuda.CUDAGraph
    inputs: _Side
    outputs: _Side


class TorchCudaEngine:
    """Runs the network's own functions in fp32 on the first GPU that torch sees."""

    def __init__(self, bundle: Bundle, threads: int) -> None:
        if not torch.cuda.is_available():
            raise WmError(
                "backend 'torch-cuda' needs an NVIDIA GPU and a torch built for CUDA, and torch "
                "finds none; choose backend 'openvino' or 'torch'."
            )
        torch.set_num_threads(threads)
        # TF32 keeps 10 bits of mantissa: not the fp32 that the golden arrays are compared as.
        torch.backends.cuda.matmul.allow_tf32 = False
        torch.backends.cudnn.allow_tf32 = False
        self.precision = "f32"
        self.name = f"torch-cuda-{self.precision}"
        self._bundle = bundle
        self._functions = functions_of(bundle, "cuda")
        self._stream = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        self._captured: dict[Key, _Captured] = {}

    def prepare(self, graph: str, inputs: Arrays) -> None:
        """See :class:`wm_node.engine.protocol.Engine`."""
        self.run(graph, inputs)

    def run(self, graph: str, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """See :class:`wm_node.engine.protocol.Engine`. Releases the GIL while it waits."""
        order = self._bundle.graphs[graph].inputs
        key = shape_key(graph, order, inputs)
        with torch.inference_mode(), torch.cuda.stream(self._stream):
            if key not in self._captured:
                self._captured[key] = self._capture(graph, {n: inputs[n] for n in order})
            captured = self._captured[key]
            for name, host in captured.inputs.host.items():
                np.copyto(host.numpy(), inputs[name], casting="no")
                captured.inputs.device[name].copy_(host, non_blocking=True)
            captured.graph.replay()
            for name, host in captured.outputs.host.items():
                host.copy_(captured.outputs.device[name], non_blocking=True)
            self._stream.synchronize()
            return {name: host.numpy().copy() for name, host in captured.outputs.host.items()}

    def _capture(self, graph: str, inputs: Arrays) -> _Captured:
        """Record what the graph's function launches for inputs of these shapes."""
        function = self._functions[graph]
        given = {name: torch.from_numpy(value).cuda() for name, value in inputs.items()}
        for _ in range(WARM_UP):
            function(*given.values())
        self._stream.synchronize()
        recorded = torch.cuda.CUDAGraph()
        with torch.cuda.graph(recorded, stream=self._stream):
            outputs = function(*given.values())
        return _Captured(recorded, _Side.of(given), _Side.of(outputs))
