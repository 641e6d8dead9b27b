"""The NVIDIA backend's handling of memory, shapes and CUDA graphs, against a stand-in.

The stand-in keeps "device" memory on the host, runs what was queued only when it is waited for, and
lets the reference network compute. It shows that the right bytes go to the right places in the
right order, not that a GPU computes them: nothing here has run on one.
"""

from __future__ import annotations

import ctypes
import gc
import logging
import platform
import sys
from collections.abc import Callable
from enum import IntEnum
from pathlib import Path
from types import ModuleType, SimpleNamespace
from typing import Any

import numpy as np
import pytest

from wm_node.bundle import Bundle, load_bundle
from wm_node.engine import load_engine, tensorrt_backend
from wm_node.engine.cuda_device import CudaDevice
from wm_node.engine.engine_cache import CachedEngine
from wm_node.engine.load import read_golden
from wm_node.engine.tensorrt_adapter import TensorRt, find_tensorrt
from wm_node.engine.tensorrt_backend import TensorRtEngine
from wm_node.engine.torch_backend import TorchEngine
from wm_node.errors import WmError
from wm_node.resources import resource

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64",
    reason="make setup installs TensorRT for RTX on Linux, x86-64",
)
ROLLED = ("rollout", "search", "decode")


class Error(IntEnum):
    """The codes of CUDA that are needed here."""

    cudaSuccess = 0
    cudaErrorMemoryAllocation = 2


class HostCuda:
    """The calls of ``cuda.bindings.runtime`` that the backend makes, on host memory."""

    cudaStreamNonBlocking = 1
    cudaMemcpyKind = SimpleNamespace(cudaMemcpyHostToDevice="in", cudaMemcpyDeviceToHost="out")
    cudaStreamCaptureMode = SimpleNamespace(cudaStreamCaptureModeThreadLocal="thread")

    def __init__(self) -> None:
        self.memory: dict[int, tuple[str, Any]] = {}
        self.queue: list[Callable[[], None]] = []
        self.captured: list[Callable[[], None]] | None = None
        self.graphs: list[Any] = []
        self.streams, self.allocations, self.launches, self.room = 0, 0, 0, 1 << 30

    def do(self, work: Callable[[], None]) -> None:
        """Queue work, or record it while a graph is captured."""
        (self.queue if self.captured is None else self.captured).append(work)

    def _allocate(self, size: int, place: str) -> tuple[Any, ...]:
        if size > self.room:
            return Error.cudaErrorMemoryAllocation, None
        assert self.captured is None
        block = (ctypes.c_uint8 * size)()
        self.allocations += 1
        self.memory[ctypes.addressof(block)] = (place, block)
        return Error.cudaSuccess, ctypes.addressof(block)

    def _free(self, pointer: int, place: str) -> tuple[Any]:
        assert self.memory.pop(pointer)[0] == place
        return (Error.cudaSuccess,)

    def cudaMalloc(self, size: int) -> tuple[Any, ...]:
        return self._allocate(size, "device")

    def cudaMallocHost(self, size: int) -> tuple[Any, ...]:
        return self._allocate(size, "host")

    def cudaFree(self, pointer: int) -> tuple[Any]:
        return self._free(pointer, "device")

    def cudaFreeHost(self, pointer: int) -> tuple[Any]:
        return self._free(pointer, "host")

    def cudaStreamCreateWithFlags(self, flags: int) -> tuple[Any, ...]:
        self.streams += 1
        return Error.cudaSuccess, 7

    def cudaStreamDestroy(self, stream: int) -> tuple[Any]:
        self.streams -= 1
        return (Error.cudaSuccess,)

    def cudaMemcpyAsync(self, to: int, source: int, size: int, kind: str, stream: int) -> Any:
        places = ("device", "host") if kind == "in" else ("host", "device")
        assert (self.memory[to][0], self.memory[source][0]) == places
        assert size == ctypes.sizeof(self.memory[to][1]) == ctypes.sizeof(self.memory[source][1])
        self.do(lambda: ctypes.memmove(to, source, size) and None)
        return (Error.cudaSuccess,)

    def cudaStreamSynchronize(self, stream: int) -> tuple[Any]:
        assert self.captured is None
        while self.queue:
            self.queue.pop(0)()
        return (Error.cudaSuccess,)

    def cudaStreamBeginCapture(self, stream: int, mode: str) -> tuple[Any]:
        assert not self.queue
        self.captured = []
        return (Error.cudaSuccess,)

    def cudaStreamEndCapture(self, stream: int) -> tuple[Any, ...]:
        work, self.captured = self.captured, None
        return Error.cudaSuccess, work

    def cudaGraphInstantiate(self, graph: Any, flags: int) -> tuple[Any, ...]:
        self.graphs.append(tuple(graph))
        return Error.cudaSuccess, len(self.graphs) - 1

    def cudaGraphDestroy(self, graph: Any) -> tuple[Any]:
        graph.clear()
        return (Error.cudaSuccess,)

    def cudaGraphExecDestroy(self, ready: int) -> tuple[Any]:
        self.graphs[ready] = None
        return (Error.cudaSuccess,)

    def cudaGraphLaunch(self, ready: int, stream: int) -> tuple[Any]:
        self.launches += 1
        self.queue.extend(self.graphs[ready])
        return (Error.cudaSuccess,)


class Context:
    """An execution context whose "kernels" are the reference network."""

    def __init__(self, world: Any, graph: str, most: int) -> None:
        self.world, self.graph, self.most = world, graph, most
        self.golden = world.golden[graph]
        self.shapes = {
            name: value.shape for side in ("in", "out") for name, value in self.golden[side].items()
        }
        self.addresses: dict[str, int] = {}

    def set_input_shape(self, name: str, shape: tuple[int, ...]) -> bool:
        self.shapes[name] = shape
        if self.graph in ROLLED and name == self.world.leading[self.graph]:
            for output in self.golden["out"]:
                self.shapes[output] = (shape[0], *self.shapes[output][1:])
            return shape[0] <= self.most
        return shape == self.golden["in"][name].shape or self.graph in ROLLED

    def infer_shapes(self) -> list[str]:
        return []

    def get_tensor_shape(self, name: str) -> tuple[int, ...]:
        return self.shapes[name]

    def set_tensor_address(self, name: str, address: int) -> bool:
        assert self.world.cuda.memory[address][0] == "device"
        self.addresses[name] = address
        return name in self.shapes

    def is_stream_capturable(self, stream: int) -> bool:
        return bool(self.world.capturable)

    def execute_async_v3(self, stream: int) -> bool:
        self.world.cuda.do(self._compute)
        return True

    def _array(self, name: str, dtype: Any) -> Any:
        block = self.world.cuda.memory[self.addresses[name]][1]
        return np.frombuffer(block, dtype=dtype).reshape(self.shapes[name])

    def _compute(self) -> None:
        inputs = {
            name: self._array(name, value.dtype).copy() for name, value in self.golden["in"].items()
        }
        for name, value in self.world.reference.run(self.graph, inputs).items():
            self._array(name, np.float32)[...] = value * self.world.factor


class World:
    """TensorRT and CUDA as the backend sees them."""

    def __init__(self, bundle: Bundle, edition: str) -> None:
        self.cuda, self.golden = HostCuda(), read_golden(bundle)
        self.reference = TorchEngine(bundle, 1)
        self.leading = {"rollout": "actions", "search": "actions", "decode": "latents"}
        self.capturable, self.factor, self.loads, self.built = True, 1.0, True, True
        self.sizes: list[tuple[str, int]] = []
        real = find_tensorrt("sm_86").module
        module: Any = ModuleType("stand_in")
        for name in ("ILogger", "nptype", "DynamicShapesKernelSpecializationStrategy"):
            setattr(module, name, getattr(real, name))
        module.float32, module.uint8 = real.float32, real.uint8
        module.Runtime = lambda logger: SimpleNamespace(deserialize_cuda_engine=self.deserialise)
        self.trt = TensorRt(module, edition, "10.3.0")

    def cached(self, trt: Any, bundle: Bundle, graph: str, settings: Any, cache: Any) -> Any:
        self.sizes.append((graph, settings.candidates))
        data = f"{graph} {settings.candidates}".encode()
        return CachedEngine(None, data, Path(f"{graph}.engine"), self.built)  # type: ignore[arg-type]

    def deserialise(self, data: bytes) -> Any:
        graph, most = data.decode().split()
        types = self.trt.module

        def create(config: Any = None) -> Context:
            assert (config is not None) == self.trt.rtx
            if config is not None:
                strategies = types.DynamicShapesKernelSpecializationStrategy
                chosen = config.dynamic_shapes_kernel_specialization_strategy
                assert chosen == strategies.EAGER
            return Context(self, graph, int(most))

        def dtype(name: str) -> Any:
            golden = self.golden[graph]
            value = golden["in"].get(name, golden["out"].get(name))
            return types.uint8 if value.dtype == np.uint8 else types.float32

        if not self.loads:
            return None
        return SimpleNamespace(
            create_execution_context=create,
            create_runtime_config=SimpleNamespace,
            get_tensor_dtype=dtype,
        )


@pytest.fixture(scope="module")
def bundle() -> Bundle:
    return load_bundle(resource("bundles/tabletop"))


@pytest.fixture(params=["tensorrt", "tensorrt_rtx"])
def world(bundle: Bundle, request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> World:
    made = World(bundle, request.param)
    monkeypatch.setattr(tensorrt_backend, "cuda_runtime", lambda: made.cuda)
    monkeypatch.setattr(tensorrt_backend, "find_tensorrt", lambda: made.trt)
    monkeypatch.setattr(tensorrt_backend, "cached_engine", made.cached)
    gpu = CudaDevice("stand-in", "sm_86", "13.0")
    monkeypatch.setattr(tensorrt_backend, "current_device", lambda remedy: gpu)
    return made


@pytest.mark.parametrize(("backend", "end"), [("tensorrt", "f32"), ("tensorrt-fp16", "f16")])
def test_every_graph_gets_its_bytes_and_gives_its_own(
    world: World, bundle: Bundle, backend: str, end: str
) -> None:
    engine = load_engine(bundle, backend)
    assert engine.name == f"{world.trt.edition}-{end}"
    checked = [graph for graph, spec in bundle.graphs.items() if spec.search is None]
    assert world.cuda.launches == len(checked) == 6


def test_an_engine_that_computes_something_else_is_refused(world: World, bundle: Bundle) -> None:
    world.factor = 1.5
    with pytest.raises(WmError, match="does not reproduce the bundle"):
        load_engine(bundle, "tensorrt")


def test_populations_of_any_size(world: World, bundle: Bundle) -> None:
    engine = TensorRtEngine(bundle, 1)
    random = np.random.default_rng(0)
    inputs = dict(world.golden["search"]["in"])
    kept = {}
    for size in (4, 64, 69, 4):
        inputs["actions"] = random.normal(0, 0.1, (size, 16, 2)).astype(np.float32)
        kept[size] = engine.run("search", inputs), world.reference.run("search", inputs)
    for outputs, expected in kept.values():
        for name, value in expected.items():
            np.testing.assert_array_equal(outputs[name], value)
    assert [size for graph, size in world.sizes if graph == "search"] == [64, 69]


def test_no_memory_is_allocated_once_prepared(world: World, bundle: Bundle) -> None:
    engine = TensorRtEngine(bundle, 1)
    inputs = world.golden["rollout"]["in"]
    engine.prepare("rollout", inputs)
    before = world.cuda.allocations, len(world.cuda.graphs)
    first = engine.run("rollout", inputs)
    for _ in range(5):
        again = engine.run("rollout", inputs)
    assert (world.cuda.allocations, len(world.cuda.graphs)) == before
    assert all(first[name] is not again[name] for name in first)


def test_everything_is_given_back(world: World, bundle: Bundle) -> None:
    engine = load_engine(bundle, "tensorrt")
    assert world.cuda.memory
    assert world.cuda.streams == 1
    del engine
    gc.collect()
    assert not world.cuda.memory
    assert not any(world.cuda.graphs)
    assert world.cuda.streams == 0


def test_what_cannot_be_captured_runs_without_a_graph_and_says_so(
    world: World, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    world.capturable = False
    load_engine(bundle, "tensorrt")
    assert "cannot be captured" in caplog.text
    assert not world.cuda.graphs


def test_inputs_of_another_type_are_not_converted(world: World, bundle: Bundle) -> None:
    engine = TensorRtEngine(bundle, 1)
    inputs = dict(world.golden["read"]["in"])
    inputs["latents"] = inputs["latents"].astype(np.float64)
    with pytest.raises(TypeError, match="Cannot cast"):
        engine.run("read", inputs)


def test_faults_are_one_sentence(
    world: World, bundle: Bundle, caplog: pytest.LogCaptureFixture
) -> None:
    with caplog.at_level(logging.WARNING, logger="wm_node.tensorrt"):
        engine = TensorRtEngine(bundle, 1)
        engine.prepare("read", world.golden["read"]["in"])
    assert "had to be built; wm compile does it before" in caplog.text
    with pytest.raises(WmError, match="was not built for inputs 'latents'"):
        engine.run("read", {"latents": np.zeros((2, 192), np.float32)})
    world.cuda.room = 16
    with pytest.raises(WmError, match=r"pinned memory failed.*cudaErrorMemoryAllocation \(2\)"):
        engine.run("encode", world.golden["encode"]["in"])
    world.loads = False
    with pytest.raises(WmError, match=r"cannot load the engine encode\.engine"):
        TensorRtEngine(bundle, 1).prepare("encode", world.golden["encode"]["in"])


def test_without_a_gpu_it_says_so(bundle: Bundle) -> None:
    try:
        from wm_node.engine.cuda_device import current_device

        current_device("")
    except WmError:
        with pytest.raises(WmError, match="run another backend here, such as openvino"):
            load_engine(bundle, "tensorrt")
    else:
        pytest.skip("this machine has a GPU")
