"""Scoring on recordings, with models whose scores are known beforehand."""

from __future__ import annotations

from pathlib import Path
from typing import Any, cast

import numpy as np
import pytest
import yaml

from wm_node.bundle import GOLDEN, GRAPHS, WEIGHTS, write_bundle
from wm_node.data.dataset import Dataset, DatasetWriter, EpisodeArrays
from wm_node.errors import WmError
from wm_node.model.config import ModelConfig
from wm_node.planning.world_model import Context, Outcomes, WorldModel
from wm_node.profile import RobotProfile, load_profile, parse_profile
from wm_node.training.bag_evaluation import (
    BagScores,
    _horizon_figures,
    _interval,
    _same_phase,
    _trained_on,
    evaluate_bags,
    score_dataset,
    write_pictures,
)
from wm_node.training.floors import fit_floors

TICKS = 48


def profile_of_one_joint() -> RobotProfile:
    data = load_profile("g1_bottle").dump()
    data["model"] = {
        "tick_rate_hz": 10,
        "ticks_per_step": 2,
        "context_steps": 2,
        "horizon_steps": 4,
    }
    data["cameras"][0] |= {"width": 16, "height": 16, "model_width": 16, "model_height": 16}
    joints = {"names": ["arm"], "unit": "rad", "lower": [-9.0], "upper": [9.0]}
    data["joints"] |= joints | {"max_velocity": [9.0]}
    data["action"] |= {"names": ["arm"], "units": ["rad"], "lower": [-9.0], "upper": [9.0]}
    data["action"]["delay_s"] = [0.0]
    return parse_profile(data, "test")


def picture(angle: float) -> np.ndarray[Any, Any]:
    """A bar whose brightness shows the joint's angle, on a ramp."""
    frame = np.tile(np.arange(16, dtype=np.float64)[:, None, None] * 8 + 40, (1, 16, 3))
    frame[4:12, 4:12] = 128 + 60 * np.sin(angle)
    return np.rint(frame).astype(np.uint8)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    """The joint is where the command of the tick before put it."""
    profile = profile_of_one_joint()
    path = tmp_path_factory.mktemp("bags") / "dataset"
    rng = np.random.default_rng(0)
    with DatasetWriter(path, profile) as writer:
        for number in range(4):
            command = np.cumsum(rng.normal(0, 0.2, TICKS)) + 3 * number
            joints = np.concatenate([command[:1], command[:-1]])
            writer.append(
                EpisodeArrays(
                    name=f"bag_{number}",
                    stamps=np.arange(TICKS, dtype=np.int64) * 100_000_000,
                    frames={"head": np.stack([picture(angle) for angle in joints])},
                    frame_valid=np.ones((TICKS, 1), dtype=np.uint8),
                    joints=joints[:, None].astype(np.float32),
                    actions=command[:, None].astype(np.float32),
                    labels=np.zeros((TICKS, 0), dtype=np.float32),
                    events=np.zeros((TICKS, 0), dtype=np.uint8),
                )
            )
        writer.close()
    return Dataset.open(path)


class Obedient:
    """Knows the law: the joint ends each step where the step's last command puts it."""

    profile = profile_of_one_joint()

    def encode(self, frames: dict[str, np.ndarray[Any, Any]]) -> np.ndarray[Any, Any]:
        return frames["head"].mean((0, 1), keepdims=True).astype(np.float32).reshape(-1)[:1]

    def joints(self, context: Context, actions: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return actions.reshape(len(actions), 4, 2, 1)[:, :, -1]

    def rollout(self, context: Context, actions: np.ndarray[Any, Any]) -> Outcomes:
        joints = self.joints(context, actions)
        none = np.zeros((*joints.shape[:2], 0), np.float32)
        return Outcomes(joints, joints, none, none, joints[..., 0], joints[..., 0])

    def decode(self, latents: np.ndarray[Any, Any], *present: Any) -> np.ndarray[Any, Any]:
        return np.stack([picture(float(latent[0]))[None] for latent in latents])


class Deaf(Obedient):
    """Ignores the commands: nothing ever moves."""

    def joints(self, context: Context, actions: np.ndarray[Any, Any]) -> np.ndarray[Any, Any]:
        return np.broadcast_to(context.joints[-1], (len(actions), 4, 1)).copy()


def score(model: Obedient, dataset: Dataset) -> tuple[BagScores, dict[int, dict[str, Any]]]:
    floors = fit_floors(dataset, dataset.episodes[:2])
    scores = score_dataset(cast(WorldModel, model), floors, dataset, stride=3)
    figures = {
        step: _horizon_figures(dataset.profile, step, part, scores.episode_of)
        for step, part in scores.steps.items()
    }
    return scores, figures


def test_a_model_that_knows_the_law_is_perfect_and_heeds_its_commands(dataset: Dataset) -> None:
    scores, figures = score(Obedient(), dataset)
    assert sorted(figures) == [1, 2, 4]
    for item in figures.values():
        assert item["joint_rmse"]["model"] < 1e-6
        assert item["psnr_db"]["model"] == 99.0
        assert item["ssim"]["model"] == pytest.approx(1.0)
        assert item["joint_rmse"]["model_swapped"] > 1.0  # episodes lie 3 rad apart
        assert item["psnr_db"]["model_swapped"] < 40.0
        assert item["psnr_margin_db"] > 10.0
        assert item["psnr_margin_db_95"][0] > 10.0
    assert set(scores.episode_of.tolist()) == {0, 1, 2, 3}
    assert len(scores.examples) == 6


def test_a_model_that_ignores_actions_equals_hold_last_and_swapping_changes_nothing(
    dataset: Dataset,
) -> None:
    _, figures = score(Deaf(), dataset)
    for item in figures.values():
        assert item["joint_rmse"]["model"] == pytest.approx(item["joint_rmse"]["hold_last"])
        assert item["psnr_db"]["model"] == pytest.approx(item["psnr_db"]["copy_last"])
        assert item["swap_ratio"] == pytest.approx(1.0)
        assert item["ridge_ratio"] > 3.0


def test_held_command_is_the_one_in_force_at_the_present(dataset: Dataset) -> None:
    # The joint is where the newest command put it, so holding either is the same here.
    _, figures = score(Deaf(), dataset)
    for item in figures.values():
        assert item["joint_rmse"]["command_held"] == pytest.approx(item["joint_rmse"]["hold_last"])


def test_figures_name_units_and_joints(dataset: Dataset) -> None:
    _, figures = score(Deaf(), dataset)
    item = figures[2]
    assert item["seconds"] == 0.4
    assert item["joint_rmse_by_unit"]["rad"] == item["joint_rmse"]
    assert item["joint_rmse_by_joint"]["arm"] == item["joint_rmse"]
    assert item["best_frame_floor"] in ("copy_last", "blurred_copy", "blend_with_mean")


def test_anchors_whose_frames_were_lost_are_not_scored(
    dataset: Dataset, monkeypatch: pytest.MonkeyPatch
) -> None:
    complete, _ = score(Deaf(), dataset)
    valid = np.array(dataset.frame_valid)
    valid[dataset.episodes[1].start : dataset.episodes[2].start] = 0
    monkeypatch.setitem(dataset.__dict__, "frame_valid", valid)
    floors = fit_floors(dataset, [dataset.episodes[0], dataset.episodes[2]])
    scores = score_dataset(cast(WorldModel, Deaf()), floors, dataset, stride=3)
    assert len(scores.episode_of) == len(complete.episode_of) * 3 // 4


def test_same_phase_of_another_episode(dataset: Dataset) -> None:
    first, second = dataset.episodes[:2]
    assert _same_phase(12, first, second, 8) == 12
    assert _same_phase(47, first, second, 8) == TICKS - 8
    assert _same_phase(12, first, first, 8) == 36


def test_bags_that_were_trained_on_are_known_wherever_they_lie() -> None:
    trained = {"episode_1", "cut#0", "cut#1", "june/episode_7"}
    assert _trained_on("episode_1", trained)
    assert _trained_on("elsewhere/episode_1", trained)
    assert _trained_on("cut", trained)
    assert _trained_on("episode_7", trained)
    assert not _trained_on("episode_10", trained)


def test_interval_over_episodes_of_equal_scores_is_a_point() -> None:
    episode_of = np.repeat(np.arange(5), 3)
    values = np.full(15, 2.5)
    low, high = _interval(episode_of, lambda w: float(w @ values / w.sum()))
    assert low == pytest.approx(2.5)
    assert high == pytest.approx(2.5)
    spread = np.repeat(np.arange(5.0), 3)
    low, high = _interval(episode_of, lambda w: float(w @ spread / w.sum()))
    assert 0.0 <= low < 2.0 < high <= 4.0


def test_pictures_go_below_each_other(tmp_path: Path) -> None:
    row = np.zeros((16, 50, 3), np.uint8)
    path = write_pictures(tmp_path / "new", [row, row])
    from PIL import Image

    with Image.open(path) as image:
        assert image.size == (50, 36)


def test_a_bundle_without_floors_is_refused(tmp_path: Path) -> None:
    parts = tmp_path / "parts"
    parts.mkdir()
    for name in (WEIGHTS, GOLDEN):
        (parts / name).write_bytes(b"-")
    profile = yaml.safe_load(yaml.safe_dump(profile_of_one_joint().dump()))
    graphs = {name: {"file": WEIGHTS, "inputs": [], "outputs": []} for name in GRAPHS}
    model = ModelConfig().to_dict()
    write_bundle(tmp_path / "bundle", parts, {"profile": profile, "model": model, "graphs": graphs})
    with pytest.raises(WmError, match=r"has no floors\.npz"):
        evaluate_bags(tmp_path / "bundle", tmp_path)
