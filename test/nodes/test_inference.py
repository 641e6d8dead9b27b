"""The worker thread, its mailboxes, and the choice of frames that start a cycle."""

from __future__ import annotations

import threading

import numpy as np
import pytest

from wm_node.nodes.inference import InferenceWorker, Samples, TickSelector


def _fail(name: str, error: Exception) -> None:
    raise AssertionError(f"{name}: {error}")


def test_a_slot_keeps_only_the_newest_item_and_counts_what_it_dropped():
    done: list[int] = []
    release, finished = threading.Event(), threading.Event()

    def handle(item: int) -> None:
        release.wait(5)
        done.append(item)
        if item == 3:
            finished.set()

    worker = InferenceWorker(_fail)
    slot = worker.slot("work", handle)
    for item in range(4):
        worker.put(slot, item)
    worker.start()
    release.set()
    assert finished.wait(5)
    assert worker.stop()
    assert done == [3]
    assert (slot.dropped, slot.taken) == (3, 1)


def test_earlier_slots_go_first():
    order: list[str] = []
    finished = threading.Event()
    worker = InferenceWorker(_fail)
    first = worker.slot("first", lambda item: order.append(f"first {item}"), depth=4)
    second = worker.slot("second", lambda item: (order.append("second"), finished.set()))
    worker.put(second, 0)
    for item in range(3):
        assert worker.put(first, item)
    worker.start()
    assert finished.wait(5)
    assert worker.stop()
    assert order == ["first 0", "first 1", "first 2", "second"]


def test_an_error_is_reported_and_the_thread_goes_on():
    failures: list[str] = []
    finished = threading.Event()

    def handle(item: int) -> None:
        if item == 0:
            raise ValueError("bad frame")
        finished.set()

    worker = InferenceWorker(lambda name, error: failures.append(f"{name}: {error}"))
    slot = worker.slot("encode", handle, depth=2)
    worker.put(slot, 0)
    worker.put(slot, 1)
    worker.start()
    assert finished.wait(5)
    assert worker.stop()
    assert failures == ["encode: bad frame"]
    assert slot.failures == 1


def test_stop_drops_what_waits_and_says_when_the_item_in_work_does_not_end():
    entered, release = threading.Event(), threading.Event()
    worker = InferenceWorker(_fail)

    def handle(item: int) -> None:
        entered.set()
        release.wait(10)

    slot = worker.slot("hung", handle, depth=5)
    worker.put(slot, 0)
    worker.put(slot, 1)
    worker.start()
    assert entered.wait(5)
    assert not worker.stop(timeout_s=0.05)
    release.set()
    assert worker.stop()
    assert slot.taken == 1


def test_percentiles_cover_the_newest_samples_only():
    samples = Samples(capacity=10)
    assert np.isnan(samples.percentile(50))
    for value in range(100):
        samples.add(float(value))
    assert samples.count == 100
    assert samples.percentile(0) == 90
    assert samples.percentile(50) == pytest.approx(94.5)


@pytest.mark.parametrize("rate", [10.0, 15.0, 19.5, 20.0, 20.4, 24.0, 30.0, 60.0])
@pytest.mark.parametrize("jitter", [0.0, 0.1])
def test_frames_are_picked_at_the_tick_rate_whatever_the_camera_rate(rate: float, jitter: float):
    rng = np.random.default_rng(7)
    count = int(20 * rate)
    stamps = np.arange(count) / rate + jitter / rate * rng.uniform(-1, 1, count)
    selector = TickSelector(tick_s=0.1, frame_s=1 / rate)
    picked = np.array([t for t in stamps if selector.pick(int(t * 1e9) + 10**18)])
    steps = np.diff(picked)
    assert len(picked) == pytest.approx(200, rel=0.05)
    # Context two ticks back is always at hand within a quarter of a 0.2 s step.
    back = np.abs(picked[2:] - picked[:-2] - 0.2)
    assert back.max() <= 0.05
    assert steps.max() < 0.2


def test_a_gap_or_a_clock_that_jumps_back_starts_a_new_grid():
    selector = TickSelector(tick_s=0.1, frame_s=0.05)
    assert selector.pick(10**9)
    assert not selector.pick(10**9 + 50_000_000)
    assert selector.pick(10**9 + 730_000_000)
    assert not selector.pick(10**9 + 780_000_000)
    assert selector.pick(5)
