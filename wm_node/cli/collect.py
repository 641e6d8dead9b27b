"""``wm collect``: simulated episodes as rosbag2 bags."""

from __future__ import annotations

import argparse
import re
import time
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, MofNCompleteColumn, Progress, TextColumn, TimeRemainingColumn

from wm_node.errors import WmError
from wm_node.json_file import write_json
from wm_node.profile import RobotProfile, load_profile
from wm_node.sim.level_names import LEVELS_TEXT

if TYPE_CHECKING:
    from wm_node.sim.mix import MakeBehaviour

IMAGE_SIZE = re.compile(r"(\d{2,4})x(\d{2,4})")
DEFAULT_BEHAVIOURS = "wander=0.25,aimed=0.40,edge=0.22,zone=0.13"


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the command's arguments."""
    parser.add_argument(
        "--out", type=Path, required=True, help="folder of the bags, one an episode"
    )
    parser.add_argument("--episodes", type=int, default=100, help="number of episodes")
    parser.add_argument(
        "--behaviours",
        default=DEFAULT_BEHAVIOURS,
        help="shares of wander, aimed, edge, zone, careful, meet (pushes to where a hand will be), "
        "crowd (pushes to what stands in the way), bump (the tip runs against it), "
        "and planner and careless, which need a --bundle; careless plans without minding risk; on "
        "level scattered nothing moves",
    )
    parser.add_argument(
        "--bundle", type=Path, default=None, help="bundle that planner and careless plan with"
    )
    parser.add_argument(
        "--level",
        default="basic",
        help=f"scene of the task suite: {LEVELS_TEXT}",
    )
    parser.add_argument("--image-size", default=None, help="WIDTHxHEIGHT; default: the profile's")
    parser.add_argument(
        "--camera-rate",
        type=float,
        default=None,
        help="frames a second, a divisor of 100; default: the profile's. Training needs one a tick",
    )
    parser.add_argument("--images", choices=("raw", "compressed"), default="raw", help="transport")
    parser.add_argument("--seed", type=int, default=0, help="of the first episode; others follow")
    parser.add_argument("--workers", type=int, default=2, help="processes")
    parser.add_argument("--robot", default="tabletop", help="profile: a path or a shipped name")
    parser.add_argument("--json", type=Path, default=None, help="write the figures here")


def run(args: argparse.Namespace) -> int:
    """Collect; bags that are complete already are kept, so an interrupted run can go on."""
    # Imported here: --help must not need MuJoCo.
    from wm_node.sim.collect import Settings, collect
    from wm_node.sim.levels import find_level
    from wm_node.sim.mix import PLANNED, parse_mix

    profile = load_profile(args.robot)
    _check(args, profile)
    find_level(args.level)
    camera = profile.cameras[0]
    width, height = _image_size(args.image_size) or (camera.width, camera.height)
    mix = parse_mix(args.behaviours, more=PLANNED)
    make, sha256 = _player(args.bundle, sorted(set(PLANNED) & set(mix.shares)))
    settings = Settings(
        seed=args.seed,
        behaviours=dict(mix.shares),
        width=width,
        height=height,
        camera_rate_hz=args.camera_rate or camera.rate_hz,
        images=args.images,
        bundle_sha256=sha256,
        level=args.level,
    )
    began = time.monotonic()
    counts: Counter[str] = Counter()
    behaviours: Counter[str] = Counter()
    bags = collect(args.out, profile, settings, args.episodes, args.workers, make)
    for info, written in _with_progress(bags, args.episodes):
        counts["written" if written else "kept"] += 1
        counts["fell"] += info.fell
        counts["zone"] += info.zone
        counts["hit"] += info.hit
        behaviours[info.behaviour] += 1
    figures: dict[str, Any] = {
        "episodes": args.episodes,
        "written": counts["written"],
        "kept": counts["kept"],
        "falls": counts["fell"],
        "zone_entries": counts["zone"],
        "hits": counts["hit"],
        "behaviours": dict(sorted(behaviours.items())),
        "seed": args.seed,
        "workers": args.workers,
        "bytes": sum(file.stat().st_size for file in args.out.glob("episode_*/*")),
        "wall_s": round(time.monotonic() - began, 3),
    }
    Console().print(
        f"{args.out}: {args.episodes} episodes ({counts['written']} written now), "
        f"{counts['fell']} falls, {counts['zone']} zone entries, {counts['hit']} hits, "
        f"{figures['bytes'] / 1e6:.1f} MB, {figures['wall_s']:.1f} s",
        soft_wrap=True,
        highlight=False,
    )
    if args.json is not None:
        write_json(args.json, figures)
    return 0


def _check(args: argparse.Namespace, profile: RobotProfile) -> None:
    if not profile.simulated:
        raise WmError(f"the robot '{profile.name}' is real: record it with the flight recorder.")
    if args.episodes < 1:
        raise WmError("--episodes must be at least 1.")
    if args.seed < 0:
        raise WmError("--seed must not be negative.")
    if args.workers < 1:
        raise WmError("--workers must be at least 1.")
    rate = profile.cameras[0].rate_hz if args.camera_rate is None else args.camera_rate
    if not (1 <= rate <= 100 and 100 % rate == 0):
        raise WmError(f"the camera rate {rate:g} must divide 100 Hz, such as 10, 20 or 50.")


def _player(bundle: Path | None, planned: Sequence[str]) -> tuple[MakeBehaviour, str]:
    """Return what builds the behaviours, and the hash of the bundle that one of them plans with.

    Raises:
        WmError: the planner without a bundle, a bundle without the planner, or a damaged one.
    """
    from wm_node.sim.mix import PLANNED, make_behaviour

    if not planned:
        if bundle is not None:
            raise WmError(f"--bundle is for {' and '.join(PLANNED)}; give one a share, or none.")
        return make_behaviour, ""
    if bundle is None:
        raise WmError(f"the behaviour '{planned[0]}' needs a --bundle to plan with.")
    from wm_node.bundle import load_bundle
    from wm_node.training.planned_play import behaviours_with_planner

    return behaviours_with_planner(bundle), load_bundle(bundle).sha256


def _image_size(text: str | None) -> tuple[int, int] | None:
    if text is None:
        return None
    match = IMAGE_SIZE.fullmatch(text)
    if match is None:
        raise WmError(f"--image-size '{text}' is not understood; write for instance 320x240.")
    width, height = int(match[1]), int(match[2])
    if not (16 <= width <= 1920 and 16 <= height <= 1920):
        raise WmError(f"--image-size {text} is out of range: 16 to 1920 pixels a side.")
    return width, height


def _with_progress(bags: Iterable[Any], total: int) -> Iterator[Any]:
    """Pass the bags on; show a bar on a terminal and a line every tenth elsewhere."""
    console = Console()
    if not console.is_terminal:
        every = max(1, total // 10)
        for count, bag in enumerate(bags, start=1):
            yield bag
            if count % every == 0 and count < total:
                console.print(f"{count} of {total} episodes", highlight=False)
        return
    with Progress(
        TextColumn("collecting"),
        BarColumn(),
        MofNCompleteColumn(),
        TimeRemainingColumn(),
        console=console,
    ) as progress:
        for bag in progress.track(bags, total=total):
            yield bag
