"""Where a link of the robot is, from its joints alone: chains read from a URDF.

Small on purpose: the gate starts in under a second and depends on no solver. What a joint is
follows http://wiki.ros.org/urdf/XML/joint.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from math import cos, sin
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
from numpy.typing import NDArray

from wm_node.errors import WmError

MAX_BYTES = 5_000_000
MOVABLE = ("revolute", "continuous", "prismatic")

Doubles = NDArray[np.float64]


@dataclass(frozen=True)
class _Joint:
    """A joint of the URDF: from the parent link to the child link."""

    name: str
    kind: str
    parent: str
    child: str
    origin: Doubles  # (4, 4), where the joint's own frame stands in the parent's
    axis: Doubles  # (3,), of length 1


@dataclass(frozen=True)
class _Segment:
    """A joint on the way from one link to another; ``index`` -1: it does not move."""

    joint: _Joint
    index: int
    backwards: bool


class Chain:
    """Places of one link in the frame of another.

    Args:
        segments: the joints between them, in order.
    """

    def __init__(self, segments: Sequence[_Segment]) -> None:
        self._segments = tuple(segments)

    def places(self, joints: Doubles) -> Doubles:
        """Return the link's origin (N, 3) in m for N joint states (N, J) in the chain's order."""
        pose = np.broadcast_to(np.eye(4), (len(joints), 4, 4))
        for segment in self._segments:
            step = np.broadcast_to(segment.joint.origin, pose.shape)
            if segment.index >= 0:
                step = step @ _moved(segment.joint, joints[:, segment.index])
            pose = pose @ (np.linalg.inv(step) if segment.backwards else step)
        return np.asarray(pose[:, :3, 3])


def load_chains(
    path: Path, frame: str, links: Sequence[str], joint_names: Sequence[str]
) -> tuple[Chain, ...]:
    """Read the chains from a frame to some links.

    Args:
        path: of the URDF.
        frame: link in whose frame places are given.
        links: whose places are wanted.
        joint_names: order of the joint states.

    Raises:
        WmError: no URDF, an unknown link, or a joint on the way whose position is not known.
    """
    joints = _read(path)
    known = {joint.parent for joint in joints} | {joint.child for joint in joints}
    for link in (frame, *links):
        if link not in known:
            raise WmError(f"{path} has no link '{link}'; it has {', '.join(sorted(known))}.")
    by_child = {joint.child: joint for joint in joints}
    if len(by_child) != len(joints):
        raise WmError(f"{path} is not a tree: a link has two parents.")
    order = {name: index for index, name in enumerate(joint_names)}
    return tuple(_chain(path, by_child, frame, link, order) for link in links)


def _chain(
    path: Path, by_child: dict[str, _Joint], frame: str, link: str, order: dict[str, int]
) -> Chain:
    up, down = _to_root(path, by_child, frame), _to_root(path, by_child, link)
    while up and down and up[-1] is down[-1]:  # what both have in common moves both alike
        up.pop(), down.pop()
    segments = []
    for joint, backwards in [(j, True) for j in up] + [(j, False) for j in reversed(down)]:
        movable = joint.kind in MOVABLE
        if movable and joint.name not in order:
            raise WmError(
                f"{path}: the place of '{link}' depends on the joint '{joint.name}', which the "
                "profile's joints do not hold."
            )
        segments.append(_Segment(joint, order[joint.name] if movable else -1, backwards))
    return Chain(segments)


def _to_root(path: Path, by_child: dict[str, _Joint], link: str) -> list[_Joint]:
    way: list[_Joint] = []
    while link in by_child:
        if len(way) > len(by_child):
            raise WmError(f"{path} is not a tree: its links form a ring.")
        way.append(by_child[link])
        link = by_child[link].parent
    return way


def _moved(joint: _Joint, values: Doubles) -> Doubles:
    """Return the motion (N, 4, 4) of a joint at positions (N,)."""
    pose = np.tile(np.eye(4), (len(values), 1, 1))
    if joint.kind == "prismatic":
        pose[:, :3, 3] = values[:, None] * joint.axis
        return pose
    x, y, z = joint.axis
    cross = np.array([[0.0, -z, y], [z, 0.0, -x], [-y, x, 0.0]])
    turn, lean = np.sin(values)[:, None, None], (1.0 - np.cos(values))[:, None, None]
    pose[:, :3, :3] += turn * cross + lean * (cross @ cross)  # Rodrigues
    return pose


def _read(path: Path) -> list[_Joint]:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise WmError(f"{path} is too large for a URDF.")
        text = path.read_text(encoding="utf-8")
    except (OSError, UnicodeDecodeError) as error:
        raise WmError(f"cannot read the URDF {path}: {error}.") from error
    if "<!DOCTYPE" in text or "<!ENTITY" in text:  # entities could grow without bound
        raise WmError(f"{path} declares XML entities; a URDF needs none. Run xacro first.")
    try:
        root = ElementTree.fromstring(text)
        joints = [
            _joint(element) for element in root.iter("joint") if element.find("parent") is not None
        ]
    except (ElementTree.ParseError, ValueError) as error:
        raise WmError(f"{path} is not a URDF: {error}.") from error
    if root.tag != "robot" or not joints:
        raise WmError(f"{path} is not a URDF: it describes no robot with joints.")
    return joints


def _joint(element: ElementTree.Element) -> _Joint:
    name, kind = element.get("name", ""), element.get("type", "")
    if kind not in (*MOVABLE, "fixed"):
        raise ValueError(f"joint '{name}' is of type '{kind}'; use {', '.join(MOVABLE)} or fixed")
    if element.find("mimic") is not None:
        raise ValueError(f"joint '{name}' mimics another one, which is not supported")
    parent, child = element.find("parent"), element.find("child")
    if parent is None or child is None:
        raise ValueError(f"joint '{name}' lacks its parent or child")
    origin, axis = element.find("origin"), element.find("axis")
    place = np.eye(4)
    if origin is not None:
        place[:3, 3] = _three(origin.get("xyz", "0 0 0"))
        place[:3, :3] = _rotation(_three(origin.get("rpy", "0 0 0")))
    direction = _three("1 0 0" if axis is None else axis.get("xyz", "1 0 0"))
    length = float(np.linalg.norm(direction))
    if kind in MOVABLE and not 0.99 < length < 1.01:
        raise ValueError(f"the axis of joint '{name}' is not of length 1")
    return _Joint(
        name,
        kind,
        parent.get("link", ""),
        child.get("link", ""),
        place,
        direction / max(length, 1e-9),
    )


def _three(text: str) -> Doubles:
    values = np.array([float(word) for word in text.split()])
    if values.shape != (3,) or not np.isfinite(values).all():
        raise ValueError(f"'{text}' are not three numbers")
    return values


def _rotation(rpy: Doubles) -> Doubles:
    """Fixed-axis roll, pitch and yaw in rad -> (3, 3)."""
    (a, b, c), (d, e, f) = (cos(v) for v in rpy), (sin(v) for v in rpy)
    roll = np.array([[1, 0, 0], [0, a, -d], [0, d, a]])
    pitch = np.array([[b, 0, e], [0, 1, 0], [-e, 0, b]])
    yaw = np.array([[c, -f, 0], [f, c, 0], [0, 0, 1]])
    return np.asarray(yaw @ pitch @ roll)
