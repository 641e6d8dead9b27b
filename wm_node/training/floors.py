"""The obvious guesses that a world model must beat on recordings, fitted on its training episodes.

Joints: hold the last position; take the present command as reached; ridge regression of every
joint on past joints and on past and planned commands. Frames: copy the last one; blur it; blend it
with the mean frame of the training episodes. Everything that has to be chosen (ridge penalty, blur,
share of the blend) is chosen on training episodes only, and all floors see what the model sees: the
ticks of its context and the planned commands up to the predicted time.

``wm train`` writes them into the bundle as ``floors.npz`` beside the names of the episodes that
were trained on, so that ``wm evaluate --bags`` needs nothing else and never scores those.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from scipy.ndimage import gaussian_filter
from skimage.metrics import structural_similarity

from wm_node.data.dataset import Dataset, Episode
from wm_node.errors import WmError
from wm_node.profile import RobotProfile

FILE = "floors.npz"
VERSION = 1
PENALTIES = (0.1, 1.0, 10.0, 100.0, 1000.0)
BLURS = (0.0, 0.5, 0.75, 1.0, 1.5, 2.0, 3.0, 4.0, 6.0)  # sigma, pixels
SHARES = tuple(round(0.05 * k, 2) for k in range(21))  # of the mean frame in the blend
FOLDS = 5
MAX_WINDOWS = 40_000  # for the ridge regression
MAX_PAIRS = 240  # of frames, for the blur and the blend
MAX_MEAN_FRAMES = 4000

Floats = NDArray[np.float64]
Images = NDArray[np.uint8]


@dataclass(frozen=True)
class Ridge:
    """Linear prediction of the change of J joints from F features."""

    mean: Floats
    """(F,) of the features in training."""
    scale: Floats
    """(F,) deviation, 1 where a feature is constant."""
    weights: Floats
    """(F, J) on standardised features."""
    intercept: Floats
    """(J,)."""
    penalty: Floats
    """(J,) chosen by cross validation over episodes."""

    def predict(self, features: Floats) -> Floats:
        """(N, F) -> (N, J)."""
        result: Floats = (features - self.mean) / self.scale @ self.weights + self.intercept
        return result


@dataclass(frozen=True)
class Floors:
    """Fitted floors of one training set; entry i of every tuple belongs to ``steps[i]``."""

    steps: tuple[int, ...]
    """Model steps ahead."""
    ridges: tuple[Ridge, ...]
    blurs: tuple[float, ...]
    """Sigma in pixels."""
    shares: tuple[float, ...]
    """Weight of the mean frame in the blend."""
    mean_frames: Floats
    """(cameras, H, W, 3), 0..255."""
    episodes: tuple[str, ...]
    """Names of the episodes that were trained on."""

    def save(self, path: Path) -> None:
        """Write the floors as a compressed archive of plain arrays."""
        arrays: dict[str, Any] = {
            "version": np.array(VERSION),
            "steps": np.array(self.steps),
            "blurs": np.array(self.blurs),
            "shares": np.array(self.shares),
            "mean_frames": self.mean_frames.astype(np.float32),
            "episodes": np.array(self.episodes),
        }
        for step, ridge in zip(self.steps, self.ridges, strict=True):
            for name in ("mean", "scale", "weights", "intercept", "penalty"):
                arrays[f"ridge{step}_{name}"] = getattr(ridge, name).astype(np.float32)
        np.savez_compressed(path, **arrays)

    @staticmethod
    def load(path: Path) -> Floors:
        """Read what :meth:`save` wrote.

        Raises:
            WmError: missing, damaged, or of another version.
        """
        try:
            with np.load(path, allow_pickle=False) as data:
                if int(data["version"]) != VERSION:
                    raise WmError(f"{path} has another version; train the bundle again.")
                steps = tuple(int(step) for step in data["steps"])
                ridges = tuple(
                    Ridge(
                        *(
                            data[f"ridge{step}_{name}"].astype(np.float64)
                            for name in ("mean", "scale", "weights", "intercept", "penalty")
                        )
                    )
                    for step in steps
                )
                return Floors(
                    steps=steps,
                    ridges=ridges,
                    blurs=tuple(map(float, data["blurs"])),
                    shares=tuple(map(float, data["shares"])),
                    mean_frames=data["mean_frames"].astype(np.float64),
                    episodes=tuple(map(str, data["episodes"])),
                )
        except (OSError, KeyError, ValueError) as error:
            raise WmError(f"{path} holds no floors that can be read: {error}.") from error


def scored_steps(profile: RobotProfile) -> tuple[int, ...]:
    """Return the model steps at which predictions are scored: a quarter, half, whole horizon."""
    horizon = profile.model.horizon_steps
    return tuple(sorted({max(horizon // 4, 1), max(horizon // 2, 1), horizon}))


def anchors(profile: RobotProfile, episode: Episode, stride: int) -> NDArray[np.int64]:
    """Return ticks of an episode, counted in it, that have a whole context and horizon around."""
    rates = profile.model
    first = rates.context_steps * rates.ticks_per_step
    return np.arange(first, episode.length - rates.horizon_ticks, stride, dtype=np.int64)


def joint_features(
    profile: RobotProfile,
    joints: NDArray[np.float32],
    actions: NDArray[np.float32],
    at: NDArray[np.int64],
    step: int,
    planned_at: NDArray[np.int64] | None = None,
    planned: NDArray[np.float32] | None = None,
) -> Floats:
    """Lay out what the ridge regression sees, one row an anchor.

    Args:
        profile: the robot.
        joints: (T, J) of one episode.
        actions: (T, A) of the same.
        at: (N,) anchor ticks in the episode.
        step: model steps ahead; only actions before its end are features.
        planned_at: (N,) where the planned actions begin, by default at the anchors.
        planned: (T', A) actions from which they are taken, by default ``actions``.

    Returns:
        (N, F): joints at every tick of the context, newest first, then its actions, then the
        planned ones.
    """
    ticks, context = profile.model.ticks_per_step, profile.model.context_steps
    source = actions if planned is None else planned
    begin = at if planned_at is None else planned_at
    seen = joints[at[:, None] - np.arange(context * ticks)]
    past = actions[at[:, None] - np.arange(1, context * ticks + 1)]
    future = source[begin[:, None] + np.arange(step * ticks)]
    rows = len(at)
    return np.concatenate(
        [seen.reshape(rows, -1), past.reshape(rows, -1), future.reshape(rows, -1)], axis=1
    ).astype(np.float64)


def fit_ridge(features: Floats, targets: Floats, groups: NDArray[np.int64]) -> Ridge:
    """Fit ridge regression, with a penalty a target chosen by cross validation over groups.

    Args:
        features: (N, F).
        targets: (N, J).
        groups: (N,) whole numbers; rows of one group are never split between folds.

    Returns:
        The regression, fitted on all rows with the chosen penalties.

    Raises:
        WmError: there are fewer than two groups.
    """
    unique = np.unique(groups)
    folds = min(FOLDS, len(unique))
    if folds < 2:
        raise WmError("cross validation of the ridge floor needs at least two episodes.")
    mean = features.mean(0)
    scale = features.std(0)
    scale = np.where(scale < 1e-9, 1.0, scale)
    rows = np.concatenate([(features - mean) / scale, np.ones((len(features), 1))], axis=1)
    fold_of = np.searchsorted(unique, groups) % folds
    gram, moment, energy = [], [], []
    for fold in range(folds):
        x, y = rows[fold_of == fold], targets[fold_of == fold]
        gram.append(x.T @ x)
        moment.append(x.T @ y)
        energy.append((y**2).sum(0))
    all_gram, all_moment = np.sum(gram, axis=0), np.sum(moment, axis=0)

    def solve(matrix: Floats, vector: Floats, penalty: float) -> Floats:
        diagonal = np.full(matrix.shape[0], penalty)
        diagonal[-1] = 1e-9  # the intercept is not penalised
        return np.asarray(np.linalg.solve(matrix + np.diag(diagonal), vector))

    errors = np.zeros((len(PENALTIES), targets.shape[1]))
    for number, penalty in enumerate(PENALTIES):
        for fold in range(folds):
            w = solve(all_gram - gram[fold], all_moment - moment[fold], penalty)
            errors[number] += (w * (gram[fold] @ w - 2.0 * moment[fold])).sum(0) + energy[fold]
    chosen = errors.argmin(0)
    weights = np.zeros((rows.shape[1], targets.shape[1]))
    for number in np.unique(chosen):
        columns = chosen == number
        weights[:, columns] = solve(all_gram, all_moment[:, columns], PENALTIES[number])
    return Ridge(mean, scale, weights[:-1], weights[-1], np.array(PENALTIES)[chosen])


def hold_commands(
    profile: RobotProfile, joints: NDArray[np.float32], actions: NDArray[np.float32]
) -> NDArray[np.float32]:
    """Take the present command as reached: joints without one stay where they are.

    Args:
        profile: the robot, with an action of kind ``joint_position``.
        joints: (N, J) now.
        actions: (N, A) in force now.

    Returns:
        (N, J).
    """
    held = joints.copy()
    columns = [profile.joints.names.index(name) for name in profile.action.names]
    held[:, columns] = actions
    return held


def present_command(
    profile: RobotProfile, actions: NDArray[np.float32], tick: int
) -> NDArray[np.float32]:
    """Return the newest command issued at a tick, (A,), out of (T, A) delayed by dead times."""
    delays = np.array(profile.action.delay_s or (0.0,) * len(profile.action.names))
    later = np.ceil(delays / profile.model.tick_s - 1e-6).astype(np.int64)
    at = np.minimum(tick - 1 + later, len(actions) - 1)
    command: NDArray[np.float32] = actions[at, np.arange(actions.shape[1])]
    return command


def psnr(image: Images, truth: Images) -> float:
    """Peak signal-to-noise ratio in dB of uint8 images; equal ones give 99."""
    error = float(np.mean((image.astype(np.float32) - truth.astype(np.float32)) ** 2))
    return 99.0 if error == 0 else min(99.0, float(10.0 * np.log10(255.0**2 / error)))


def ssim(image: Images, truth: Images) -> float:
    """Structural similarity of uint8 images (..., H, W, 3), mean over leading axes."""
    pairs = zip(
        image.reshape(-1, *image.shape[-3:]), truth.reshape(-1, *truth.shape[-3:]), strict=True
    )
    values = [structural_similarity(a, b, channel_axis=2, data_range=255) for a, b in pairs]
    return float(np.mean(values))


def blur(frame: Images, sigma: float) -> Images:
    """Blur (..., H, W, 3) by a Gaussian of ``sigma`` pixels."""
    if sigma == 0:
        return frame
    axes = (0.0,) * (frame.ndim - 3) + (sigma, sigma, 0.0)
    return _to_image(gaussian_filter(frame.astype(np.float32), axes))


def blend(frame: Images, mean: Floats, share: float) -> Images:
    """Mix a frame with the mean frame of training, of which ``share`` is taken."""
    return _to_image((1.0 - share) * frame.astype(np.float32) + share * mean)


def _to_image(values: NDArray[np.floating]) -> Images:
    image: Images = np.clip(np.rint(values), 0, 255).astype(np.uint8)
    return image


def fit_floors(
    dataset: Dataset, episodes: Sequence[Episode] | None = None, seed: int = 0
) -> Floors:
    """Fit every floor on training episodes.

    Args:
        dataset: the training data.
        episodes: those to fit on, by default all of the dataset.
        seed: of the choice of frames.

    Raises:
        WmError: too few episodes are long enough.
    """
    profile = dataset.profile
    chosen = list(dataset.episodes if episodes is None else episodes)
    usable = [episode for episode in chosen if len(anchors(profile, episode, 1))]
    if len(usable) < 2:
        raise WmError(
            f"the dataset {dataset.path} has {len(usable)} episodes as long as context and "
            "horizon; at least two are needed to fit the floors."
        )
    steps = scored_steps(profile)
    rng = np.random.default_rng(seed)
    mean_frames = _mean_frames(dataset, usable, rng)
    pairs = [_frame_pairs(dataset, usable, step, rng) for step in steps]
    return Floors(
        steps=steps,
        ridges=tuple(_fit_joint_ridge(dataset, usable, step) for step in steps),
        blurs=tuple(
            _best(BLURS, lambda v, p=p: (psnr(blur(a, v), b) for a, b in p)) for p in pairs
        ),
        shares=tuple(
            _best(SHARES, lambda v, p=p: (psnr(blend(a, mean_frames, v), b) for a, b in p))
            for p in pairs
        ),
        mean_frames=mean_frames,
        episodes=tuple(dict.fromkeys(episode.name for episode in dataset.episodes)),
    )


def _fit_joint_ridge(dataset: Dataset, episodes: Sequence[Episode], step: int) -> Ridge:
    profile = dataset.profile
    total = sum(len(anchors(profile, episode, 1)) for episode in episodes)
    stride = max(1, -(-total // MAX_WINDOWS))
    features, targets, groups = [], [], []
    for number, episode in enumerate(episodes):
        part = slice(episode.start, episode.start + episode.length)
        joints, actions = dataset.joints[part], dataset.actions[part]
        at = anchors(profile, episode, stride)
        features.append(joint_features(profile, joints, actions, at, step))
        change = joints[at + step * profile.model.ticks_per_step] - joints[at]
        targets.append(change.astype(np.float64))
        groups.append(np.full(len(at), number, dtype=np.int64))
    return fit_ridge(np.concatenate(features), np.concatenate(targets), np.concatenate(groups))


def _frames_at(dataset: Dataset, tick: int) -> Images:
    return np.stack([dataset.frames(camera.name)[tick] for camera in dataset.profile.cameras])


def _mean_frames(dataset: Dataset, episodes: Sequence[Episode], rng: np.random.Generator) -> Floats:
    """Average frames of every episode, few neighbours, so that memory and time stay bounded."""
    each = max(1, MAX_MEAN_FRAMES // len(episodes))
    cameras = dataset.profile.cameras
    total = np.zeros((len(cameras), cameras[0].model_height, cameras[0].model_width, 3))
    count = 0
    for episode in episodes:
        ticks = episode.start + rng.permutation(episode.length)[:each]
        for tick in np.sort(ticks):
            if dataset.frame_valid[tick].all():
                total += _frames_at(dataset, int(tick))
                count += 1
    if not count:
        raise WmError(f"the dataset {dataset.path} has no tick at which every camera gave a frame.")
    return total / count


def _frame_pairs(
    dataset: Dataset, episodes: Sequence[Episode], step: int, rng: np.random.Generator
) -> list[tuple[Images, Images]]:
    """Draw pairs of a frame and the one ``step`` model steps later, evenly over the anchors."""
    profile = dataset.profile
    ahead = step * profile.model.ticks_per_step
    at = np.concatenate([episode.start + anchors(profile, episode, 1) for episode in episodes])
    at = np.sort(rng.permutation(at)[:MAX_PAIRS])
    return [
        (_frames_at(dataset, int(tick)), _frames_at(dataset, int(tick) + ahead))
        for tick in at
        if dataset.frame_valid[tick].all() and dataset.frame_valid[tick + ahead].all()
    ]


def _best(values: Sequence[float], scores: Any) -> float:
    """Return the value with the best mean score."""

    def mean_score(value: float) -> float:
        found: Iterable[float] = scores(value)
        return float(np.mean(list(found)))

    return max(values, key=mean_score)
