"""What every node shares: lifecycle, clean exit, QoS, parameters, diagnostics, command messages.

A node derives from :class:`ManagedNode`, overrides ``configure``, ``activate``, ``deactivate`` and
``cleanup`` (each raises :class:`~wm_node.errors.WmError` on a fault that a user can mend), and its
``main`` is ``return run_node(MyNode, args)``.
"""

from __future__ import annotations

import importlib
import math
import signal
import traceback
from collections.abc import Callable, Mapping, Sequence
from types import FrameType
from typing import Any

import numpy as np
import rclpy
from diagnostic_msgs.msg import DiagnosticArray, DiagnosticStatus, KeyValue
from lifecycle_msgs.msg import State, Transition
from numpy.typing import NDArray
from rcl_interfaces.msg import (
    FloatingPointRange,
    IntegerRange,
    ParameterDescriptor,
    SetParametersResult,
)
from rclpy.clock import Clock, ClockType
from rclpy.duration import Duration
from rclpy.event_handler import PublisherEventCallbacks
from rclpy.exceptions import InvalidParameterTypeException, InvalidParameterValueException
from rclpy.executors import ExternalShutdownException, SingleThreadedExecutor
from rclpy.lifecycle import LifecycleNode, TransitionCallbackReturn
from rclpy.parameter import Parameter
from rclpy.qos import (
    DurabilityPolicy,
    HistoryPolicy,
    LivelinessPolicy,
    QoSProfile,
    ReliabilityPolicy,
)
from rclpy.qos_overriding_options import QoSOverridingOptions
from rclpy.signals import SignalHandlerOptions

from wm_node.errors import WmError
from wm_node.profile import RobotProfile

NANOSECONDS = 1_000_000_000

OK: bytes = DiagnosticStatus.OK
WARN: bytes = DiagnosticStatus.WARN
ERROR: bytes = DiagnosticStatus.ERROR
STALE: bytes = DiagnosticStatus.STALE

# --- quality of service ------------------------------------------------------------------------

# Sensor streams in: the newest matters, a lost message is not sent again. A best-effort
# subscription matches reliable and best-effort publishers alike.
SENSOR_QOS = QoSProfile(
    history=HistoryPolicy.KEEP_LAST, depth=5, reliability=ReliabilityPolicy.BEST_EFFORT
)
# Commands and verdicts: reliable, only the newest, nothing kept for late joiners: a command that
# is delivered late is worse than none.
COMMAND_QOS = QoSProfile(
    history=HistoryPolicy.KEEP_LAST, depth=1, reliability=ReliabilityPolicy.RELIABLE
)
# Results and events that must all arrive, in order.
RELIABLE_QOS = QoSProfile(
    history=HistoryPolicy.KEEP_LAST, depth=20, reliability=ReliabilityPolicy.RELIABLE
)
# State that a late joiner must know: the last message is kept for it.
LATCHED_QOS = QoSProfile(
    history=HistoryPolicy.KEEP_LAST,
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    durability=DurabilityPolicy.TRANSIENT_LOCAL,
)
# The planner's heartbeat. Its lease is renewed by the DDS library's own thread: it tells of the
# death of the process within HEARTBEAT_LEASE_S, whatever Python is busy with. Publisher and
# subscriber must both use this profile, else DDS does not connect them.
HEARTBEAT_LEASE_S = 0.07
HEARTBEAT_QOS = QoSProfile(
    history=HistoryPolicy.KEEP_LAST,
    depth=1,
    reliability=ReliabilityPolicy.RELIABLE,
    liveliness=LivelinessPolicy.AUTOMATIC,
    liveliness_lease_duration=Duration(nanoseconds=int(HEARTBEAT_LEASE_S * NANOSECONDS)),
)


# For publishers: no events of our own. Each default event handler is one more entity that every
# wake-up of the executor has to wait for, and a receiver with other QoS says so itself.
QUIET = PublisherEventCallbacks(use_default_callbacks=False)


def qos_overrides() -> QoSOverridingOptions:
    """Let history, depth and reliability of a topic be set by ``qos_overrides.*`` parameters.

    Pass as ``qos_overriding_options=`` to ``create_publisher`` and ``create_subscription``.
    """
    return QoSOverridingOptions.with_default_policies()


# --- time --------------------------------------------------------------------------------------


def steady_clock() -> Clock:
    """Return a steady clock, for timers and watchdogs (``create_timer(..., clock=...)``)."""
    return Clock(clock_type=ClockType.STEADY_TIME)


def stamp_to_ns(stamp: Any) -> int:
    """Return a ``builtin_interfaces/Time`` in ns."""
    return int(stamp.sec) * NANOSECONDS + int(stamp.nanosec)


def set_stamp(stamp: Any, stamp_ns: int) -> None:
    """Write ns into a ``builtin_interfaces/Time`` or ``Duration``."""
    stamp.sec, stamp.nanosec = divmod(int(stamp_ns), NANOSECONDS)


# --- messages ----------------------------------------------------------------------------------


def message_class(name: str) -> type[Any]:
    """Return the class of a message type such as ``sensor_msgs/msg/Image``.

    Raises:
        WmError: the package or the message is not installed.
    """
    package, _, kind = name.partition("/msg/")
    try:
        found = getattr(importlib.import_module(f"{package}.msg"), kind)
    except (ImportError, AttributeError) as error:
        raise WmError(
            f"the message type '{name}' is not installed; install the ROS package '{package}'."
        ) from error
    if not isinstance(found, type):
        raise WmError(f"'{name}' is not a message type.")
    return found


def get_field(message: Any, path: str) -> Any:
    """Return the value at a path such as ``twist.linear.x``.

    Raises:
        WmError: the message has no such field.
    """
    value = message
    for part in path.split("."):
        if part.startswith("_") or not hasattr(value, part):
            raise WmError(f"a message of type {type(message).__name__} has no field '{path}'.")
        value = getattr(value, part)
    return value


def set_field(message: Any, path: str, value: Any) -> None:
    """Set the value at a path such as ``twist.linear.x`` (WmError: no such field)."""
    parent, _, leaf = path.rpartition(".")
    target = get_field(message, parent) if parent else message
    get_field(target, leaf)
    setattr(target, leaf, value)


def named_values(
    message: Any, field: str, names: Sequence[str], what: str = "message"
) -> NDArray[np.float64]:
    """Return the values of ``field`` for ``names``, in that order, from a message with joint names.

    Reads JointState (``name``) and anything with ``joint_names``; for a JointTrajectory the field
    (``positions`` or ``velocities``) is that of its first point that lies ahead.

    Raises:
        WmError: a name is missing or given twice, or the field's length does not match.
    """
    present = list(message.name if hasattr(message, "name") else message.joint_names)
    source = message
    if hasattr(message, "points"):
        if not message.points:
            raise WmError(f"a {what} without trajectory points is refused.")
        ahead = [p for p in message.points if _duration_ns(p.time_from_start) > 0]
        source = ahead[0] if ahead else message.points[-1]
    values = get_field(source, field)
    if len(values) != len(present) or len(set(present)) != len(present):
        raise WmError(
            f"a {what} with {len(present)} joint names and {len(values)} values of '{field}' "
            "is refused."
        )
    index = {name: i for i, name in enumerate(present)}
    if missing := [name for name in names if name not in index]:
        raise WmError(
            f"a {what} lacks the joints {', '.join(missing)}; check the joint names of the profile."
        )
    return np.array([values[index[name]] for name in names], dtype=np.float64)


def _duration_ns(duration: Any) -> int:
    return int(duration.sec) * NANOSECONDS + int(duration.nanosec)


_STAMP_LABEL = "stamp_ns="


def trajectory_field(profile: RobotProfile) -> str:
    """Return which field of a trajectory point carries the profile's action."""
    return "positions" if profile.action.kind == "joint_position" else "velocities"


def command_message(
    profile: RobotProfile,
    action: NDArray[np.floating],
    stamp_ns: int,
    spacing_s: float | None = None,
) -> Any:
    """Build the profile's command message from an action in physical units.

    Args:
        profile: the robot.
        action: shape (A,), or (T, A) for a JointTrajectory: point i lies (i + 1) * spacing_s
            ahead. Other messages take (A,) only.
        stamp_ns: ROS time at which the command is published. Float64MultiArray has no header; its
            ``layout.dim[0].label`` carries ``stamp_ns=<ns>`` instead.
        spacing_s: time between two trajectory points; the action's period by default.

    Raises:
        WmError: wrong shape, or a field that the message does not have.
    """
    spec = profile.action
    values = np.asarray(action, dtype=np.float64)
    trajectory = spec.message == "trajectory_msgs/msg/JointTrajectory"
    if values.ndim == 1 and trajectory:
        values = values[None]
    if values.shape[-1:] != (len(spec.names),) or values.ndim != (2 if trajectory else 1):
        raise WmError(
            f"an action of shape {np.shape(action)} does not fit the {len(spec.names)} values of "
            f"the profile '{profile.name}' in a {spec.message}."
        )
    message = message_class(spec.message)()
    if spec.message == "std_msgs/msg/Float64MultiArray":
        dimension = message_class("std_msgs/msg/MultiArrayDimension")
        count = len(spec.names)
        label = f"{_STAMP_LABEL}{int(stamp_ns)}"
        message.layout.dim = [dimension(label=label, size=count, stride=count)]
        message.data = values.tolist()
        return message
    set_stamp(message.header.stamp, stamp_ns)
    message.header.frame_id = spec.frame_id
    if trajectory:
        point_class = message_class("trajectory_msgs/msg/JointTrajectoryPoint")
        spacing = 1.0 / spec.rate_hz if spacing_s is None else spacing_s
        message.joint_names = list(spec.names)
        for i, row in enumerate(values):
            point = point_class(**{trajectory_field(profile): row.tolist()})
            set_stamp(point.time_from_start, round((i + 1) * NANOSECONDS * spacing))
            message.points.append(point)
        return message
    for path, value in zip(spec.fields, values, strict=True):
        set_field(message, path, float(value))
    return message


def read_command(profile: RobotProfile, message: Any) -> tuple[int, NDArray[np.float64]]:
    """Return ``(stamp_ns, values)`` of a command message: the action (A,) in force next.

    For a JointTrajectory that is the first point that lies ahead. ``stamp_ns`` is 0 where the
    message carries none (a Float64MultiArray that :func:`command_message` did not build). Values
    may be NaN or infinite: that is for the receiver to judge.

    Raises:
        WmError: missing joints or a wrong number of values.
    """
    spec = profile.action
    if spec.message == "trajectory_msgs/msg/JointTrajectory":
        values = named_values(message, trajectory_field(profile), spec.names, "command")
        return stamp_to_ns(message.header.stamp), values
    if spec.message == "std_msgs/msg/Float64MultiArray":
        if len(message.data) != len(spec.names):
            raise WmError(
                f"a command of {len(message.data)} values is refused; the profile "
                f"'{profile.name}' has {len(spec.names)} actions."
            )
        label = message.layout.dim[0].label if message.layout.dim else ""
        digits = label.removeprefix(_STAMP_LABEL)
        stamped = label.startswith(_STAMP_LABEL) and digits.isascii() and digits.isdigit()
        return int(digits) if stamped else 0, np.array(message.data, dtype=np.float64)
    values = np.array([float(get_field(message, path)) for path in spec.fields])
    return stamp_to_ns(message.header.stamp), values


def command_frame(message: Any) -> str:
    """Return the ``frame_id`` of a command, empty where the message has no header."""
    return str(message.header.frame_id) if hasattr(message, "header") else ""


# --- diagnostics -------------------------------------------------------------------------------


class Diagnostics:
    """Publishes one :class:`DiagnosticStatus` on ``/diagnostics``: at 1 Hz, and on every change.

    Works in every lifecycle state. ``name`` is ``<node>: <part>``.
    """

    def __init__(
        self, node: ManagedNode, part: str, hardware_id: str = "", period_s: float = 1.0
    ) -> None:
        self._node = node
        self.status = DiagnosticStatus(
            level=OK,
            name=f"{node.get_name()}: {part}",
            message="starting",
            hardware_id=hardware_id,
        )
        self._publisher = node.create_publisher(
            DiagnosticArray, "/diagnostics", RELIABLE_QOS, event_callbacks=QUIET
        )
        self._timer = node.create_timer(period_s, self._publish, clock=steady_clock())

    def report(
        self, level: bytes, message: str, values: Mapping[str, object] | None = None
    ) -> bool:
        """Set the status; publish at once if level or message changed. Return whether it did."""
        changed = (level, message) != (self.status.level, self.status.message)
        self.status.level = level
        self.status.message = message
        if values is not None:
            self.status.values = key_values(values)
        if changed:
            self._publish()
        return changed

    def _publish(self) -> None:
        message = DiagnosticArray(status=[self.status])
        message.header.stamp = self._node.get_clock().now().to_msg()
        self._publisher.publish(message)


def key_values(values: Mapping[str, object]) -> list[KeyValue]:
    """Return diagnostic key/value pairs; floats are written with 6 significant digits."""
    return [
        KeyValue(key=key, value=f"{value:.6g}" if isinstance(value, float) else str(value))
        for key, value in values.items()
    ]


# --- nodes -------------------------------------------------------------------------------------


class ManagedNode(LifecycleNode):  # type: ignore[misc]  # rclpy ships no types
    """A lifecycle node whose faults are told instead of swallowed.

    Override ``configure``, ``activate``, ``deactivate`` and ``cleanup``. A WmError in one of them
    is logged as one line and fails the transition; any other exception is logged with its
    traceback and leaves the node unconfigured. Managed publishers are enabled before ``activate``
    runs and disabled after ``deactivate`` has run, so that a node can make its robot safe first.
    ``deactivate`` and ``cleanup`` must bear being called twice, or after half a ``configure``.
    """

    def __init__(self, name: str, **options: Any) -> None:
        super().__init__(name, **options)
        self._choices: dict[str, tuple[str, ...]] = {}
        self._vectors: set[str] = set()
        self.add_on_set_parameters_callback(self._check_parameters)
        # rclpy lets an illegal transition request (activate before configure) end the process.
        service = self._service_change_state
        service.callback = _refuse_illegal(self, service.callback)

    # transitions, for subclasses

    def configure(self) -> None:
        """Load and check everything; create publishers and subscriptions."""

    def activate(self) -> None:
        """Start."""

    def deactivate(self) -> None:
        """Make the robot safe, then stop."""

    def cleanup(self) -> None:
        """Release what ``configure`` created."""

    # rclpy's hooks

    def on_configure(self, state: Any) -> TransitionCallbackReturn:
        """Run ``configure``; on a fault run ``cleanup`` and stay unconfigured."""
        result = self._attempt("configure", self.configure)
        if result is not TransitionCallbackReturn.SUCCESS:
            self._attempt("cleanup", self.cleanup)
            return result
        return super().on_configure(state)

    def on_activate(self, state: Any) -> TransitionCallbackReturn:
        """Enable the managed publishers, then run ``activate``."""
        super().on_activate(state)
        result = self._attempt("activate", self.activate)
        if result is not TransitionCallbackReturn.SUCCESS:
            self._attempt("deactivate", self.deactivate)
            super().on_deactivate(state)
        return result

    def on_deactivate(self, state: Any) -> TransitionCallbackReturn:
        """Run ``deactivate``, then disable the managed publishers, fault or not."""
        result = self._attempt("deactivate", self.deactivate)
        super().on_deactivate(state)
        return result

    def on_cleanup(self, state: Any) -> TransitionCallbackReturn:
        """Run ``cleanup``."""
        return self._attempt("cleanup", self.cleanup)

    def on_shutdown(self, state: Any) -> TransitionCallbackReturn:
        """Make safe and release, from any state; never refused."""
        if state.state_id == State.PRIMARY_STATE_ACTIVE:
            self._attempt("deactivate", self.deactivate)
            super().on_deactivate(state)
        if state.state_id != State.PRIMARY_STATE_UNCONFIGURED:
            self._attempt("cleanup", self.cleanup)
        return TransitionCallbackReturn.SUCCESS

    def on_error(self, state: Any) -> TransitionCallbackReturn:
        """Release everything and return to unconfigured after an unexpected exception."""
        self._attempt("deactivate", self.deactivate)
        super().on_deactivate(state)
        self._attempt("cleanup", self.cleanup)
        return TransitionCallbackReturn.SUCCESS

    def _attempt(self, what: str, action: Callable[[], None]) -> TransitionCallbackReturn:
        try:
            action()
        except WmError as error:
            self.get_logger().error(f"{what} failed: {error}")
            return TransitionCallbackReturn.FAILURE
        except Exception as error:
            # rclpy drops the exception of a transition; without this line nobody learns of it.
            self.get_logger().error(
                f"{what} failed unexpectedly: {error!r}\n{traceback.format_exc()}"
            )
            return TransitionCallbackReturn.ERROR
        return TransitionCallbackReturn.SUCCESS

    @property
    def lifecycle_state(self) -> int:
        """The current state's id (``lifecycle_msgs/msg/State.PRIMARY_STATE_*``)."""
        return int(self._state_machine.current_state[0])

    @property
    def is_active(self) -> bool:
        """Whether the node is in the active state."""
        return self.lifecycle_state == int(State.PRIMARY_STATE_ACTIVE)

    def make_safe(self) -> None:
        """Leave the active state, if in it, and shut the lifecycle down."""
        if self.lifecycle_state in (
            State.PRIMARY_STATE_ACTIVE,
            State.PRIMARY_STATE_INACTIVE,
            State.PRIMARY_STATE_UNCONFIGURED,
        ):
            self.trigger_shutdown()

    # parameters

    def declare(
        self,
        name: str,
        default: Any,
        description: str,
        *,
        minimum: float | None = None,
        maximum: float | None = None,
        choices: Sequence[str] = (),
        read_only: bool = False,
    ) -> Any:
        """Declare a parameter once and return its value (given on start, else the default).

        Bounds are enforced for every later change; a float must be finite, a string one of
        ``choices`` where given. Integers are accepted for a float parameter given on start.

        Raises:
            WmError: the value given on start has the wrong type or breaks a bound.
        """
        if self.has_parameter(name):
            return self.get_parameter(name).value
        descriptor = ParameterDescriptor(description=description, read_only=read_only)
        if isinstance(default, float):
            low = -math.inf if minimum is None else float(minimum)
            high = math.inf if maximum is None else float(maximum)
            if minimum is not None or maximum is not None:
                descriptor.floating_point_range = [
                    FloatingPointRange(from_value=low, to_value=high)
                ]
            self._float_override(name)
        elif isinstance(default, int) and not isinstance(default, bool):
            if minimum is not None or maximum is not None:
                descriptor.integer_range = [
                    IntegerRange(
                        from_value=int(-(2**62) if minimum is None else minimum),
                        to_value=int(2**62 if maximum is None else maximum),
                    )
                ]
        elif choices:
            descriptor.additional_constraints = f"one of {', '.join(choices)}"
            self._choices[name] = tuple(choices)
        try:
            return self.declare_parameter(name, default, descriptor).value
        except (InvalidParameterTypeException, InvalidParameterValueException) as error:
            raise WmError(f"parameter '{name}' is refused: {error}") from error

    def declare_vector(
        self, name: str, default: Sequence[float], description: str
    ) -> NDArray[np.float64]:
        """Declare a list of finite floats, which may be empty and may change; return it.

        (An empty list has no type in ROS, so the parameter is typed dynamically and checked here.)
        """
        if not self.has_parameter(name):
            descriptor = ParameterDescriptor(description=description, dynamic_typing=True)
            self._vectors.add(name)
            self.declare_parameter(name, [float(v) for v in default], descriptor)
        return self.vector(name)

    def vector(self, name: str) -> NDArray[np.float64]:
        """Return the value of a parameter declared with :meth:`declare_vector`, shape (n,)."""
        return np.array(list(self.get_parameter(name).value or ()), dtype=np.float64)

    def _float_override(self, name: str) -> None:
        given = self._parameter_overrides.get(name)
        if given is not None and given.type_ == Parameter.Type.INTEGER:
            self._parameter_overrides[name] = Parameter(name, value=float(given.value))

    def _check_parameters(self, parameters: list[Parameter]) -> SetParametersResult:
        for parameter in parameters:
            value, name = parameter.value, parameter.name
            if isinstance(value, float) and not math.isfinite(value):
                return SetParametersResult(successful=False, reason=f"'{name}' must be finite")
            allowed = self._choices.get(name)
            if allowed is not None and value not in allowed:
                reason = f"'{name}' must be one of {', '.join(allowed)}"
                return SetParametersResult(successful=False, reason=reason)
            if name in self._vectors and not _is_vector(parameter):
                reason = f"'{name}' must be a list of finite numbers"
                return SetParametersResult(successful=False, reason=reason)
        return SetParametersResult(successful=True)


def _is_vector(parameter: Parameter) -> bool:
    if parameter.type_ == Parameter.Type.NOT_SET:
        return True
    if parameter.type_ not in (
        Parameter.Type.DOUBLE_ARRAY,
        Parameter.Type.INTEGER_ARRAY,
        Parameter.Type.BYTE_ARRAY,
    ):
        return False
    values = list(parameter.value)
    if parameter.type_ == Parameter.Type.BYTE_ARRAY:
        return not values
    return all(math.isfinite(v) for v in values)


def _refuse_illegal(
    node: ManagedNode, change_state: Callable[[Any, Any], Any]
) -> Callable[[Any, Any], Any]:
    def guarded(request: Any, response: Any) -> Any:
        try:
            return change_state(request, response)
        except rclpy._rclpy_pybind11.RCLError as error:
            node.get_logger().error(f"refused a lifecycle transition: {error}")
            response.success = False
            return response

    return guarded


def run_node(factory: Callable[[], ManagedNode], args: Sequence[str] | None = None) -> int:
    """Create a node, spin it until SIGINT, SIGTERM or shutdown, make it safe; return exit status.

    The signals are ours, not rclpy's: its handlers close the context at once, and a closed context
    cannot send a last braking command. A second signal interrupts a blocking callback. The status
    is 0 after a signal or shutdown, 1 after a fault.
    """
    return run_nodes(lambda: [factory()], args)


def run_nodes(
    factory: Callable[[], Sequence[ManagedNode]], args: Sequence[str] | None = None
) -> int:
    """Do as :func:`run_node` for several nodes of one process, made safe in the given order."""
    stop: list[int] = []

    def on_signal(number: int, frame: FrameType | None) -> None:
        stop.append(number)
        if len(stop) > 1:
            raise KeyboardInterrupt

    rclpy.init(args=args, signal_handler_options=SignalHandlerOptions.NO)
    previous = {s: signal.signal(s, on_signal) for s in (signal.SIGINT, signal.SIGTERM)}
    status = 0
    nodes: Sequence[ManagedNode] = ()
    executor = SingleThreadedExecutor()
    try:
        nodes = factory()
        for node in nodes:
            executor.add_node(node)
        while not stop and rclpy.ok():
            # A waiting rclpy does not see signals: wake up often enough to end promptly.
            executor.spin_once(timeout_sec=0.1)
    except WmError as error:
        rclpy.logging.get_logger("wm_node").error(str(error))
        status = 1
    except (KeyboardInterrupt, ExternalShutdownException):
        pass
    except Exception:
        rclpy.logging.get_logger("wm_node").fatal(traceback.format_exc())
        status = 1
    finally:
        _close(nodes, executor)
        for number, handler in previous.items():
            signal.signal(number, handler)
    return status


def _close(nodes: Sequence[ManagedNode], executor: SingleThreadedExecutor) -> None:
    try:
        for node in nodes:
            if rclpy.ok():
                node.make_safe()
        for node in nodes:
            executor.remove_node(node)
            node.destroy_node()
        executor.shutdown(timeout_sec=1.0)
    except KeyboardInterrupt:
        pass
    finally:
        rclpy.try_shutdown()


# Ids of the transitions that drive a node, by name, for launch code and tests.
TRANSITIONS: dict[str, int] = {
    "configure": Transition.TRANSITION_CONFIGURE,
    "activate": Transition.TRANSITION_ACTIVATE,
    "deactivate": Transition.TRANSITION_DEACTIVATE,
    "cleanup": Transition.TRANSITION_CLEANUP,
}
