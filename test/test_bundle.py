"""Bundles from disk: whatever their manifest says, they load, or one sentence says why not."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from wm_node.bundle import MANIFEST, Bundle, load_bundle
from wm_node.engine import load_engine
from wm_node.engine.protocol import Engine
from wm_node.errors import WmError
from wm_node.model.load import load_network
from wm_node.planning.world_model import WorldModel
from wm_node.profile import load_profile

CALIBRATION = {
    "surprise_scale": [0.1 + 0.01 * step for step in range(8)],
    "uncertainty_scale": 0.16,
    "label_mean": [0.0] * 4,
    "label_std": [0.1] * 4,
    "events_trained": ["fell", "zone"],
    "windows": 100,
}


@pytest.fixture(scope="module")
def bundle(
    random_bundle_of: Callable[..., Bundle], tmp_path_factory: pytest.TempPathFactory
) -> Bundle:
    made = random_bundle_of(load_profile("tabletop"), tmp_path_factory.mktemp("bundle") / "good")
    manifest = made.manifest | {"calibration": CALIBRATION}
    (made.path / MANIFEST).write_text(yaml.safe_dump(manifest), encoding="utf-8")
    return load_bundle(made.path)


@pytest.fixture(scope="module")
def engine(bundle: Bundle) -> Engine:
    return load_engine(bundle, "torch")


@pytest.fixture(scope="module")
def folder(bundle: Bundle, tmp_path_factory: pytest.TempPathFactory) -> Path:
    path = tmp_path_factory.mktemp("spoiled") / "bundle"
    shutil.copytree(bundle.path, path)
    return path


@given(st.data())
def test_any_manifest_is_accepted_or_refused_in_one_sentence(
    bundle: Bundle,
    engine: Engine,
    folder: Path,
    mutate: Callable[[st.DataObject, Any], None],
    data: st.DataObject,
) -> None:
    manifest = copy.deepcopy(bundle.manifest)
    branch = data.draw(st.sampled_from(["model", "graphs", "calibration", "files", None]))
    mutate(data, manifest[branch] if branch else manifest)
    (folder / MANIFEST).write_text(yaml.safe_dump(manifest), encoding="utf-8")
    said = ""
    try:
        spoiled = load_bundle(folder)
        load_network(spoiled)
        WorldModel(spoiled, engine)
    except WmError as error:
        said = str(error)
    assert "\n" not in said
