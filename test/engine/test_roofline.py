"""The floor counts what a graph has to do."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import pytest

from wm_node.bundle import Bundle
from wm_node.engine.load import read_golden
from wm_node.engine.roofline import MachineRates, Work, graph_work
from wm_node.profile import RobotProfile, load_profile


@pytest.fixture(scope="module")
def bundle(
    random_bundle_of: Callable[[RobotProfile, Path], Bundle],
    tmp_path_factory: pytest.TempPathFactory,
) -> Bundle:
    return random_bundle_of(load_profile("tabletop"), tmp_path_factory.mktemp("b") / "small")


def test_the_encoder_is_counted_as_its_layers_say(bundle: Bundle) -> None:
    shapes = {k: v.shape for k, v in read_golden(bundle)["encode"]["in"].items()}
    work = graph_work(bundle, "encode", shapes)
    # 64 x 64 pixels, 4 x 4 of them a position: 48 -> 8 -> 8 -> 8 channels, then 128 -> 32 -> 32.
    products = 16 * 16 * 48 * 8 + 8 * 8 * 8 * 8 * 16 + 4 * 4 * 8 * 8 * 16 + 128 * 32 + 32 * 32
    assert work.flop == 2 * products


def test_work_grows_with_the_candidates(bundle: Bundle) -> None:
    shapes = {k: v.shape for k, v in read_golden(bundle)["search"]["in"].items()}
    few, many = (
        graph_work(bundle, "search", {**shapes, "actions": (count, *shapes["actions"][1:])})
        for count in (8, 64)
    )
    # What the candidates share, the context, is done once.
    assert 4 * few.flop < many.flop < 8 * few.flop


def test_the_floor_is_the_longer_of_products_and_bytes() -> None:
    rates = MachineRates(gemm_flop_s=1e9, copy_bytes_s=1e9)
    assert rates.floor_s(Work(flop=2_000_000, weights=250_000)) == 2e-3
    assert rates.floor_s(Work(flop=1_000_000, weights=750_000)) == 3e-3
