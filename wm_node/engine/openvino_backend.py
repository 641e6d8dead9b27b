"""OpenVINO: the default on CPUs. Compiles each graph for the static shapes that are used."""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
from numpy.typing import NDArray

from wm_node.bundle import Bundle
from wm_node.engine.protocol import Arrays

Key = tuple[str, tuple[tuple[int, ...], ...]]


class OpenVinoEngine:
    """Runs the bundle's ONNX graphs, in bf16 where the processor multiplies it natively."""

    def __init__(self, bundle: Bundle, threads: int) -> None:
        self._core = ov.Core()
        self._bundle = bundle
        native = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self.precision = "bf16" if "BF16" in native else "f32"
        self.name = f"openvino-{self.precision}"
        self._options = {
            "PERFORMANCE_HINT": "LATENCY",
            "INFERENCE_NUM_THREADS": threads,
            "INFERENCE_PRECISION_HINT": self.precision,
            # Pinned threads would share a core with the other processes of the robot.
            "ENABLE_CPU_PINNING": False,
        }
        self._requests: dict[Key, Any] = {}

    def _request(self, graph: str, inputs: Arrays) -> Any:
        spec = self._bundle.graphs[graph]
        key = (graph, tuple(inputs[name].shape for name in spec.inputs))
        if key not in self._requests:
            model = self._core.read_model(self._bundle.file(spec.file))
            model.reshape({name: list(inputs[name].shape) for name in spec.inputs})
            options = self._options
            if spec.full_precision:
                options = {**options, "INFERENCE_PRECISION_HINT": "f32"}
            compiled = self._core.compile_model(model, "CPU", options)
            self._requests[key] = compiled.create_infer_request()
        return self._requests[key]

    def prepare(self, graph: str, inputs: Arrays) -> None:
        """See :class:`wm_node.engine.protocol.Engine`."""
        self.run(graph, inputs)

    def run(self, graph: str, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """See :class:`wm_node.engine.protocol.Engine`. Releases the GIL while it computes."""
        request = self._request(graph, inputs)
        spec = self._bundle.graphs[graph]
        results = request.infer(
            {name: np.ascontiguousarray(inputs[name]) for name in spec.inputs}, share_inputs=True
        )
        return {name: results[index] for index, name in enumerate(spec.outputs)}
