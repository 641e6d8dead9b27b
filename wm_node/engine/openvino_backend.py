"""OpenVINO: the default on CPUs. Compiles each graph for the static shapes that are used.

On processors that multiply bf16 natively, most graphs are computed in bf16 as a whole. Those marked
``full_precision`` stay in fp32, since the joints' law that every rollout reads needs its bits; but
the products of recurrent dynamics and of their heads, nearly all of their work, need them no more
than those of the encoder, and are typed as bf16 one by one. The transformer's stay in fp32: its
plans get worse (docs/decisions.md).
"""

from __future__ import annotations

from typing import Any

import numpy as np
import openvino as ov
import openvino.opset13 as ops
from numpy.typing import NDArray

from wm_node.bundle import NARROW, Bundle
from wm_node.engine.protocol import Arrays, Key, shape_key

LEAST_SIZE = 32  # of both sides of a weight: smaller products gain nothing


def type_products_as_bf16(model: ov.Model) -> int:
    """Let the products with the weights of dynamics and heads take and give bf16; all else stays.

    OpenVINO computes an operation in the type that it has in the graph even where
    ``INFERENCE_PRECISION_HINT`` asks for more. It gives out a product of bf16 as bf16, so what is
    added to it and a SiLU or ReLU behind it are typed as bf16 too, that it may compute them within
    the product.

    Returns:
        How many products were changed.
    """
    changed = 0
    for product in model.get_ordered_ops():
        if product.get_type_name() != "MatMul":
            continue
        weight = weight_of(product)
        if weight is None or min(list(weight.get_output_shape(0))[-2:]) < LEAST_SIZE:
            continue
        if not weight.get_friendly_name().removeprefix("net.").startswith(NARROW):
            continue
        attributes = product.get_attributes()
        result = ops.matmul(
            _narrowed(product.input_value(0)),
            ops.convert(product.input_value(1), "bf16"),
            attributes["transpose_a"],
            attributes["transpose_b"],
        )
        last, result = _with_what_follows(product, result)
        back = ops.convert(result, "f32").output(0)
        for reader in list(last.output(0).get_target_inputs()):
            reader.replace_source_output(back)
        changed += 1
    model.validate_nodes_and_infer_types()
    return changed


def _narrowed(value: Any) -> Any:
    """Return a value as bf16; one that was bf16 just before is taken from there."""
    node = value.get_node()
    if node.get_type_name() == "Convert" and node.get_input_element_type(0) == ov.Type.bf16:
        return node.input_value(0)
    return ops.convert(value, "bf16")


def _with_what_follows(product: Any, result: Any) -> tuple[Any, Any]:
    """Add the bias to a product's result, and then SiLU or ReLU, where nothing else reads it.

    Returns:
        The last node of the graph that the result stands for, and the result.
    """
    last = product
    readers = _readers(last)
    if [node.get_type_name() for node in readers] == ["Add"]:
        other = next(
            value
            for value in (readers[0].input_value(0), readers[0].input_value(1))
            if value.get_node().get_name() != product.get_name()
        )
        if other.get_node().get_type_name() == "Constant":
            last, result = readers[0], ops.add(result, ops.convert(other, "bf16"))
    readers = _readers(last)
    kinds = sorted(node.get_type_name() for node in readers)
    if kinds == ["Relu"]:
        return readers[0], ops.relu(result)
    if kinds == ["Multiply", "Sigmoid"]:
        gate, scaled = sorted(readers, key=lambda node: node.get_type_name(), reverse=True)
        if [node.get_name() for node in _readers(gate)] == [scaled.get_name()]:
            return scaled, ops.multiply(result, ops.sigmoid(result))
    return last, result


def _readers(node: Any) -> list[Any]:
    return [reader.get_node() for reader in node.output(0).get_target_inputs()]


def weight_of(product: Any) -> Any | None:
    """Return the constant behind a product's second input; None where both are computed."""
    node = product.input_value(1).get_node()
    while node.get_type_name() in ("Convert", "Transpose"):
        node = node.input_value(0).get_node()
    return node if node.get_type_name() == "Constant" else None


class OpenVinoEngine:
    """Runs the bundle's ONNX graphs, in bf16 where the processor multiplies it natively."""

    def __init__(self, bundle: Bundle, threads: int) -> None:
        self._core = ov.Core()
        # Weights are read, not mapped: a file that is cut off under a running process ends it.
        self._core.set_property({"ENABLE_MMAP": False})
        self._bundle = bundle
        native = self._core.get_property("CPU", "OPTIMIZATION_CAPABILITIES")
        self.precision = "bf16" if "BF16" in native else "f32"
        self.name = f"openvino-{self.precision}"
        recurrent = bundle.model.transition_blocks > 0
        self._narrow_products = recurrent and self.precision == "bf16"
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
        key = shape_key(graph, spec.inputs, inputs)
        if key not in self._requests:
            model = self._core.read_model(self._bundle.checked_graph(graph))
            model.reshape({name: list(inputs[name].shape) for name in spec.inputs})
            options = self._options
            if spec.full_precision:
                options = {**options, "INFERENCE_PRECISION_HINT": "f32"}
                if self._narrow_products:
                    type_products_as_bf16(model)
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
