"""Bundle and engines: every backend reproduces the reference, damaged bundles are refused."""

from __future__ import annotations

import shutil
from collections import Counter
from pathlib import Path
from typing import Any

import numpy as np
import openvino
import pytest
import yaml
from safetensors.torch import load_file

from wm_node.bundle import NARROW, WEIGHTS, Bundle, load_bundle
from wm_node.engine import load_engine
from wm_node.engine.load import check_golden, read_golden
from wm_node.engine.openvino_backend import type_products_as_bf16, weight_of
from wm_node.errors import WmError
from wm_node.model.config import ModelConfig
from wm_node.model.export import untrained_bundle
from wm_node.planning.world_model import Context, WorldModel
from wm_node.profile import load_profile

BUNDLES = Path(__file__).resolve().parents[2] / "bundles"


@pytest.fixture(scope="module")
def bundle(tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    return untrained_bundle(load_profile("tabletop"), tmp_path_factory.mktemp("bundle") / "b")


@pytest.fixture
def copy(bundle: Bundle, tmp_path: Path) -> Path:
    return Path(shutil.copytree(bundle.path, tmp_path / "copy"))


@pytest.mark.parametrize("backend", ["openvino", "torch"])
def test_backend_reproduces_the_golden_arrays(bundle: Bundle, backend: str) -> None:
    engine = load_engine(bundle, backend)
    assert check_golden(bundle, engine, list(bundle.graphs), 1.0) < 0.08
    assert engine.name.startswith(backend)


@pytest.mark.parametrize("tokens", [1, 4])
def test_recurrent_dynamics_are_reproduced_in_bf16(tmp_path: Path, tokens: int) -> None:
    config = ModelConfig(transition_blocks=2, tokens=tokens)
    profile = load_profile("tabletop")
    bundle = untrained_bundle(profile, tmp_path / "b", config=config, spread=0.1, searches={})
    # Random weights magnify rounding more than trained ones do.
    assert check_golden(bundle, load_engine(bundle, "openvino"), list(bundle.graphs), 1.0) < 0.2


def test_backends_agree_on_a_population_of_another_size(bundle: Bundle) -> None:
    inputs = dict(read_golden(bundle)["rollout"]["in"])
    random = np.random.default_rng(0)
    inputs["actions"] = random.normal(0, 0.1, (37, 16, 2)).astype(np.float32)
    first = load_engine(bundle, "openvino").run("rollout", inputs)
    second = load_engine(bundle, "torch").run("rollout", inputs)
    for name, expected in second.items():
        assert np.abs(first[name] - expected).max() <= 0.08 * expected.std() + 1e-3, name


def _is_narrow(op: Any) -> bool:
    return bool(op.get_output_size()) and op.get_output_element_type(0).to_string() == "bf16"


@pytest.mark.parametrize("blocks", [0, 2], ids=["transformer", "recurrent"])
def test_products_of_the_dynamics_alone_are_typed_as_bf16(tmp_path: Path, blocks: int) -> None:
    config = ModelConfig(transition_blocks=blocks)
    bundle = untrained_bundle(
        load_profile("tabletop"), tmp_path / "b", config=config, spread=0.2, searches={}
    )
    model = openvino.Core().read_model(bundle.file("rollout.onnx"))
    model.reshape(
        {name: array.shape for name, array in read_golden(bundle)["rollout"]["in"].items()}
    )
    products = [op for op in model.get_ordered_ops() if op.get_type_name() == "MatMul"]
    assert 20 < type_products_as_bf16(model) < len(products)
    kinds: dict[str, set[str]] = {"bf16": set(), "f32": set()}
    for op in model.get_ordered_ops():
        if op.get_type_name() == "MatMul":
            weight = weight_of(op)
            name = weight.get_friendly_name() if weight else ""
            kinds[op.get_output_element_type(0).to_string()].add(name)
    assert kinds["bf16"]
    assert all(name.startswith(("net.dynamics.", "net.heads.")) for name in kinds["bf16"])
    assert any("joint_baseline" in name for name in kinds["f32"])
    assert not kinds["bf16"] & kinds["f32"]
    # What directly follows is computed with the product: biases, SiLU, ReLU.
    narrow = [op for op in model.get_ordered_ops() if _is_narrow(op)]
    following = Counter(op.get_type_name() for op in narrow)
    assert following["Add"] > 20
    assert following["Sigmoid"] == following["Multiply"] > 0
    assert following["Relu"] == 2  # of the ensemble and of its priors
    # And goes back to f32 before anything else reads it.
    for op in narrow:
        readers = {reader.get_node().get_type_name() for reader in op.output(0).get_target_inputs()}
        assert readers <= {"Add", "Sigmoid", "Multiply", "Relu", "MatMul", "Convert"}


@pytest.mark.parametrize("blocks", [0, 2], ids=["transformer", "recurrent"])
def test_weights_of_narrow_products_are_the_same_in_every_precision(
    tmp_path: Path, blocks: int
) -> None:
    config = ModelConfig(transition_blocks=blocks)
    bundle = untrained_bundle(
        load_profile("tabletop"), tmp_path / "b", config=config, spread=0.2, searches={}
    )
    exact = {
        name: bool((tensor.bfloat16().float() == tensor.float()).all())
        for name, tensor in load_file(str(bundle.file(WEIGHTS))).items()
        if tensor.ndim >= 2 and tensor.numel() >= 1024
    }
    narrow = {name for name in exact if name.startswith(NARROW)}
    assert {exact[name] for name in narrow} == {blocks > 0}
    assert not all(exact[name] for name in exact.keys() - narrow)


@pytest.mark.parametrize("name", ["tabletop", "tabletop_hazards", "tabletop_label_free"])
def test_the_shipped_bundles_joints_are_not_rounded(name: str) -> None:
    bundle = load_bundle(BUNDLES / name)
    golden = read_golden(bundle)["rollout"]
    outputs = load_engine(bundle, "openvino").run("rollout", golden["in"])
    expected = golden["out"]["future_joints"]
    error = np.abs(outputs["future_joints"] - expected).max()
    assert error <= 5e-3 * expected.std()  # bf16 throughout: 0.04 and more


def test_risks_are_compared_by_their_odds(bundle: Bundle) -> None:
    engine = load_engine(bundle, "torch")

    class Off:
        name = "off"

        def __init__(self, change: float) -> None:
            self.change = change

        def prepare(self, graph: str, inputs: object) -> None: ...

        def run(self, graph: str, inputs: dict) -> dict:  # type: ignore[type-arg]
            outputs = engine.run(graph, inputs)
            return outputs | {"risk": outputs["risk"] * self.change}

    check_golden(bundle, Off(1.0), ["rollout"], 0.1)
    for change in (0.0, 0.3, 1.9, np.nan):
        with pytest.raises(WmError, match="'risk' of graph 'rollout'"):
            check_golden(bundle, Off(change), ["rollout"], 0.1)


def test_a_backend_that_is_off_is_refused(bundle: Bundle) -> None:
    engine = load_engine(bundle, "torch")

    class Off:
        name = "off"

        def prepare(self, graph: str, inputs: object) -> None: ...

        def run(self, graph: str, inputs: dict) -> dict:  # type: ignore[type-arg]
            return {name: value * 1.5 + 1.0 for name, value in engine.run(graph, inputs).items()}

    with pytest.raises(WmError, match="does not reproduce"):
        check_golden(bundle, Off(), ["rollout"], 0.1)


def test_unknown_backend(bundle: Bundle) -> None:
    with pytest.raises(WmError, match="choose one of openvino, torch"):
        load_engine(bundle, "abacus")


def test_missing_bundle(tmp_path: Path) -> None:
    with pytest.raises(WmError, match="there is no bundle"):
        load_bundle(tmp_path)


@pytest.mark.parametrize("name", ["weights.safetensors", "rollout.onnx", "golden.npz"])
def test_a_flipped_byte_is_noticed(copy: Path, name: str) -> None:
    content = bytearray((copy / name).read_bytes())
    content[len(content) // 2] ^= 0xFF
    (copy / name).write_bytes(content)
    with pytest.raises(WmError, match=rf"{name} fails its sha256"):
        load_bundle(copy)


def test_a_missing_or_short_file_is_noticed(copy: Path) -> None:
    weights = copy / "weights.safetensors"
    weights.write_bytes(weights.read_bytes()[:-1])
    with pytest.raises(WmError, match="bytes instead of"):
        load_bundle(copy)
    weights.unlink()
    with pytest.raises(WmError, match="is missing"):
        load_bundle(copy)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"format": 99}, "has format 99"),
        ({"files": {}}, "lists no weights"),
        ({"files": {"../../etc/passwd": {}, "weights.safetensors": {}, "golden.npz": {}}}, "bad"),
        ({"profile": {"format": 1}}, "not a valid robot profile"),
        ({"graphs": [1]}, "lists no graphs"),
        ({"graphs": {}}, "lacks the graphs"),
    ],
)
def test_a_wrong_manifest_is_one_sentence(copy: Path, change: dict, message: str) -> None:  # type: ignore[type-arg]
    manifest = yaml.safe_load((copy / "manifest.yaml").read_text())
    (copy / "manifest.yaml").write_text(yaml.safe_dump({**manifest, **change}))
    with pytest.raises(WmError, match=message):
        load_bundle(copy)


def test_a_manifest_with_code_is_not_run(copy: Path, tmp_path: Path) -> None:
    mark = tmp_path / "ran"
    (copy / "manifest.yaml").write_text(f"!!python/object/apply:os.mkdir ['{mark}']")
    with pytest.raises(WmError, match="not YAML"):
        load_bundle(copy)
    assert not mark.exists()


def test_the_shipped_size_is_within_its_bound(bundle: Bundle) -> None:
    assert sum(file.stat().st_size for file in bundle.path.iterdir()) < 15_000_000


def test_typed_calls(bundle: Bundle) -> None:
    model = WorldModel(bundle, load_engine(bundle, "openvino"))
    frame = np.zeros((64, 64, 3), np.uint8)
    latent = model.encode({"front": frame})
    steps = bundle.profile.model.context_steps
    context = Context(
        0,
        np.repeat(latent[None], steps, 0),
        np.zeros((steps, 4), np.float32),
        np.zeros((steps, 2, 2), np.float32),
    )
    outcomes = model.rollout(context, np.zeros((3, 16, 2), np.float32))
    assert outcomes.state.shape == (3, 8, 4)
    assert model.futures(context, np.zeros((1, 16, 2), np.float32)) is None  # it has none
    assert np.isnan(outcomes.time_to_goal).all()
    drawn = model.decode(
        outcomes.latents[0], outcomes.joints[0], latent, context.joints[-1], {"front": frame}
    )
    assert drawn.shape == (8, 1, 64, 64, 3)
    with pytest.raises(WmError, match="resize it first"):
        model.encode({"front": np.zeros((32, 32, 3), np.uint8)})
    with pytest.raises(WmError, match="no frame of a camera"):
        model.encode({"elsewhere": frame})


@pytest.mark.parametrize("backend", ["openvino", "torch"])
def test_futures_come_most_likely_first_and_weigh_the_risk(tmp_path: Path, backend: str) -> None:
    config = ModelConfig(transition_blocks=2, futures=3)
    profile = load_profile("tabletop")
    bundle = untrained_bundle(profile, tmp_path / "b", config=config, spread=0.2, searches={})
    engine = load_engine(bundle, backend)
    check_golden(bundle, engine, list(bundle.graphs), 1.0)
    given = read_golden(bundle)["futures"]["in"]
    context = Context(0, given["latents"][0], given["joints"][0], given["past_actions"][0])
    futures = WorldModel(bundle, engine).futures(context, given["actions"])
    assert futures is not None
    assert futures.likelihood.sum() == pytest.approx(1.0, abs=1e-3)
    assert (np.diff(futures.likelihood) < 0).all()
    risk = futures.outcomes.risk
    assert risk.shape == (3, 8, 2)
    assert np.abs(risk[0] - risk[1]).max() > 1e-3  # they do differ
    expected = sum(share * each for share, each in zip(futures.likelihood, risk, strict=True))
    np.testing.assert_allclose(futures.risk, expected, rtol=1e-5)


def test_rollouts_and_drawing_are_computed_in_full_precision(tmp_path: Path) -> None:
    arm = untrained_bundle(load_profile("g1_bottle"), tmp_path / "arm")
    tip = untrained_bundle(load_profile("tabletop"), tmp_path / "tip")
    for bundle in (arm, tip):
        assert {name for name, spec in bundle.graphs.items() if spec.full_precision} == {
            "rollout",
            "search",
            "decode",
            "plan_brief",
            "plan_fast",
            "plan_normal",
            "plan_thorough",
        }
    engine = load_engine(arm, "openvino")
    assert engine.name.startswith("openvino")
