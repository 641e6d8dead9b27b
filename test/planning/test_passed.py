"""A command that the gate passed counts as planned; what it stopped, or limited, as it was read."""

from __future__ import annotations

import numpy as np
import pytest

from wm_node.planning.context import ObservationBuffer
from wm_node.planning.world_model import Floats
from wm_node.profile import load_profile
from wm_node.safety.reasons import Reason
from wm_node.sim.gated import GatedLoop, Told, gate_of
from wm_node.sim.tabletop import TabletopSim

PROFILE = load_profile("tabletop")
HARMLESS = Told(Reason.OK, dict.fromkeys(PROFILE.event_names, 0.0))
TICKS = PROFILE.model.context_steps * PROFILE.model.ticks_per_step


@pytest.fixture(scope="module")
def sim() -> TabletopSim:
    return TabletopSim((160, 120), render=False)


def played(
    sim: TabletopSim, told: list[Told], late_s: float = 0.0
) -> tuple[Floats, Floats, Floats]:
    """Play a command a tick through the real gate.

    Returns:
        What the buffer says acted in the last ticks, what was planned there, and the mean of what
        was read back, each (TICKS, 2).
    """
    sim.reset(3)
    loop = GatedLoop(sim, 0.1 + late_s, gate_of(PROFILE), PROFILE.action.frame_id)
    rng = np.random.default_rng(1)
    for one in told:
        loop.command(rng.uniform(-0.25, 0.25, 2), one)
        for _ in range(10):
            loop.advance(0.01)
    seen = loop.observe(False)
    assert seen.planned is not None
    buffers = ObservationBuffer(PROFILE), ObservationBuffer(PROFILE)
    for effect, value in seen.applied:
        for buffer in buffers:
            buffer.add_action(effect, value)
    for effect, value in seen.planned:
        # The node decides for when it is due, whatever a message then takes.
        buffers[0].add_planned(effect - round(1e9 * late_s), value)
    # The last command is on its way still.
    planned = np.stack([value for _, value in seen.planned[-1 - TICKS : -1]])
    acted, read = (buffer.applied(seen.stamp_ns) for buffer in buffers)
    return acted, planned, read


@pytest.mark.parametrize("late_s", [0.0, 0.02])
def test_ramps_to_what_was_planned_are_steps(sim: TabletopSim, late_s: float) -> None:
    acted, planned, read = played(sim, [HARMLESS] * 30, late_s)
    assert np.abs(read - planned).max() > 0.03
    np.testing.assert_allclose(acted, planned, atol=1e-9)


def test_a_tick_in_which_the_gate_braked_is_as_it_was_read(sim: TabletopSim) -> None:
    told = [HARMLESS] * 30
    risky = Told(Reason.OK, {**HARMLESS.risk, "fell": 0.9})
    told[-4] = told[-3] = risky
    acted, planned, read = played(sim, told)
    # The last one is on its way; those before it were in force in the ticks -3 and -2.
    for tick in (-3, -2):
        np.testing.assert_allclose(acted[tick], read[tick])
        assert np.abs(acted[tick] - planned[tick]).max() > 0.03
    np.testing.assert_allclose(acted[:-3], planned[:-3], atol=1e-9)


def test_what_was_never_planned_is_as_it_was_read(sim: TabletopSim) -> None:
    buffer = ObservationBuffer(PROFILE)
    step_ns = 20_000_000
    for at in range(200):
        buffer.add_action(at * step_ns, np.array([0.2, -0.1]))
    end_ns = 199 * step_ns
    buffer.add_planned(end_ns - 150_000_000, np.array([-0.2, 0.1]))  # and not followed
    np.testing.assert_allclose(buffer.applied(end_ns), np.tile([0.2, -0.1], (TICKS, 1)))
    buffer.forget_planned()
    np.testing.assert_allclose(buffer.applied(end_ns), np.tile([0.2, -0.1], (TICKS, 1)))
