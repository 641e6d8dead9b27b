"""Finds the topics that a robot profile names among those of a bag, in whatever namespace."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterable

from wm_node.data.streams import IMAGE_TYPES
from wm_node.profile import Camera, RobotProfile

Recorded = frozenset[tuple[str, str]]
"""Absolute name and message type of each topic of a bag."""


class RecordedTopics:
    """The topics of one bag.

    A topic is found under its own name in the root, or else in the one namespace that most of the
    profile's topics lie in. How a name ends is not enough: ``/mpc_planner/command`` has the type
    of ``command``, but is what the planner asked for and not what acted.
    """

    def __init__(self, profile: RobotProfile, recorded: Iterable[tuple[str, str]]) -> None:
        """Take (name, message type) of each topic of the bag."""
        self._recorded: Recorded = frozenset(recorded)
        self._namespace = _common_namespace(profile, self._recorded)

    def find(self, topic: str, *kinds: str) -> str | None:
        """Return the recorded name of a topic of one of the given types, None without any."""
        wanted = _relative(topic)
        for name in (f"/{wanted}", f"{self._namespace}/{wanted}"):
            if any((name, kind) in self._recorded for kind in kinds):
                return name
        return None

    def find_camera(self, camera: Camera) -> str | None:
        """Return the recorded name of a camera, as its profile has it or in the other transport."""
        found = (self.find(topic, *IMAGE_TYPES) for topic in _transports(camera))
        return next((name for name in found if name is not None), None)


def _relative(topic: str) -> str:
    return topic.lstrip("~/")


def _transports(camera: Camera) -> tuple[str, str]:
    plain = camera.topic.removesuffix("/compressed")
    other = f"{plain}/compressed" if camera.topic == plain else plain
    return camera.topic, other


def _named(profile: RobotProfile) -> dict[str, tuple[tuple[str, ...], tuple[str, ...]]]:
    """Return the profile's topics: by name its recorded variants, and their message types."""
    readback = profile.action.readback
    plain = [
        (profile.joints.topic, "sensor_msgs/msg/JointState"),
        (readback.topic, readback.message),
        *((label.topic, label.message) for label in profile.labels),
        *((event.topic, event.message) for event in profile.events),
    ]
    return {camera.topic: (_transports(camera), IMAGE_TYPES) for camera in profile.cameras} | {
        topic: ((topic,), (kind,)) for topic, kind in plain
    }


def _common_namespace(profile: RobotProfile, recorded: Recorded) -> str:
    """Return the namespace that most of the profile's topics lie in; "" is the root.

    It must hold two of them: a single one may be somebody else's topic of the same name.
    """
    fits: Counter[str] = Counter()
    for variants, kinds in _named(profile).values():
        ends = [f"/{_relative(topic)}" for topic in variants]
        fits.update(
            {
                name.removesuffix(end)
                for name, kind in recorded
                for end in ends
                if kind in kinds and name.endswith(end)
            }
        )
    common = [name for name, count in fits.items() if count > 1]
    return min(common, key=lambda name: (-fits[name], name.count("/"), name), default="")
