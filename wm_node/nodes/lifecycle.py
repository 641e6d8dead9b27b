"""Drives lifecycle nodes from outside: one service call at a time, each with a deadline.

``python -m wm_node.nodes.lifecycle NODE...`` configures and activates nodes in the given order and
exits 0; launch files run it when ``autostart`` is true.
"""

from __future__ import annotations

import argparse
import math
import sys
import time
from collections.abc import Callable, Sequence
from typing import Any

import rclpy
from lifecycle_msgs.srv import ChangeState, GetState
from rcl_interfaces.msg import Parameter, ParameterType, ParameterValue
from rcl_interfaces.srv import GetParameters, SetParameters
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.node import Node

from wm_node.errors import WmError
from wm_node.nodes.common import TRANSITIONS

# Discovery of the first service of a process took about 3 s on a small machine.
DISCOVERY_S = 30.0
# A client that sees no service for so long is made anew: discovery may lose a service for good
# (github.com/ros2/rmw_fastrtps/issues/792), and new endpoints are matched afresh.
RENEW_S = 6.0
# Configuring loads and checks a bundle.
TRANSITION_S = 60.0
# Without an answer for so long, a node is asked for its state: the answer may be lost.
ASK_S = 2.0

# Without an answer for so long, a request that may be repeated is sent again.
RESEND_S = 2.0
# Requests that may be repeated: done twice, they leave what once leaves.
_REPEATABLE = (GetState, GetParameters, SetParameters)

# The state that each transition leads to.
_LEADS_TO = {
    "configure": "inactive",
    "activate": "active",
    "deactivate": "inactive",
    "cleanup": "unconfigured",
}


class Caller:
    """Calls services of other nodes and waits for the answers while its own node keeps spinning.

    Args:
        node: whose clients are used.
        watch: called several times a second while waiting; raise WmError in it to give up.
    """

    def __init__(self, node: Node, watch: Callable[[], None] = lambda: None) -> None:
        self.node = node
        self._watch = watch
        self._executor = SingleThreadedExecutor()
        self._executor.add_node(node)
        self._clients: dict[tuple[type, str], Any] = {}

    def close(self) -> None:
        """Release the executor; the node stays the caller's."""
        self._executor.remove_node(self.node)
        self._executor.shutdown(timeout_sec=1.0)

    def spin_until(self, done: Callable[[], bool], timeout_s: float, what: str) -> None:
        """Spin until ``done()`` is true.

        Raises:
            WmError: it did not become true in time.
        """
        if not self._spins_until(done, timeout_s):
            raise WmError(f"{what} within {timeout_s:g} s.")

    def _spins_until(self, done: Callable[[], bool], timeout_s: float) -> bool:
        deadline = time.monotonic() + timeout_s
        while not done():
            if time.monotonic() > deadline:
                return False
            self._watch()
            self._executor.spin_once(timeout_sec=0.05)
        return True

    def spin_for(self, seconds: float) -> None:
        """Spin for a while."""
        deadline = time.monotonic() + seconds
        while time.monotonic() < deadline:
            self._watch()
            self._executor.spin_once(timeout_sec=min(0.05, seconds))

    def call(
        self,
        kind: type,
        name: str,
        request: Any,
        timeout_s: float = 10.0,
        resend_s: float | None = None,
    ) -> Any:
        """Call a service and return its response.

        A server answers only clients that it has discovered, so the first request to a new process
        can stay without an answer: one that may be repeated is sent again every ``resend_s``. By
        default that are questions and the setting of parameters; name it where a service of ours
        may be called twice.

        Raises:
            WmError: no such service appears, or it does not answer in time.
        """
        if resend_s is None:
            resend_s = RESEND_S if kind in _REPEATABLE else math.inf
        client = self._client(kind, name)
        futures: list[Any] = []
        due = time.monotonic()

        def answered() -> bool:
            nonlocal due
            if time.monotonic() >= due:
                futures.append(client.call_async(request))
                due = time.monotonic() + resend_s
            return any(future.done() for future in futures)

        try:
            self.spin_until(answered, timeout_s, f"the service '{name}' did not answer")
        finally:
            for future in futures:
                if not future.done():
                    client.remove_pending_request(future)
        return next(future.result() for future in futures if future.done())

    def _client(self, kind: type, name: str) -> Any:
        """Return a client of a service that is there.

        Raises:
            WmError: it does not appear.
        """
        deadline = time.monotonic() + DISCOVERY_S
        while True:
            client = self._clients.get((kind, name))
            if client is None:
                client = self.node.create_client(kind, name)
                self._clients[(kind, name)] = client
            left_s = deadline - time.monotonic()
            if self._spins_until(client.service_is_ready, min(RENEW_S, left_s)):
                return client
            if left_s <= RENEW_S:
                nodes = ", ".join(sorted(set(self.node.get_node_names())))
                raise WmError(
                    f"the service '{name}' did not appear within {DISCOVERY_S:g} s; "
                    f"the nodes that can be seen are {nodes}."
                )
            self.node.destroy_client(self._clients.pop((kind, name)))

    def state(self, name: str, timeout_s: float = 10.0) -> str:
        """Return the label of a node's lifecycle state, such as ``inactive``."""
        request = GetState.Request()
        response = self.call(GetState, f"{name}/get_state", request, timeout_s)
        return str(response.current_state.label)

    def change(self, name: str, transition: str) -> None:
        """Make a node do one transition (``configure``, ``activate``, ...); no-op if it is there.

        Raises:
            WmError: the node refused; its own log says why.
        """
        before, after = self.state(name), _LEADS_TO[transition]
        if before == after:
            return
        response = self._transition(name, TRANSITIONS[transition], before, after)
        if response is not None and not response.success and self.state(name) != after:
            raise WmError(f"the node '{name}' refused to {transition}; its log says why.")

    def _transition(self, name: str, transition: int, before: str, after: str) -> Any:
        """Ask for a transition; return the response, None where only the state tells of it.

        A server that has not discovered this client yet does what it is asked and drops its answer
        ("client will not receive response"), or it never hears the request. The state tells which.

        Raises:
            WmError: neither answer nor change in time.
        """
        request = ChangeState.Request()
        request.transition.id = transition
        service = f"{name}/change_state"
        client = self._client(ChangeState, service)
        deadline = time.monotonic() + TRANSITION_S
        futures = [client.call_async(request)]
        unheard = 0  # times in a row that the node was still in the state before
        try:
            while not self._spins_until(lambda: any(f.done() for f in futures), ASK_S):
                left_s = deadline - time.monotonic()
                if left_s <= 0.0:
                    raise WmError(
                        f"the service '{service}' did not answer within {TRANSITION_S:g} s."
                    )
                # A node that is busy with the transition may not answer this either.
                state = self.state(name, left_s)
                if state == after:
                    return None
                unheard = unheard + 1 if state == before else 0
                if unheard == 2:
                    futures.append(client.call_async(request))
                    unheard = 0
        finally:
            for future in futures:
                if not future.done():
                    client.remove_pending_request(future)
        return next(future.result() for future in futures if future.done())

    def set_parameter(
        self, name: str, parameter: str, value: Sequence[float] | float | str
    ) -> None:
        """Set a number, a list of numbers or a text as a parameter of another node.

        Raises:
            WmError: the node refused the value.
        """
        if isinstance(value, float):
            typed = ParameterValue(type=ParameterType.PARAMETER_DOUBLE, double_value=value)
        elif isinstance(value, str):
            typed = ParameterValue(type=ParameterType.PARAMETER_STRING, string_value=value)
        elif isinstance(value, Sequence):
            typed = ParameterValue(
                type=ParameterType.PARAMETER_DOUBLE_ARRAY,
                double_array_value=[float(v) for v in value],
            )
        else:
            raise TypeError(f"cannot set a parameter to a {type(value).__name__}")
        request = SetParameters.Request(parameters=[Parameter(name=parameter, value=typed)])
        service = f"{name}/set_parameters"
        result = self.call(SetParameters, service, request).results[0]
        if not result.successful:
            raise WmError(f"'{name}' refused the parameter '{parameter}': {result.reason}.")


def bring_up(caller: Caller, names: Sequence[str]) -> None:
    """Configure all nodes, then activate them, in the given order."""
    for transition in ("configure", "activate"):
        for name in names:
            caller.change(name, transition)
            caller.node.get_logger().info(f"{name}: {transition}d")


def take_down(caller: Caller, names: Sequence[str]) -> None:
    """Deactivate those nodes that are active, in the given order."""
    for name in names:
        if caller.state(name) == "active":
            caller.change(name, "deactivate")


def main(argv: Sequence[str] | None = None) -> int:
    """Bring nodes up and exit: 0 when all are active, 1 with a sentence otherwise."""
    words = sys.argv[1:] if argv is None else list(argv)
    parser = argparse.ArgumentParser(prog="lifecycle", description=main.__doc__)
    parser.add_argument("nodes", nargs="+", metavar="NODE", help="node names, in order")
    args = parser.parse_args(rclpy.utilities.remove_ros_args(["lifecycle", *words])[1:])
    rclpy.init(args=words)
    node = Node("wm_lifecycle")
    caller = Caller(node)
    try:
        bring_up(caller, args.nodes)
    except WmError as error:
        node.get_logger().error(str(error))
        return 1
    except (KeyboardInterrupt, ExternalShutdownException):
        return 0
    finally:
        rclpy.try_shutdown()
    return 0


if __name__ == "__main__":
    sys.exit(main())
