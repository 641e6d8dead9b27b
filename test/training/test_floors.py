"""The floors on data whose right answers are known."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from wm_node.data.dataset import Dataset, DatasetWriter, EpisodeArrays
from wm_node.errors import WmError
from wm_node.profile import RobotProfile, load_profile, parse_profile
from wm_node.training.floors import (
    PENALTIES,
    Floors,
    anchors,
    blend,
    blur,
    fit_floors,
    fit_ridge,
    hold_commands,
    joint_features,
    present_command,
    psnr,
    scored_steps,
    ssim,
)


def two_joints(**model: Any) -> RobotProfile:
    """A robot of two joints and a 16x16 camera, at 10 ticks a second."""
    data = load_profile("g1_bottle").dump()
    data["model"] = {
        "tick_rate_hz": 10,
        "ticks_per_step": 2,
        "context_steps": 2,
        "horizon_steps": 4,
    } | model
    data["cameras"][0] |= {"width": 16, "height": 16, "model_width": 16, "model_height": 16}
    joints = {"names": ["left", "right"], "unit": "rad", "lower": [-9.0, -9.0]}
    data["joints"] |= joints | {"upper": [9.0, 9.0], "max_velocity": [9.0, 9.0]}
    data["action"] |= {"names": ["right"], "units": ["rad"], "lower": [-9.0], "upper": [9.0]}
    data["action"]["delay_s"] = [0.0]
    return parse_profile(data, "test")


def write(path: Path, profile: RobotProfile, episodes: int, seed: int = 0) -> Dataset:
    """Episodes in which `right` is its own command of two ticks ago and `left` stands still."""
    rng = np.random.default_rng(seed)
    background = rng.integers(60, 190, (16, 16, 3))
    with DatasetWriter(path, profile) as writer:
        for number in range(episodes):
            ticks = 60
            command = np.cumsum(rng.normal(0, 0.1, ticks))
            joints = np.stack([np.full(ticks, 0.1 * number), np.roll(command, 2)], axis=1)
            joints[:2, 1] = command[0]
            noise = rng.normal(0, 20, (ticks, 16, 16, 3))
            writer.append(
                EpisodeArrays(
                    name=f"episode_{number}",
                    stamps=np.arange(ticks, dtype=np.int64) * 100_000_000,
                    frames={"head": np.clip(background + noise, 0, 255).astype(np.uint8)},
                    frame_valid=np.ones((ticks, 1), dtype=np.uint8),
                    joints=joints.astype(np.float32),
                    actions=command[:, None].astype(np.float32),
                    labels=np.zeros((ticks, 0), dtype=np.float32),
                    events=np.zeros((ticks, 0), dtype=np.uint8),
                )
            )
        writer.close()
    return Dataset.open(path)


@pytest.fixture(scope="module")
def dataset(tmp_path_factory: pytest.TempPathFactory) -> Dataset:
    return write(tmp_path_factory.mktemp("floors") / "dataset", two_joints(), 8)


@pytest.fixture(scope="module")
def floors(dataset: Dataset) -> Floors:
    return fit_floors(dataset)


def test_ridge_finds_the_law_that_made_the_data(dataset: Dataset, floors: Floors) -> None:
    profile, episode = dataset.profile, dataset.episodes[3]
    part = slice(episode.start, episode.start + episode.length)
    joints, actions = dataset.joints[part], dataset.actions[part]
    at = anchors(profile, episode, 1)
    for step, ridge in zip(floors.steps, floors.ridges, strict=True):
        predicted = joints[at] + ridge.predict(joint_features(profile, joints, actions, at, step))
        error = predicted - joints[at + 2 * step]
        moved = joints[at + 2 * step, 1] - joints[at, 1]
        assert np.abs(error[:, 0]).max() < 1e-3  # `left` never moves
        assert np.sqrt(np.mean(error[:, 1] ** 2)) < 0.02 * np.sqrt(np.mean(moved**2))


def test_ridge_prefers_a_strong_penalty_for_noise_and_a_weak_one_for_a_law() -> None:
    rng = np.random.default_rng(1)
    features = rng.normal(size=(120, 40))
    law = features @ rng.normal(size=40)
    noise = rng.normal(size=120)
    ridge = fit_ridge(features, np.stack([law, noise], axis=1), np.repeat(np.arange(6), 20))
    assert ridge.penalty[0] == min(PENALTIES)
    assert ridge.penalty[1] == max(PENALTIES)


def test_ridge_equals_its_closed_form_and_spares_the_intercept() -> None:
    rng = np.random.default_rng(2)
    features, groups = rng.normal(3.0, 2.0, (60, 3)), np.repeat(np.arange(3), 20)
    targets = features @ np.array([[1.0], [-2.0], [0.5]]) + 100.0 + rng.normal(0, 0.1, (60, 1))
    ridge = fit_ridge(features, targets, groups)
    z = (features - features.mean(0)) / features.std(0)
    penalty = ridge.penalty[0]
    weights = np.linalg.solve(z.T @ z + penalty * np.eye(3), z.T @ (targets - targets.mean()))
    np.testing.assert_allclose(ridge.weights, weights, atol=1e-6)
    np.testing.assert_allclose(ridge.intercept, targets.mean(0), atol=1e-6)


def test_a_constant_feature_does_not_break_the_ridge() -> None:
    features = np.random.default_rng(3).normal(size=(40, 2))
    features[:, 1] = 5.0
    ridge = fit_ridge(features, features[:, :1].copy(), np.repeat(np.arange(4), 10))
    assert np.isfinite(ridge.predict(features)).all()


def test_cross_validation_needs_two_groups() -> None:
    with pytest.raises(WmError, match="at least two episodes"):
        fit_ridge(np.ones((4, 1)), np.ones((4, 1)), np.zeros(4, dtype=np.int64))


def test_features_hold_no_command_after_the_predicted_time(dataset: Dataset) -> None:
    profile, episode = dataset.profile, dataset.episodes[0]
    part = slice(episode.start, episode.start + episode.length)
    joints, actions = dataset.joints[part], dataset.actions[part].copy()
    at, step = anchors(profile, episode, 7), 2
    before = joint_features(profile, joints, actions, at, step)
    for tick in at:
        changed = actions.copy()
        changed[tick + step * 2 :] += 1000.0
        row = joint_features(profile, joints, changed, np.array([tick]), step)
        np.testing.assert_array_equal(row[0], before[at == tick][0])
        seen_last = actions.copy()
        seen_last[tick + step * 2 - 1] += 1000.0
        row = joint_features(profile, joints, seen_last, np.array([tick]), step)
        assert np.abs(row[0] - before[at == tick][0]).max() > 100


def test_held_command_moves_only_commanded_joints() -> None:
    profile = two_joints()
    held = hold_commands(profile, np.array([[1.0, 2.0]], np.float32), np.array([[7.0]], np.float32))
    np.testing.assert_array_equal(held, [[1.0, 7.0]])


@pytest.mark.parametrize(("delay_s", "newest"), [(0.0, 9), (0.05, 10), (0.1, 10), (0.25, 12)])
def test_present_command_undoes_the_dead_time(delay_s: float, newest: int) -> None:
    data = two_joints().dump()
    data["action"]["delay_s"] = [delay_s]
    actions = np.arange(30, dtype=np.float32)[:, None]
    assert present_command(parse_profile(data, "test"), actions, 10)[0] == newest


def test_noise_around_a_fixed_scene_is_best_predicted_by_its_mean(floors: Floors) -> None:
    # Copying costs twice the noise's variance, the mean once; blurring destroys the scene.
    assert min(floors.shares) >= 0.85
    assert max(floors.blurs) <= 0.5


def test_mean_frame_is_that_of_the_training_episodes(dataset: Dataset, floors: Floors) -> None:
    mean = dataset.frames("head")[:].astype(np.float64).mean(0)
    np.testing.assert_allclose(floors.mean_frames[0], mean, atol=1e-4)


def test_saved_floors_predict_the_same(floors: Floors, tmp_path: Path) -> None:
    floors.save(tmp_path / "floors.npz")
    again = Floors.load(tmp_path / "floors.npz")
    assert (again.steps, again.blurs, again.shares) == (floors.steps, floors.blurs, floors.shares)
    assert again.episodes == tuple(f"episode_{k}" for k in range(8))
    rows = np.random.default_rng(0).normal(size=(5, len(floors.ridges[1].mean)))
    np.testing.assert_allclose(
        again.ridges[1].predict(rows), floors.ridges[1].predict(rows), rtol=1e-3, atol=1e-4
    )


def test_damaged_floors_are_refused(tmp_path: Path) -> None:
    path = tmp_path / "floors.npz"
    path.write_bytes(b"not an archive")
    with pytest.raises(WmError, match="no floors that can be read"):
        Floors.load(path)
    with pytest.raises(WmError, match="no floors that can be read"):
        Floors.load(tmp_path / "absent.npz")


def test_one_long_episode_is_too_few(tmp_path: Path) -> None:
    dataset = write(tmp_path / "dataset", two_joints(), 1)
    with pytest.raises(WmError, match="1 episodes as long as context and horizon"):
        fit_floors(dataset)


def test_psnr_and_ssim_of_known_images() -> None:
    black = np.zeros((16, 16, 3), np.uint8)
    grey = np.full((16, 16, 3), 16, np.uint8)
    assert psnr(black, grey) == pytest.approx(20 * np.log10(255 / 16), abs=1e-4)
    assert psnr(black, black) == 99.0
    noise = np.random.default_rng(0).integers(0, 255, (2, 16, 16, 3)).astype(np.uint8)
    assert ssim(noise, noise) == pytest.approx(1.0)
    assert ssim(noise, noise[::-1]) < 0.2


def test_blur_and_blend_stay_images() -> None:
    frame = np.random.default_rng(0).integers(0, 255, (1, 16, 16, 3)).astype(np.uint8)
    assert blur(frame, 0.0) is frame
    assert blur(frame, 2.0).std() < 0.5 * frame.std()
    mean = np.full((1, 16, 16, 3), 100.0)
    np.testing.assert_array_equal(blend(frame, mean, 1.0), 100)
    np.testing.assert_array_equal(blend(frame, mean, 0.0), frame)


@pytest.mark.parametrize(("horizon", "steps"), [(8, (2, 4, 8)), (4, (1, 2, 4)), (1, (1,))])
def test_scored_steps_are_quarter_half_and_whole_horizon(
    horizon: int, steps: tuple[int, ...]
) -> None:
    profile = two_joints(horizon_steps=max(horizon, 2)) if horizon > 1 else two_joints()
    if horizon == 1:
        data = profile.dump()
        data["model"] |= {"horizon_steps": 1, "ticks_per_step": 4}
        profile = parse_profile(data, "test")
    assert scored_steps(profile) == steps
