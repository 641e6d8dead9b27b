"""The seam between planning and whatever runs the graphs."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, Protocol, runtime_checkable

from numpy.typing import NDArray

Arrays = Mapping[str, NDArray[Any]]
Key = tuple[str, tuple[tuple[int, ...], ...]]


def shape_key(graph: str, names: Sequence[str], inputs: Arrays) -> Key:
    """Return what tells apart the compiled graphs of an engine: one for each set of shapes."""
    return graph, tuple(inputs[name].shape for name in names)


@runtime_checkable
class Engine(Protocol):
    """Runs the graphs of one bundle. Not thread-safe: one thread at a time may call it."""

    name: str
    """Backend and precision, such as ``openvino-f32``."""
    precision: str
    """Of its matrix products: f32, f16 or bf16."""

    def prepare(self, graph: str, inputs: Arrays) -> None:
        """Compile and warm a graph for the shapes of these inputs, before the first deadline."""
        ...

    def run(self, graph: str, inputs: Arrays) -> dict[str, NDArray[Any]]:
        """Run a graph.

        Args:
            graph: one of the bundle's graphs.
            inputs: all its inputs by name. A shape not prepared before is compiled first.

        Returns:
            Its outputs by name, in memory of their own.
        """
        ...
