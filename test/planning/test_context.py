"""The prompt: aligned, complete or refused."""

from __future__ import annotations

import numpy as np
import pytest

from wm_node.planning.context import NotReady, ObservationBuffer
from wm_node.planning.world_model import Context
from wm_node.profile import load_profile

PROFILE = load_profile("tabletop")
STEPS = PROFILE.model.context_steps
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
    frames = 1000 - 200 * np.arange(STEPS)[::-1]
    np.testing.assert_array_equal(context.latents[:, 0], frames)
    np.testing.assert_allclose(context.joints[:, 0], frames / 1000, atol=1e-6)
    # Entry i acted during the step of two ticks that ended at frame i.
    acted = np.stack([frames - 200, frames - 100], -1) / 1000
    np.testing.assert_allclose(context.actions[..., 0], acted, atol=1e-6)


def test_a_missing_frame_in_the_past_is_not_stitched_over() -> None:
    buffer = ObservationBuffer(PROFILE)
    for at in (*range(0, 751, 50), 950, 1000):
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
    ticks = STEPS * PROFILE.model.ticks_per_step
    applied = buffer.applied(START + ticks * 100 * MS)
    np.testing.assert_allclose(applied[:, 0], [0.2, 0.2] + [0.0] * (ticks - 2), atol=1e-9)


def silent(commanded_ms: int, exists: bool = False) -> ObservationBuffer:
    """A robot of which nothing is read back after 200 ms, and that is commanded later."""
    buffer = ObservationBuffer(PROFILE)
    for at in range(0, 3001, 50):
        buffer.add_frame(START + at * MS, np.zeros(3, np.float32))
    for at in range(0, 3011, 10):
        buffer.add_joints(START + at * MS, np.zeros(4))
    buffer.add_action(START + 200 * MS, np.zeros(2))
    buffer.expect_readback(START + commanded_ms * MS)
    buffer.readback_exists = exists
    return buffer


def test_the_silence_of_a_readback_that_nobody_publishes_is_not_standstill() -> None:
    buffer = silent(1500)
    lost = NotReady("actions")
    # A frame may be 0.3 s old, the driver acts on a command for 0.2 s.
    assert isinstance(buffer.context(START + 2000 * MS), Context)
    assert buffer.context(START + 2050 * MS) == lost
    # It lasts until somebody answers, however many commands follow, and does not come in bursts.
    buffer.expect_readback(START + 2900 * MS)
    assert buffer.context(START + 3000 * MS) == lost
    buffer.add_action(START + 2950 * MS, np.zeros(2))
    assert isinstance(buffer.context(START + 3000 * MS), Context)


def test_silence_is_standstill_while_the_publisher_of_the_readback_is_there() -> None:
    # A gate in shadow mode, or one that is not active, publishes nothing: nothing acts.
    buffer = silent(1500, exists=True)
    assert isinstance(buffer.context(START + 3000 * MS), Context)
    buffer.readback_exists = False
    assert buffer.context(START + 3000 * MS) == NotReady("actions")


def test_silence_is_standstill_until_something_was_commanded() -> None:
    buffer = silent(1500)
    buffer.forget_commands()
    assert isinstance(buffer.context(START + 3000 * MS), Context)
    buffer.expect_readback(START + 2900 * MS)
    assert isinstance(buffer.context(START + 3000 * MS), Context)
    buffer.reset()
    assert buffer.context(START + 3000 * MS) == NotReady("frames")
