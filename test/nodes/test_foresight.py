"""The world model at work on arrays: ticks in, observations, surprise, outcomes, pictures out."""

from __future__ import annotations

import threading
import time
from collections.abc import Callable, Iterator
from dataclasses import replace
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest

from wm_node.bundle import Bundle, load_bundle
from wm_node.engine import load_engine
from wm_node.errors import WmError
from wm_node.model.export import export_again
from wm_node.nodes import foresight as subject
from wm_node.nodes.foresight import (
    Cycle,
    Foresight,
    Listeners,
    Observation,
    Tick,
    channels,
    check_match,
    model_frame,
)
from wm_node.planning.context import NotReady
from wm_node.planning.world_model import Context, Futures, Goal, WorldModel
from wm_node.profile import RobotProfile, load_profile, parse_profile
from wm_node.resources import resource
from wm_node.safety.familiarity import FILE, fit_density, save_densities

RATES = load_profile("tabletop").model
FULL = (RATES.context_steps - 1) * RATES.ticks_per_step  # ticks before the first full context
MS = 1_000_000
START = 1_700_000_000_000 * MS


def image(value: int = 0, width: int = 64, height: int = 48, encoding: str = "rgb8") -> Any:
    row = (np.arange(3 * width) + value) % 256
    return SimpleNamespace(
        width=width,
        height=height,
        encoding=encoding,
        is_bigendian=0,
        step=3 * width,
        data=np.tile(row, height).astype(np.uint8).tobytes(),
    )


class World:
    """A foresight on a real model, and everything that it tells."""

    def __init__(self, bundle: Bundle) -> None:
        self.news = threading.Condition()
        self.outcomes: list[Any] = []
        self.pictures: list[Any] = []
        self.refused: list[tuple[str, str]] = []
        self.seen: list[Observation] = []
        self.failed: list[Exception] = []
        self.foresight = Foresight(
            bundle,
            WorldModel(bundle, load_engine(bundle, "openvino", 1)),
            Listeners(
                outcomes=lambda *given: self._note(self.outcomes, given),
                picture=lambda *given: self._note(self.pictures, given),
                refused=lambda *given: self._note(self.refused, given),
            ),
        )
        self.foresight.cycle = Cycle(
            run=self._run,
            failed=lambda tick, error: self._note(self.failed, error),
            cost=lambda outcomes, actions: None,
        )
        self.draw = False
        self.foresight.worker.start()
        self.foresight.prepare((subject.CHUNK,))

    def _run(self, observation: Observation) -> None:
        if self.draw and isinstance(observation.context, Context):
            actions = np.zeros((1, 16, 2), np.float32)
            outcomes = self.foresight.model.rollout(observation.context, actions)
            self.foresight.share(observation, subject.take(outcomes, 1), None)
        self._note(self.seen, observation)

    def _note(self, where: list[Any], what: Any) -> None:
        with self.news:
            where.append(what)
            self.news.notify_all()

    def await_(self, where: list[Any], count: int) -> Any:
        with self.news:
            assert self.news.wait_for(lambda: len(where) >= count, 20), f"{len(where)} of {count}"
            return where[-1]

    def tick_until_drawn(self, k: int) -> int:
        """Feed frames from the k-th on until a picture is drawn; return the last one's number.

        On a busy machine a tick's time may be over before anything is decoded.
        """
        for last in range(k, k + 20):
            self.tick(last)
            with self.news:
                if self.news.wait_for(lambda: bool(self.pictures), 0.5):
                    return last
        raise AssertionError("20 ticks, and nothing was drawn")

    def tick(self, k: int, age_s: float = 0.0) -> Observation:
        """Feed joints and the k-th frame of a 10 Hz run; return its observation."""
        for step in range(10):
            self.foresight.buffer.add_joints(
                START + k * 100 * MS + step * 10 * MS - 90 * MS, np.full(4, 0.1)
            )
        before = len(self.seen)
        stamp = START + k * 100 * MS
        received = time.monotonic_ns() - round(age_s * 1e9)
        self.foresight.submit_tick(Tick(stamp, received, {"front": image(k)}))
        observation: Observation = self.await_(self.seen, before + 1)
        return observation


@pytest.fixture
def world(random_bundle: Bundle) -> Iterator[World]:
    made = World(random_bundle)
    yield made
    assert made.foresight.worker.stop()


def test_the_context_fills_and_then_surprise_is_known(world: World):
    seen = [world.tick(k) for k in range(FULL + 4)]
    ready = [not isinstance(o.context, NotReady) for o in seen]
    assert ready == [False] * FULL + [True] * 4
    known = [bool(np.isfinite(o.surprise)) for o in seen]
    assert known == [False] * (FULL + 2) + [True] * 2  # a surprise needs one step more
    assert seen[-1].surprise > 0
    assert seen[-1].frames["front"].shape == (64, 64, 3)


def test_surprise_is_small_when_what_was_predicted_comes_true(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    for k in range(FULL + 2):
        world.tick(k)
    usual = world.tick(FULL + 2).surprise
    context = world.foresight.buffer.context(START + (FULL + 1) * 100 * MS)
    assert isinstance(context, Context)
    actions = np.zeros((1, 16, 2), np.float32)
    predicted = world.foresight.model.rollout(context, actions).latents[0, 0].copy()
    monkeypatch.setattr(world.foresight.model, "encode", lambda frames: predicted)
    assert world.tick(FULL + 3).surprise < 1e-3 * usual


def test_reset_empties_the_context(world: World):
    for k in range(FULL + 1):
        observation = world.tick(k)
    assert isinstance(observation.context, Context)
    world.foresight.reset()
    assert isinstance(world.tick(FULL + 1).context, NotReady)


def test_only_the_newest_of_waiting_ticks_runs_a_cycle_but_all_fill_the_context(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    for k in range(3):
        world.tick(k)
    gate, entered = threading.Event(), threading.Event()
    encode = world.foresight.model.encode

    def slow(frames: Any) -> Any:
        entered.set()
        assert gate.wait(10)
        return encode(frames)

    monkeypatch.setattr(world.foresight.model, "encode", slow)
    before = len(world.seen)
    for k in (3, 4, 5):
        tick = Tick(START + k * 100 * MS, time.monotonic_ns(), {"front": image(k)})
        world.foresight.submit_tick(tick)
        assert entered.wait(10)
    gate.set()
    observation = world.await_(world.seen, before + 1)
    assert observation.tick.stamp_ns == START + 500 * MS
    assert len(world.seen) == before + 1
    assert world.foresight.buffer.history_s() == pytest.approx(0.5)


def test_a_frame_that_cannot_be_used_is_told_and_the_next_one_is_used(world: World):
    tick = Tick(START, 0, {"front": image(encoding="16UC1")})
    world.foresight.submit_tick(tick)
    error = world.await_(world.failed, 1)
    assert isinstance(error, WmError)
    text, count = world.refused[0]
    assert "16UC1" in text
    assert count == "frames_refused"
    world.tick(1)


def test_a_frame_of_another_aspect_ratio_is_refused():
    camera = load_profile("tabletop").cameras[0]
    assert model_frame(image(width=640, height=480), camera).shape == (64, 64, 3)
    with pytest.raises(WmError, match="sends 640x360, the profile says 320x240"):
        model_frame(image(width=640, height=360), camera)


def test_candidates_are_rolled_out_in_chunks_and_come_back_whole(world: World):
    for k in range(FULL + 1):
        world.tick(k)
    rng = np.random.default_rng(0)
    actions = rng.uniform(-0.2, 0.2, (2 * subject.CHUNK + 5, 16, 2)).astype(np.float32)
    stamp = START + FULL * 100 * MS
    world.foresight.submit_candidates(stamp, actions)
    got_stamp, outcomes, _ = world.await_(world.outcomes, 1)
    assert got_stamp == stamp
    context = world.foresight.buffer.context(stamp)
    assert isinstance(context, Context)
    for index in (0, subject.CHUNK, len(actions) - 1):
        alone = world.foresight.model.rollout(context, actions[index : index + 1])
        assert outcomes.state[index] == pytest.approx(alone.state[0], rel=0.05, abs=0.02)
    named = channels(world.foresight.profile, outcomes, np.arange(len(actions), dtype=float))
    assert list(named) == [
        *("mug_x", "mug_y", "tip_x", "tip_y", "risk_fell", "risk_zone", "uncertainty", "cost")
    ]
    assert named["cost"][7].tolist() == [7.0] * 8


def test_candidates_without_a_context_or_of_a_wrong_shape_are_refused(world: World):
    world.foresight.submit_candidates(START, np.zeros((1, 16, 2), np.float32))
    text, count = world.await_(world.refused, 1)
    assert "lacks frames" in text
    assert count == "candidates_refused"
    with pytest.raises(WmError, match=r"shape \(1, 3, 2\) are refused; give \(candidates, 16"):
        world.foresight.submit_candidates(START, np.zeros((1, 3, 2), np.float32))
    with pytest.raises(WmError, match="NaN"):
        world.foresight.submit_candidates(START, np.full((1, 16, 2), np.nan, np.float32))


def test_a_goal_picture_becomes_a_goal(world: World):
    goals: list[Any] = []
    world.foresight.submit_goal(image(9), lambda goal: world._note(goals, goal))
    goal = world.await_(goals, 1)
    assert goal.latent.shape == (world.foresight.model.latent_size,)
    assert goal.state.shape == (2,)
    world.foresight.submit_goal(image(encoding="16UC1"), lambda goal: world._note(goals, goal))
    assert world.await_(goals, 2) is None
    assert world.refused[0][0].startswith("the goal picture is refused")


@pytest.mark.parametrize("fault", ["NaN", "raises"])
def test_a_goal_picture_that_the_model_cannot_read_is_refused(
    world: World, monkeypatch: pytest.MonkeyPatch, fault: str
):
    def broken(frames: Any) -> Goal:
        if fault == "raises":
            raise RuntimeError("device lost")
        return Goal(latent=np.full(4, np.nan, np.float32))

    monkeypatch.setattr(world.foresight.model, "picture_goal", broken)
    goals: list[Any] = []
    world.foresight.submit_goal(image(9), lambda goal: world._note(goals, goal))
    assert world.await_(goals, 1) is None
    assert ("NaN" if fault == "NaN" else "device lost") in world.await_(world.refused, 1)[0]


def test_nothing_is_drawn_while_nobody_looks_and_drawing_yields_to_frames(
    world: World, monkeypatch: pytest.MonkeyPatch
):
    world.draw = True
    decoded: list[int] = []
    decode = world.foresight.model.decode

    def counted(latents: Any, *rest: Any) -> Any:
        decoded.append(len(latents))
        return decode(latents, *rest)

    monkeypatch.setattr(world.foresight.model, "decode", counted)
    for k in range(5):
        world.tick(k)
    assert decoded == []
    world.foresight.imagination_period_s = 1e-3
    last = world.tick_until_drawn(5)
    stamp, picture = world.await_(world.pictures, 1)
    assert stamp == START + 500 * MS  # of the plan, however many ticks it took to draw
    assert picture.shape == (3 * 64, 9 * 64, 3)
    assert decoded == [1] * 8  # one by one, so that a frame never waits for more than one
    # No slack: this tick was received long ago, so the next one is due.
    slot = world.foresight._plans
    taken, count = slot.taken, len(decoded)
    world.foresight._decode_s = 0.01
    world.tick(last + 1, age_s=1.0)
    deadline = time.monotonic() + 10
    while slot.taken == taken:
        assert time.monotonic() < deadline
        time.sleep(0.005)
    world.draw = False
    world.tick(last + 2)
    assert len(decoded) == count


def test_the_strangest_frame_of_a_tick_is_told(random_bundle: Bundle, tmp_path: Path):
    rng = np.random.default_rng(0)
    usual = rng.normal(120, 20, (40, 64, 64, 3)).clip(0, 255).astype(np.uint8)
    density = fit_density(usual[:30], usual[30:])
    bundle = export_again(
        random_bundle,
        tmp_path / "b",
        {FILE: lambda file: save_densities({"front": density}, file)},
    )
    world = World(bundle)
    try:
        for k in range(FULL + 1):
            seen = world.tick(k)
        expected = density.strangeness(seen.frames["front"])
        assert seen.strangeness == (pytest.approx(expected, rel=1e-3), "front")
        assert seen.strangeness[0] > 1.0
        assert world.foresight.strangeness == seen.strangeness
    finally:
        assert world.foresight.worker.stop()


def test_futures_are_drawn_below_the_plan(world: World, monkeypatch: pytest.MonkeyPatch):
    def share(observation: Observation) -> None:
        if isinstance(observation.context, Context):
            actions = np.zeros((2, 16, 2), np.float32)
            both = subject.take(world.foresight.model.rollout(observation.context, actions), 2)
            futures = Futures(both, np.array([0.6, 0.4], np.float32))
            world.foresight.share(observation, both.pick(0), None, futures)
        world._note(world.seen, observation)

    assert world.foresight.cycle is not None
    monkeypatch.setattr(world.foresight, "cycle", replace(world.foresight.cycle, run=share))
    world.foresight.imagination_period_s = 1e-3
    world.tick_until_drawn(0)
    _, picture = world.await_(world.pictures, 1)
    assert picture.shape == (5 * 64, 9 * 64, 3)
    assert picture[3 * 64, : round(0.6 * 64)].min() == 255


def test_a_hung_engine_does_not_hold_the_caller(world: World, monkeypatch: pytest.MonkeyPatch):
    release = threading.Event()
    monkeypatch.setattr(world.foresight.model, "encode", lambda frames: release.wait(10))
    start = time.monotonic()
    for k in range(20):
        world.foresight.submit_tick(Tick(START + k, 0, {"front": image()}))
    assert time.monotonic() - start < 5
    assert world.foresight.dropped_ticks >= 15
    world.foresight.worker.clear()
    release.set()


@pytest.mark.parametrize(
    ("path", "value", "what"),
    [
        (("joints", "names"), ["base_yaw", "shoulder", "elbow", "hand"], "joint names"),
        (("action", "names"), ["vx", "vy"], "action names"),
        (("model", "horizon_steps"), 9, "model rates"),
    ],
)
def test_a_profile_of_another_robot_does_not_match(path: tuple[str, str], value: Any, what: str):
    trained = load_profile("tabletop")
    data = trained.dump()
    data[path[0]][path[1]] = value
    with pytest.raises(WmError, match=f"its {what} are "):
        check_match(trained, parse_profile(data, "test"))


def test_topics_and_limits_may_differ_from_the_bundle():
    trained = load_profile("tabletop")
    data = trained.dump()
    data["cameras"][0]["topic"] = "other/image"
    data["safety"]["max_frame_age_s"] = 0.5
    check_match(trained, parse_profile(data, "test"))


def test_two_cameras_are_encoded_together_and_a_silent_one_is_masked(
    tmp_path: Path, random_bundle_of: Callable[[RobotProfile, Path], Bundle]
):
    data = load_profile("tabletop").dump()
    front = data["cameras"][0]
    data["cameras"] = [front, {**front, "name": "hand", "topic": "hand/image"}]
    profile = parse_profile(data, "test")
    made = World(random_bundle_of(profile, tmp_path / "two"))
    try:
        latents = []
        for k, names in enumerate([("front", "hand"), ("front",), ("front", "hand")]):
            messages = {name: image(10 if name == "hand" else 0) for name in names}
            made.foresight.submit_tick(Tick(START + k * 100 * MS, time.monotonic_ns(), messages))
            latents.append(made.await_(made.seen, k + 1).latent)
            assert set(made.seen[-1].frames) == set(names)
        assert latents[0] == pytest.approx(latents[2])
        assert np.abs(latents[0] - latents[1]).max() > 1e-3
    finally:
        assert made.foresight.worker.stop()


def test_the_shipped_bundle_is_of_the_shipped_profile() -> None:
    """Launch files and ``wm doctor`` use the two together."""
    shipped = load_bundle(resource("bundles/tabletop"))
    check_match(shipped.profile, load_profile(shipped.profile.name))
