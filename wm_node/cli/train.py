"""``wm train``: from a dataset to a bundle."""

from __future__ import annotations

import argparse
import time
from pathlib import Path

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeRemainingColumn

from wm_node.json_file import write_json


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    parser.epilog = (
        "An interrupted run goes on where it stopped when the same command is given again. "
        "Watch it with 'tensorboard --logdir WORK/logs'. Several processes train one bundle, on a "
        "GPU each or on parts of a CPU: 'torchrun --nproc-per-node 4 -m wm_node.cli.main train "
        "...'; they share each batch of the recipe, and --memory-gb is of each."
    )
    parser.add_argument("--dataset", type=Path, required=True, help="what 'wm ingest' wrote")
    parser.add_argument("--out", type=Path, required=True, help="the bundle to write")
    parser.add_argument(
        "--recipe", type=Path, default=None, help="YAML with steps, rates and sizes that differ"
    )
    parser.add_argument(
        "--stills",
        type=Path,
        default=None,
        help="another dataset, whose frames are read one by one for their labels and teach nothing "
        "of motion, such as one of level scattered; half of the recipe's stills come from it",
    )
    parser.add_argument(
        "--start-from",
        type=Path,
        default=None,
        help="go on from this bundle's network; phases with 0 steps in the recipe are kept as is",
    )
    parser.add_argument("--seed", type=int, default=0, help="of weights, batches and noise")
    parser.add_argument("--device", default="auto", help="auto, cpu or cuda")
    parser.add_argument("--threads", type=int, default=0, help="CPU threads; 0: all cores")
    parser.add_argument(
        "--memory-gb", type=float, default=6.0, help="keep frames in memory up to this size"
    )
    parser.add_argument(
        "--planning-episodes",
        type=int,
        default=32,
        help="episodes in the simulator that choose the checkpoint (simulated robots only)",
    )
    parser.add_argument(
        "--planning-levels",
        default="basic",
        help="levels of the task suite that these episodes are spread over, such as "
        "basic,clutter,moving_hand",
    )
    parser.add_argument(
        "--work", type=Path, default=None, help="folder of checkpoints and logs [OUT.training]"
    )
    parser.add_argument("--restart", action="store_true", help="discard an unfinished run")
    parser.add_argument("--json", type=Path, default=None, help="write the figures here")


def run(args: argparse.Namespace) -> int:
    """Train and write the bundle, alone or as one of several ranks."""
    import torch

    from wm_node.training import ranks
    from wm_node.training.loop import find_device

    device = find_device(args.device)
    with ranks.group(torch.device(device)):
        return _train(args, device)


def _train(args: argparse.Namespace, device: str) -> int:
    import torch

    from wm_node.bundle import load_bundle
    from wm_node.data.dataset import Dataset
    from wm_node.training import ranks
    from wm_node.training.loop import Recorder, default_threads
    from wm_node.training.recipe import load_recipe
    from wm_node.training.run import RunSettings, discard, train

    recipe = load_recipe(args.recipe)
    dataset = Dataset.open(args.dataset)
    threads = args.threads or max(1, default_threads() // ranks.size())
    torch.set_num_threads(threads)
    first = ranks.rank() == 0
    work = args.work or args.out.with_name(f"{args.out.name}.training")
    if args.restart and first:
        discard(work)
    ranks.wait()
    score = None
    if dataset.profile.simulated and args.planning_episodes > 0:
        from wm_node.training.suite_evaluation import planning_score

        levels = args.planning_levels.split(",")
        score = planning_score(args.planning_episodes, threads, "openvino", levels)
    settings = RunSettings(
        work,
        args.seed,
        device,
        int(args.memory_gb * 2**30),
        planning_score=score,
        start_from=load_bundle(args.start_from) if args.start_from else None,
        stills=Dataset.open(args.stills) if args.stills else None,
    )
    begun = time.monotonic()
    console = Console(stderr=True)
    with Progress(
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeRemainingColumn(),
        TextColumn("{task.fields[text]}"),
        console=console,
        disable=not (console.is_terminal and first),
    ) as progress:
        task = progress.add_task("start", total=1, text="")
        shown = [""]

        def show(phase: str, step: int, steps: int, text: str) -> None:
            if phase != shown[0]:
                shown[0] = phase
                progress.reset(task, total=max(steps, 1), description=phase)
            progress.update(task, completed=step, total=max(steps, 1), text=text)
            if not console.is_terminal:
                minutes = (time.monotonic() - begun) / 60.0
                console.print(
                    f"[{minutes:6.1f} min] {phase} {step}/{steps} {text}",
                    markup=False,
                    soft_wrap=True,
                )

        recorder = Recorder(work / "logs" if first else None, show)
        bundle = train(dataset, args.out, recipe, settings, recorder)
    if not first:
        return 0
    figures = {
        "bundle": str(bundle.path),
        "bundle_sha256": bundle.sha256,
        "bytes": sum(file.stat().st_size for file in bundle.path.iterdir()),
        "wall_s": round(time.monotonic() - begun, 1),
        "threads": threads,
        "device": device,
        "metrics": bundle.manifest["metrics"],
    }
    if args.json is not None:
        write_json(args.json, figures)
    console.print(
        f"wrote {bundle.path} ({figures['bytes'] / 1e6:.1f} MB, sha256 {bundle.sha256[:12]})"
    )
    return 0
