"""Gaps in sequence numbers, and a real subscription that overflows."""

from __future__ import annotations

import time
from collections.abc import Iterator

import pytest
import rclpy
from rclpy.node import Node
from rclpy.qos import QoSProfile
from std_msgs.msg import String

from wm_node.cli.processes import private_domain
from wm_node.nodes.polled_subscription import GapCounter, PolledSubscription


@pytest.fixture
def node() -> Iterator[Node]:
    with pytest.MonkeyPatch.context() as patch, private_domain() as domain:
        patch.setenv("ROS_AUTOMATIC_DISCOVERY_RANGE", "LOCALHOST")
        rclpy.init(domain_id=domain)
        one = rclpy.create_node("polled")
        yield one
        one.destroy_node()
        rclpy.shutdown()


@pytest.mark.parametrize(
    ("publishers", "numbers", "missing"),
    [
        (1, [7, 8, 9], 0),  # a late joiner misses nothing
        (1, [1, 2, 5, 6, 9], 4),
        (1, [5, 6, 1, 2, 4], 1),  # the publisher was started anew
        (1, [5, 5, 6], 0),  # a latched message came again
        (2, [1, 40, 2, 41, 3, 42], 0),
        (2, [1, 40, 2, 43, 3, 44], 2),
    ],
)
def test_gaps_are_counted_and_nothing_else(publishers, numbers, missing):
    gaps = GapCounter()
    gaps.publishers = publishers
    assert sum(map(gaps.see, numbers)) == missing


def test_what_overflows_between_two_polls_is_counted(node):
    taken: list[str] = []
    lost: list[int] = []
    publisher = node.create_publisher(String, "/t", QoSProfile(depth=50))
    subscription = PolledSubscription(
        node,
        String,
        "/t",
        QoSProfile(depth=5),
        lambda data, info: taken.append(data[8:-1].decode()),
        GapCounter(),
        lost.append,
    )
    deadline = time.monotonic() + 10

    def send_and_wait(first: int, count: int) -> None:
        for number in range(first, first + count):
            publisher.publish(String(data=str(number)))
        while str(first + count - 1) not in taken:
            assert time.monotonic() < deadline
            time.sleep(0.01)
            subscription.poll()

    while not publisher.get_subscription_count():
        assert time.monotonic() < deadline
        time.sleep(0.01)
    send_and_wait(0, 3)
    assert taken == ["0", "1", "2"]
    taken.clear()
    time.sleep(0.05)
    for number in range(3, 23):
        publisher.publish(String(data=str(number)))
    time.sleep(0.2)
    send_and_wait(23, 1)
    assert taken[-1] == "23"
    assert sum(lost) == 21 - len(taken) > 0
    publisher.publish(String(data="last"))
    time.sleep(0.2)
    subscription.destroy()
    assert taken[-1] == "last"
