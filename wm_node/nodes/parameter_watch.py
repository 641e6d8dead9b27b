"""Keeps the current parameters of other nodes, so that a recording can tell how they were set."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any

from rcl_interfaces.msg import ParameterEvent
from rcl_interfaces.srv import GetParameters, ListParameters
from rclpy.node import Node
from rclpy.parameter import parameter_value_to_python
from rclpy.qos import qos_profile_parameter_events


class ParameterWatch:
    """Asks nodes for all their parameters when they appear, and follows every later change.

    ``changed`` is called (in the executor) with all that is known, by full node name, whenever it
    differs from before.
    """

    def __init__(
        self, node: Node, names: Iterable[str], changed: Callable[[dict[str, Any]], None]
    ) -> None:
        """Watch the nodes with these full names; call :meth:`poll` now and then."""
        self._node = node
        self._names = tuple(names)
        self._changed = changed
        self._values: dict[str, dict[str, Any]] = {}
        self._clients: dict[str, tuple[Any, Any]] = {}
        self._asked: set[str] = set()
        self._subscription = node.create_subscription(
            ParameterEvent, "/parameter_events", self._on_event, qos_profile_parameter_events
        )

    def close(self) -> None:
        """Release subscription and clients."""
        self._node.destroy_subscription(self._subscription)
        for pair in self._clients.values():
            for client in pair:
                self._node.destroy_client(client)
        self._clients.clear()

    def poll(self) -> None:
        """Ask nodes that have appeared; forget having asked those that have gone."""
        present = {
            f"{space.rstrip('/')}/{name}"
            for name, space in self._node.get_node_names_and_namespaces()
        }
        self._asked &= present
        for name in self._names:
            if name in self._asked or name not in present:
                continue
            if name not in self._clients:
                self._clients[name] = (
                    self._node.create_client(ListParameters, f"{name}/list_parameters"),
                    self._node.create_client(GetParameters, f"{name}/get_parameters"),
                )
            lister, getter = self._clients[name]
            if lister.service_is_ready() and getter.service_is_ready():
                self._asked.add(name)
                future = lister.call_async(ListParameters.Request())
                future.add_done_callback(self._on_list(name, getter))

    def _on_list(self, name: str, getter: Any) -> Callable[[Any], None]:
        def listed(future: Any) -> None:
            names = list(future.result().result.names)
            if names:
                values = getter.call_async(GetParameters.Request(names=names))
                values.add_done_callback(self._on_values(name, names))

        return listed

    def _on_values(self, name: str, names: list[str]) -> Callable[[Any], None]:
        def got(future: Any) -> None:
            values = map(parameter_value_to_python, future.result().values)
            self._update(name, dict(zip(names, values, strict=False)))

        return got

    def _on_event(self, event: ParameterEvent) -> None:
        if event.node in self._names:
            set_now = [*event.new_parameters, *event.changed_parameters]
            self._update(
                event.node, {one.name: parameter_value_to_python(one.value) for one in set_now}
            )

    def _update(self, name: str, values: dict[str, Any]) -> None:
        plain = {key: _plain(value) for key, value in values.items()}
        known = self._values.setdefault(name, {})
        if any(key not in known or known[key] != value for key, value in plain.items()):
            known.update(plain)
            self._changed({node: dict(sorted(v.items())) for node, v in self._values.items()})


def _plain(value: Any) -> Any:
    """Return a value that JSON can hold."""
    if value is None or isinstance(value, (bool, int, float, str)):
        return value
    return [one if isinstance(one, (bool, int, float, str)) else str(one) for one in value]
