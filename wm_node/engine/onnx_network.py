"""Prepares a bundle's ONNX graph for TensorRT, in memory: byte inputs, and precision.

TensorRT's networks are strongly typed: every operation computes in the type of its inputs, so
precision is decided here, in the graph. Weights stay where they are, in the bundle's weights file.
"""

from __future__ import annotations

from pathlib import Path
from typing import Any

import onnx
from onnx import TensorProto, helper

from wm_node.errors import WmError

PRECISIONS = ("fp32", "fp16")
PRODUCTS = frozenset({"MatMul", "Gemm", "Conv", "ConvTranspose"})
"""Operations that fp16 is worth it for: they run on tensor cores, which add up in fp32."""
MOVES = frozenset(
    {"Reshape", "Transpose", "Slice", "Gather", "Squeeze", "Unsqueeze", "Flatten", "Identity"}
)
"""Operations that only move values, so that they mean the same on bytes and on floats."""


def read_network(path: Path, precision: str) -> Any:
    """Read a graph and rewrite it for TensorRT; its weights are not loaded.

    Args:
        path: of the ONNX file, beside its weights file.
        precision: ``fp32``, or ``fp16``: matrix products and convolutions in half precision,
            and everything else (norms, softmax, sums, coordinates) in fp32.

    Raises:
        WmError: the file is no ONNX graph, or computes on bytes in a way that TensorRT cannot.
    """
    if precision not in PRECISIONS:
        raise WmError(f"unknown precision '{precision}'; choose one of {', '.join(PRECISIONS)}.")
    try:
        model = onnx.load(str(path), load_external_data=False)
    except Exception as error:  # protobuf raises types of its own
        raise WmError(f"{path} is not an ONNX graph: {error}.") from error
    del model.graph.value_info[:]  # types that the rewriting would make wrong
    float_bytes(model, path)
    if precision == "fp16":
        halve_products(model)
    return model


def dynamic_axes(model: Any) -> dict[str, tuple[int | str, ...]]:
    """Return input name -> its dimensions, a name where one is free."""
    return {
        value.name: tuple(
            dim.dim_param if dim.HasField("dim_param") else int(dim.dim_value)
            for dim in value.type.tensor_type.shape.dim
        )
        for value in model.graph.input
    }


def float_bytes(model: Any, path: Path) -> None:
    """Turn byte inputs into floats at once, in place.

    TensorRT takes bytes as inputs but only casts them; the graphs reshape frames before they cast.

    Raises:
        WmError: a byte input is computed with before it is cast.
    """
    graph = model.graph
    frames = [
        value.name for value in graph.input if value.type.tensor_type.elem_type == TensorProto.UINT8
    ]
    moved = set(frames)
    for node in graph.node:  # in topological order
        for index, name in enumerate(node.input):
            if name not in moved:
                continue
            if index == 0 and node.op_type in MOVES:
                moved.update(node.output)
            elif node.op_type not in ("Cast", "Shape"):
                raise WmError(
                    f"{path} computes on bytes in {node.op_type} '{node.name}', which TensorRT "
                    "cannot; cast them to float first."
                )
            if name in frames:
                node.input[index] = f"{name}/float"
    casts = [
        helper.make_node(
            "Cast", [name], [f"{name}/float"], f"{name}/to_float", to=TensorProto.FLOAT
        )
        for name in frames
    ]
    _set_nodes(graph, [*casts, *graph.node])


def halve_products(model: Any) -> None:
    """Let matrix products and convolutions compute in fp16, in place, between casts."""
    graph = model.graph
    outputs = {value.name for value in graph.output}
    halves: dict[str, str] = {}
    nodes = []
    for node in graph.node:
        if node.op_type not in PRODUCTS:
            nodes.append(node)
            continue
        for index, name in enumerate(node.input):
            if not name:
                continue
            if name not in halves:
                halves[name] = f"{name}/fp16"
                nodes.append(
                    helper.make_node(
                        "Cast", [name], [halves[name]], halves[name], to=TensorProto.FLOAT16
                    )
                )
            node.input[index] = halves[name]
        (result,) = node.output
        node.output[0] = f"{result}/product"
        nodes.append(node)
        nodes.append(
            helper.make_node(
                "Cast", [node.output[0]], [result], f"{result}/fp32", to=TensorProto.FLOAT
            )
        )
    assert not outputs & set(halves.values())
    _set_nodes(graph, nodes)


def _set_nodes(graph: Any, nodes: list[Any]) -> None:
    kept = list(nodes)
    del graph.node[:]
    graph.node.extend(kept)
