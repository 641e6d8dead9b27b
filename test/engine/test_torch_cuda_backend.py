"""torch on a GPU: skipped where there is none, but for what its functions ask of one."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.overrides import TorchFunctionMode
from torch.utils._pytree import tree_leaves

from wm_node.bundle import Bundle
from wm_node.engine import load_engine
from wm_node.engine.load import check_golden, read_golden
from wm_node.engine.torch_backend import functions_of
from wm_node.errors import WmError
from wm_node.model.config import ModelConfig
from wm_node.model.export import untrained_bundle
from wm_node.profile import load_profile

GPU = pytest.mark.skipif(not torch.cuda.is_available(), reason="needs an NVIDIA GPU")


@pytest.fixture(scope="module", params=[0, 2], ids=["transformer", "recurrent"])
def bundle(request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    folder = tmp_path_factory.mktemp("bundle") / "b"
    config = ModelConfig(transition_blocks=request.param)
    return untrained_bundle(load_profile("tabletop"), folder, config=config, spread=0.1)


class _FromTheHost(TorchFunctionMode):
    """Notes whatever takes or gives a tensor of the host: what a CUDA graph cannot hold."""

    def __init__(self) -> None:
        super().__init__()
        self.seen: list[Any] = []

    def __torch_function__(
        self,
        func: Callable[..., Any],
        types: Any,
        args: tuple[Any, ...] = (),
        kwargs: dict[str, Any] | None = None,
    ) -> Any:
        # A list as an index becomes a tensor on the host, behind what can be seen from here.
        if func is Tensor.__getitem__:
            index = args[1] if isinstance(args[1], tuple) else (args[1],)
            self.seen += [part for part in index if isinstance(part, list)]
        result = func(*args, **(kwargs or {}))
        for value in tree_leaves((args, kwargs, result)):
            if isinstance(value, Tensor) and value.device.type == "cpu":
                self.seen.append(func)
        return result


def test_no_graph_takes_anything_from_the_host(
    bundle: Bundle, monkeypatch: pytest.MonkeyPatch
) -> None:
    autocast = torch.autocast  # which does not know the device that holds shapes alone
    monkeypatch.setattr(torch, "autocast", lambda kind, **options: autocast("cpu", **options))
    golden = read_golden(bundle)
    for name, function in functions_of(bundle, "meta").items():
        inputs = [torch.from_numpy(golden[name]["in"][n]) for n in bundle.graphs[name].inputs]
        with torch.inference_mode():
            given = [value.to("meta") for value in inputs]
            with _FromTheHost() as host:
                outputs = function(*given)
        assert host.seen == [], name
        assert tuple(outputs) == bundle.graphs[name].outputs


def test_the_host_is_noticed() -> None:
    values = torch.zeros(3, device="meta")
    with _FromTheHost() as host:
        _ = values[..., [0, 2]]
        _ = values + torch.ones((), device="cpu")
    assert [0, 2] in host.seen
    assert Tensor.add in host.seen


@pytest.mark.skipif(torch.cuda.is_available(), reason="there is a GPU")
def test_without_a_gpu_the_message_says_what_to_choose(bundle: Bundle) -> None:
    with pytest.raises(WmError, match=r"needs an NVIDIA GPU .* choose backend 'openvino'"):
        load_engine(bundle, "torch-cuda")


@GPU
def test_graphs_are_replayed_as_the_reference_computes_them(bundle: Bundle) -> None:
    engine = load_engine(bundle, "torch-cuda")
    assert engine.name == "torch-cuda-f32"
    assert check_golden(bundle, engine, list(bundle.graphs)) < 2e-3


@GPU
def test_a_replay_reads_its_own_inputs_and_keeps_what_was_given_out(bundle: Bundle) -> None:
    engine, reference = load_engine(bundle, "torch-cuda"), load_engine(bundle, "torch")
    given = read_golden(bundle)["rollout"]["in"]
    other = {**given, "actions": -given["actions"]}
    first = engine.run("rollout", given)
    kept = {name: value.copy() for name, value in first.items()}
    second = engine.run("rollout", other)
    for name, expected in reference.run("rollout", other).items():
        assert np.abs(second[name] - expected).max() <= 2e-3 * expected.std() + 1e-5, name
        assert np.array_equal(first[name], kept[name])
    more = {**given, "actions": np.repeat(given["actions"], 3, axis=0)}
    assert len(engine.run("rollout", more)["uncertainty"]) == len(more["actions"])
