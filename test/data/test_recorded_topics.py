"""Which topics of a bag are the profile's: in the root, or in one namespace for all of them."""

from __future__ import annotations

import pytest

from wm_node.data.recorded_topics import RecordedTopics
from wm_node.profile import RobotProfile, load_profile

TWIST = "geometry_msgs/msg/TwistStamped"
JOINTS = "sensor_msgs/msg/JointState"
RAW, COMPRESSED = "sensor_msgs/msg/Image", "sensor_msgs/msg/CompressedImage"
ROBOT = {"/image_raw": RAW, "/joint_states": JOINTS, "/command": TWIST}


@pytest.fixture(scope="module")
def profile() -> RobotProfile:
    return load_profile("tabletop")


def _under(namespace: str) -> dict[str, str]:
    return {f"{namespace}{name}": kind for name, kind in ROBOT.items()}


@pytest.mark.parametrize(
    ("recorded", "found"),
    [
        (ROBOT | {"/mpc_planner/command": TWIST}, "/command"),
        (_under("/a") | {"/a/mpc_planner/command": TWIST}, "/a/command"),
        (_under("/a/b"), "/a/b/command"),
        (ROBOT | _under("/a"), "/command"),
        # The camera is shared, the rest is the robot's own.
        ({"/image_raw": RAW, "/a/joint_states": JOINTS, "/a/command": TWIST}, "/a/command"),
        # Two robots: everything is that of one of them.
        (_under("/b") | _under("/a"), "/a/command"),
        ({"/image_raw": RAW, "/joint_states": JOINTS, "/mpc_planner/command": TWIST}, None),
        ({"/mpc_planner/command": TWIST}, None),
        (ROBOT | {"/command": "std_msgs/msg/Bool"}, None),
        ({}, None),
    ],
)
def test_a_topic_is_found_by_its_whole_name(
    profile: RobotProfile, recorded: dict[str, str], found: str | None
) -> None:
    assert RecordedTopics(profile, recorded.items()).find("command", TWIST) == found


def test_topics_that_the_profile_does_not_name_lie_in_the_same_namespace(
    profile: RobotProfile,
) -> None:
    recorded = _under("/a") | {"/a/mpc_planner/command": TWIST, "/b/mpc_planner/command": TWIST}
    topics = RecordedTopics(profile, recorded.items())
    assert topics.find("mpc_planner/command", TWIST) == "/a/mpc_planner/command"


@pytest.mark.parametrize("namespace", ["", "/a"])
def test_a_camera_is_found_raw_or_compressed(profile: RobotProfile, namespace: str) -> None:
    (camera,) = profile.cameras
    recorded = _under(namespace)
    del recorded[f"{namespace}/image_raw"]
    assert RecordedTopics(profile, recorded.items()).find_camera(camera) is None
    recorded[f"{namespace}/image_raw/compressed"] = COMPRESSED
    topics = RecordedTopics(profile, recorded.items())
    assert topics.find_camera(camera) == f"{namespace}/image_raw/compressed"
    recorded[f"{namespace}/image_raw"] = RAW
    topics = RecordedTopics(profile, recorded.items())
    assert topics.find_camera(camera) == f"{namespace}/image_raw"
    compressed = camera.model_copy(update={"topic": "image_raw/compressed"})
    assert topics.find_camera(compressed) == f"{namespace}/image_raw/compressed"
