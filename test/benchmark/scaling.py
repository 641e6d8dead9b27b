"""How prediction and success grow with the size of the dynamics and with data.

    S="python test/benchmark/scaling.py" OUT="--out out/scaling"
    $S run $OUT --dataset out/second.zarr --plays 0 --save
    $S predict $OUT
    $S run $OUT --dataset out/second.zarr --plays 0 --save --held-out
    $S play $OUT --plays 64
    $S fit $OUT --picture docs/images/scaling.png

``run`` trains dynamics and heads of several widths on the first so many episodes of a dataset, on
the latents of one frozen encoder (the bundle's), scores each on the same left-out episodes and by
planning, and adds a line to ``runs.jsonl``. A run that is there already is left out, so an
interrupted study goes on. On a GPU small models wait for launches, so ``--workers`` trains several
at once. ``predict`` fits error = floor + a / parameters^alpha + b / frames^beta (Hoffmann et al.,
2022), with intervals by bootstrap over runs, and writes into ``prediction.json`` what that says of
one larger run, which ``run --held-out`` then trains. ``play`` plays what ``--save`` has kept, here
or on another machine: of ``--out`` it needs ``runs.jsonl`` and ``weights`` alone. ``fit`` compares
the held-out run with its prediction, and gives the best that was reached with so many FLOP.

Value and proposal, which a plan reads too, are the bundle's in all runs: they know latents alone.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ProcessPoolExecutor, as_completed
from dataclasses import asdict, dataclass, replace
from datetime import datetime, timezone
from functools import lru_cache, partial
from multiprocessing import get_context
from pathlib import Path
from typing import Any, TypeVar

import numpy as np
import torch
from numpy.typing import NDArray
from safetensors import safe_open
from safetensors.torch import load_file, save_file
from scipy.optimize import least_squares

from wm_node.bundle import load_bundle
from wm_node.data.dataset import Dataset
from wm_node.errors import WmError
from wm_node.json_file import write_json
from wm_node.model.config import Dims
from wm_node.model.export import export_bundle, round_matrices
from wm_node.model.load import load_network
from wm_node.model.world import WorldModelNet
from wm_node.sim.processes import end_with_parent
from wm_node.sim.seeds import VALIDATION_SEED
from wm_node.training.calibration import calibrate
from wm_node.training.data import Split, TrainingData
from wm_node.training.dynamics_phase import (
    Windows,
    dynamics_phase,
    freeze_encoder,
    set_correction_gain,
    validate,
)
from wm_node.training.encoder_phase import encode_all
from wm_node.training.loop import Recorder, default_threads, find_device, run_phase
from wm_node.training.recipe import Recipe, load_recipe
from wm_node.training.run import DYNAMICS_PARTS
from wm_node.training.suite_evaluation import evaluate_suite

RUNS, LATENTS, PREDICTION, WEIGHTS = "runs.jsonl", "latents.npy", "prediction.json", "weights"
WIDTHS, EPISODES, SEEDS = (48, 96, 192, 384), (500, 1000, 2000, 4000), 2
HELD_OUT = (384, 8000)  # predicted before it is trained
HIDDEN_PER_WIDTH = 8 / 3
ERRORS = ("latent_mse", "mug_moved_cm", "failure")
FRAMES_BYTES = 8 * 2**30  # kept in memory while they are encoded

Doubles = NDArray[np.float64]
Row = dict[str, Any]
Job = TypeVar("Job")


@dataclass(frozen=True)
class Plays:
    """How a trained network is played."""

    episodes: int
    backend: str
    processes: int


@dataclass(frozen=True)
class Study:
    """What all runs share."""

    dataset: Path
    bundle: Path
    out: Path
    recipe: Recipe
    device: str
    threads: int
    fp32: bool
    save: bool
    plays: Plays


@dataclass(frozen=True)
class Run:
    """One network to train."""

    width: int
    episodes: int
    seed: int

    @staticmethod
    def of(row: Row) -> Run:
        """Return the run that a row is of."""
        return Run(row["width"], row["episodes"], row["seed"])

    def weights(self, out: Path) -> Path:
        """Where its weights are kept."""
        return out / WEIGHTS / f"{self.width}_{self.episodes}_{self.seed}.safetensors"


def network(bundle: Path, width: int) -> WorldModelNet:
    """Return the bundle's network with new dynamics, and heads that read them, of another width."""
    source = load_bundle(bundle)
    old = load_network(source)
    config = source.model
    hidden = round(HIDDEN_PER_WIDTH * width)
    net = WorldModelNet(
        Dims.of(source.profile), replace(config, width=width, transition_hidden=hidden)
    )
    kept = {name: v for name, v in old.state_dict().items() if not name.startswith(DYNAMICS_PARTS)}
    net.load_state_dict(kept, strict=False)
    freeze_encoder(net)
    return net


def size_of(net: WorldModelNet) -> int:
    """Return the number of parameters of the dynamics."""
    return sum(parameter.numel() for parameter in net.dynamics.parameters())


def encode(study: Study) -> None:
    """Encode all frames once for all runs."""
    file = study.out / LATENTS
    if file.exists():
        return
    device = torch.device(study.device)
    data = TrainingData(Dataset.open(study.dataset), device, FRAMES_BYTES)
    with torch.no_grad():
        latents = encode_all(network(study.bundle, WIDTHS[0]).to(device), data)
    new = file.with_suffix(".new.npy")
    np.save(new, latents.cpu().numpy())
    new.replace(file)
    del data, latents
    if device.type == "cuda":
        torch.cuda.empty_cache()  # for the workers


@lru_cache(maxsize=1)
def inputs(dataset: Path, latents: Path, device: torch.device) -> tuple[TrainingData, torch.Tensor]:
    """Return a worker's data, whose frames stay on disk, and latents, once for all its runs."""
    data = TrainingData(Dataset.open(dataset), device, memory_bytes=0)
    values = np.load(latents, mmap_mode="c")
    if len(values) != len(data.joints):
        raise WmError(f"{latents} is of another dataset than {dataset}; remove it.")
    return data, torch.from_numpy(values).to(device)


def train(study: Study, run: Run) -> Row:
    """Train on the first episodes, validate, keep and play: what one worker does of a study."""
    torch.set_num_threads(study.threads)
    recipe, device = study.recipe, torch.device(study.device)
    data, latents = inputs(study.dataset, study.out / LATENTS, device)
    torch.manual_seed(run.seed)
    net = network(study.bundle, run.width).to(device)
    windows = Windows(net, data, latents)
    last = data.dataset.episodes[min(run.episodes, len(data.dataset.episodes)) - 1]
    starts = windows.split.train[windows.split.train < last.start + last.length]
    windows.split = Split(starts, windows.split.validation)
    phase = dynamics_phase(windows, recipe, run.seed, None)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(Path(folder), lambda *_: None)
        decay, clip = recipe.weight_decay, recipe.clip
        run_phase(phase, run.seed, device, recorder, decay, clip, mixed=not study.fp32)
        recorder.close()
    seconds = time.monotonic() - began
    set_correction_gain(windows)
    figures = validate(windows)
    calibration = calibrate(windows)
    row = {
        **asdict(run),
        "steps": recipe.dynamics_steps,
        "parameters": size_of(net),
        "frames": len(starts),
        "flop": 6.0 * size_of(net) * recipe.dynamics_steps * recipe.dynamics_batch * windows.steps,
        "train_s": round(seconds, 1),
        "ended": now(),
        "latent_mse": figures["latent_mse"],
        "mug_cm": 100 * figures[f"goal_error_{windows.horizon}"],
        "mug_moved_cm": 100 * figures["goal_error_moved"],
    }
    if study.save:
        save(net, calibration, run.weights(study.out))
    return row | played(net, study.bundle, calibration, study.plays)


def save(net: WorldModelNet, calibration: dict[str, Any], path: Path) -> None:
    """Write what was trained, rounded as a bundle rounds it: in half precision where that is all.

    The calibration goes into the file's metadata.
    """
    round_matrices(net)
    tensors = {}
    for name, tensor in net.state_dict().items():
        if name.startswith(DYNAMICS_PARTS) or name == "correction_gain":
            half = tensor.half()
            exact = torch.equal(half.float(), tensor)
            tensors[name] = (half if exact else tensor).contiguous().cpu()
    path.parent.mkdir(parents=True, exist_ok=True)
    new = path.with_suffix(".new")
    save_file(tensors, str(new), {"calibration": json.dumps(calibration)})
    new.replace(path)


def play_saved(bundle: Path, out: Path, plays: Plays, run: Run) -> Row:
    """Play saved weights: what one worker does of ``play``."""
    torch.set_num_threads(1)
    file = str(run.weights(out))
    net = network(bundle, run.width)
    net.load_state_dict({k: v.float() for k, v in load_file(file).items()}, strict=False)
    with safe_open(file, framework="pt") as stream:
        calibration = json.loads(stream.metadata()["calibration"])
    return played(net, bundle, calibration, plays)


def played(net: WorldModelNet, bundle: Path, calibration: dict[str, Any], plays: Plays) -> Row:
    """Return how a network plays the suite's validation episodes; it ends on the CPU, rounded."""
    if not plays.episodes:
        return {}
    with tempfile.TemporaryDirectory() as folder:
        path = Path(folder) / "bundle"
        extra = {"calibration": calibration, "data": {}, "metrics": {}}
        export_bundle(net, load_bundle(bundle).profile, path, extra, searches={})
        figures = evaluate_suite(
            "mpc",
            "state",
            path,
            plays.backend,
            plays.episodes,
            first_seed=VALIDATION_SEED,
            workers=plays.processes,
        )
    return {
        "plays": plays.episodes,
        "success": figures["success"],
        "falls": figures["falls"],
        "plan_ms": figures["plan_ms"]["p50"],
    }


def in_workers(
    work: Callable[[Job], Row], jobs: Sequence[Job], workers: int
) -> Iterator[tuple[Job, Row]]:
    """Do jobs in so many processes, which may have children, and yield results as they end.

    Raises:
        WmError: some have failed, after all others have ended.
    """
    if not jobs:
        return
    failed = 0
    pool = ProcessPoolExecutor(
        min(workers, len(jobs)), get_context("spawn"), initializer=end_with_parent
    )
    try:
        waiting = {pool.submit(work, job): job for job in jobs}
        for future in as_completed(waiting):
            job, error = waiting[future], future.exception()
            if error is None:
                yield job, future.result()
            else:
                failed += 1
                print(f"{job} failed: {error!r}", flush=True)
    finally:
        pool.shutdown(cancel_futures=True)
    if failed:
        raise WmError(f"{failed} of {len(jobs)} runs failed; the same command does them again.")


def now() -> str:
    """Return the time, UTC, for rows and predictions to be compared by."""
    return datetime.now(timezone.utc).isoformat(timespec="seconds")


def read_rows(out: Path) -> list[Row]:
    """Return the rows of all runs so far."""
    file = out / RUNS
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    return [json.loads(line) for line in lines]


def read_prediction(out: Path) -> Row:
    """Return what was predicted, by figure, and of which run; empty if nothing was."""
    file = out / PREDICTION
    found: Row = json.loads(file.read_text(encoding="utf-8")) if file.exists() else {}
    return found


def replace_text(file: Path, text: str) -> None:
    """Write a file whole or not at all."""
    new = file.with_suffix(".new")
    new.write_text(text, encoding="utf-8")
    new.replace(file)


def is_held_out(row: Row, prediction: Row) -> bool:
    """Whether a row is of the run that the law must not see."""
    width, episodes = HELD_OUT
    held_out = (prediction.get("width", width), prediction.get("episodes", episodes))
    return (row["width"], row["episodes"]) == held_out


def plays_of(args: argparse.Namespace) -> Plays:
    """Share the cores out among workers that play."""
    return Plays(args.plays, args.backend, max(1, default_threads() // args.workers))


def wanted_runs(args: argparse.Namespace) -> list[Run]:
    """Return the runs of this command that are missing, largest first, so that none ends late."""
    sizes = [(width, episodes) for width in args.widths for episodes in args.episodes]
    if args.held_out:
        prediction = read_prediction(args.out)
        if not prediction:
            raise WmError("the held-out run is predicted before it is trained: 'predict' first.")
        sizes = [(prediction["width"], prediction["episodes"])]
    runs = [Run(width, episodes, seed) for width, episodes in sizes for seed in range(args.seeds)]
    done = {Run.of(row) for row in read_rows(args.out)}
    return sorted(set(runs) - done, key=lambda run: (-run.width, -run.episodes, run.seed))


def run_study(args: argparse.Namespace) -> None:
    """Do the runs that are missing."""
    threads = args.threads or (default_threads() if args.workers == 1 else 1)
    args.out.mkdir(parents=True, exist_ok=True)
    study = Study(
        dataset=args.dataset,
        bundle=args.bundle,
        out=args.out,
        recipe=replace(load_recipe(args.recipe), dynamics_steps=args.steps, hard_share=0.0),
        device=find_device(args.device),
        threads=threads,
        fp32=args.fp32,
        save=args.save,
        plays=plays_of(args),
    )
    runs = wanted_runs(args)
    if runs:
        encode(study)
    ended = in_workers(partial(train, study), runs, args.workers)
    for number, (_, row) in enumerate(ended, start=1):
        with (args.out / RUNS).open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
        print(f"{number} of {len(runs)}: {json.dumps(row)}", flush=True)


def play_study(args: argparse.Namespace) -> None:
    """Play saved runs that were not played, and put the figures into their rows."""
    rows = {Run.of(row): row for row in read_rows(args.out)}
    runs = [
        run for run, row in rows.items() if "success" not in row and run.weights(args.out).exists()
    ]
    work = partial(play_saved, args.bundle, args.out, plays_of(args))
    for number, (run, figures) in enumerate(in_workers(work, runs, args.workers), start=1):
        rows[run] |= figures
        text = "".join(json.dumps(row) + "\n" for row in rows.values())
        replace_text(args.out / RUNS, text)
        print(f"{number} of {len(runs)}: {run} {json.dumps(figures)}", flush=True)


def law(theta: Doubles, parameters: Doubles, frames: Doubles) -> Doubles:
    """Error by the law; theta holds logs of floor, a and b, and the exponents alpha and beta."""
    floor, a, b, alpha, beta = theta
    return np.asarray(
        np.exp(floor) + np.exp(a - alpha * np.log(parameters)) + np.exp(b - beta * np.log(frames))
    )


def fit_law(parameters: Doubles, frames: Doubles, error: Doubles) -> Doubles:
    """Fit it to log errors with a robust loss, from several starts."""
    low = np.array([-12.0, -12.0, -12.0, 0.02, 0.02])
    high = np.array([2.0, 20.0, 20.0, 2.0, 2.0])
    best = None

    def residuals(theta: Doubles) -> Doubles:
        return np.asarray(np.log(law(theta, parameters, frames)) - np.log(error))

    for exponent in (0.2, 0.5, 1.0):
        for share in (0.3, 0.7):
            start = np.array(
                [
                    np.log(share * error.min()),
                    np.log(0.2 * error.mean()) + exponent * np.log(parameters.mean()),
                    np.log(0.2 * error.mean()) + exponent * np.log(frames.mean()),
                    exponent,
                    exponent,
                ]
            )
            found = least_squares(
                residuals,
                np.clip(start, low, high),
                bounds=(low, high),
                loss="soft_l1",
                f_scale=0.05,
            )
            best = found if best is None or found.cost < best.cost else best
    assert best is not None
    return np.asarray(best.x)


def has(row: Row, key: str) -> bool:
    """Whether a run has a figure: only played ones fail."""
    return key != "failure" or "success" in row


def figure_of(row: Row, key: str) -> float:
    """Return an error; of failures at least half a one, which has a logarithm."""
    if key == "failure":
        return max(1.0 - float(row["success"]), 0.5 / int(row["plays"]))
    return float(row[key])


def fit_runs(rows: Sequence[Row], key: str, bootstrap: int) -> tuple[Doubles, Doubles]:
    """Fit the law to runs; return theta, and (bootstrap, 5) others of runs drawn again."""
    error = np.array([figure_of(row, key) for row in rows])
    parameters, frames = (
        np.array([row[name] for row in rows]) for name in ("parameters", "frames")
    )
    random = np.random.default_rng(0)
    picks = [random.integers(0, len(rows), len(rows)) for _ in range(bootstrap)]
    draws = [fit_law(parameters[pick], frames[pick], error[pick]) for pick in picks]
    return fit_law(parameters, frames, error), np.array(draws)


def by_law(theta: Doubles, draws: Doubles, parameters: float, frames: float) -> Row:
    """Return what the law says of a run, with its interval."""
    at = (np.array([parameters]), np.array([frames]))
    spread = np.percentile([law(draw, *at)[0] for draw in draws], [5, 95])
    return {
        "predicted": round(float(law(theta, *at)[0]), 4),
        "interval90": [round(float(v), 4) for v in spread],
    }


def predict(args: argparse.Namespace) -> None:
    """Predict the held-out run from the others; what was predicted once stays as it is."""
    prediction = read_prediction(args.out) or {"width": args.width, "episodes": args.episodes}
    rows = read_rows(args.out)
    known = [row for row in rows if not is_held_out(row, prediction)]
    apart = [row for row in rows if is_held_out(row, prediction)]
    if not known:
        raise WmError(f"{args.out / RUNS} has no runs to predict from.")
    longest = max(known, key=lambda row: int(row["episodes"]))
    prediction["parameters"] = size_of(network(args.bundle, prediction["width"]))
    prediction["frames"] = round(longest["frames"] * prediction["episodes"] / longest["episodes"])
    for key in ERRORS:
        if key in prediction or not all(has(row, key) for row in known):
            continue
        theta, draws = fit_runs(known, key, args.bootstrap)
        prediction[key] = {
            "made": now(),
            "from_runs": len(known),
            "measured_already": sum(has(row, key) for row in apart),
            **by_law(theta, draws, prediction["parameters"], prediction["frames"]),
        }
    replace_text(args.out / PREDICTION, json.dumps(prediction, indent=2))
    print(json.dumps(prediction, indent=2))


def fit(args: argparse.Namespace) -> None:
    """Fit, compare the held-out run with its prediction, print and draw."""
    rows, prediction = read_rows(args.out), read_prediction(args.out)
    known = [row for row in rows if not is_held_out(row, prediction)]
    figures: Row = {"runs": len(known)}
    for key in ERRORS:
        if not all(has(row, key) for row in known):
            continue
        theta, draws = fit_runs(known, key, args.bootstrap)
        low, high = np.percentile(draws, [5, 95], axis=0)
        figures[key] = {
            name: [round(float(v), 3) for v in (theta[k], low[k], high[k])]
            for k, name in enumerate(("log_floor", "log_a", "log_b", "alpha", "beta"))
        }
        apart = [row for row in rows if is_held_out(row, prediction) and has(row, key)]
        if apart:
            size = apart[0]["parameters"], apart[0]["frames"]
            figures[key]["held_out"] = {
                **(prediction.get(key) or by_law(theta, draws, *size)),
                "measured": [round(figure_of(row, key), 4) for row in apart],
            }
        figures[key]["best_by_flop"] = best_by_flop(rows, key)
    print(json.dumps(figures, indent=2))
    write_json(args.out / "fit.json", figures)
    if args.picture is not None:
        draw(rows, args.picture)


def best_by_flop(rows: Sequence[Row], key: str) -> dict[str, float]:
    """Return the least error of all runs of so many FLOP, by FLOP."""
    counts = sorted({row["flop"] for row in rows if has(row, key)})
    return {
        f"{count:.3g}": round(
            min(figure_of(row, key) for row in rows if row["flop"] == count and has(row, key)), 4
        )
        for count in counts
    }


def draw(rows: Sequence[Row], path: Path) -> None:
    """Draw error, and success where it was played, against data, size and FLOP."""
    import matplotlib as mpl

    mpl.use("Agg")
    from matplotlib import pyplot as plt

    labels = {"mug_moved_cm": "mug error after 8 steps where it moves, cm", "success": "success"}
    keys = [key for key in labels if any(key in row for row in rows)]
    columns = [  # what it is drawn against, what a line has in common, and what that is called
        ("frames", "width", "training windows"),
        ("parameters", "episodes", "parameters of the dynamics"),
        ("flop", "episodes", "FLOP of training"),
    ]
    figure, axes = plt.subplots(len(keys), 3, figsize=(14, 4 * len(keys)), squeeze=False)
    for line, key in enumerate(keys):
        scored = [row for row in rows if key in row]
        for axis, (x, common, label) in zip(axes[line], columns, strict=True):
            for value in sorted({row[common] for row in scored}):
                mine = [row for row in scored if row[common] == value]
                counts = sorted({row[x] for row in mine})
                means = [np.mean([r[key] for r in mine if r[x] == count]) for count in counts]
                (drawn,) = axis.plot(counts, means, "o-", label=f"{common} {value}")
                points = [r[x] for r in mine], [r[key] for r in mine]
                axis.plot(*points, ".", color=drawn.get_color(), markersize=3)
            counts = sorted({row[x] for row in scored})
            if x == "flop":
                best = max if key == "success" else min
                least = [best(r[key] for r in scored if r[x] == count) for count in counts]
                axis.plot(counts, least, "k*--", label="best")
            axis.set(xscale="log", xlabel=label, ylabel=labels[key])
            if key != "success":
                axis.set_yscale("log")
            axis.set_xticks(counts, [f"{count:.3g}" for count in counts], fontsize=8)
            axis.set_xticks([], minor=True)
            axis.grid(alpha=0.3)
            axis.legend(fontsize=8)
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def numbers(text: str) -> tuple[int, ...]:
    """Read ``48,96``."""
    return tuple(int(part) for part in text.split(","))


def main() -> None:
    """Run the study, or a part of it."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    study = commands.add_parser("run", help="train and score what is missing")
    study.add_argument("--dataset", type=Path, required=True)
    study.add_argument("--recipe", type=Path, default=Path("config/recipes/tabletop.yaml"))
    study.add_argument("--steps", type=int, default=2500, help="of each run")
    study.add_argument("--widths", type=numbers, default=WIDTHS, help="such as 48,96")
    study.add_argument("--episodes", type=numbers, default=EPISODES)
    study.add_argument("--seeds", type=int, default=SEEDS, help="runs of each size")
    study.add_argument("--held-out", action="store_true", help="the predicted run, and no other")
    study.add_argument("--device", choices=("auto", "cpu", "cuda"), default="auto")
    study.add_argument("--fp32", action="store_true", help="no bf16 in training")
    study.add_argument("--threads", type=int, help="of a worker; default: 1, alone one a core")
    study.add_argument("--save", action="store_true", help="keep weights, for 'play'")
    study.set_defaults(do=run_study)
    later = commands.add_parser("play", help="play saved runs that were not played")
    later.set_defaults(do=play_study)
    ahead = commands.add_parser("predict", help="predict the held-out run from the others")
    ahead.add_argument("--width", type=int, default=HELD_OUT[0])
    ahead.add_argument("--episodes", type=int, default=HELD_OUT[1])
    ahead.set_defaults(do=predict)
    law_of = commands.add_parser("fit", help="fit the law to what was found")
    law_of.add_argument("--picture", type=Path, default=None)
    law_of.set_defaults(do=fit)
    for sub in (study, later):
        sub.add_argument("--plays", type=int, default=64, help="episodes of the suite; 0: none")
        sub.add_argument("--backend", choices=("torch", "openvino"), default="openvino")
        sub.add_argument("--workers", type=int, default=1, help="runs at once, each a process")
    for sub in (ahead, law_of):
        sub.add_argument("--bootstrap", type=int, default=100)
    for sub in (study, later, ahead):
        sub.add_argument("--bundle", type=Path, default=Path("bundles/tabletop"))
    for sub in (study, later, ahead, law_of):
        sub.add_argument("--out", type=Path, required=True, help="folder of the runs")
    args = parser.parse_args()
    try:
        args.do(args)
    except WmError as error:
        raise SystemExit(str(error)) from None


if __name__ == "__main__":
    main()
