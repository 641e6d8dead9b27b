"""Writes a network as a bundle: ONNX graphs that share one weights file, and golden arrays."""

from __future__ import annotations

import platform
import shutil
import tempfile
import warnings
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import torch
from numpy.typing import NDArray
from onnx import TensorProto, helper
from safetensors import SafetensorError
from safetensors.torch import save_file
from torch import Tensor, nn

from wm_node.bundle import (
    GOLDEN,
    NARROW,
    PRESETS,
    SEARCH_TERMS,
    WEIGHTS,
    Bundle,
    SearchSize,
    write_bundle,
)
from wm_node.errors import WmError
from wm_node.model.config import Dims, ModelConfig
from wm_node.model.load import load_network
from wm_node.model.plan_graph import Columns, plan_search
from wm_node.model.world import WorldModelNet
from wm_node.profile import RobotProfile

OPSET = 17  # read by OpenVINO, ONNX Runtime and every TensorRT since 8.6
GOLDEN_CANDIDATES = 4


@dataclass(frozen=True)
class Graph:
    """One function of the network that becomes an ONNX graph."""

    function: Callable[..., dict[str, Tensor]]
    inputs: dict[str, Tensor]
    dynamic: dict[str, str]
    """Input name -> name of its leading axis, where that axis varies."""
    full_precision: bool = False
    """Not to be computed in bf16: pixel coordinates and joints, which every rollout predicts, need
    more bits."""
    search: SearchSize | None = None
    golden: tuple[str, ...] | None = None
    """Outputs that a backend must reproduce; None: all. Which candidate wins may hang on a bit."""


class _Call(nn.Module):
    """Holds the network, so that exported parameters keep their names, and calls one function."""

    def __init__(self, net: WorldModelNet, function: Callable[..., dict[str, Tensor]]) -> None:
        super().__init__()
        self.net = net
        self._function = function

    def forward(self, *inputs: Tensor) -> tuple[Tensor, ...]:
        return tuple(self._function(*inputs).values())


def graphs_of(
    net: WorldModelNet, profile: RobotProfile, searches: Mapping[str, SearchSize]
) -> dict[str, Graph]:
    """Return the graphs of a network with random but valid example inputs.

    ``searches`` are those that become one graph each.
    """
    dims, config = net.dims, net.config
    random = torch.Generator().manual_seed(0)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=random)

    frames = torch.randint(
        0, 256, (1, dims.cameras, dims.height, dims.frame_width, 3), generator=random
    ).to(torch.uint8)
    ticks = dims.horizon * dims.ticks
    # Well inside the data's range, and slow: far outside of it polynomials of the joints would
    # magnify rounding.
    spread, effort = 0.5 * net.joints_std, 0.5 * net.actions_std
    drift = 0.04 * spread * normal(1, dims.context, dims.joints)
    joints = net.joints_mean + spread * normal(1, 1, dims.joints) + drift
    past = net.actions_mean + effort * normal(1, dims.context, dims.ticks, dims.action)
    actions = net.actions_mean + effort * normal(GOLDEN_CANDIDATES, ticks, dims.action)
    goal_state = normal(1, max(dims.labels, 1))
    latent = normal(1, config.latent)

    def propose(latent: Tensor, joints: Tensor, goal: Tensor) -> dict[str, Tensor]:
        mean, deviation = net.propose(latent, joints, goal)
        return {"mean": mean, "deviation": deviation}

    def decode(*inputs: Tensor) -> dict[str, Tensor]:
        return {"frames": net.decode(*inputs)}

    prompt = {
        "latents": normal(1, dims.context, config.latent),
        "joints": joints,
        "past_actions": past,
        "actions": actions,
    }
    graphs = {
        "encode": Graph(
            lambda frames, mask: {"latent": net.encoder(frames, mask)},
            {"frames": frames, "mask": torch.ones(1, dims.cameras)},
            {},
        ),
        "rollout": Graph(
            net.outcome,
            {**prompt, "goal_latent": latent},
            {"actions": "candidates"},
            full_precision=True,
        ),
        "search": Graph(net.search, prompt, {"actions": "candidates"}, full_precision=True),
        "propose": Graph(
            propose,
            {
                "latent": latent,
                "joints": joints[:, -1],
                "goal": net.goal_input(latent, goal_state, 1),
            },
            {},
        ),
        "decode": Graph(
            decode,
            {
                "latents": normal(GOLDEN_CANDIDATES, config.latent),
                "joints": joints[0, :1] + spread * normal(GOLDEN_CANDIDATES, dims.joints),
                "latent_now": latent,
                "joints_now": joints[:, -1],
                "frames_now": frames,
            },
            {"latents": "count", "joints": "count"},
            full_precision=True,
        ),
    }
    if config.futures:
        one = {**prompt, "actions": actions[:1]}
        graphs["futures"] = Graph(net.futures, one, {}, full_precision=True)
    if dims.labels:
        graphs["read"] = Graph(
            lambda latents: {"state": net.read(latents)}, {"latents": latent}, {}
        )
    knots, size = profile.basis.knots, dims.action
    columns = Columns.of(profile)
    for name, search in searches.items():
        scale = net.actions_std * torch.tensor([[-1.0], [1.0], [0.5], [0.1]])
        graphs[name] = Graph(
            partial(plan_search, net, columns, search),
            {
                **{key: value for key, value in prompt.items() if key != "actions"},
                "goal_latent": latent,
                "goal_state": normal(1, max(len(columns.goal), 1)),
                "weights": torch.ones(len(SEARCH_TERMS)),
                "scales": torch.ones(2),
                "events": torch.ones(max(dims.events, 1)),
                "usual_uncertainty": torch.ones(1),
                "seeds": net.actions_mean + effort * normal(search.seeds, ticks, size),
                "mean": net.actions_mean.expand(knots, size).contiguous(),
                "noise": normal(search.iterations, search.candidates, knots, size),
                "basis": normal(ticks, knots),
                "fit": normal(knots, ticks),
                "limits": scale,
                "shift": torch.eye(ticks),
                "before": torch.zeros(ticks, size),
            },
            {},
            full_precision=True,
            search=search,
            golden=("first_costs",),
        )
    return graphs


def round_matrices(net: WorldModelNet) -> None:
    """Round matrices in place as they will be stored: to half precision.

    Those that backends multiply in bf16 (:data:`wm_node.bundle.NARROW`) are rounded to that first,
    and so is what is added to their products, so that they are the same in every precision, and a
    backend rounds what flows between them alone. They were trained so, where training multiplied
    in bf16.
    """
    narrow = NARROW if net.config.transition_blocks else ()
    added = {
        f"{name}.bias" for name, module in net.named_modules() if isinstance(module, nn.Linear)
    }
    with torch.no_grad():
        for name, tensor in net.state_dict().items():
            if name.startswith(narrow) and (_stored_as_half(tensor) or name in added):
                tensor.copy_(tensor.bfloat16().float())
            if _stored_as_half(tensor):
                tensor.copy_(tensor.half().float())


def _stored_as_half(tensor: Tensor) -> bool:
    return tensor.ndim >= 2 and tensor.is_floating_point() and tensor.numel() >= 1024


def save_weights(net: WorldModelNet, path: Path) -> None:
    """Write the parameters and buffers as safetensors, matrices in half precision."""
    tensors = {
        name: (tensor.half() if _stored_as_half(tensor) else tensor).contiguous().cpu()
        for name, tensor in net.state_dict().items()
    }
    save_file(tensors, str(path))


def _offsets(path: Path) -> dict[str, tuple[str, int, int]]:
    """Return name -> (safetensors dtype, byte offset in the file, length) of a weights file."""
    import json

    with path.open("rb") as stream:
        header_bytes = int.from_bytes(stream.read(8), "little")
        header = json.loads(stream.read(header_bytes))
    base = 8 + header_bytes
    return {
        name: (
            entry["dtype"],
            base + entry["data_offsets"][0],
            entry["data_offsets"][1] - entry["data_offsets"][0],
        )
        for name, entry in header.items()
        if name != "__metadata__"
    }


def _share_weights(model: Any, weights: Path) -> None:
    """Point the graph's parameters into the weights file; half ones get a Cast to float."""
    offsets = _offsets(weights)
    kept, casts = [], []
    for tensor in model.graph.initializer:
        name = tensor.name.removeprefix("net.")
        if name not in offsets or tensor.data_type != TensorProto.FLOAT:
            kept.append(tensor)
            continue
        dtype, offset, length = offsets[name]
        external = TensorProto(dims=tensor.dims, data_location=TensorProto.EXTERNAL)
        external.data_type = TensorProto.FLOAT16 if dtype == "F16" else TensorProto.FLOAT
        external.name = f"{tensor.name}.half" if dtype == "F16" else tensor.name
        for key, value in (("location", weights.name), ("offset", offset), ("length", length)):
            external.external_data.add(key=key, value=str(value))
        kept.append(external)
        if dtype == "F16":
            casts.append(
                helper.make_node("Cast", [external.name], [tensor.name], to=TensorProto.FLOAT)
            )
    nodes = list(model.graph.node)
    del model.graph.initializer[:]
    del model.graph.node[:]
    model.graph.initializer.extend(kept)
    model.graph.node.extend(casts + nodes)


def export_graph(net: WorldModelNet, name: str, graph: Graph, folder: Path) -> dict[str, Any]:
    """Write one ONNX graph beside the weights file and return its manifest entry."""
    example = tuple(graph.inputs.values())
    with torch.no_grad():
        outputs = tuple(graph.function(*example))
    path = folder / f"{name}.onnx"
    dynamic = {key: {0: axis} for key, axis in graph.dynamic.items()}
    if dynamic:
        (axis,) = set(graph.dynamic.values())
        dynamic |= {output: {0: axis} for output in outputs}
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")  # the exporter's notes on its own deprecation and tracing
        torch.onnx.export(
            _Call(net, graph.function).eval(),
            example,
            str(path),
            input_names=list(graph.inputs),
            output_names=list(outputs),
            dynamic_axes=dynamic,
            opset_version=OPSET,
            do_constant_folding=False,
            dynamo=False,
        )
    model = onnx.load(str(path))
    _share_weights(model, folder / WEIGHTS)
    onnx.save(model, str(path))
    entry: dict[str, Any] = {
        "file": path.name,
        "inputs": list(graph.inputs),
        "outputs": list(outputs),
    }
    if graph.search is not None:
        entry["search"] = {**asdict(graph.search), "terms": list(graph.search.terms)}
    return entry | ({"full_precision": True} if graph.full_precision else {})


def golden_arrays(graphs: dict[str, Graph]) -> dict[str, NDArray[Any]]:
    """Inputs and the reference's outputs of every graph, keyed ``graph/in/name`` and ``/out/``."""
    arrays: dict[str, NDArray[Any]] = {}
    with torch.no_grad():
        for name, graph in graphs.items():
            for key, value in graph.inputs.items():
                arrays[f"{name}/in/{key}"] = value.numpy()
            outputs = graph.function(*graph.inputs.values())
            for key in graph.golden or outputs:
                arrays[f"{name}/out/{key}"] = outputs[key].numpy()
    return arrays


def export_bundle(
    net: WorldModelNet,
    profile: RobotProfile,
    path: Path,
    extra: dict[str, Any],
    attachments: Mapping[str, Callable[[Path], None]] | None = None,
    searches: Mapping[str, SearchSize] = PRESETS,
) -> Bundle:
    """Write a network as a bundle.

    Args:
        net: the trained network; its matrices are rounded, see :func:`round_matrices`.
        profile: the robot that it was trained for.
        path: the new bundle.
        extra: further manifest entries: ``data``, ``training``, ``metrics``, ``calibration``.
        attachments: further files: name -> what writes it to a path.
        searches: whole searches that become one graph each.

    Raises:
        WmError: the path exists or cannot be written.
    """
    try:
        return _export_bundle(net, profile, path, extra, attachments or {}, searches)
    except (OSError, SafetensorError) as error:
        reason = getattr(error, "strerror", None) or error
        raise WmError(
            f"cannot write the bundle {path}: {reason}; free space there, or give another --out "
            "with the same --work: training is not repeated."
        ) from error


def _export_bundle(
    net: WorldModelNet,
    profile: RobotProfile,
    path: Path,
    extra: dict[str, Any],
    attachments: Mapping[str, Callable[[Path], None]],
    searches: Mapping[str, SearchSize],
) -> Bundle:
    net = net.cpu().float().eval()
    round_matrices(net)
    graphs = graphs_of(net, profile, searches)
    path.parent.mkdir(parents=True, exist_ok=True)
    with tempfile.TemporaryDirectory(dir=path.parent, prefix=".export.") as temporary:
        folder = Path(temporary)
        save_weights(net, folder / WEIGHTS)
        entries = {name: export_graph(net, name, graph, folder) for name, graph in graphs.items()}
        np.savez_compressed(folder / GOLDEN, allow_pickle=False, **golden_arrays(graphs))
        for name, write in attachments.items():
            write(folder / name)
        manifest = {
            "name": profile.name,
            "profile": profile.dump(),
            "model": net.config.to_dict(),
            "graphs": entries,
            "software": {
                "python": platform.python_version(),
                "torch": str(torch.__version__),
                "onnx": onnx.__version__,
                "opset": OPSET,
            },
            **extra,
        }
        return write_bundle(path, folder, manifest)


def export_again(
    bundle: Bundle,
    path: Path,
    attachments: Mapping[str, Callable[[Path], None]] | None = None,
) -> Bundle:
    """Write a bundle's graphs anew from its weights, as this version plans.

    Profile, training record, calibration and further files stay as they are, and so do weights, but
    for :func:`round_matrices`; the new manifest names the bundle that they come from.
    ``attachments`` are further files, or take the place of those of the same name.

    Raises:
        WmError: the path exists or cannot be written, or the weights do not fit the manifest.
    """
    written = {WEIGHTS, GOLDEN, *(spec.file for spec in bundle.graphs.values())}
    kept = ("data", "training", "metrics", "calibration")
    return export_bundle(
        load_network(bundle),
        bundle.profile,
        path,
        {key: bundle.manifest[key] for key in kept if key in bundle.manifest}
        | {"exported_from": bundle.sha256},
        {
            name: partial(_copy_file, bundle.file(name))
            for name in bundle.manifest["files"]
            if name not in written
        }
        | dict(attachments or {}),
    )


def _copy_file(source: Path, target: Path) -> None:
    shutil.copyfile(source, target)


def untrained_bundle(
    profile: RobotProfile,
    path: Path,
    seed: int = 0,
    config: ModelConfig | None = None,
    spread: float = 0.0,
    searches: Mapping[str, SearchSize] = PRESETS,
) -> Bundle:
    """Write a bundle with random weights: to test and to time everything around the model.

    Its predictions mean nothing; the manifest says so under ``training``.

    Args:
        profile: the robot.
        path: the new bundle.
        seed: of the weights.
        config: sizes of the model; None: those of the table-top model.
        spread: standard deviation of noise on every parameter. Layers that start at zero leave a
            new model's outcomes nearly the same whatever the action; with 0.2 they differ.
        searches: see :func:`export_bundle`.

    Raises:
        WmError: the path exists or cannot be written.
    """
    torch.manual_seed(seed)
    net = WorldModelNet(Dims.of(profile), config or ModelConfig())
    if spread:
        with torch.no_grad():
            for parameter in net.parameters():
                parameter.add_(spread * torch.randn_like(parameter))
    extra = {"training": {"untrained": True, "seed": seed}}
    return export_bundle(net, profile, path, extra, searches=searches)
