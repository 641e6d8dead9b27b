"""torch: the reference backend, straight from the weights file."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from numpy.typing import NDArray
from torch import Tensor

from wm_node.bundle import Bundle
from wm_node.engine.protocol import Arrays
from wm_node.model.export import graphs_of
from wm_node.model.load import load_network

Functions = dict[str, Callable[..., dict[str, Tensor]]]


def functions_of(bundle: Bundle, device: str = "cpu") -> Functions:
    """Return what the graphs of a bundle compute, by their names, as functions of torch tensors.

    Args:
        bundle: with the weights and the names of the graphs.
        device: where the weights lie, and where all the functions' inputs have to.
    """
    net = load_network(bundle)
    searches = {n: spec.search for n, spec in bundle.graphs.items() if spec.search is not None}
    graphs = graphs_of(net, bundle.profile, searches)
    net.to(device)
    return {name: graph.function for name, graph in graphs.items()}


class TorchEngine:
    """Runs the network's own functions in fp32 on the CPU."""

    def __init__(self, bundle: Bundle, threads: int) -> None:
        torch.set_num_threads(threads)
        self.precision = "f32"
        self.name = f"torch-{self.precision}"
        self._bundle = bundle
        self._functions = functions_of(bundle)

    def prepare(self, graph: str, inputs: Arrays) -> None:
        """See :class:`wm_node.engine.protocol.Engine`."""
        self.run(graph, inputs)

    def run(self, graph: str, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """See :class:`wm_node.engine.protocol.Engine`."""
        order = self._bundle.graphs[graph].inputs
        with torch.inference_mode():
            tensors = (torch.from_numpy(inputs[name]) for name in order)
            outputs = self._functions[graph](*tensors)
        return {name: value.numpy() for name, value in outputs.items()}
