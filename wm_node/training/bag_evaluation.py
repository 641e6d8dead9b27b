"""``wm evaluate --bags``: predictions on recordings that were left out, beside the obvious guesses.

At anchors spread over every left-out episode the model is given its context and the planned
commands, and its joints and frames a quarter, half and a whole horizon ahead are compared with what
was recorded. The same is done with commands taken from another episode at the same phase: a model
that ignores its actions does not get worse by that.
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
from numpy.typing import NDArray
from PIL import Image
from rich.console import Console
from rich.progress import Progress
from rich.table import Table

from wm_node.bundle import load_bundle
from wm_node.data.bags import find_bags
from wm_node.data.dataset import Dataset, Episode
from wm_node.data.ingest import temporary_dataset
from wm_node.engine import load_engine
from wm_node.errors import WmError
from wm_node.json_file import write_json
from wm_node.planning.world_model import WorldModel
from wm_node.profile import RobotProfile
from wm_node.training.floors import (
    FILE,
    Floors,
    anchors,
    blend,
    blur,
    hold_commands,
    joint_features,
    present_command,
    psnr,
    scored_steps,
    ssim,
)
from wm_node.training.recorded import RecordedContexts

RESAMPLES = 2000
PICTURE_ROWS = 6
GAP = 4  # pixels between pictures

Images = NDArray[np.uint8]
Advance = Callable[[int, int], None]  # anchors done, anchors in all
Series = dict[str, list[NDArray[np.float64]]]


@dataclass(frozen=True)
class Scores:
    """Of one step ahead: a name (``model``, ``copy_last``...) -> one entry an anchor."""

    joint_errors: dict[str, NDArray[np.float64]]
    """(N, J) predicted less recorded."""
    psnr: dict[str, NDArray[np.float64]]
    """(N,) dB."""
    ssim: dict[str, NDArray[np.float64]]
    """(N,)."""


@dataclass(frozen=True)
class BagScores:
    """Everything measured on left-out episodes."""

    steps: dict[int, Scores]
    episode_of: NDArray[np.int64]
    """(N,) number of each anchor's episode."""
    examples: tuple[Images, ...]
    """Rows of pictures: present, then for each step recorded and predicted."""


def evaluate_bags(
    bundle_path: Path,
    bags: Path,
    backend: str = "openvino",
    *,
    threads: int = 1,
    stride_s: float | None = None,
    namespace: str = "",
    pictures: Path | None = None,
    advance: Advance | None = None,
) -> dict[str, Any]:
    """Score a bundle on those bags of a folder that it was not trained on.

    Args:
        bundle_path: a bundle with ``floors.npz``, as ``wm train`` writes it.
        bags: a bag, or a folder of bags; those named in the bundle as trained on are left out.
        backend: of the engine.
        threads: CPU threads of the engine.
        stride_s: seconds between anchors, by default two model steps.
        namespace: where the profile's topics lie in the bags.
        pictures: folder to write example pictures to.
        advance: told the progress.

    Returns:
        Figures as plain data; ``docs/real_data.md`` explains them.

    Raises:
        WmError: no floors in the bundle, or no usable bag that it was not trained on.
    """
    bundle = load_bundle(bundle_path)
    profile = bundle.profile
    if FILE not in bundle.manifest["files"]:
        raise WmError(
            f"the bundle {bundle.path} has no {FILE} to compare with; train it again with "
            "'wm train'."
        )
    floors = Floors.load(bundle.file(FILE))
    found = find_bags([bags])
    trained = set(floors.episodes)
    left_out = [bag for bag in found if not _trained_on(bag.name, trained)]
    if not left_out:
        raise WmError(
            f"the bundle {bundle.path} was trained on all {len(found)} bags of {bags}; give bags "
            "that were left out of 'wm ingest'."
        )
    model = WorldModel(bundle, load_engine(bundle, backend, threads))
    ticks = profile.model.ticks_per_step
    stride = 2 * ticks if stride_s is None else max(1, round(stride_s / profile.model.tick_s))
    paths = [bag.path for bag in left_out]
    with temporary_dataset(paths, profile, namespace) as (dataset, result):
        scores = score_dataset(model, floors, dataset, stride, advance)
        skipped = {r.name: r.skipped for r in result.reports if r.skipped is not None}
        names = [episode.name for episode in dataset.episodes]
    figures = {
        "bundle": str(bundle.path),
        "bundle_sha256": bundle.sha256,
        "backend": backend,
        "robot": profile.name,
        "bags": [bag.name for bag in left_out if bag.name not in skipped],
        "bags_trained_on": len(found) - len(left_out),
        "bags_skipped": skipped,
        "episodes": len(names),
        "anchors": len(scores.episode_of),
        "stride_s": stride * profile.model.tick_s,
        "frame_size": [profile.cameras[0].model_width, profile.cameras[0].model_height],
        "floors": _floor_settings(floors, len(trained)),
        "horizons": [
            _horizon_figures(profile, step, part, scores.episode_of)
            for step, part in scores.steps.items()
        ],
    }
    if pictures is not None:
        figures["pictures"] = str(write_pictures(pictures, scores.examples))
    return figures


def _trained_on(bag: str, episodes: set[str]) -> bool:
    """Tell whether a bag gave an episode; one that was cut gave ``bag#0``, ``bag#1``..."""
    # Folders before the bag's own name depend on how the bags were given, so names are compared.
    own = Path(bag).name
    return any(Path(name.rsplit("#", 1)[0]).name == own for name in episodes)


def score_dataset(
    model: WorldModel,
    floors: Floors,
    dataset: Dataset,
    stride: int,
    advance: Advance | None = None,
) -> BagScores:
    """Compare the model and the floors with recorded episodes.

    Args:
        model: the bundle's.
        floors: fitted on its training episodes.
        dataset: left-out episodes on the same grid.
        stride: ticks between anchors.
        advance: told the progress.

    Raises:
        WmError: no episode is long enough.
    """
    usable = [
        (episode, _anchors_with_frames(dataset, episode, stride)) for episode in dataset.episodes
    ]
    usable = [(episode, at) for episode, at in usable if at]
    if not usable:
        raise WmError("no left-out episode is as long as the model's context and horizon.")
    total = sum(len(at) for _, at in usable)
    scorer = _Scorer(model, floors, dataset, total)
    for number, (episode, ticks) in enumerate(usable):
        other, _ = usable[(number + 1) % len(usable)]
        for at in ticks:
            scorer.score(number, episode, other, at)
            if advance is not None:
                advance(len(scorer.episode_of), total)
    return scorer.result()


def _anchors_with_frames(dataset: Dataset, episode: Episode, stride: int) -> list[int]:
    """Return the anchors at which every camera gave the present frame and those to predict."""
    profile = dataset.profile
    ahead = np.array([0, *scored_steps(profile)]) * profile.model.ticks_per_step
    at = anchors(profile, episode, stride)
    complete = dataset.frame_valid[(episode.start + at)[:, None] + ahead].all(axis=(1, 2))
    return [int(tick) for tick in at[complete]]


class _Scorer:
    def __init__(self, model: WorldModel, floors: Floors, dataset: Dataset, total: int) -> None:
        self.model, self.floors, self.dataset = model, floors, dataset
        self.profile = dataset.profile
        self.commanded = self.profile.action.kind == "joint_position"
        self.joints: dict[int, Series] = {step: {} for step in floors.steps}
        self.psnr: dict[int, Series] = {step: {} for step in floors.steps}
        self.ssim: dict[int, Series] = {step: {} for step in floors.steps}
        self.episode_of: list[int] = []
        self.examples: list[Images] = []
        self._shown = set(np.linspace(0, total - 1, PICTURE_ROWS + 2).astype(int)[1:-1].tolist())
        self._recorded = RecordedContexts(model, dataset)

    def score(self, number: int, episode: Episode, other: Episode, at: int) -> None:
        """Score one anchor, ``at`` ticks into an episode; swapped commands come from ``other``."""
        profile, model, floors = self.profile, self.model, self.floors
        rates = profile.model
        tick = episode.start + at
        joints, actions = self.dataset.joints, self.dataset.actions
        swapped_at = other.start + _same_phase(at, episode, other, rates.horizon_ticks)
        planned = np.stack(
            [actions[t : t + rates.horizon_ticks] for t in (tick, swapped_at)]
        ).astype(np.float32)
        context = self._recorded.at(tick)
        outcomes = model.rollout(context, planned)
        picked = [step - 1 for step in floors.steps]
        futures = {
            name: (outcomes.joints[row].copy(), outcomes.latents[row][picked].copy())
            for row, name in enumerate(("model", "model_swapped"))
        }
        present = self._recorded.frames(tick)
        by_camera = dict(zip((c.name for c in profile.cameras), present, strict=True))
        drawn = {
            name: model.decode(
                latents, future[picked], context.latents[-1], context.joints[-1], by_camera
            )
            for name, (future, latents) in futures.items()
        }
        pictures = [present[0]]
        for place, step in enumerate(floors.steps):
            ahead = tick + step * rates.ticks_per_step
            guesses = {name: future[step - 1] for name, (future, _) in futures.items()}
            guesses |= self._joint_floors(tick, step, place)
            for name, value in guesses.items():
                _put(self.joints[step], name, value.astype(np.float64) - joints[ahead])
            truth = self._recorded.frames(ahead)
            images = {name: frames[place] for name, frames in drawn.items()}
            images |= self._frame_floors(present, place)
            for name, image in images.items():
                _put(self.psnr[step], name, np.float64(psnr(image, truth)))
                _put(self.ssim[step], name, np.float64(ssim(image, truth)))
            pictures += [truth[0], images["model"][0]]
        if len(self.episode_of) in self._shown:
            self.examples.append(_row(pictures))
        self.episode_of.append(number)

    def _joint_floors(self, tick: int, step: int, place: int) -> dict[str, NDArray[np.floating]]:
        joints, actions = self.dataset.joints, self.dataset.actions
        at = np.array([tick])
        features = joint_features(self.profile, joints, actions, at, step)
        now = joints[tick].astype(np.float64)
        guesses: dict[str, NDArray[np.floating]] = {
            "hold_last": now,
            "ridge": now + self.floors.ridges[place].predict(features)[0],
        }
        if self.commanded:
            guesses["command_held"] = hold_commands(
                self.profile, joints[at], present_command(self.profile, actions, tick)[None]
            )[0]
        return guesses

    def _frame_floors(self, present: Images, place: int) -> dict[str, Images]:
        floors = self.floors
        return {
            "copy_last": present,
            "blurred_copy": blur(present, floors.blurs[place]),
            "blend_with_mean": blend(present, floors.mean_frames, floors.shares[place]),
        }

    def result(self) -> BagScores:
        return BagScores(
            steps={
                step: Scores(
                    joint_errors=_stacked(self.joints[step]),
                    psnr=_stacked(self.psnr[step]),
                    ssim=_stacked(self.ssim[step]),
                )
                for step in self.floors.steps
            },
            episode_of=np.array(self.episode_of, dtype=np.int64),
            examples=tuple(self.examples),
        )


def _same_phase(at: int, episode: Episode, other: Episode, horizon: int) -> int:
    """Return the tick of another episode that is as far through it, with a whole horizon left.

    With a single episode there is no other: its commands half an episode away stand in.
    """
    phase = at / episode.length
    if other is episode:
        phase = (phase + 0.5) % 1.0
    return min(round(phase * other.length), other.length - horizon)


def _put(series: Series, name: str, value: Any) -> None:
    series.setdefault(name, []).append(value)


def _stacked(series: Series) -> dict[str, NDArray[np.float64]]:
    return {name: np.stack(values) for name, values in series.items()}


def _row(pictures: Sequence[Images]) -> Images:
    gap = np.full((pictures[0].shape[0], GAP, 3), 255, dtype=np.uint8)
    parts: list[Images] = []
    for picture in pictures:
        parts += [picture, gap]
    return np.concatenate(parts[:-1], axis=1)


def write_pictures(folder: Path, examples: Sequence[Images]) -> Path:
    """Write the examples below each other as ``predictions.png``; return its path.

    Raises:
        WmError: the folder cannot be written.
    """
    gap = np.full((GAP, examples[0].shape[1], 3), 255, dtype=np.uint8)
    parts: list[Images] = []
    for example in examples:
        parts += [example, gap]
    path = folder / "predictions.png"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        Image.fromarray(np.concatenate(parts[:-1])).save(path, optimize=True)
    except OSError as error:
        raise WmError(f"cannot write {path}: {error.strerror or error}.") from error
    return path


def _floor_settings(floors: Floors, episodes: int) -> dict[str, Any]:
    return {
        "training_episodes": episodes,
        "blur_sigma_px": list(floors.blurs),
        "blend_share_of_mean": list(floors.shares),
        "ridge_penalty_median": [float(np.median(ridge.penalty)) for ridge in floors.ridges],
    }


def _horizon_figures(
    profile: RobotProfile, step: int, scores: Scores, episode_of: NDArray[np.int64]
) -> dict[str, Any]:
    errors = scores.joint_errors
    units = np.array(profile.joints.units)
    rmse = {name: _rms(error) for name, error in errors.items()}
    floors_psnr = {n: v for n, v in scores.psnr.items() if not n.startswith("model")}
    best = max(floors_psnr, key=lambda name: float(floors_psnr[name].mean()))
    square = {name: (error**2).mean(1) for name, error in errors.items()}
    return {
        "step": step,
        "seconds": round(step * profile.model.step_s, 3),
        "joint_rmse": rmse,
        "joint_rmse_by_unit": {
            str(unit): {name: _rms(error[:, units == unit]) for name, error in errors.items()}
            for unit in dict.fromkeys(units.tolist())
        },
        "joint_rmse_by_joint": {
            joint: {name: _rms(error[:, column]) for name, error in errors.items()}
            for column, joint in enumerate(profile.joints.names)
        },
        "psnr_db": {name: float(values.mean()) for name, values in scores.psnr.items()},
        "ssim": {name: float(values.mean()) for name, values in scores.ssim.items()},
        "ridge_ratio": _ratio(rmse["model"], rmse["ridge"]),
        "ridge_ratio_95": _interval(
            episode_of, lambda w: _ratio(_root(w @ square["model"]), _root(w @ square["ridge"]))
        ),
        "swap_ratio": _ratio(rmse["model_swapped"], rmse["model"]),
        "swap_ratio_95": _interval(
            episode_of,
            lambda w: _ratio(_root(w @ square["model_swapped"]), _root(w @ square["model"])),
        ),
        "best_frame_floor": best,
        "psnr_margin_db": float((scores.psnr["model"] - scores.psnr[best]).mean()),
        "psnr_margin_db_95": _interval(
            episode_of, lambda w: float(w @ (scores.psnr["model"] - scores.psnr[best]) / w.sum())
        ),
    }


def _ratio(value: float, base: float) -> float:
    return value / max(base, 1e-9)


def _rms(error: NDArray[np.float64]) -> float:
    return float(np.sqrt(np.mean(error**2)))


def _root(value: Any) -> float:
    return float(np.sqrt(value))


def _interval(
    episode_of: NDArray[np.int64], figure: Callable[[NDArray[np.float64]], float]
) -> list[float]:
    """Bootstrap a figure over episodes: its 95 % interval.

    Args:
        episode_of: (N,) number of each anchor's episode.
        figure: takes the weight (N,) of every anchor.
    """
    rng = np.random.default_rng(0)
    episodes = int(episode_of.max()) + 1
    values = []
    for _ in range(RESAMPLES):
        times = np.bincount(rng.integers(0, episodes, episodes), minlength=episodes)
        weights = times[episode_of].astype(np.float64)
        if weights.any():
            values.append(figure(weights))
    low, high = np.percentile(values, [2.5, 97.5])
    return [float(low), float(high)]


def add_bag_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the arguments that only ``--bags`` uses."""
    group = parser.add_argument_group("with --bags")
    group.add_argument("--namespace", default="", help="where the topics lie in the bags")
    group.add_argument(
        "--stride", type=float, help="seconds between predictions (default: two model steps)"
    )


def run_bags(args: argparse.Namespace) -> int:
    """Run ``wm evaluate --bundle B --bags DIR`` and print the comparison."""
    console = Console()
    with Progress(console=console, disable=not console.is_terminal) as progress:
        task = progress.add_task("predicting", total=None)
        figures = evaluate_bags(
            Path(args.bundle),
            Path(args.bags),
            getattr(args, "backend", None) or "openvino",
            threads=getattr(args, "threads", None) or 1,
            stride_s=getattr(args, "stride", None),
            namespace=getattr(args, "namespace", ""),
            pictures=getattr(args, "pictures", None),
            advance=lambda done, total: progress.update(task, completed=done, total=total),
        )
    print_figures(console, figures)
    if args.json is not None:
        write_json(Path(args.json), figures)
    return 0


def print_figures(console: Console, figures: Mapping[str, Any]) -> None:
    """Print the comparison as a table, a column a time ahead."""
    horizons = figures["horizons"]
    table = Table(
        title=f"{figures['episodes']} left-out episodes, {figures['anchors']} predictions"
    )
    table.add_column("", no_wrap=True)
    for item in horizons:
        table.add_column(f"{item['seconds']:.2f} s", justify="right", no_wrap=True)
    for key, title, digits in (
        ("joint_rmse", "joint RMSE", 4),
        ("psnr_db", "PSNR, dB", 2),
        ("ssim", "SSIM", 3),
    ):
        table.add_section()
        for name in horizons[0][key]:
            values = (f"{item[key][name]:.{digits}f}" for item in horizons)
            table.add_row(f"{title}: {name.replace('_', ' ')}", *values)
    table.add_section()
    for key, title in (
        ("ridge_ratio", "joint RMSE over ridge"),
        ("swap_ratio", "swapped commands over right"),
        ("psnr_margin_db", "PSNR over best floor, dB"),
    ):
        table.add_row(title, *(f"{item[key]:.2f}" for item in horizons))
        bounds = (item[f"{key}_95"] for item in horizons)
        table.add_row("  95 % interval", *(f"{low:.2f} to {high:.2f}" for low, high in bounds))
    console.print(table)
    for name, reason in figures["bags_skipped"].items():
        console.print(f"skipped {name}: {reason}", style="yellow", markup=False)
