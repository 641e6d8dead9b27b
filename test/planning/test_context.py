"""The prompt: aligned, complete or refused."""

from __future__ import annotations

import numpy as np
import pytest

from wm_node.planning.context import NotReady, ObservationBuffer
from wm_node.planning.world_model import Context
from wm_node.profile import load_profile

PROFILE = load_profile("tabletop")
MS = 1_000_000
START = 1_000_000_000


def filled(frames_ms: range = range(0, 1001, 50)) -> ObservationBuffer:
    buffer = ObservationBuffer(PROFILE)
    for at in frames_ms:
        buffer.add_frame(START + at * MS, np.full(3, at, np.float32))
    for at in range(0, 1011, 10):
        buffer.add_joints(START + at * MS, np.full(4, at / 1000.0))
    for at in range(0, 1001, 100):
        buffer.add_action(START + at * MS, np.array([at / 1000.0, 0.0]))
    return buffer


def test_frames_joints_and_actions_line_up() -> None:
    context = filled().context(START + 1000 * MS)
    assert isinstance(context, Context)
    assert context.stamp_ns == START + 1000 * MS
    np.testing.assert_array_equal(context.latents[:, 0], [800, 1000])
    np.testing.assert_allclose(context.joints[:, 0], [0.8, 1.0], atol=1e-6)
    # Entry i acted during the step of two ticks that ended at frame i.
    np.testing.assert_allclose(context.actions[..., 0], [[0.6, 0.7], [0.8, 0.9]], atol=1e-6)


def test_a_missing_frame_in_the_past_is_not_stitched_over() -> None:
    buffer = ObservationBuffer(PROFILE)
    for at in (700, 750, 950, 1000):
        buffer.add_frame(START + at * MS, np.zeros(3, np.float32))
    assert buffer.context(START + 1000 * MS) == NotReady("frames")


def test_a_joint_gap_is_refused() -> None:
    buffer = ObservationBuffer(PROFILE)
    for at in range(0, 1001, 50):
        buffer.add_frame(START + at * MS, np.zeros(3, np.float32))
    for at in (0, 990, 1000):
        buffer.add_joints(START + at * MS, np.zeros(4))
    assert buffer.context(START + 1000 * MS) == NotReady("joints")


def test_an_old_stamp_is_refused() -> None:
    assert filled().context(START + 2000 * MS) == NotReady("frames")


@pytest.mark.parametrize("what", ["frame", "joints", "action"])
def test_stamps_that_run_backwards_empty_the_history(what: str) -> None:
    buffer = filled()
    assert buffer.history_s() > 0.9
    if what == "frame":
        buffer.add_frame(START, np.zeros(3, np.float32))
    elif what == "joints":
        buffer.add_joints(START, np.zeros(4))
    else:
        buffer.add_action(START, np.zeros(2))
    assert isinstance(buffer.context(START + 1000 * MS), NotReady)


def test_memory_is_bounded() -> None:
    buffer = ObservationBuffer(PROFILE)
    for at in range(0, 60_000, 50):
        buffer.add_frame(START + at * MS, np.zeros(3, np.float32))
    assert buffer.history_s() < 3.0


def test_commands_cease_after_the_drivers_timeout() -> None:
    buffer = ObservationBuffer(PROFILE)
    buffer.add_action(START, np.array([0.2, 0.0]))
    applied = buffer.applied(START + 400 * MS)
    np.testing.assert_allclose(applied[:, 0], [0.2, 0.2, 0.0, 0.0], atol=1e-9)
