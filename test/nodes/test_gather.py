"""Frames of several cameras, put together into ticks."""

from __future__ import annotations

from wm_node.nodes.gather import TickGatherer
from wm_node.profile import RobotProfile, load_profile, parse_profile

MS = 1_000_000


def _profile(*names: str) -> RobotProfile:
    data = load_profile("tabletop").dump()
    front = data["cameras"][0]
    data["cameras"] = [{**front, "name": name, "topic": name} for name in names]
    return parse_profile(data, "test")


def test_one_camera_gives_a_tick_for_every_second_frame():
    gatherer = TickGatherer(_profile("front"))
    assert gatherer.wait_ns == 0
    ticks = [t for k in range(10) for t in gatherer.add("front", k * 50 * MS + 1, k, f"frame {k}")]
    assert [t.messages for t in ticks] == [{"front": f"frame {k}"} for k in range(0, 10, 2)]
    assert [t.stamp_ns for t in ticks] == [k * 50 * MS + 1 for k in range(0, 10, 2)]
    assert [t.received_ns for t in ticks] == [0, 2, 4, 6, 8]


def test_a_tick_waits_for_the_frame_of_the_other_camera():
    gatherer = TickGatherer(_profile("front", "hand"))
    assert gatherer.wait_ns > 0
    assert gatherer.add("front", 1000 * MS, 7, "front 0") == []
    assert gatherer.is_open
    (tick,) = gatherer.add("hand", 1004 * MS, 8, "hand 0")
    assert tick.messages == {"front": "front 0", "hand": "hand 0"}
    assert (tick.stamp_ns, tick.received_ns) == (1000 * MS, 7)
    assert not gatherer.is_open


def test_a_frame_of_the_other_camera_that_came_first_is_taken_when_near():
    gatherer = TickGatherer(_profile("front", "hand"))
    gatherer.add("hand", 940 * MS, 0, "old")
    gatherer.add("hand", 990 * MS, 0, "near")
    (tick,) = gatherer.add("front", 1000 * MS, 1, "front 0")
    assert tick.messages["hand"] == "near"


def test_a_camera_that_is_silent_is_left_out_after_the_wait():
    gatherer = TickGatherer(_profile("front", "hand"))
    gatherer.add("hand", 940 * MS, 0, "too old")
    assert gatherer.add("front", 1000 * MS, 1, "front 0") == []
    (tick,) = gatherer.close()
    assert tick.messages == {"front": "front 0"}
    assert gatherer.close() == []


def test_a_newer_tick_ends_the_waiting_of_the_last_one():
    gatherer = TickGatherer(_profile("front", "hand"))
    gatherer.add("front", 1000 * MS, 1, "front 0")
    gatherer.add("front", 1050 * MS, 2, "front 1")
    (tick,) = gatherer.add("front", 1100 * MS, 3, "front 2")
    assert tick.messages == {"front": "front 0"}
    assert gatherer.is_open
    gatherer.reset()
    assert not gatherer.is_open
