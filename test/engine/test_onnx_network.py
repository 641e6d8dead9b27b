"""Graphs rewritten for TensorRT compute what they did, in fp32 and in half precision."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper
from onnx.external_data_helper import load_external_data_for_model
from onnx.reference import ReferenceEvaluator

from wm_node.bundle import Bundle, load_bundle
from wm_node.engine.load import read_golden
from wm_node.engine.onnx_network import dynamic_axes, read_network
from wm_node.errors import WmError
from wm_node.profile import RobotProfile
from wm_node.resources import BUNDLE, resource


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle(resource("bundles/tabletop"))


def _worst_error(bundle: Bundle, graph: str, precision: str) -> float:
    """Run a rewritten graph in numpy; largest error against the golden arrays in deviations."""
    model = read_network(bundle.file(bundle.graphs[graph].file), precision)
    load_external_data_for_model(model, str(bundle.path))
    golden = read_golden(bundle)[graph]
    evaluator = ReferenceEvaluator(model)
    outputs = dict(zip(evaluator.output_names, evaluator.run(None, golden["in"]), strict=True))
    assert set(outputs) == set(golden["out"])
    return max(
        float(np.abs(outputs[name] - expected).max() / (expected.std() + 1e-6))
        for name, expected in golden["out"].items()
    )


# Not `decode`: onnx's reference takes 20 s for its GridSample.
@pytest.mark.parametrize("graph", ["encode", "rollout", "search", "propose", "read"])
def test_rewritten_graphs_reproduce_the_golden_arrays(bundle: Bundle, graph: str) -> None:
    assert _worst_error(bundle, graph, "fp32") < 2e-3
    if not bundle.graphs[graph].full_precision:
        assert 0.0 < _worst_error(bundle, graph, "fp16") < 2e-2


@pytest.mark.parametrize(
    ("recurrent", "kinds"),
    [
        # Recurrent dynamics read the context in one product of two axes, and attend to nothing.
        (True, {("Gemm", TensorProto.FLOAT16)}),
        (False, {("Softmax", TensorProto.FLOAT)}),
    ],
)
def test_products_are_half_and_the_rest_is_not(
    recurrent: bool,
    kinds: set[tuple[str, int]],
    random_bundle_of: Callable[[RobotProfile, Path], Bundle],
    tmp_path: Path,
) -> None:
    shipped = load_bundle(resource(BUNDLE))
    # A bundle of the default sizes predicts with a transformer.
    bundle = shipped if recurrent else random_bundle_of(shipped.profile, tmp_path / "transformer")
    model = read_network(bundle.file("search.onnx"), "fp16")
    typed = onnx.shape_inference.infer_shapes(model, strict_mode=True, data_prop=True)
    types = {value.name: value.type.tensor_type.elem_type for value in typed.graph.value_info}
    seen = set()
    for node in typed.graph.node:
        if node.op_type in ("MatMul", "Gemm", "LayerNormalization", "Softmax"):
            seen.add((node.op_type, types[node.output[0]]))
    assert seen == {
        ("MatMul", TensorProto.FLOAT16),
        ("LayerNormalization", TensorProto.FLOAT),
        *kinds,
    }


def test_free_axes_keep_their_names(bundle: Bundle) -> None:
    axes = dynamic_axes(read_network(bundle.file("search.onnx"), "fp32"))
    assert axes["actions"] == ("candidates", 16, 2)
    assert axes["latents"] == (1, bundle.profile.model.context_steps, 192)


def test_arithmetic_on_bytes_is_refused(tmp_path: Path) -> None:
    frames = helper.make_tensor_value_info("frames", TensorProto.UINT8, [4])
    total = helper.make_tensor_value_info("total", TensorProto.UINT8, [4])
    twice = helper.make_node("Add", ["frames", "frames"], ["total"], "twice")
    model = helper.make_model(helper.make_graph([twice], "bytes", [frames], [total]))
    onnx.save(model, str(tmp_path / "bytes.onnx"))
    with pytest.raises(WmError, match="computes on bytes in Add 'twice'"):
        read_network(tmp_path / "bytes.onnx", "fp32")


def test_what_is_no_graph_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "no.onnx").write_bytes(b"\xff" * 64)
    with pytest.raises(WmError, match="is not an ONNX graph"):
        read_network(tmp_path / "no.onnx", "fp32")
    with pytest.raises(WmError, match="unknown precision 'int8'"):
        read_network(tmp_path / "no.onnx", "int8")
