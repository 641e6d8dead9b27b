"""Robot profiles: those that ship load, other robots fit, faults are one clear sentence."""

from __future__ import annotations

import copy
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from wm_node.errors import WmError
from wm_node.model.config import Dims, ModelConfig
from wm_node.model.world import WorldModelNet
from wm_node.planning.planner import MpcPlanner, PlannerConfig
from wm_node.profile import MAX_PROFILE_BYTES, load_profile, parse_profile
from wm_node.resources import resource

SHIPPED = sorted(path.stem for path in resource("config/robots").glob("*.yaml"))


def tabletop() -> dict[str, Any]:
    return load_profile("tabletop").dump()


def unlike_tabletop() -> dict[str, Any]:
    """What another robot is made of: the table-top's space is of its own kinematics."""
    data = tabletop()
    del data["safety"]["space"]
    return data


def seven_joint_arm() -> dict[str, Any]:
    names = [f"joint_{number}" for number in range(1, 8)]
    data = unlike_tabletop() | {"name": "arm7", "labels": [], "events": [], "simulated": False}
    data.pop("objective")
    data["safety"] = data["safety"] | {"risk_threshold": {}}
    data["cameras"] = [
        data["cameras"][0],
        data["cameras"][0] | {"name": "wrist", "topic": "wrist/image_raw"},
    ]
    data["joints"] = data["joints"] | {
        "names": names,
        "lower": [-2.9] * 7,
        "upper": [2.9] * 7,
        "max_velocity": [2.0] * 7,
    }
    data["action"] = {
        "kind": "joint_position",
        "names": names,
        "units": ["rad"] * 7,
        "lower": [-2.9] * 7,
        "upper": [2.9] * 7,
        "rate_hz": 10,
        "topic": "command",
        "message": "trajectory_msgs/msg/JointTrajectory",
        "fields": ["positions"],
        "readback": {
            "topic": "joint_command",
            "message": "sensor_msgs/msg/JointState",
            "fields": ["position"],
        },
    }
    return data


def twist_base() -> dict[str, Any]:
    data = unlike_tabletop() | {"name": "base", "labels": [], "events": [], "simulated": False}
    data.pop("objective")
    data["safety"] = data["safety"] | {"risk_threshold": {}}
    data["joints"] = data["joints"] | {
        "names": ["wheel_left", "wheel_right"],
        "lower": [-1e6] * 2,
        "upper": [1e6] * 2,
        "max_velocity": [20.0] * 2,
    }
    fields = ["twist.linear.x", "twist.angular.z"]
    data["action"] = data["action"] | {
        "names": ["forward", "turn"],
        "units": ["m/s", "rad/s"],
        "lower": [-0.5, -1.0],
        "upper": [0.5, 1.0],
        "frame_id": "base_link",
        "fields": fields,
        "readback": data["action"]["readback"] | {"fields": fields},
    }
    return data


@pytest.mark.parametrize("name", SHIPPED)
def test_shipped_profiles_load_and_survive_a_round_trip(name: str) -> None:
    profile = load_profile(name)
    assert parse_profile(profile.dump(), "again") == profile


@pytest.mark.parametrize("data", [seven_joint_arm(), twist_base()], ids=["arm", "base"])
def test_other_robots_fit_model_and_planner(data: dict[str, Any]) -> None:
    profile = parse_profile(data, "test")
    dims = Dims.of(profile)
    assert dims.action == len(data["action"]["names"])
    assert dims.cameras == len(data["cameras"])
    WorldModelNet(dims, ModelConfig(width=16, heads=2, layers=1))
    MpcPlanner(profile, PlannerConfig())


def change(data: dict[str, Any], path: str, value: Any) -> dict[str, Any]:
    """Set a dotted path; None removes it."""
    data = copy.deepcopy(data)
    *parents, last = path.split(".")
    place: Any = data
    for key in parents:
        place = place[int(key)] if key.isdigit() else place[key]
    if value is None:
        del place[last]
    else:
        place[last] = value
    return data


@pytest.mark.parametrize(
    ("path", "value", "message"),
    [
        ("colour", "red", "colour: unknown key"),
        ("joints.nmaes", ["a"], "joints.nmaes: unknown key"),
        ("joints.names", None, "joints.names: missing"),
        ("joints.names", ["a", "a", "b", "c"], "not unique"),
        ("joints.lower", [0.0], "'lower' needs 4 numbers"),
        ("joints.lower", [9.0, 9.0, 9.0, 9.0], "below its 'upper'"),
        ("action.units", ["m/s", "mph"], "has unit 'mph'; use one of m/s, rad/s"),
        ("action.lower", [0.1, -0.2], "must contain 0"),
        ("action.command_timeout_s", None, "does not end at rest by itself"),
        ("action.message", "my_msgs/msg/Go", "action.message"),
        ("action.fields", ["twist.linear.x"], "'fields' needs 2 entries, one for each action name"),
        ("action.fields", ["twist.linear.x"] * 3, "action: 'fields' needs 2 entries"),
        ("action.readback.fields", ["twist.linear.x"], "'readback.fields' needs 2 entries"),
        ("action.readback.fields", ["twist.linear.x"] * 3, "'readback.fields' needs 2 entries"),
        ("objective.goal", ["cup_x"], "not defined: ['cup_x']"),
        ("safety.risk_threshold", {"boil": 0.5}, "unknown events: ['boil']"),
        ("safety.stopping_time_s", float("nan"), "safety.stopping_time_s"),
        ("model.tick_rate_hz", 0, "model.tick_rate_hz"),
        ("basis.knots", 60, "exceeds the ticks"),
        ("cameras", [], "cameras"),
        ("cameras.0.topic", "a b", "topic"),
        ("format", 2, "format"),
    ],
)
def test_each_fault_is_named(path: str, value: Any, message: str) -> None:
    with pytest.raises(WmError) as caught:
        parse_profile(change(tabletop(), path, value), "robot.yaml")
    text = str(caught.value)
    assert message in text
    assert text.startswith("robot.yaml is not a valid robot profile")
    assert "\n" not in text


@pytest.mark.parametrize(
    ("message", "counts"),
    [
        ("sensor_msgs/msg/JointState", {1}),
        ("trajectory_msgs/msg/JointTrajectory", {1}),
        ("std_msgs/msg/Float64MultiArray", {1}),
        ("geometry_msgs/msg/Twist", {7}),
        ("my_msgs/msg/Drive", {1, 7}),
    ],
)
def test_as_many_fields_are_read_back_as_the_message_needs(message: str, counts: set[int]) -> None:
    for count in (1, 2, 6, 7, 8):
        readback = {"topic": "applied", "message": message, "fields": ["a"] * count}
        data = change(seven_joint_arm(), "action.readback", readback)
        if count in counts:
            assert len(parse_profile(data, "x").action.readback.fields) == count
        else:
            with pytest.raises(WmError, match=r"action: 'readback.fields' needs .* has") as caught:
                parse_profile(data, "x")
            assert str(caught.value).endswith(f"has {count}.")


@pytest.mark.parametrize("fields", [["positions", "velocities"], ["positions"] * 7])
def test_a_trajectory_is_written_by_name_through_one_field(fields: list[str]) -> None:
    with pytest.raises(WmError, match=r"action: 'fields' needs 1 entry"):
        parse_profile(change(seven_joint_arm(), "action.fields", fields), "x")


def test_an_action_that_is_no_joint_is_named() -> None:
    data = seven_joint_arm()
    data["action"]["names"] = ["elbow_9", *data["action"]["names"][1:]]
    with pytest.raises(WmError, match=r"not joints: .'elbow_9'"):
        parse_profile(data, "x")


def test_files_that_cannot_be_profiles(tmp_path: Path) -> None:
    with pytest.raises(WmError, match="cannot read"):
        load_profile(tmp_path / "none.yaml")
    with pytest.raises(WmError, match="not part of this installation"):
        load_profile("nobody")
    file = tmp_path / "a.yaml"
    file.write_text("a: [1")
    with pytest.raises(WmError, match="not valid YAML"):
        load_profile(file)
    file.write_text("- 1")
    with pytest.raises(WmError, match="must be a YAML mapping"):
        load_profile(file)
    file.write_bytes(b"\xff\xfe\x00")
    with pytest.raises(WmError, match=r"cannot read|not valid YAML"):
        load_profile(file)
    file.write_text("#" * (MAX_PROFILE_BYTES + 1))
    with pytest.raises(WmError, match="far smaller"):
        load_profile(file)


def test_a_profile_cannot_run_code(tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    file = tmp_path / "a.yaml"
    file.write_text(f"!!python/object/apply:os.mkdir ['{mark}']")
    with pytest.raises(WmError, match="not valid YAML"):
        load_profile(file)
    assert not mark.exists()


@given(st.data())
def test_any_mutation_is_accepted_or_refused_in_one_sentence(
    mutate: Callable[[st.DataObject, Any], None], data: st.DataObject
) -> None:
    profile = tabletop()
    mutate(data, profile)
    said = ""
    try:
        parse_profile(yaml.safe_load(yaml.safe_dump(profile)), "mutant")
    except WmError as error:
        said = str(error)
    assert "\n" not in said


def test_a_space_of_a_robot_that_turns_is_refused() -> None:
    data = twist_base()
    data["safety"] |= {"space": tabletop()["safety"]["space"]}
    with pytest.raises(WmError, match="knows only linear velocities, but turn turns"):
        parse_profile(data, "test")
