"""Builds TensorRT engines from a bundle's ONNX graphs.

Used by ``wm compile`` and, where nothing fitting lies in the engine cache, by the NVIDIA backend
when a node is configured. Nothing here needs a GPU if the target is named (TensorRT for RTX).
"""

from __future__ import annotations

import os
import tempfile
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

from wm_node.bundle import WEIGHTS, Bundle
from wm_node.engine.cuda_device import CudaDevice, current_device
from wm_node.engine.engine_cache import CachedEngine, EngineCache, EngineKey
from wm_node.engine.tensorrt_adapter import (
    CURRENT,
    BuildMonitor,
    LogBridge,
    TensorRt,
    Watch,
    log,
    log_bridge,
)
from wm_node.errors import WmError

RECIPE = 1
"""Counts changes of how engines are built here, so that older cached ones are not taken."""
NO_GPU = "compile on the robot, or name a GPU to build for, such as --target sm_86"
LEAST_CANDIDATES = 16
"""The world model answers other planners' candidates in pieces of this size."""
LEAST_COUNT = 4
"""Golden arrays draw this many frames."""


@dataclass(frozen=True)
class BuildSettings:
    """What an engine is built for."""

    target: str = CURRENT
    """``current``: the GPU of this machine; or a compute capability such as ``sm_86``."""
    precision: str = "fp32"
    """``fp32`` or ``fp16``; graphs that the bundle marks stay fp32."""
    candidates: int = 64
    """Population that kernels are chosen for; any smaller one runs too."""
    workspace_mb: int = 1024
    """Most scratch memory that an engine's kernels may use on the GPU."""
    threads: int = 1
    """CPU threads of the builder."""

    def __post_init__(self) -> None:
        if not 1 <= self.candidates <= 65536:
            raise WmError("engines are built for 1 to 65536 candidates.")
        if self.workspace_mb < 16 or self.threads < 1:
            raise WmError("the builder needs at least 16 MB of workspace and one thread.")

    def axes(self, bundle: Bundle, graph: str) -> dict[str, tuple[int, int, int]]:
        """Return the free axes of a graph: name -> least, usual and largest size."""
        if graph in ("rollout", "search"):
            most = max(self.candidates, LEAST_CANDIDATES)
            return {"candidates": (1, self.candidates, most)}
        if graph == "decode":
            horizon = bundle.profile.model.horizon_steps
            return {"count": (1, horizon, max(horizon, LEAST_COUNT))}
        return {}

    def precision_of(self, bundle: Bundle, graph: str) -> str:
        """Return the precision that one graph is built in."""
        return "fp32" if bundle.graphs[graph].full_precision else self.precision


def engine_key(
    trt: TensorRt,
    bundle: Bundle,
    graph: str,
    settings: BuildSettings,
    device: CudaDevice | None,
) -> EngineKey:
    """Return everything that an engine depends on.

    Args:
        trt: the edition that builds it.
        bundle: and ``graph``: what is built.
        settings: what for.
        device: the GPU of this machine for the target ``current``, None for a named target.
    """
    files = bundle.manifest["files"]
    return EngineKey(
        graph=graph,
        onnx_sha256=files[bundle.graphs[graph].file]["sha256"],
        weights_sha256=files[WEIGHTS]["sha256"],
        tensorrt=f"{trt.edition} {trt.version}",
        cuda=device.cuda if device else "",
        device=device.name if device else "",
        target=device.target if device else settings.target,
        precision=settings.precision_of(bundle, graph),
        axes={name: list(sizes) for name, sizes in settings.axes(bundle, graph).items()},
        workspace_mb=settings.workspace_mb,
        recipe=RECIPE,
    )


def cached_engine(
    trt: TensorRt,
    bundle: Bundle,
    graph: str,
    settings: BuildSettings,
    cache: EngineCache,
    watch: Watch | None = None,
) -> CachedEngine:
    """Return the engine of a graph from the cache; build it first if it is not there.

    TensorRT for RTX builds the same engine on every machine, so that one compiled elsewhere for
    this machine's compute capability is found in a copied cache.

    Raises:
        WmError: it cannot be built, or there is no GPU for the target ``current``.
    """
    device = None
    if settings.target == CURRENT:
        device = current_device(NO_GPU)
        if device.target in trt.targets:
            settings, device = replace(settings, target=device.target), None
    key = engine_key(trt, bundle, graph, settings, device)
    timings = None
    if device and not trt.rtx:  # TensorRT for RTX does not measure kernels
        timings = cache.folder / f"timings-{trt.version}-{device.target}.cache"
    return cache.get(key, lambda: build_engine(trt, bundle, graph, settings, watch, timings))


def build_engine(
    trt: TensorRt,
    bundle: Bundle,
    graph: str,
    settings: BuildSettings,
    watch: Watch | None = None,
    timings: Path | None = None,
) -> bytes:
    """Parse one graph of a bundle and build its serialised engine.

    Args:
        trt: the edition that builds it.
        bundle: a checked bundle; its ONNX graphs refer to its weights file.
        graph: one of the bundle's graphs.
        settings: what for.
        watch: told the builder's progress, where the API reports it.
        timings: file that keeps measured kernel timings between builds (classic edition).

    Raises:
        WmError: TensorRT cannot parse or build it; the message holds its first error.
    """
    try:
        from wm_node.engine.onnx_network import dynamic_axes, read_network
    except ImportError as error:
        raise WmError(
            f"building an engine needs the package onnx ({error}); pip install onnx, or compile "
            "elsewhere and copy the cache."
        ) from error

    path = bundle.checked_graph(graph)
    bridge = log_bridge(trt.module)
    bridge.begin()
    model = read_network(path, settings.precision_of(bundle, graph))
    builder = trt.module.Builder(bridge.logger)
    if builder is None:
        raise WmError(f"TensorRT {trt.version} does not start: {_first(bridge.first_error)}.")
    builder.max_threads = settings.threads
    network, parser = _parse(trt, bridge, builder, model, path)
    _check_names(bundle, graph, network)

    config = builder.create_builder_config()
    config.set_memory_pool_limit(trt.module.MemoryPoolType.WORKSPACE, settings.workspace_mb << 20)
    # TF32 keeps 10 bits of the mantissa; fp32 here means 23, and fp16 products ask for no TF32.
    config.clear_flag(trt.module.BuilderFlag.TF32)
    # TensorRT for RTX: without it an engine may allocate while it runs, which no CUDA graph can.
    own_memory = getattr(trt.module.BuilderFlag, "REQUIRE_USER_ALLOCATION", None)
    if own_memory is not None:
        config.set_flag(own_memory)
    _set_target(trt, config, settings.target)
    _set_shapes(builder, config, dynamic_axes(model), settings.axes(bundle, graph), path)
    if timings is not None:
        _read_timings(config, timings)
    serialised = _build(trt, builder, network, config, watch)
    del parser  # the network reads weights that the parser owns: it had to live until here
    if serialised is None:
        raise WmError(
            f"TensorRT {trt.version} cannot build graph '{graph}' of {bundle.path} for "
            f"{settings.target}: {_first(bridge.first_error)}."
        )
    if timings is not None:
        _write_timings(config, timings)
    return bytes(serialised)


def _build(trt: TensorRt, builder: Any, network: Any, config: Any, watch: Watch | None) -> Any:
    """Build in a thread of its own, so that Ctrl-C reaches this one and not TensorRT's callbacks.

    Raises:
        BaseException: an interrupt, or what ``watch`` raised; the builder has ended by then.
    """
    following = BuildMonitor(trt.module, watch)
    if following.monitor is not None:
        config.progress_monitor = following.monitor
    with ThreadPoolExecutor(1, "tensorrt-build") as pool:
        built = pool.submit(builder.build_serialized_network, network, config)
        try:
            serialised = built.result()
        except BaseException:
            following.cancel()
            raise
    if following.fault is not None:
        raise following.fault
    return serialised


def _first(message: str) -> str:
    return (message or "no reason given").splitlines()[0].rstrip(". ")


def _parse(
    trt: TensorRt, bridge: LogBridge, builder: Any, model: Any, path: Path
) -> tuple[Any, Any]:
    """Return the network and the parser, which holds its weights."""
    # Required before TensorRT 11, where every network is strongly typed; harmless from then on.
    flag = getattr(trt.module.NetworkDefinitionCreationFlag, "STRONGLY_TYPED", None)
    network = builder.create_network(0 if flag is None else 1 << int(flag))
    parser = trt.module.OnnxParser(network, bridge.logger)
    # The path tells the parser where the weights file is that the graph refers to.
    if not parser.parse(model.SerializeToString(), path=str(path)):
        where = reason = ""
        if parser.num_errors:
            error = parser.get_error(0)
            reason = error.desc()
            where = f" at {error.node_operator()} '{error.node_name()}'"
        raise WmError(
            f"TensorRT {trt.version} cannot parse {path}{where}: "
            f"{_first(reason or bridge.first_error)}."
        )
    return network, parser


def _check_names(bundle: Bundle, graph: str, network: Any) -> None:
    spec = bundle.graphs[graph]
    inputs = tuple(network.get_input(index).name for index in range(network.num_inputs))
    outputs = tuple(network.get_output(index).name for index in range(network.num_outputs))
    if set(inputs) != set(spec.inputs) or set(outputs) != set(spec.outputs):
        raise WmError(
            f"graph '{graph}' of {bundle.path} has inputs {inputs} and outputs {outputs}, its "
            f"manifest says {spec.inputs} and {spec.outputs}; export the bundle again."
        )


def _set_target(trt: TensorRt, config: Any, target: str) -> None:
    if not trt.rtx:
        return
    known = trt.module.ComputeCapability
    chosen = known.CURRENT if target == CURRENT else known.__members__[f"SM{target[3:]}"]
    config.num_compute_capabilities = 1
    if not config.set_compute_capability(chosen, 0):
        raise WmError(f"TensorRT for RTX {trt.version} refuses the target {target}.")


def _set_shapes(
    builder: Any,
    config: Any,
    inputs: dict[str, tuple[int | str, ...]],
    axes: dict[str, tuple[int, int, int]],
    path: Path,
) -> None:
    """Add the optimisation profile of the free axes, if there are any."""
    profile = None
    for name, dims in inputs.items():
        free = [dim for dim in dims if isinstance(dim, str)]
        if unknown := [dim for dim in free if dim not in axes]:
            raise WmError(f"{path} leaves the axis '{unknown[0]}' of '{name}' free: no size known.")
        if not free:
            continue
        profile = profile or builder.create_optimization_profile()
        sizes = (
            tuple(axes[dim][which] if isinstance(dim, str) else dim for dim in dims)
            for which in range(3)
        )
        profile.set_shape(name, *sizes)
    if profile is not None and config.add_optimization_profile(profile) < 0:
        raise WmError(f"TensorRT refuses the sizes of the free axes of {path}.")


def _read_timings(config: Any, path: Path) -> None:
    """Give the builder what earlier builds measured; a file that does not fit is not taken."""
    known = path.read_bytes() if path.is_file() else b""
    cache = config.create_timing_cache(known)
    if known and (cache is None or not config.set_timing_cache(cache, ignore_mismatch=False)):
        log.warning("%s does not fit this GPU or is damaged: kernels are measured again", path)
        known = b""
        cache = config.create_timing_cache(known)
    if not known:
        config.set_timing_cache(cache, ignore_mismatch=False)


def _write_timings(config: Any, path: Path) -> None:
    cache = config.get_timing_cache()
    if cache is None:
        return
    path.parent.mkdir(parents=True, exist_ok=True)
    handle, temporary = tempfile.mkstemp(dir=path.parent, prefix=".timings.")
    with os.fdopen(handle, "wb") as file:
        file.write(bytes(cache.serialize()))
    Path(temporary).replace(path)
