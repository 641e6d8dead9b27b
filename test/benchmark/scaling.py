"""How prediction and success grow with the size of the dynamics and with data.

    python test/benchmark/scaling.py run --dataset out/second.zarr --bundle bundles/tabletop \\
        --out out/scaling
    python test/benchmark/scaling.py fit --out out/scaling --picture docs/images/scaling.png

``run`` trains dynamics and heads of several widths on the first so many episodes of a dataset, on
the latents of one frozen encoder (the bundle's), scores each on the same left-out episodes and by
planning, and adds a line to ``runs.jsonl``. A run that is there already is left out, so an
interrupted study goes on. ``fit`` fits error = floor + a / parameters^alpha + b / frames^beta
(Hoffmann et al., 2022) to all runs but the largest, with intervals by bootstrap over runs, and
compares the largest with what was predicted for it.
"""

from __future__ import annotations

import argparse
import json
import tempfile
import time
from dataclasses import replace
from pathlib import Path
from typing import Any

import matplotlib as mpl
import numpy as np
import torch
from numpy.typing import NDArray
from scipy.optimize import least_squares

from wm_node.bundle import load_bundle
from wm_node.data.dataset import Dataset
from wm_node.model.config import Dims
from wm_node.model.export import export_bundle
from wm_node.model.load import load_network
from wm_node.model.world import WorldModelNet
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
from wm_node.training.loop import Recorder, default_threads, run_phase
from wm_node.training.recipe import Recipe, load_recipe
from wm_node.training.suite_evaluation import evaluate_suite

RUNS, LATENTS = "runs.jsonl", "latents.npy"
WIDTHS, EPISODES, SEEDS = (48, 96, 192, 384), (500, 1000, 2000, 4000), 2
HELD_OUT = (384, 8000)  # predicted before it is looked at
HIDDEN_PER_WIDTH = 8 / 3

Doubles = NDArray[np.float64]


def network(bundle: Path, width: int) -> WorldModelNet:
    """Return the bundle's encoder and statistics with new dynamics of another width."""
    source = load_bundle(bundle)
    old = load_network(source)
    config = source.model
    hidden = round(HIDDEN_PER_WIDTH * width)
    net = WorldModelNet(
        Dims.of(source.profile), replace(config, width=width, transition_hidden=hidden)
    )
    new = net.state_dict()
    trained = {
        name: value
        for name, value in old.state_dict().items()
        if new[name].shape == value.shape and not name.startswith(("dynamics.", "heads."))
    }
    net.load_state_dict(trained, strict=False)
    freeze_encoder(net)
    return net


def latents_of(net: WorldModelNet, data: TrainingData, file: Path) -> torch.Tensor:
    """Encode all frames once for all runs."""
    if not file.exists():
        np.save(file, encode_all(net, data).numpy())
    return torch.from_numpy(np.load(file))


def one_run(
    net: WorldModelNet,
    data: TrainingData,
    latents: torch.Tensor,
    recipe: Recipe,
    episodes: int,
    seed: int,
    plays: int,
) -> dict[str, Any]:
    """Train on the first ``episodes``, validate, plan."""
    windows = Windows(net, data, latents)
    last = data.dataset.episodes[min(episodes, len(data.dataset.episodes)) - 1]
    train = windows.split.train[windows.split.train < last.start + last.length]
    windows.split = Split(train, windows.split.validation)
    phase = dynamics_phase(windows, recipe, seed, None)
    began = time.monotonic()
    with tempfile.TemporaryDirectory() as folder:
        recorder = Recorder(Path(folder) / "logs", lambda *_: None)
        device = torch.device("cpu")
        run_phase(phase, seed, device, recorder, recipe.weight_decay, recipe.clip)
        recorder.close()
        seconds = time.monotonic() - began
        set_correction_gain(windows)
        figures = validate(windows)
        parameters = sum(p.numel() for p in net.dynamics.parameters())
        row = {
            "parameters": parameters,
            "frames": len(train),
            "flop": 6.0
            * parameters
            * recipe.dynamics_steps
            * recipe.dynamics_batch
            * windows.steps,
            "train_s": round(seconds, 1),
            "latent_mse": figures["latent_mse"],
            "mug_cm": 100 * figures[f"goal_error_{windows.horizon}"],
            "mug_moved_cm": 100 * figures["goal_error_moved"],
        }
        if plays:
            path = Path(folder) / "bundle"
            extra = {"calibration": calibrate(windows), "data": {}, "metrics": {}}
            export_bundle(net, data.profile, path, extra, searches={})
            played = evaluate_suite(
                "mpc", "state", path, episodes=plays, first_seed=VALIDATION_SEED
            )
            row |= {"plays": plays, "success": played["success"], "falls": played["falls"]}
    return row


def run(args: argparse.Namespace) -> None:
    """Do the runs that are missing, small ones first."""
    torch.set_num_threads(args.threads or default_threads())
    args.out.mkdir(parents=True, exist_ok=True)
    file = args.out / RUNS
    lines = file.read_text(encoding="utf-8").splitlines() if file.exists() else []
    done = {(row["width"], row["episodes"], row["seed"]) for row in map(json.loads, lines)}
    data = TrainingData(Dataset.open(args.dataset), torch.device("cpu"), 8 * 2**30)
    latents = latents_of(network(args.bundle, 48), data, args.out / LATENTS)
    recipe = replace(load_recipe(args.recipe), dynamics_steps=args.steps, hard_share=0.0)
    wanted = [(w, e, s) for e in EPISODES for w in WIDTHS for s in range(SEEDS)]
    wanted += [(*HELD_OUT, seed) for seed in range(SEEDS)]
    for number, (width, episodes, seed) in enumerate(wanted, start=1):
        if (width, episodes, seed) in done:
            continue
        torch.manual_seed(seed)
        net = network(args.bundle, width)
        row = {"width": width, "episodes": episodes, "seed": seed, "steps": args.steps}
        row |= one_run(net, data, latents, recipe, episodes, seed, args.plays)
        with file.open("a", encoding="utf-8") as stream:
            stream.write(json.dumps(row) + "\n")
        print(f"{number} of {len(wanted)}: {json.dumps(row)}", flush=True)


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
                lambda theta: np.log(law(theta, parameters, frames)) - np.log(error),
                np.clip(start, low, high),
                bounds=(low, high),
                loss="soft_l1",
                f_scale=0.05,
            )
            best = found if best is None or found.cost < best.cost else best
    assert best is not None
    return np.asarray(best.x)


def fit(args: argparse.Namespace) -> None:
    """Fit, predict the held-out run, print and draw."""
    rows = [json.loads(line) for line in (args.out / RUNS).read_text("utf-8").splitlines()]
    known = [row for row in rows if (row["width"], row["episodes"]) != HELD_OUT]
    apart = [row for row in rows if (row["width"], row["episodes"]) == HELD_OUT]
    figures: dict[str, Any] = {"runs": len(known)}
    for key in ("latent_mse", "mug_moved_cm"):
        columns = [np.array([row[name] for row in known]) for name in ("parameters", "frames", key)]
        theta = fit_law(*columns)
        random = np.random.default_rng(0)
        draws = []
        for _ in range(args.bootstrap):
            pick = random.integers(0, len(known), len(known))
            draws.append(fit_law(*(column[pick] for column in columns)))
        low, high = np.percentile(draws, [5, 95], axis=0)
        figures[key] = {
            name: [round(float(v), 3) for v in (theta[k], low[k], high[k])]
            for k, name in enumerate(("log_floor", "log_a", "log_b", "alpha", "beta"))
        }
        if apart:
            at = (np.array([apart[0]["parameters"]]), np.array([apart[0]["frames"]]))
            spread = np.percentile([law(draw, *at)[0] for draw in draws], [5, 95])
            figures[key]["held_out"] = {
                "predicted": round(float(law(theta, *at)[0]), 4),
                "interval90": [round(float(v), 4) for v in spread],
                "measured": [round(row[key], 4) for row in apart],
            }
    print(json.dumps(figures, indent=2))
    (args.out / "fit.json").write_text(json.dumps(figures, indent=2), encoding="utf-8")
    if args.picture is not None:
        draw(rows, args.picture)


def draw(rows: list[dict[str, Any]], path: Path) -> None:
    """Draw error and success against data, a line for each size."""
    mpl.use("Agg")
    from matplotlib import pyplot as plt

    keys = [("mug_moved_cm", "mug error after 8 steps where it moves, cm"), ("success", "success")]
    figure, axes = plt.subplots(1, 2, figsize=(10, 4))
    for axis, (key, label) in zip(axes, keys, strict=True):
        for width in sorted({row["width"] for row in rows}):
            mine = [row for row in rows if row["width"] == width and key in row]
            counts = sorted({row["episodes"] for row in mine})
            means = [np.mean([r[key] for r in mine if r["episodes"] == c]) for c in counts]
            parameters = mine[0]["parameters"] if mine else 0
            axis.plot(counts, means, "o-", label=f"{parameters / 1e3:.0f} k parameters")
            axis.plot([r["episodes"] for r in mine], [r[key] for r in mine], "k.", markersize=3)
        axis.set(xscale="log", xlabel="episodes of 6 s", ylabel=label)
        axis.grid(alpha=0.3)
    axes[0].set_yscale("log")
    axes[0].legend()
    figure.tight_layout()
    figure.savefig(path, dpi=110)


def main() -> None:
    """Run the study, or fit what it found."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    commands = parser.add_subparsers(required=True)
    study = commands.add_parser("run", help="train and score what is missing")
    study.add_argument("--dataset", type=Path, required=True)
    study.add_argument("--bundle", type=Path, default=Path("bundles/tabletop"))
    study.add_argument("--recipe", type=Path, default=Path("config/recipes/tabletop.yaml"))
    study.add_argument("--steps", type=int, default=2500, help="of each run")
    study.add_argument("--plays", type=int, default=64, help="episodes of the suite; 0: none")
    study.add_argument("--threads", type=int, default=None)
    study.set_defaults(do=run)
    law_of = commands.add_parser("fit", help="fit the law to what was found")
    law_of.add_argument("--bootstrap", type=int, default=100)
    law_of.add_argument("--picture", type=Path, default=None)
    law_of.set_defaults(do=fit)
    for sub in (study, law_of):
        sub.add_argument("--out", type=Path, required=True, help="folder of the runs")
    args = parser.parse_args()
    args.do(args)


if __name__ == "__main__":
    main()
