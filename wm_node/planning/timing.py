"""How long plans take on this machine, and how that stands to the least they could take."""

from __future__ import annotations

import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Protocol

import numpy as np
import psutil

from wm_node.bundle import Bundle
from wm_node.engine.load import load_engine, read_golden
from wm_node.engine.roofline import (
    MachineRates,
    Work,
    graph_work,
    measure_gpu_rates,
    measure_rates,
)
from wm_node.planning.objective import Goal, Weights
from wm_node.planning.planner import MpcPlanner, PlannerConfig
from wm_node.planning.world_model import Context, WorldModel
from wm_node.profile import RobotProfile

WARM_UP = 5
"""Calls before those that are timed."""
TICK_NS = 100_000_000

Advance = Callable[[], None]


@dataclass(frozen=True)
class Timing:
    """Times of one kind of call, in ms, and its floor."""

    calls: int
    first_ms: float
    """Of the very first call after the graphs were prepared."""
    p50_ms: float
    p99_ms: float
    flop: int
    weights: int
    floor_ms: float
    over_floor: float
    """p50 over floor."""


def time_bundle(
    bundle: Bundle,
    backend: str,
    threads: int,
    presets: Mapping[str, PlannerConfig],
    plans: int,
    advance: Advance = lambda: None,
) -> dict[str, Any]:
    """Time encoding and whole plans of a bundle.

    Args:
        bundle: what plans.
        backend: of the engine, see :func:`wm_node.engine.load.load_engine`.
        threads: of inference, and of the product that the floor is measured with.
        presets: sizes of the searches by name.
        plans: timed calls of each.
        advance: called after each call.

    Returns:
        ``backend``, ``threads``, ``gemm_flop_s``, ``copy_bytes_s``, ``weight_bytes``, ``encode``
        and ``plans`` by preset, as :class:`Timing` has them, and ``resident_bytes`` of the process
        at the end.
    """
    model = WorldModel(bundle, load_engine(bundle, backend, threads))
    on_gpu = backend == "torch-cuda"
    rates = measure_gpu_rates() if on_gpu else measure_rates(threads, model.engine.precision)
    golden = read_golden(bundle)
    frames = _frames(bundle)
    result: dict[str, Any] = {
        "backend": model.engine.name,
        "threads": threads,
        **asdict(rates),
        "plans": {},
    }
    encode = _time(lambda call: model.encode(frames), plans, advance)
    shapes = {name: array.shape for name, array in golden["encode"]["in"].items()}
    result["encode"] = asdict(_timing(encode, rates, graph_work(bundle, "encode", shapes)))
    for name, config in presets.items():
        model.prepare((config.candidates,), (config.candidates, config.iterations))
        times = _time(_planning(model, config), plans, advance)
        timing = _timing(times, rates, plan_work(model, config))
        compiled = model.compiled_search(config.candidates, config.iterations) is not None
        result["plans"][name] = {
            "candidates": config.candidates,
            "iterations": config.iterations,
            "one_call": compiled,
            **asdict(timing),
        }
    result["resident_bytes"] = psutil.Process().memory_info().rss
    return result


def plan_work(model: WorldModel, config: PlannerConfig) -> Work:
    """Count what one plan does: its proposal, its search, and the winner's outcomes."""
    bundle, golden = model.bundle, read_golden(model.bundle)

    def work(graph: str, candidates: int | None = None) -> Work:
        shapes = {name: array.shape for name, array in golden[graph]["in"].items()}
        if candidates is not None:
            shapes["actions"] = (candidates, *shapes["actions"][1:])
        return graph_work(bundle, graph, shapes)

    parts = [work("propose")]
    compiled = model.compiled_search(config.candidates, config.iterations)
    if compiled is not None:
        parts.append(work(compiled.graph))
    else:
        parts += [work("rollout", config.candidates)] * config.iterations + [work("rollout", 1)]
    return Work(sum(part.flop for part in parts), sum(part.weights for part in parts))


CANDIDATES = (16, 64, 256, 1024, 4096)
HORIZONS = (4, 8, 16, 32)
IMAGE_SIDES = (32, 64, 96, 128)
ROBOTS = (1, 2, 4, 8)
TOKENS = (1, 4, 16)
SIZES = sum(map(len, (CANDIDATES, HORIZONS, IMAGE_SIDES, ROBOTS, TOKENS)))
GROWTH_CALLS = 30
GROWTH_CANDIDATES = 32


class Variant(Protocol):
    """Writes a bundle of the same network with random weights."""

    def __call__(self, profile: RobotProfile, path: Path, tokens: int | None = None) -> Bundle:
        """Write it for ``profile``; ``tokens``: so many in a latent, with a whole search."""


def time_growth(
    bundle: Bundle,
    backend: str,
    threads: int,
    variant: Variant,
    folder: Path,
    advance: Advance = lambda: None,
) -> dict[str, list[dict[str, float]]]:
    """Time how rollouts, encoding and plans grow with their sizes.

    Args:
        bundle: what plans.
        backend, threads: as :func:`time_bundle`.
        variant: writes the bundles to time; time does not depend on what a model has learnt.
        folder: for those bundles.
        advance: called after each of the ``SIZES``.

    Returns:
        Points ``{"size", "ms"}`` (p50) by axis: ``candidates`` of one rollout, ``horizon_steps`` of
        a rollout of 32, ``image_side`` of one frame's encoding, ``robots`` whose plans (64 x 3) one
        process makes in turn, and ``tokens`` of a frame, of a plan (64 x 3); the last is there for
        recurrent dynamics alone.
    """
    growth: dict[str, list[dict[str, float]]] = {}

    def note(axis: str, size: int, call: Callable[[int], object]) -> None:
        times = _time(call, GROWTH_CALLS, lambda: None)[1:]
        point = {"size": float(size), "ms": round(float(np.median(times)), 3)}
        growth.setdefault(axis, []).append(point)
        advance()

    def rollout(model: WorldModel, candidates: int) -> Callable[[int], object]:
        context = _context(model)
        shape = (candidates, model.profile.model.horizon_ticks, len(model.profile.action.names))
        actions = np.zeros(shape, np.float32)
        return lambda call: model.rollout(context, actions, lean=True)

    model = WorldModel(bundle, load_engine(bundle, backend, threads))
    for size in CANDIDATES:
        note("candidates", size, rollout(model, size))
    config = PlannerConfig()
    model.prepare((config.candidates,), (config.candidates, config.iterations))
    for size in ROBOTS:
        served = [_planning(model, config) for _ in range(size)]
        note("robots", size, lambda call, served=served: [plan(call) for plan in served])  # type: ignore[misc]
    profile = bundle.profile
    for size in HORIZONS:
        rates = profile.model.model_copy(update={"horizon_steps": size})
        other = variant(profile.model_copy(update={"model": rates}), folder / f"horizon_{size}")
        longer = WorldModel(other, load_engine(other, backend, threads))
        note("horizon_steps", size, rollout(longer, GROWTH_CANDIDATES))
    for size in IMAGE_SIDES:
        sides = {"model_width": size, "model_height": size}
        cameras = tuple(camera.model_copy(update=sides) for camera in profile.cameras)
        other = variant(profile.model_copy(update={"cameras": cameras}), folder / f"image_{size}")
        larger, frames = WorldModel(other, load_engine(other, backend, threads)), _frames(other)
        note("image_side", size, lambda call, m=larger, f=frames: m.encode(f))  # type: ignore[misc]
    for size in TOKENS if bundle.model.transition_blocks else ():
        other = variant(profile, folder / f"tokens_{size}", size)
        richer = WorldModel(other, load_engine(other, backend, threads))
        richer.prepare((config.candidates,), (config.candidates, config.iterations))
        note("tokens", size, _planning(richer, config))
    return growth


def _context(model: WorldModel) -> Context:
    """Return the prompt of the golden arrays: of the right sizes and inside the data's range."""
    prompt = read_golden(model.bundle)["rollout"]["in"]
    return Context(0, prompt["latents"][0], prompt["joints"][0], prompt["past_actions"][0])


def _planning(model: WorldModel, config: PlannerConfig) -> Callable[[int], object]:
    """Return a call that plans as the node does, each time a tick later."""
    planner = MpcPlanner(model.profile, config)
    context = _context(model)
    size = planner.objective.goal_size
    goal = Goal(state=np.zeros(size, np.float32)) if planner.objective.has_goal else Goal()
    # What the profile weighs, but for the learned distance: that is for goal pictures.
    weights = replace(Weights.of(model.profile), value=0.0)
    committed = context.actions[-1]

    def plan(call: int) -> object:
        now = replace(context, stamp_ns=call * TICK_NS)
        proposal = model.propose_for(now, goal)
        return planner.plan(model, now, goal, committed, 0.1, weights, proposal)

    return plan


def _frames(bundle: Bundle) -> dict[str, np.ndarray]:
    stacked = read_golden(bundle)["encode"]["in"]["frames"][0]
    cameras = bundle.profile.cameras
    return {camera.name: frame for camera, frame in zip(cameras, stacked, strict=True)}


def _time(call: Callable[[int], object], times: int, advance: Advance) -> list[float]:
    """Milliseconds of each call: the first ever, then ``times`` after a few to warm up."""
    taken = []
    for number in range(1 + WARM_UP + times):
        began = time.perf_counter()
        call(number)
        taken.append(1e3 * (time.perf_counter() - began))
        advance()
    return [taken[0], *taken[1 + WARM_UP :]]


def _timing(times: list[float], rates: MachineRates, work: Work) -> Timing:
    first, later = times[0], np.asarray(times[1:])
    floor = 1e3 * rates.floor_s(work)
    p50, p99 = np.percentile(later, (50, 99))
    return Timing(
        calls=len(later),
        first_ms=round(first, 3),
        p50_ms=round(float(p50), 3),
        p99_ms=round(float(p99), 3),
        flop=work.flop,
        weights=work.weights,
        floor_ms=round(floor, 4),
        over_floor=round(float(p50) / floor, 2),
    )
