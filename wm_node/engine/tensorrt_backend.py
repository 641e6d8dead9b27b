"""TensorRT: the backend for NVIDIA GPUs. Needs no torch on the robot.

NOT YET EXECUTED ON A GPU: its engines are built by the real TensorRT in the tests, and this module
is tested against a stand-in for CUDA that keeps "device" memory on the host. The golden check at
load refuses it wherever it should compute anything wrong.
"""

from __future__ import annotations

import contextlib
import ctypes
import weakref
from collections.abc import Callable
from dataclasses import dataclass, replace
from functools import partial
from typing import Any

import numpy as np
from numpy.typing import NDArray

from wm_node.bundle import Bundle
from wm_node.engine.cuda_device import checked, cuda_runtime, current_device
from wm_node.engine.engine_cache import EngineCache
from wm_node.engine.protocol import Arrays, Key, shape_key
from wm_node.engine.tensorrt_adapter import TensorRt, find_tensorrt, log, log_bridge
from wm_node.engine.tensorrt_build import BuildSettings, cached_engine
from wm_node.errors import WmError

Release = list[Callable[[], Any]]


class TensorRtEngine:
    """Runs the bundle's graphs on the first GPU, one CUDA graph for each set of shapes.

    Engines come from the cache, or are built when they are first needed: at the golden check and by
    :meth:`prepare`, when a node is configured. ``wm compile`` does it before.
    """

    def __init__(
        self,
        bundle: Bundle,
        threads: int,
        precision: str = "fp32",
        cache: EngineCache | None = None,
    ) -> None:
        """Start CUDA; engines are loaded or built when they are first needed.

        Args:
            bundle: a checked bundle.
            threads: CPU threads of the builder.
            precision: ``fp32`` or ``fp16``.
            cache: where engines are kept (default: the user's).

        Raises:
            WmError: no GPU, or no TensorRT.
        """
        self._trt = find_tensorrt()
        self._cuda = cuda_runtime()
        current_device("run another backend here, such as openvino")
        self.precision = "f16" if precision == "fp16" else "f32"
        self.name = f"{self._trt.edition}-{self.precision}"
        self._bundle = bundle
        self._cache = cache or EngineCache()
        self._settings = BuildSettings(precision=precision, threads=threads)
        self._bridge = log_bridge(self._trt.module)
        self._runtime = self._trt.module.Runtime(self._bridge.logger)
        self._release: Release = []
        # Device memory is scarce: it is given back with the engine, not when the process ends.
        weakref.finalize(self, _release_all, self._release).atexit = False
        create = self._cuda.cudaStreamCreateWithFlags(self._cuda.cudaStreamNonBlocking)
        self._stream = checked(create, "creating a CUDA stream")
        self._release.append(partial(self._cuda.cudaStreamDestroy, self._stream))
        self._engines: dict[str, Any] = {}
        self._bound: dict[Key, _Bound] = {}

    def prepare(self, graph: str, inputs: Arrays) -> None:
        """See :class:`wm_node.engine.protocol.Engine`."""
        self.run(graph, inputs)

    def run(self, graph: str, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """See :class:`wm_node.engine.protocol.Engine`. Releases the GIL while it computes."""
        spec = self._bundle.graphs[graph]
        key = shape_key(graph, spec.inputs, inputs)
        bound = self._bound.get(key)
        if bound is None:
            bound = self._bound[key] = self._bind(graph, inputs)
        return bound.run(inputs)

    def _load(self, graph: str) -> None:
        entry = cached_engine(self._trt, self._bundle, graph, self._settings, self._cache)
        self._bridge.begin()
        engine = self._runtime.deserialize_cuda_engine(entry.data)
        if engine is None:
            raise WmError(
                f"TensorRT {self._trt.version} cannot load the engine {entry.path}: "
                f"{self._bridge.first_error or 'no reason given'}; remove it and compile again."
            )
        if entry.built:
            log.warning(
                "the engine of graph '%s' had to be built; wm compile does it before", graph
            )
        self._engines[graph] = engine

    def _bind(self, graph: str, inputs: Arrays) -> _Bound:
        spec = self._bundle.graphs[graph]
        sizes = self._settings.axes(self._bundle, graph).get("candidates")
        if sizes and (wanted := inputs["actions"].shape[0]) > sizes[2]:
            self._settings = replace(self._settings, candidates=wanted)
            # Contexts keep the smaller engines alive, which go on serving their sizes.
            self._engines.pop("rollout", None)
            self._engines.pop("search", None)
        if graph not in self._engines:
            self._load(graph)
        shapes = {name: tuple(inputs[name].shape) for name in spec.inputs}
        return _Bound(
            self._trt,
            self._cuda,
            self._stream,
            self._engines[graph],
            shapes,
            spec.outputs,
            self._release,
        )


@dataclass(frozen=True)
class _Buffer:
    """One tensor: pinned host memory, as an array and as an address, and device memory."""

    array: NDArray[Any]
    host: int
    device: int


class _Bound:
    """A graph at fixed shapes: its memory, and its work as one CUDA graph.

    Each has an execution context of its own, because a captured CUDA graph is only valid as long
    as the shapes and addresses of its context stay as they were.
    """

    def __init__(
        self,
        trt: TensorRt,
        cuda: Any,
        stream: Any,
        engine: Any,
        shapes: dict[str, tuple[int, ...]],
        outputs: tuple[str, ...],
        release: Release,
    ) -> None:
        self._cuda, self._stream = cuda, stream
        self._context = _context(trt, engine)
        for name, shape in shapes.items():
            if not self._context.set_input_shape(name, shape):
                raise WmError(f"the engine was not built for inputs '{name}' of shape {shape}.")
        if unknown := self._context.infer_shapes():
            raise WmError(f"the engine leaves shapes open: {', '.join(unknown)}.")
        self._inputs = {name: self._buffer(trt, engine, name, release) for name in shapes}
        self._outputs = {name: self._buffer(trt, engine, name, release) for name in outputs}
        self._enqueue()  # TensorRT does its own set-up in the first run, which is not captured
        self._wait()
        self._graph = self._capture(release)

    def run(self, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Copy the inputs, run, and return the outputs in memory of their own."""
        for name, buffer in self._inputs.items():
            np.copyto(buffer.array, inputs[name], casting="no")
        if self._graph is None:
            self._enqueue()
        else:
            checked(self._cuda.cudaGraphLaunch(self._graph, self._stream), "starting a CUDA graph")
        self._wait()
        return {name: buffer.array.copy() for name, buffer in self._outputs.items()}

    def _buffer(self, trt: TensorRt, engine: Any, name: str, release: Release) -> _Buffer:
        cuda = self._cuda
        shape = tuple(self._context.get_tensor_shape(name))
        dtype = np.dtype(trt.module.nptype(engine.get_tensor_dtype(name)))
        size = max(int(np.prod(shape, dtype=np.int64)) * dtype.itemsize, 1)
        host = int(checked(cuda.cudaMallocHost(size), f"allocating {size} bytes of pinned memory"))
        release.append(partial(cuda.cudaFreeHost, host))
        device = int(checked(cuda.cudaMalloc(size), f"allocating {size} bytes on the GPU"))
        release.append(partial(cuda.cudaFree, device))
        if not self._context.set_tensor_address(name, device):
            raise WmError(f"the engine has no tensor '{name}'; compile the bundle again.")
        memory = (ctypes.c_uint8 * size).from_address(host)
        array = np.frombuffer(memory, dtype=dtype, count=size // dtype.itemsize).reshape(shape)
        return _Buffer(array, host, device)

    def _enqueue(self) -> None:
        kind = self._cuda.cudaMemcpyKind
        for buffer in self._inputs.values():
            self._copy(buffer.device, buffer.host, buffer, kind.cudaMemcpyHostToDevice)
        if not self._context.execute_async_v3(int(self._stream)):
            raise WmError("TensorRT could not run an engine; its log tells why.")
        for buffer in self._outputs.values():
            self._copy(buffer.host, buffer.device, buffer, kind.cudaMemcpyDeviceToHost)

    def _copy(self, to: int, source: int, buffer: _Buffer, kind: Any) -> None:
        call = self._cuda.cudaMemcpyAsync(to, source, buffer.array.nbytes, kind, self._stream)
        checked(call, "copying between host and GPU")

    def _wait(self) -> None:
        checked(self._cuda.cudaStreamSynchronize(self._stream), "waiting for the GPU")

    def _capture(self, release: Release) -> Any:
        """Return the whole work as an executable CUDA graph, None where it cannot be captured."""
        cuda, stream = self._cuda, self._stream
        # TensorRT for RTX tells; the classic edition can capture these graphs, or reports an error.
        capturable = getattr(self._context, "is_stream_capturable", None)
        if capturable is not None and not capturable(int(stream)):
            log.warning("an engine cannot be captured as a CUDA graph: its calls cost more time")
            return None
        mode = cuda.cudaStreamCaptureMode.cudaStreamCaptureModeThreadLocal
        checked(cuda.cudaStreamBeginCapture(stream, mode), "capturing a CUDA graph")
        self._enqueue()
        graph = checked(cuda.cudaStreamEndCapture(stream), "capturing a CUDA graph")
        ready = checked(cuda.cudaGraphInstantiate(graph, 0), "instantiating a CUDA graph")
        release.append(partial(cuda.cudaGraphExecDestroy, ready))
        checked(cuda.cudaGraphDestroy(graph), "freeing a CUDA graph")
        return ready


def _context(trt: TensorRt, engine: Any) -> Any:
    """Return an execution context whose kernels are all compiled at its first run."""
    if not trt.rtx:
        context = engine.create_execution_context()
    else:
        config = engine.create_runtime_config()
        # The default compiles kernels for a shape in the background, long after `prepare`.
        strategy = trt.module.DynamicShapesKernelSpecializationStrategy.EAGER
        config.dynamic_shapes_kernel_specialization_strategy = strategy
        context = engine.create_execution_context(config)
    if context is None:
        raise WmError("TensorRT could not create an execution context; is the GPU's memory full?")
    return context


def _release_all(release: Release) -> None:
    while release:
        with contextlib.suppress(Exception):  # a CUDA that failed fails here as well
            release.pop()()
