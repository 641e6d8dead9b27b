"""The real TensorRT for RTX parses and builds every graph of every shipped bundle, without a GPU.

Nothing here runs an engine: that needs a GPU.
"""

from __future__ import annotations

import importlib
import logging
import os
import platform
import shutil
import signal
import sys
import threading
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import onnx
import pytest
import torch
from onnx import helper

from wm_node.bundle import Bundle, GraphSpec, file_sha256, load_bundle
from wm_node.cli.main import main
from wm_node.engine import cuda_device, tensorrt_adapter, tensorrt_build
from wm_node.engine.cuda_device import CudaDevice, current_device
from wm_node.engine.engine_cache import EngineCache
from wm_node.engine.tensorrt_adapter import BuildMonitor, TensorRt, find_tensorrt
from wm_node.engine.tensorrt_build import BuildSettings, build_engine, cached_engine, engine_key
from wm_node.errors import WmError
from wm_node.model.config import Dims, ModelConfig
from wm_node.model.export import export_graph, graphs_of, round_matrices, save_weights
from wm_node.model.world import WorldModelNet
from wm_node.profile import RobotProfile, load_profile
from wm_node.resources import resource

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64",
    reason="make setup installs TensorRT for RTX on Linux, x86-64",
)
SHIPPED = sorted(path.parent for path in resource("bundles").glob("*/manifest.yaml"))
SM86 = BuildSettings(target="sm_86")


@pytest.fixture(scope="module")
def trt() -> TensorRt:
    return find_tensorrt("sm_86")


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle(resource("bundles/tabletop"))


@pytest.mark.timeout(600)  # graphs of whole searches have many thousand layers
@pytest.mark.parametrize(
    ("path", "graph"),
    [(path, graph) for path in SHIPPED for graph in load_bundle(path).graphs],
    ids=lambda what: what.name if isinstance(what, Path) else what,
)
def test_every_graph_of_every_shipped_bundle_is_built(
    trt: TensorRt, path: Path, graph: str
) -> None:
    bundle = load_bundle(path)
    ampere = build_engine(trt, bundle, graph, SM86)
    blackwell = build_engine(trt, bundle, graph, BuildSettings(target="sm_120"))
    # The weights are really in them, in fp32: twice the bytes of the stored halves.
    weights = _weight_bytes(bundle.file(bundle.graphs[graph].file))
    assert min(len(ampere), len(blackwell)) > 1.5 * weights > 0
    assert ampere != blackwell


def _weight_bytes(path: Path) -> int:
    """Bytes of the weights file that a graph refers to."""
    return sum(
        int(entry.value)
        for tensor in onnx.load(str(path), load_external_data=False).graph.initializer
        for entry in tensor.external_data
        if entry.key == "length"
    )


def test_half_precision_shrinks_what_may_be_half(trt: TensorRt, bundle: Bundle) -> None:
    for graph in ("encode", "decode"):
        full = build_engine(trt, bundle, graph, SM86)
        half = build_engine(trt, bundle, graph, replace(SM86, precision="fp16"))
        if bundle.graphs[graph].full_precision:
            assert len(half) == len(full)
        else:
            assert len(half) < 0.8 * len(full)


def test_a_robot_without_labels_under_position_control(
    trt: TensorRt, bundle: Bundle, tmp_path: Path
) -> None:
    """The rollout of many joints, whose regression and missing heads no shipped bundle has."""
    humanoid = _of_one_graph(bundle, tmp_path, load_profile("g1_bottle"), ModelConfig(), "rollout")
    assert build_engine(trt, humanoid, "rollout", replace(SM86, precision="fp16"))


def test_futures_that_are_told_apart(trt: TensorRt, bundle: Bundle, tmp_path: Path) -> None:
    """No bundle that ships has them yet."""
    config = ModelConfig(transition_blocks=2, futures=4)
    told_apart = _of_one_graph(bundle, tmp_path, load_profile("tabletop"), config, "futures")
    for precision in ("fp32", "fp16"):
        assert build_engine(trt, told_apart, "futures", replace(SM86, precision=precision))


def test_several_tokens_of_a_frame(trt: TensorRt, bundle: Bundle, tmp_path: Path) -> None:
    """No bundle that ships has them."""
    config = ModelConfig(transition_blocks=1, tokens=4)
    richer = _of_one_graph(bundle, tmp_path, load_profile("tabletop"), config, "rollout")
    assert build_engine(trt, richer, "rollout", replace(SM86, precision="fp16"))


def _of_one_graph(
    bundle: Bundle, folder: Path, profile: RobotProfile, config: ModelConfig, graph: str
) -> Bundle:
    """A bundle with one graph of a network with random weights."""
    torch.manual_seed(0)
    net = WorldModelNet(Dims.of(profile), config).eval()
    round_matrices(net)
    save_weights(net, folder / "weights.safetensors")
    entry = export_graph(net, graph, graphs_of(net, profile, {})[graph], folder)
    spec = GraphSpec(entry["file"], tuple(entry["inputs"]), tuple(entry["outputs"]), True)
    return replace(_of_files(bundle, folder), graphs={graph: spec})


def test_progress_is_told_to_its_end(trt: TensorRt, bundle: Bundle) -> None:
    told: list[tuple[str, int, int]] = []
    build_engine(trt, bundle, "read", SM86, lambda *what: told.append(what))
    assert len(told) > 10
    assert all(0 <= done <= steps for _, done, steps in told)
    assert told[-1][1] == told[-1][2]


def test_what_the_watcher_raises_ends_the_build(trt: TensorRt, bundle: Bundle) -> None:
    told = []

    def stop(phase: str, done: int, steps: int) -> None:
        told.append(done)
        raise ZeroDivisionError

    with pytest.raises(ZeroDivisionError):
        build_engine(trt, bundle, "search", SM86, stop)
    assert len(told) == 1


def test_an_interrupt_ends_the_build(
    trt: TensorRt, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    told: list[str] = []
    cancelled = threading.Event()
    cancel = BuildMonitor.cancel
    monkeypatch.setattr(BuildMonitor, "cancel", lambda it: (cancel(it), cancelled.set()))

    def interrupt(phase: str, done: int, steps: int) -> None:
        told.append(phase)
        os.kill(os.getpid(), signal.SIGINT)
        assert cancelled.wait(60)

    with pytest.raises(KeyboardInterrupt):
        build_engine(trt, bundle, "search", SM86, interrupt)
    assert len(told) == 1


def test_the_builder_speaks_through_logging(
    trt: TensorRt, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.DEBUG, logger="wm_node.tensorrt"):
        build_engine(trt, bundle, "read", SM86)
    assert caplog.records
    assert not [record for record in caplog.records if record.levelno > logging.WARNING]


def test_a_cached_engine_serves_the_same_gpu_elsewhere(
    trt: TensorRt, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    cache = EngineCache(tmp_path)
    ahead = cached_engine(trt, bundle, "read", SM86, cache)
    again = cached_engine(trt, bundle, "read", SM86, cache)
    assert (ahead.built, again.built, ahead.data) == (True, False, again.data)
    here = CudaDevice("NVIDIA A10", "sm_86", "13.0")
    monkeypatch.setattr(tensorrt_build, "current_device", lambda remedy: here)
    found = cached_engine(trt, bundle, "read", BuildSettings(), cache)
    assert (found.built, found.path) == (False, ahead.path)


def test_the_classic_edition_keys_by_device_and_cuda(bundle: Bundle) -> None:
    classic = TensorRt(None, "tensorrt", "10.3.0.30")
    orin = CudaDevice("Orin", "sm_87", "12.6")
    key = engine_key(classic, bundle, "search", BuildSettings(precision="fp16"), orin)
    assert (key.device, key.target, key.cuda) == ("Orin", "sm_87", "12.6")
    assert key.tensorrt == "tensorrt 10.3.0.30"
    assert key.axes == {"candidates": [1, 64, 64]}
    encoded = engine_key(classic, bundle, "encode", BuildSettings(precision="fp16"), orin)
    assert encoded.precision == "fp16"
    drawn = engine_key(classic, bundle, "decode", BuildSettings(precision="fp16"), orin)
    assert (drawn.precision, drawn.axes) == ("fp32", {"count": [1, 8, 8]})
    larger = BuildSettings(precision="fp16", candidates=128)
    assert engine_key(classic, bundle, "decode", larger, orin) == drawn
    assert engine_key(classic, bundle, "search", larger, orin) != key


def _of_files(bundle: Bundle, folder: Path) -> Bundle:
    """The bundle as if it had been written with the files of a folder."""
    files = {
        file.name: {"bytes": file.stat().st_size, "sha256": file_sha256(file)}
        for file in folder.iterdir()
    }
    return replace(bundle, path=folder, manifest={**bundle.manifest, "files": files})


def _changed(bundle: Bundle, folder: Path, graph: str, change: Any) -> Bundle:
    """Copy a bundle with one graph changed, as somebody else might have written it."""
    shutil.copytree(bundle.path, folder, dirs_exist_ok=True)
    file = folder / bundle.graphs[graph].file
    model = onnx.load(str(file), load_external_data=False)
    change(model.graph)
    onnx.save(model, str(file))
    return _of_files(bundle, folder)


def test_a_file_that_has_changed_since_it_was_checked_is_refused(
    trt: TensorRt, bundle: Bundle, tmp_path: Path
) -> None:
    shutil.copytree(bundle.path, tmp_path, dirs_exist_ok=True)
    with (tmp_path / "read.onnx").open("ab") as stream:
        stream.write(b"\0")
    with pytest.raises(WmError, match=r"is damaged: read\.onnx has"):
        build_engine(trt, replace(bundle, path=tmp_path), "read", SM86)


def test_an_unknown_operation_is_named(trt: TensorRt, bundle: Bundle, tmp_path: Path) -> None:
    def change(graph: Any) -> None:
        (last,) = (node for node in graph.node if node.output[0] == "state")
        last.output[0] = "before"
        graph.node.append(helper.make_node("Frobnicate", ["before"], ["state"], "strange"))

    changed = _changed(bundle, tmp_path, "read", change)
    with pytest.raises(WmError, match=r"cannot parse .*read\.onnx at Frobnicate 'strange'"):
        build_engine(trt, changed, "read", SM86)


def test_an_output_that_the_manifest_does_not_know_is_refused(
    trt: TensorRt, bundle: Bundle, tmp_path: Path
) -> None:
    def change(graph: Any) -> None:
        graph.node.append(helper.make_node("Identity", ["state"], ["copy"]))
        graph.output.append(helper.make_tensor_value_info("copy", 1, [1, 4]))

    changed = _changed(bundle, tmp_path, "read", change)
    with pytest.raises(WmError, match="its manifest says"):
        build_engine(trt, changed, "read", SM86)


def test_a_free_axis_without_a_size_is_refused(
    trt: TensorRt, bundle: Bundle, tmp_path: Path
) -> None:
    def change(graph: Any) -> None:
        graph.input[0].type.tensor_type.shape.dim[0].dim_param = "robots"

    changed = _changed(bundle, tmp_path, "read", change)
    with pytest.raises(WmError, match="leaves the axis 'robots' of 'latents' free"):
        build_engine(trt, changed, "read", SM86)


def test_kernel_timings_are_kept_between_builds(
    trt: TensorRt, bundle: Bundle, tmp_path: Path
) -> None:
    """The steps of the classic edition, with the API of the one that is installed here."""
    classic = replace(trt, edition="tensorrt")
    timings = tmp_path / "timings.cache"
    for harm in (None, b"damaged"):
        if harm:
            timings.write_bytes(harm)
        assert build_engine(classic, bundle, "read", BuildSettings(), timings=timings)
        assert timings.stat().st_size > len(b"damaged")
    assert [path.name for path in tmp_path.iterdir()] == ["timings.cache"]


def test_without_onnx_it_says_so(
    trt: TensorRt, bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, "wm_node.engine.onnx_network", None)
    with pytest.raises(WmError, match="needs the package onnx"):
        build_engine(trt, bundle, "read", SM86)


@pytest.mark.parametrize(
    ("target", "message"),
    [
        ("orin", "'orin' is not a target"),
        ("sm_87", "cannot build for sm_87 ahead of time, only for sm_75, sm_80, sm_86"),
    ],
)
def test_targets_that_cannot_be_built_for(target: str, message: str) -> None:
    with pytest.raises(WmError, match=message):
        find_tensorrt(target)


def _modules(monkeypatch: pytest.MonkeyPatch, **found: str) -> None:
    """Let only these modules be importable, name=version; '' breaks while it is loaded."""

    def load(name: str) -> Any:
        if name not in found:
            raise ImportError(f"no module {name}")
        if not found[name]:
            raise OSError("libnvinfer.so.10: cannot open shared object file")
        return SimpleNamespace(__version__=found[name])

    monkeypatch.setattr(tensorrt_adapter, "importlib", SimpleNamespace(import_module=load))


def test_the_classic_edition_goes_first_on_a_robot(monkeypatch: pytest.MonkeyPatch) -> None:
    _modules(monkeypatch, tensorrt="10.3.0.30", tensorrt_rtx_bindings="1.7.1")
    assert find_tensorrt().edition == "tensorrt"
    _modules(monkeypatch, tensorrt="", tensorrt_rtx_bindings="1.7.1")
    assert find_tensorrt().edition == "tensorrt_rtx"


def test_an_old_edition_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    _modules(monkeypatch, tensorrt="8.6.2")
    with pytest.raises(WmError, match=r"TensorRT 8\.6\.2 is too old"):
        find_tensorrt()


def test_without_tensorrt_compile_says_what_to_install(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str], bundle: Bundle
) -> None:
    _modules(monkeypatch)
    assert main(["compile", "--bundle", str(bundle.path), "--target", "sm_86"]) == 1
    errors = capsys.readouterr().err.splitlines()
    assert len(errors) == 1
    assert "install TensorRT" in errors[0]
    assert "pip install 'wm_node[tensorrt]'" in errors[0]


def _runtime(monkeypatch: pytest.MonkeyPatch, code: int, count: int | None) -> None:
    fake = importlib.import_module("cuda.bindings.runtime")
    found = SimpleNamespace(name=b"Orin\0\0", major=8, minor=7)
    monkeypatch.setattr(
        cuda_device,
        "cuda_runtime",
        lambda: SimpleNamespace(
            cudaGetDeviceCount=lambda: (fake.cudaError_t(code), count),
            cudaGetDeviceProperties=lambda index: (fake.cudaError_t(0), found),
            cudaDriverGetVersion=lambda: (fake.cudaError_t(0), 12060),
        ),
    )


def test_the_gpu_is_described(monkeypatch: pytest.MonkeyPatch) -> None:
    _runtime(monkeypatch, 0, 1)
    assert current_device("") == CudaDevice("Orin", "sm_87", "12.6")


def test_without_a_gpu_the_target_must_be_named(
    trt: TensorRt, bundle: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    _runtime(monkeypatch, 35, None)
    with pytest.raises(WmError, match="such as --target sm_86"):
        cached_engine(trt, bundle, "read", BuildSettings(), EngineCache(tmp_path))
    assert not list(tmp_path.iterdir())


@pytest.mark.parametrize("wrong", [{"candidates": 0}, {"workspace_mb": 1}, {"threads": 0}], ids=str)
def test_settings_that_make_no_sense(wrong: dict[str, int]) -> None:
    with pytest.raises(WmError):
        BuildSettings(**wrong)  # type: ignore[arg-type]
