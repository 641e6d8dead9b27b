"""Training end to end on a tiny dataset: a bundle comes out, and an interrupted run resumes."""

from __future__ import annotations

from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from torch import Tensor

from wm_node.bundle import Bundle, load_bundle
from wm_node.data.dataset import Dataset
from wm_node.engine import load_engine
from wm_node.errors import WmError
from wm_node.model.config import Dims
from wm_node.model.load import load_network
from wm_node.model.world import WorldModelNet
from wm_node.safety.familiarity import FILE as FAMILIAR
from wm_node.safety.familiarity import load_densities
from wm_node.training import kept, loop
from wm_node.training.augment import SHIFT, augment, shake
from wm_node.training.data import TrainingData, batches, is_left_out, prefetch
from wm_node.training.dynamics_phase import Windows
from wm_node.training.encoder_phase import encode_all
from wm_node.training.loop import Recorder
from wm_node.training.recipe import Recipe, load_recipe, recipe_from_dict
from wm_node.training.run import RunSettings, train
from wm_node.training.stills import Stills

RECIPE = load_recipe(Path(__file__).with_name("small.yaml"))
SMALL = RECIPE.model
# What a recipe of stills alone leaves out.
ALONE = dict.fromkeys(("encoder_steps", "dynamics_steps", "value_steps", "decoder_steps"), 0)


def recorder(folder: Path) -> Recorder:
    return Recorder(folder, lambda phase, step, steps, text: None)


def test_a_bundle_comes_out_and_runs(dataset: Dataset, tmp_path: Path) -> None:
    settings = RunSettings(tmp_path / "work")
    bundle = train(dataset, tmp_path / "bundle", RECIPE, settings, recorder(tmp_path / "logs"))
    assert load_bundle(bundle.path).sha256 == bundle.sha256
    assert load_engine(bundle, "openvino").name.startswith("openvino")
    calibration = bundle.manifest["calibration"]
    assert calibration["events_trained"] == ["fell"], "an event without labels is not available"
    assert len(calibration["surprise_scale"]) == 8
    assert bundle.manifest["metrics"]["prediction"]["latent_mse"] > 0
    familiar = load_densities(bundle.checked_file(FAMILIAR), ("front",))["front"]
    frames = dataset.frames("front")
    assert max(familiar.strangeness(frame) for frame in frames[:50]) < 2.0
    assert familiar.strangeness(np.zeros_like(frames[0])) > 4.0
    with pytest.raises(WmError, match="already exists"):
        train(dataset, tmp_path / "bundle", RECIPE, settings, recorder(tmp_path / "logs"))


@pytest.fixture(scope="module")
def unbroken(dataset: Dataset, tmp_path_factory: pytest.TempPathFactory) -> Bundle:
    """What a run that nothing interrupts ends with."""
    torch.set_num_threads(1)
    folder = tmp_path_factory.mktemp("unbroken")
    settings = RunSettings(folder / "work")
    return train(dataset, folder / "bundle", RECIPE, settings, recorder(folder / "logs"))


@pytest.mark.parametrize("phase", ["stills", "encoder", "dynamics", "value", "decoder"])
def test_a_resumed_run_ends_as_an_unbroken_one(
    dataset: Dataset,
    unbroken: Bundle,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    phase: str,
) -> None:
    torch.set_num_threads(1)
    monkeypatch.setattr(loop, "CHECKPOINT_S", 0.0)
    monkeypatch.setattr(loop, "LOG_EVERY", 1)

    class Stop(Exception):
        pass

    def stop(name: str, step: int, steps: int, text: str) -> None:
        if name == phase and step == 2 and steps > 1:
            raise Stop

    settings = RunSettings(tmp_path / "wb")
    with pytest.raises(Stop):
        train(dataset, tmp_path / "b", RECIPE, settings, Recorder(tmp_path / "lb", stop))
    resumed = train(dataset, tmp_path / "b", RECIPE, settings, recorder(tmp_path / "lb"))
    assert set(resumed.manifest["metrics"]) == set(unbroken.manifest["metrics"])
    first, second = load_network(unbroken).state_dict(), load_network(resumed).state_dict()
    for name, value in first.items():
        torch.testing.assert_close(second[name], value, atol=2e-3, rtol=2e-2, msg=name)


def test_stills_are_drawn_from_all_episodes_but_those_left_out(dataset: Dataset) -> None:
    data = TrainingData(dataset, torch.device("cpu"), 1 << 30)
    drawn = Stills(data).draw(400, seed=0, step=0)
    assert torch.equal(drawn.frames, data.frames(drawn.ticks))
    torch.testing.assert_close(drawn.labels, data.labels[drawn.ticks], equal_nan=True)
    episodes = set((drawn.ticks // 40).tolist())
    assert episodes == {number for number in range(22) if not is_left_out(number)}


def test_three_quarters_of_the_stills_come_from_their_own_dataset(dataset: Dataset) -> None:
    data, own = (TrainingData(dataset, torch.device("cpu"), 1 << 30) for _ in range(2))
    own.labels = own.labels + 100.0
    drawn = Stills(data, own).draw(400, seed=0, step=0)
    total = data.joints.shape[0]
    of_own = drawn.ticks >= total
    assert int(of_own.sum()) == 300
    assert torch.equal(drawn.frames, data.frames(drawn.ticks % total))
    wanted = data.labels[drawn.ticks % total] + 100.0 * of_own.unsqueeze(1)
    torch.testing.assert_close(drawn.labels, wanted, equal_nan=True)


def test_stills_that_nothing_would_read_are_refused(dataset: Dataset, tmp_path: Path) -> None:
    def refused(recipe: Recipe, stills: Dataset | None, words: str) -> None:
        settings = RunSettings(tmp_path / "work", stills=stills)
        with pytest.raises(WmError, match=words):
            train(dataset, tmp_path / "bundle", recipe, settings, recorder(tmp_path / "logs"))

    refused(replace(RECIPE, stills=0, stills_steps=0), dataset, "would not be used")
    refused(replace(RECIPE, label_weight=0.0), None, "give it a 'label_weight'")


def test_an_encoder_reads_on_while_latents_keep_their_meaning(
    dataset: Dataset, unbroken: Bundle, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(kept, "READ_WELL", 1.0)  # a bundle of a few steps reads nothing well
    recipe = replace(RECIPE, **ALONE, stills_steps=60, stills_rate=3e-3, label_weight=4.0)
    data = TrainingData(dataset, torch.device("cpu"), 1 << 30)
    net = load_network(unbroken)
    before = kept.latents_of(net, [data])
    labels = net.normalise("labels", data.labels)
    trained = torch.from_numpy(data.split(1).train)

    def off(of: WorldModelNet, latents: Tensor) -> float:
        error = (of.heads.state(latents) - labels).abs().nan_to_num()
        return error[trained].mean().item()

    def away_and_off(weight: float) -> tuple[float, float]:
        folder = tmp_path / f"{weight:g}"
        settings = RunSettings(folder / "work", start_from=unbroken)
        weighed = replace(recipe, keep_latents=weight)
        bundle = train(dataset, folder / "bundle", weighed, settings, recorder(folder / "logs"))
        assert bundle.manifest["calibration"] == unbroken.manifest["calibration"]
        assert bundle.manifest["files"][FAMILIAR] == unbroken.manifest["files"][FAMILIAR]
        after = load_network(bundle)
        for name, value in after.state_dict().items():
            trainable = name.startswith("encoder.") and not name.endswith(
                ("mean", "var", "tracked")
            )
            if not trainable and name != "correction_gain":
                assert torch.equal(value, net.state_dict()[name]), name
        latents = encode_all(after, data)
        away = ((latents - before.values) ** 2).mean(-1)
        return float(away[before.read_well > 0].mean()), off(after, latents)

    loose_away, loose_off = away_and_off(1e-6)
    held_away, held_off = away_and_off(100.0)
    assert held_away < 0.2 * loose_away
    assert max(loose_off, held_off) < off(net, before.values)


def test_latents_are_kept_where_nothing_but_the_encoder_of_a_bundle_learns(
    dataset: Dataset, unbroken: Bundle, tmp_path: Path
) -> None:
    alone = replace(RECIPE, **ALONE, keep_latents=1.0)
    wider = replace(alone, model=replace(SMALL, transition_blocks=1))
    wrong = [(alone, None), (wider, unbroken), (replace(alone, stills_steps=0), unbroken)]
    wrong += [(replace(alone, **{name: 1}), unbroken) for name in ALONE]
    for recipe, start in wrong:
        settings = RunSettings(tmp_path / "work", start_from=start)
        with pytest.raises(WmError, match="name the bundle with --start-from"):
            train(dataset, tmp_path / "bundle", recipe, settings, recorder(tmp_path / "logs"))


def test_scattered_scenes_do_not_teach_motion(dataset: Dataset, tmp_path: Path) -> None:
    scattered = Dataset.open(dataset.path)
    joints = scattered.joints.copy()
    joints[40:80] = np.random.default_rng(0).uniform(-1.0, 1.0, (40, 4))  # of episode e1
    scattered.__dict__["joints"] = joints
    settings = RunSettings(tmp_path / "work")
    with pytest.raises(WmError, match=r"in 1 episodes of .*, such as 'e1', the joints jump"):
        train(scattered, tmp_path / "bundle", RECIPE, settings, recorder(tmp_path / "logs"))
    settings = RunSettings(tmp_path / "work", stills=scattered)
    bundle = train(dataset, tmp_path / "bundle", RECIPE, settings, recorder(tmp_path / "logs"))
    assert bundle.manifest["data"]["stills"]["ticks"] == scattered.num_ticks


def test_contexts_are_drawn_from_the_views_beside_the_latents_as_they_are(
    dataset: Dataset,
) -> None:
    torch.manual_seed(0)
    data = TrainingData(dataset, torch.device("cpu"), 1 << 30)
    net = WorldModelNet(Dims.of(dataset.profile), SMALL)
    plain = encode_all(net, data)
    views = torch.stack([encode_all(net, data, augmentation=0.5) for _ in range(2)])
    assert (views != plain).any(-1).float().mean() > 0.5  # a fifth keep their colours
    windows = Windows(net, data, plain, views)
    at = torch.from_numpy(windows.split.train[:256])
    ticks = data.frame_ticks(at, windows.context)
    drawn = windows.contexts(at)
    sources = torch.stack([*views, plain])[:, ticks]
    equal = (sources == drawn).flatten(2).all(-1)
    assert equal.any(0).all(), "each context is whole in one view"
    assert (equal.sum(1) > 40).all(), "all views are drawn, and the latents as they are"
    torch.testing.assert_close(Windows(net, data, plain).contexts(at), plain[ticks])


def test_another_recipe_does_not_resume(dataset: Dataset, tmp_path: Path) -> None:
    settings = RunSettings(tmp_path / "work")
    train(dataset, tmp_path / "a", RECIPE, settings, recorder(tmp_path / "l"))
    other = replace(RECIPE, encoder_rate=5e-4)
    with pytest.raises(WmError, match="--restart"):
        train(dataset, tmp_path / "b", other, settings, recorder(tmp_path / "l"))


def test_divergence_is_said(dataset: Dataset, tmp_path: Path) -> None:
    wild = replace(RECIPE, encoder_rate=1e12, clip=1e12)
    with pytest.raises(WmError, match="diverged in phase 'encoder'"):
        train(dataset, tmp_path / "a", wild, RunSettings(tmp_path / "w"), recorder(tmp_path / "l"))


def test_frames_from_disk_equal_those_from_memory(dataset: Dataset) -> None:
    at = torch.tensor([[3, 700], [41, 5]])
    device = torch.device("cpu")
    disk = TrainingData(Dataset.open(dataset.path), device, 0)
    memory = TrainingData(Dataset.open(dataset.path), device, 1 << 30)
    assert not disk.in_memory
    assert memory.in_memory
    torch.testing.assert_close(disk.frames(at), memory.frames(at))


def test_batches_depend_on_seed_and_step_alone() -> None:
    starts = np.arange(1000)
    first = batches(starts, 8, seed=1)
    later = batches(starts, 8, seed=1, first_step=2)
    for _ in range(2):
        next(first)
    np.testing.assert_array_equal(next(first), next(later))


def test_prefetch_hands_errors_on() -> None:
    def broken():  # type: ignore[no-untyped-def]
        yield torch.zeros(1)
        raise OSError("disk gone")

    items = prefetch(broken())
    next(items)
    with pytest.raises(OSError, match="disk gone"):
        next(items)


def test_references_come_from_all_over_the_same_episode(dataset: Dataset) -> None:
    data = TrainingData(dataset, torch.device("cpu"), 1 << 30)
    ticks = torch.arange(40, 80).repeat(50)  # the second of the episodes, 40 ticks each
    drawn = data.same_episode(ticks, np.random.default_rng(0))
    assert set(drawn.tolist()) == set(range(40, 80))


def test_augmentation_changes_colours_of_each_frame_apart() -> None:
    torch.manual_seed(0)
    frames = torch.full((64, 1, 4, 4, 3), 128, dtype=torch.uint8)
    out = augment(frames, 1.0)
    assert out.shape == frames.shape
    assert float(out.min()) >= 0.0
    assert float(out.max()) <= 255.0
    means = out.mean((1, 2, 3))
    assert float(means.std(0).min()) > 5.0


def test_shaken_frames_show_the_same_a_little_elsewhere() -> None:
    torch.manual_seed(0)
    frames = torch.zeros((200, 1, 32, 32, 3), dtype=torch.uint8)
    frames[:, :, 15:17, 15:17] = 200
    assert shake(frames, 0.0) is frames
    out = shake(frames, 1.0)
    assert out.shape == frames.shape
    light = out[:, 0, ..., 0]
    rows, columns = torch.meshgrid(torch.arange(32.0), torch.arange(32.0), indexing="ij")
    middle = torch.stack([(light * at).sum((1, 2)) for at in (rows, columns)], -1)
    off = middle / light.sum((1, 2)).unsqueeze(-1) - 15.5
    still = (out == frames).all((1, 2, 3, 4)).float().mean()
    assert 0.1 < float(still) < 0.3, "some frames stay as they are"
    assert float(off.abs().max()) < SHIFT * 32 * 1.1
    assert float(off.std(0).min()) > SHIFT * 32 * 0.4


@pytest.mark.parametrize(
    ("data", "message"),
    [
        ({"encodr_steps": 1}, "unknown recipe keys"),
        ({"encoder_steps": 1.5}, "must be a int"),
        ({"clip": -1}, "0 or more"),
        ({"model": {"width": 10}}, "multiple of its 'heads'"),
        ([1], "must be a YAML mapping"),
    ],
)
def test_wrong_recipes_are_one_sentence(data: object, message: str) -> None:
    with pytest.raises(WmError, match=message):
        recipe_from_dict(data, "recipe.yaml")


def test_training_goes_on_from_a_bundle(dataset: Dataset, unbroken: Bundle, tmp_path: Path) -> None:
    first = unbroken
    none = dict.fromkeys(("stills_steps", "encoder_steps", "dynamics_steps", "value_steps"), 0)
    kept = replace(RECIPE, **none, decoder_steps=2)
    settings = RunSettings(tmp_path / "wb", start_from=first)
    second = train(dataset, tmp_path / "b", kept, settings, recorder(tmp_path / "lb"))
    before, after = load_network(first).state_dict(), load_network(second).state_dict()
    changed = {name.split(".")[0] for name in before if not torch.equal(before[name], after[name])}
    assert changed - {"correction_gain"} == {"decoder"}
    lineage = second.manifest["training"]["start_from"]
    assert lineage["bundle_sha256"] == first.sha256
    # Other dynamics start anew, and what reads them; the rest goes on.
    recurrent = replace(kept, model=replace(SMALL, transition_blocks=1), dynamics_steps=2)
    settings = RunSettings(tmp_path / "wd", start_from=first)
    third = train(dataset, tmp_path / "d", recurrent, settings, recorder(tmp_path / "ld"))
    taken = load_network(third).state_dict()
    assert any(name.startswith("dynamics.blocks") for name in taken)
    for name in before:
        if name.startswith(("encoder.", "heads.value.", "heads.proposal.", "joint_baseline.")):
            # Recurrent models store their heads' matrices as bf16 holds them.
            tolerance = 0.005 if name.startswith("heads.") else 0.0
            torch.testing.assert_close(taken[name], before[name], rtol=tolerance, atol=1e-7)
    # Futures that are told apart are added to the same dynamics.
    wider = replace(recurrent, model=replace(recurrent.model, futures=3), dynamics_steps=0)
    settings = RunSettings(tmp_path / "wf", start_from=third)
    fourth = train(dataset, tmp_path / "f", wider, settings, recorder(tmp_path / "lf"))
    more = load_network(fourth).state_dict()
    added = {name.removesuffix(".weight").removesuffix(".bias") for name in more.keys() - taken}
    assert added == {"dynamics.codes", *(f"heads.likelihood.{layer}" for layer in (0, 1, 3))}
    for name in taken:
        if name.startswith(("dynamics.", "heads.")):
            assert torch.equal(taken[name], more[name]), name
    # Of what the dynamics learn, a share of the start is kept.
    halves = {}
    for share in (0.0, 0.5, 1.0):
        more_steps = replace(wider, dynamics_steps=2, keep_start=share)
        settings = RunSettings(tmp_path / f"ws{share}", start_from=fourth)
        bundle = train(
            dataset, tmp_path / f"s{share}", more_steps, settings, recorder(tmp_path / f"ls{share}")
        )
        halves[share] = load_network(bundle).state_dict()["dynamics.latent_out.weight"]
    learnt, half, whole = halves.values()
    assert torch.equal(whole, more["dynamics.latent_out.weight"])
    assert not torch.equal(learnt, whole)
    torch.testing.assert_close(half, (learnt + whole) / 2, rtol=0.01, atol=1e-6)
    for wrong in (replace(more_steps, keep_start=1.5), replace(kept, keep_start=0.5)):
        settings = RunSettings(tmp_path / "wk", start_from=None)
        with pytest.raises(WmError, match="'keep_start' is a share"):
            train(dataset, tmp_path / "k", wrong, settings, recorder(tmp_path / "lk"))
    other = replace(kept, model=replace(SMALL, latent=32))
    with pytest.raises(WmError, match="another model size"):
        train(
            dataset,
            tmp_path / "c",
            other,
            RunSettings(tmp_path / "wc", start_from=first),
            recorder(tmp_path / "lc"),
        )
