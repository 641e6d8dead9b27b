"""What belongs to one robot and not to its model: measured delays, thresholds, limits, as YAML.

A bundle never changes after it is written; the overlay is laid over its profile instead. Entries
are keyed by robot, and by bundle hash where they hold for one bundle only:

    format: 1
    robots:
      arm_3:
        bundle: null              # or the sha256 of the bundle
        action_delay_s: {shoulder: 0.11, elbow: 0.12}
        camera_latency_s: {front: 0.04}
        risk:                     # of one bundle, always
          bundle: 4af2...
          threshold: {fell: 0.31, zone: 0.42}
          miss_rate: 0.1
        doubt:                    # of one bundle, always
          bundle: 4af2...
          surprise_limit: 3.2
          uncertainty_limit: 6.1
          false_alarms_per_hour: 6.0
          window_s: 5.0
          windows: [0.92, 1.04]
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any, Literal

import yaml
from pydantic import BaseModel, ConfigDict, Field, ValidationError

from wm_node.errors import WmError
from wm_node.profile import RobotProfile, parse_profile

MAX_BYTES = 1_000_000
Delay = Annotated[float, Field(ge=0, le=2)]


class RiskCalibration(BaseModel):
    """Highest risk of each event that passes, for the risk that one bundle foresees."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bundle: str
    threshold: dict[str, Annotated[float, Field(gt=0, le=1)]]
    miss_rate: Annotated[float, Field(gt=0, lt=1)]
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.9
    """That at most that share of events is missed."""
    measured: dict[str, Any] = {}


class DoubtCalibration(BaseModel):
    """Limits of surprise and uncertainty, and what surprise is usual, for one bundle.

    ``windows`` are mean surprises of ``window_s`` each, which live ones are compared with.
    """

    model_config = ConfigDict(extra="forbid", frozen=True)

    bundle: str
    surprise_limit: Annotated[float, Field(gt=0)]
    uncertainty_limit: Annotated[float, Field(gt=0)]
    false_alarms_per_hour: Annotated[float, Field(gt=0)]
    confidence: Annotated[float, Field(gt=0, lt=1)] = 0.9
    window_s: Annotated[float, Field(gt=0, le=3600)]
    windows: Annotated[
        list[Annotated[float, Field(ge=0, allow_inf_nan=False)]], Field(min_length=1)
    ]
    measured: dict[str, Any] = {}


class RobotOverlay(BaseModel):
    """What was measured of one robot; what is absent keeps the profile's value. Seconds."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    bundle: str | None = None
    """Which the delays hold for, if only for one."""
    action_delay_s: dict[str, Delay] = {}
    camera_latency_s: dict[str, Delay] = {}
    measured: dict[str, Any] = {}
    """Of the delays."""
    risk: RiskCalibration | None = None
    doubt: DoubtCalibration | None = None


class Overlay(BaseModel):
    """The whole file."""

    model_config = ConfigDict(extra="forbid", frozen=True)

    format: Literal[1]
    robots: dict[str, RobotOverlay]


def load_overlay(path: str | Path) -> Overlay:
    """Load an overlay.

    Raises:
        WmError: missing, too large, not YAML, or not an overlay.
    """
    file = Path(path)
    try:
        if file.stat().st_size > MAX_BYTES:
            raise WmError(f"{file} is too large for an overlay.")
        data = yaml.safe_load(file.read_text(encoding="utf-8"))
        return Overlay.model_validate(data)
    except (OSError, UnicodeDecodeError) as error:
        raise WmError(f"cannot read the overlay {file}: {error}.") from error
    except (yaml.YAMLError, ValidationError) as error:
        first = " ".join(str(error).split())[:200]
        raise WmError(f"{file} is not an overlay of 'wm calibrate': {first}.") from error


def entry_of(overlay: Overlay, robot: str) -> RobotOverlay:
    """Return a robot's entry.

    Raises:
        WmError: there is none.
    """
    if robot not in overlay.robots:
        known = ", ".join(sorted(overlay.robots)) or "none"
        raise WmError(f"the overlay has no entry for the robot '{robot}', only: {known}.")
    return overlay.robots[robot]


def apply_overlay(
    profile: RobotProfile, overlay: Overlay, bundle_sha256: str | None = None
) -> RobotProfile:
    """Return the profile with the robot's own delays, risk thresholds and limits.

    Args:
        profile: the robot.
        overlay: loaded from its file.
        bundle_sha256: hash of the bundle in use, None where there is none yet.

    Raises:
        WmError: the overlay is for another robot or bundle, or names unknown joints, cameras or
            events.
    """
    entry = entry_of(overlay, profile.name)
    if entry.bundle is not None and bundle_sha256 is not None and entry.bundle != bundle_sha256:
        raise WmError(
            f"the overlay of '{profile.name}' was measured for bundle {entry.bundle[:12]}, not for "
            f"{bundle_sha256[:12]}: run 'wm calibrate --delay' again."
        )
    for what, option, one in (
        ("risk thresholds", "--risk", entry.risk),
        ("limits of doubt", "--doubt", entry.doubt),
    ):
        if one is not None and bundle_sha256 is not None and one.bundle != bundle_sha256:
            raise WmError(
                f"the {what} of '{profile.name}' were calibrated for bundle {one.bundle[:12]}, not "
                f"for {bundle_sha256[:12]}: run 'wm calibrate {option}' again."
            )
    risk, doubt = entry.risk, entry.doubt
    cameras = [camera.name for camera in profile.cameras]
    _check_names("action", entry.action_delay_s, profile.action.names)
    _check_names("camera", entry.camera_latency_s, cameras)
    data = profile.dump()
    if risk is not None:
        _check_names("event", risk.threshold, profile.event_names)
        data["safety"]["risk_threshold"] |= risk.threshold
    if doubt is not None:
        data["safety"]["surprise_limit"] = doubt.surprise_limit
        data["safety"]["uncertainty_limit"] = doubt.uncertainty_limit
    if entry.action_delay_s:
        old = profile.action.delay_s or (0.0,) * len(profile.action.names)
        data["action"]["delay_s"] = [
            entry.action_delay_s.get(name, value)
            for name, value in zip(profile.action.names, old, strict=True)
        ]
    for camera in data["cameras"]:
        camera["latency_s"] = entry.camera_latency_s.get(camera["name"], camera["latency_s"])
    return parse_profile(data, f"the profile '{profile.name}' with its overlay")


def with_overlay(
    profile: RobotProfile, path: str | Path | None, bundle_sha256: str | None = None
) -> RobotProfile:
    """Return the profile with what an overlay file holds; without a file, the profile itself.

    Raises:
        WmError: see :func:`load_overlay` and :func:`apply_overlay`.
    """
    return apply_overlay(profile, load_overlay(path), bundle_sha256) if path else profile


def write_overlay(path: Path, robot: str, entry: RobotOverlay) -> None:
    """Write what is set in one robot's entry; all else in the file is kept.

    Raises:
        WmError: the file there is no overlay, or cannot be written.
    """
    robots = dict(load_overlay(path).robots) if path.exists() else {}
    before = robots[robot].model_dump(exclude_unset=True) if robot in robots else {}
    robots[robot] = RobotOverlay.model_validate(before | entry.model_dump(exclude_unset=True))
    data = {
        "format": 1,
        "robots": {
            name: item.model_dump(mode="json", exclude_unset=True) for name, item in robots.items()
        },
    }
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        partial = path.with_name(f".{path.name}.partial")
        partial.write_text(yaml.safe_dump(data, sort_keys=False), encoding="utf-8")
        partial.replace(path)
    except OSError as error:
        raise WmError(f"cannot write the overlay {path}: {error.strerror}.") from error


def _check_names(kind: str, given: Mapping[str, float], known: Any) -> None:
    if unknown := sorted(set(given) - set(known)):
        raise WmError(f"the overlay names {kind}s that the profile does not have: {unknown}.")
