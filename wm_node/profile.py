"""The robot profile: one YAML file that holds everything specific to a robot.

The profile names the topics, joints, action, labels and limits of one robot. All other code reads
them from here and names no robot. ``config/robots/*.yaml`` are commented examples.

Units are SI and written out, so that a file with another unit is refused instead of misread.
"""

from __future__ import annotations

from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError, model_validator

from wm_node.errors import WmError
from wm_node.resources import resource

MAX_PROFILE_BYTES = 1_000_000

Name = Annotated[str, Field(pattern=r"^[A-Za-z][A-Za-z0-9_\-]*$", max_length=80)]
Topic = Annotated[str, Field(pattern=r"^[~/A-Za-z][A-Za-z0-9_/]*$", max_length=200)]
MessageType = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*/msg/[A-Z][A-Za-z0-9]*$")]
FieldPath = Annotated[str, Field(pattern=r"^[a-z][a-z0-9_]*(\.[a-z][a-z0-9_]*)*$")]
Finite = Annotated[float, Field(allow_inf_nan=False)]
Positive = Annotated[float, Field(gt=0, allow_inf_nan=False)]
JointUnit = Literal["rad", "m", "1"]

# The units that each kind of action may be given in (REP 103).
ACTION_UNITS: dict[str, tuple[str, ...]] = {
    "twist": ("m/s", "rad/s"),
    "joint_velocity": ("rad/s", "m/s"),
    "joint_position": ("rad", "m", "1"),
}

# Messages that hold all values of an action in one field, read by joint name or by order.
ARRAY_MESSAGES = (
    "sensor_msgs/msg/JointState",
    "trajectory_msgs/msg/JointTrajectory",
    "std_msgs/msg/Float64MultiArray",
)


def _check_fields(key: str, message: str, fields: tuple[str, ...], values: int) -> None:
    """Refuse a number of field paths that the ``values`` of an action cannot be read from."""
    wanted = 1 if message in ARRAY_MESSAGES else values
    # A message of one's own may hold an array too.
    own = not message.startswith("geometry_msgs/")
    if len(fields) == wanted or (own and len(fields) == 1):
        return
    noun = "entry" if wanted == 1 else "entries, one for each action name"
    raise ValueError(f"'{key}' needs {wanted} {noun}, for a {message}, but has {len(fields)}")


class _Part(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True)


class Camera(_Part):
    """One camera: where its frames come from and the size that the model sees."""

    name: Name
    topic: Topic
    transport: Literal["raw", "compressed"]
    width: Annotated[int, Field(ge=16, le=8192)]
    height: Annotated[int, Field(ge=16, le=8192)]
    rate_hz: Positive
    model_width: Annotated[int, Field(ge=16, le=1024, multiple_of=16)]
    model_height: Annotated[int, Field(ge=16, le=1024, multiple_of=8)]
    latency_s: Annotated[float, Field(ge=0, le=2)] = 0.0

    @property
    def message(self) -> str:
        """The ROS message type of the topic."""
        kind = "Image" if self.transport == "raw" else "CompressedImage"
        return f"sensor_msgs/msg/{kind}"


class Joints(_Part):
    """The joints in model order, with their limits in rad or m."""

    topic: Topic
    names: Annotated[tuple[Name, ...], Field(min_length=1, max_length=256)]
    unit: JointUnit | tuple[JointUnit, ...] = "rad"
    """One unit for all joints, or one a joint ("1": a share of its range)."""
    lower: tuple[Finite, ...]
    upper: tuple[Finite, ...]
    max_velocity: tuple[Positive, ...]
    rate_hz: Positive

    @model_validator(mode="after")
    def _lengths(self) -> Joints:
        if len(set(self.names)) != len(self.names):
            raise ValueError("joint names are not unique")
        for key in ("lower", "upper", "max_velocity"):
            if len(getattr(self, key)) != len(self.names):
                raise ValueError(f"'{key}' needs {len(self.names)} numbers, one for each joint")
        if len(self.units) != len(self.names):
            raise ValueError(f"'unit' needs one unit for all joints, or {len(self.names)} of them")
        if any(low >= high for low, high in zip(self.lower, self.upper, strict=True)):
            raise ValueError("every 'lower' must be below its 'upper'")
        return self

    @property
    def units(self) -> tuple[str, ...]:
        """The unit of each joint."""
        return (self.unit,) * len(self.names) if isinstance(self.unit, str) else self.unit

    @property
    def unit_text(self) -> str:
        """The units that occur, for people: ``rad`` or ``rad, 1``."""
        return ", ".join(dict.fromkeys(self.units))


class Readback(_Part):
    """How the action that was really applied is read back from recorded or live topics.

    ``fields`` are paths into the message, one an action value; for messages that carry joint
    names (JointState, JointTrajectory) a single field such as ``position`` is read by joint name,
    for those that carry an array a single field in the order of the action's names.
    """

    topic: Topic
    message: MessageType
    fields: Annotated[tuple[FieldPath, ...], Field(min_length=1)]


class Action(_Part):
    """What the model chooses, its limits, and the message that it is published as."""

    kind: Literal["twist", "joint_velocity", "joint_position"]
    names: Annotated[tuple[Name, ...], Field(min_length=1, max_length=256)]
    units: tuple[str, ...]
    lower: tuple[Finite, ...]
    upper: tuple[Finite, ...]
    max_acceleration: tuple[Positive, ...] | None = None
    max_jerk: tuple[Positive, ...] | None = None
    rate_hz: Positive
    topic: Topic
    message: Literal[
        "geometry_msgs/msg/TwistStamped",
        "trajectory_msgs/msg/JointTrajectory",
        "std_msgs/msg/Float64MultiArray",
    ]
    fields: Annotated[tuple[FieldPath, ...], Field(min_length=1)]
    frame_id: str = ""
    command_timeout_s: Positive | None = None
    readback: Readback
    delay_s: tuple[Annotated[float, Field(ge=0, le=2)], ...] | None = None

    @model_validator(mode="after")
    def _consistent(self) -> Action:
        count = len(self.names)
        for key in ("units", "lower", "upper", "max_acceleration", "max_jerk", "delay_s"):
            value = getattr(self, key)
            if value is not None and len(value) != count:
                raise ValueError(f"'{key}' needs {count} entries, one for each action name")
        _check_fields("fields", self.message, self.fields, count)
        _check_fields("readback.fields", self.readback.message, self.readback.fields, count)
        allowed = ACTION_UNITS[self.kind]
        for name, unit in zip(self.names, self.units, strict=True):
            if unit not in allowed:
                raise ValueError(
                    f"action '{name}' of kind '{self.kind}' has unit '{unit}'; "
                    f"use one of {', '.join(allowed)}"
                )
        if any(low >= high for low, high in zip(self.lower, self.upper, strict=True)):
            raise ValueError("every 'lower' must be below its 'upper'")
        if self.kind != "joint_position" and any(
            low > 0 or high < 0 for low, high in zip(self.lower, self.upper, strict=True)
        ):
            raise ValueError("the limits of a velocity must contain 0, the command that brakes")
        ends_at_rest = self.message == "trajectory_msgs/msg/JointTrajectory"
        if not ends_at_rest and self.command_timeout_s is None:
            raise ValueError(
                f"'{self.message}' does not end at rest by itself: name the driver's own "
                "'command_timeout_s', after which it brakes"
            )
        return self


class Label(_Part):
    """A labelled value of the scene: where it is read, and its unit."""

    name: Name
    unit: str
    topic: Topic
    message: MessageType
    field: FieldPath


class Event(_Part):
    """An event that must not happen, labelled by a topic whose field is true while it lasts."""

    name: Name
    topic: Topic
    message: MessageType = "std_msgs/msg/Bool"
    field: FieldPath = "data"


class ModelRates(_Part):
    """Time and size of the model's grid.

    Everything is sampled on ticks (``tick_rate_hz``); one model step spans ``ticks_per_step``
    ticks and carries that many actions. ``context_steps`` past steps are given, ``horizon_steps``
    future steps predicted in one pass.
    """

    tick_rate_hz: Positive
    ticks_per_step: Annotated[int, Field(ge=1, le=16)]
    context_steps: Annotated[int, Field(ge=1, le=32)]
    horizon_steps: Annotated[int, Field(ge=1, le=64)]

    @property
    def tick_s(self) -> float:
        """Seconds of a tick."""
        return 1.0 / self.tick_rate_hz

    @property
    def step_s(self) -> float:
        """Seconds of a model step."""
        return self.ticks_per_step / self.tick_rate_hz

    @property
    def horizon_ticks(self) -> int:
        """Ticks, and so actions, of the whole horizon."""
        return self.horizon_steps * self.ticks_per_step


class Push(_Part):
    """Objective term that rewards a tool for standing behind an object, seen from the goal."""

    object: tuple[Name, Name]
    tool: tuple[Name, Name]
    standoff_m: Positive


class Objective(_Part):
    """What planning minimises; the weights are defaults of the planner's live parameters."""

    goal: Annotated[tuple[Name, ...], Field(min_length=1)]
    tolerance: Positive
    push: Push | None = None
    weights: dict[str, Annotated[float, Field(ge=0, allow_inf_nan=False)]] = {}


class Basis(_Part):
    """The basis in which candidates are searched: spline knots and time-correlated noise."""

    knots: Annotated[int, Field(ge=2, le=64)]
    noise_correlation: Annotated[float, Field(ge=0, lt=1)]


class Box(_Part):
    """An axis-aligned box in metres."""

    lower: tuple[Finite, Finite, Finite]
    upper: tuple[Finite, Finite, Finite]

    @model_validator(mode="after")
    def _ordered(self) -> Box:
        if any(low >= high for low, high in zip(self.lower, self.upper, strict=True)):
            raise ValueError("every 'lower' of a box must be below its 'upper'")
        return self


class KeepOut(Box):
    """A box that no watched link may enter."""

    name: Name


class WatchedLink(_Part):
    """A link of the URDF whose origin is watched, as the centre of a ball."""

    link: Annotated[str, Field(min_length=1, max_length=200)]
    radius_m: Annotated[float, Field(ge=0, le=10)] = 0.0


class Space(_Part):
    """Where links of the robot may be, told by its joints alone: nothing learned.

    ``frame`` is the link that boxes are given in, and for a twist the command too. ``urdf`` is a
    file beside the profile, one that ships, or an absolute path.
    """

    urdf: Annotated[str, Field(min_length=1, max_length=500)]
    frame: Annotated[str, Field(min_length=1, max_length=200)]
    links: Annotated[tuple[WatchedLink, ...], Field(min_length=1, max_length=16)]
    workspace: Box | None = None
    keep_out: Annotated[tuple[KeepOut, ...], Field(max_length=64)] = ()


class Safety(_Part):
    """Limits of age, time, risk and space; times are on the steady clock.

    ``max_heartbeat_age_s`` bounds the time since any sign of life of the planner,
    ``max_plan_age_s`` the time since it last completed a plan. ``surprise_limit`` and
    ``uncertainty_limit`` are multiples of what is usual on episodes that training left out,
    ``strangeness_limit`` of a frame is one of the strangest of these.
    """

    stopping_time_s: Positive
    max_frame_age_s: Positive
    max_joint_age_s: Positive
    max_command_age_s: Positive
    max_heartbeat_age_s: Positive
    max_plan_age_s: Positive = 0.5
    risk_threshold: dict[Name, Annotated[float, Field(gt=0, le=1)]] = {}
    surprise_limit: Positive = 5.0
    uncertainty_limit: Positive = 10.0
    strangeness_limit: Positive = 4.0
    unverified: Literal["stop", "limit"] = "stop"
    space: Space | None = None


class RobotProfile(_Part):
    """Everything specific to one robot. See ``config/robots/`` for commented examples."""

    format: Literal[1]
    name: Name
    description: str
    simulated: bool
    model: ModelRates
    cameras: Annotated[tuple[Camera, ...], Field(min_length=1, max_length=16)]
    joints: Joints
    action: Action
    labels: tuple[Label, ...] = ()
    events: tuple[Event, ...] = ()
    objective: Objective | None = None
    basis: Basis
    safety: Safety

    @model_validator(mode="after")
    def _references(self) -> RobotProfile:
        for key, parts in (
            ("cameras", self.cameras),
            ("labels", self.labels),
            ("events", self.events),
        ):
            names = [part.name for part in parts]
            if len(set(names)) != len(names):
                raise ValueError(f"'{key}' holds a name twice")
        labels = {label.name for label in self.labels}
        if self.objective is not None:
            used = set(self.objective.goal)
            if self.objective.push is not None:
                used |= set(self.objective.push.object) | set(self.objective.push.tool)
            if missing := sorted(used - labels):
                raise ValueError(f"'objective' uses labels that are not defined: {missing}")
        events = {event.name for event in self.events}
        if missing := sorted(set(self.safety.risk_threshold) - events):
            raise ValueError(f"'safety.risk_threshold' names unknown events: {missing}")
        if self.action.kind != "twist":
            known = set(self.joints.names)
            if missing := [name for name in self.action.names if name not in known]:
                raise ValueError(f"action names that are not joints: {missing}")
        self._check_space()
        if self.basis.knots > self.model.horizon_ticks:
            raise ValueError("'basis.knots' exceeds the ticks of the horizon")
        return self

    def _check_space(self) -> None:
        space, action = self.safety.space, self.action
        if space is None or action.kind != "twist":
            return
        if len(space.links) > 1:
            raise ValueError("'safety.space' of a twist watches one link: that which it moves")
        turns = [
            name
            for name, path in zip(action.names, action.fields, strict=True)
            if ".linear." not in path
        ]
        if turns:
            raise ValueError(
                f"'safety.space' knows only linear velocities, but {', '.join(turns)} turns"
            )

    @property
    def label_names(self) -> tuple[str, ...]:
        """Names of the labelled state values, in model order."""
        return tuple(label.name for label in self.labels)

    @property
    def event_names(self) -> tuple[str, ...]:
        """Names of the events, in model order."""
        return tuple(event.name for event in self.events)

    def dump(self) -> dict[str, Any]:
        """Return plain data that :func:`parse_profile` reads back to an equal profile."""
        return self.model_dump(mode="json", exclude_none=True)


def _sentence(error: ValidationError) -> str:
    parts = []
    for item in error.errors()[:3]:
        where = ".".join(str(key) for key in item["loc"]) or "profile"
        text = item["msg"].removeprefix("Value error, ")
        if item["type"] == "extra_forbidden":
            text = "unknown key"
        elif item["type"] == "missing":
            text = "missing"
        parts.append(f"{where}: {text}")
    more = error.error_count() - len(parts)
    return "; ".join(parts) + (f"; and {more} more" if more > 0 else "")


def parse_profile(data: Any, source: str) -> RobotProfile:
    """Validate plain data as a profile.

    Raises:
        WmError: with the path of each wrong key, in one sentence.
    """
    if not isinstance(data, dict):
        raise WmError(f"{source} is not a robot profile: it must be a YAML mapping.")
    try:
        return RobotProfile.model_validate(data)
    except ValidationError as error:
        raise WmError(f"{source} is not a valid robot profile: {_sentence(error)}.") from error


def profile_file(path: str | Path) -> Path:
    """Return the file of a profile that is given by its path or by the name of one that ships."""
    text = str(path)
    file = Path(path)
    if not file.exists() and "/" not in text and not text.endswith((".yaml", ".yml")):
        return resource(f"config/robots/{text}.yaml")
    return file


def urdf_file(path: str | Path, space: Space) -> Path:
    """Return the URDF of a profile that was loaded from ``path``."""
    beside = profile_file(path).parent / space.urdf
    ships = resource("config/robots") / space.urdf
    return ships if ships.exists() and not beside.exists() else beside


def load_profile(path: str | Path) -> RobotProfile:
    """Load a profile from a YAML file, or by the name of one that ships (``tabletop``).

    Raises:
        WmError: missing, too large, not YAML, or not a valid profile.
    """
    try:
        file = profile_file(path)
        size = file.stat().st_size
        if size > MAX_PROFILE_BYTES:
            raise WmError(f"{file} has {size} bytes; a robot profile is far smaller.")
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
    except (OSError, UnicodeDecodeError) as error:
        raise WmError(f"cannot read the robot profile {path}: {error}.") from error
    except yaml.YAMLError as error:
        flat = " ".join(str(error).split())
        raise WmError(f"{file} is not valid YAML: {flat}.") from error
    return parse_profile(data, str(file))
