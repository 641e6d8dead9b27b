"""``wm demo``: the simulated robot in closed loop over real ROS 2 topics, scored and reported."""

from __future__ import annotations

import argparse
import math
import sys
import time
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn

from wm_node.bundle import Bundle, load_bundle
from wm_node.cli.node_run import log_folder, observers, running, with_reasons
from wm_node.cli.processes import (
    interrupts_on_termination,
    node_command,
    prepare_output,
    require,
    ros_arguments,
    write_profile,
)
from wm_node.cli.progress import progress_bar
from wm_node.errors import WmError
from wm_node.json_file import write_json
from wm_node.profile import RobotProfile, load_profile
from wm_node.resources import resource
from wm_node.sim.level_names import PLAYED_TEXT
from wm_node.sim.seeds import evaluation_seeds

if TYPE_CHECKING:  # ROS is imported once its environment is set
    from wm_node.nodes.demo_driver import DemoDriver, Progress
    from wm_node.reporting.summary import Episode

START_S, PER_EPISODE_S = 90.0, 30.0


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--episodes", type=int, default=10, help="episodes to run")
    parser.add_argument(
        "--seed",
        type=int,
        default=0,
        help="of the episodes: those that the task suite plays with the same seed",
    )
    parser.add_argument("--out", type=Path, default=Path("wm_demo"), help="folder of the results")
    parser.add_argument(
        "--bundle",
        type=Path,
        help="bundle to run (default: one of those that ship, by the goal and the level)",
    )
    parser.add_argument(
        "--goal",
        choices=("state", "image"),
        default="state",
        help="give the target as numbers or as a picture of the goal",
    )
    parser.add_argument(
        "--level",
        default="basic",
        help=f"scene of the task suite: {PLAYED_TEXT}",
    )
    parser.add_argument("--backend", default="openvino", help="engine: openvino or torch")
    parser.add_argument(
        "--timeout", type=float, help="seconds after which the run is given up (default: generous)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")


def run(args: argparse.Namespace) -> int:
    """Run the episodes, write summary, report and bag; 0 only if everything ran to its end."""
    first_seed = evaluation_seeds(args.seed, args.episodes)[0]
    require(("rclpy", "ros"), ("mujoco", "sim"), ("jinja2", "report"), ("matplotlib", "report"))
    from wm_node.sim.levels import bundle_for

    bundle = load_bundle(args.bundle or bundle_for(args.level, args.goal))
    if not bundle.profile.simulated:
        raise WmError(
            f"the bundle {bundle.path} is for the robot '{bundle.profile.name}', which is not "
            "simulated; 'wm demo' drives only a simulated one."
        )
    out = prepare_output(args.out, "demo")
    console = Console(stderr=False, highlight=False)
    started, started_s = time.monotonic(), time.time()
    limit_s = args.timeout or START_S + PER_EPISODE_S * args.episodes
    with interrupts_on_termination():
        episodes, values = _drive(args, bundle, first_seed, out, limit_s, console)
        wall_s = time.monotonic() - started
        console.print("all processes have stopped; writing the report")
        from wm_node.reporting.demo import DemoRun, finish

        summary = finish(
            DemoRun(
                out=out,
                bundle=bundle,
                backend=args.backend,
                goal=args.goal,
                level=args.level,
                seed=args.seed,
                episodes=episodes,
                values=values,
                started_s=started_s,
                wall_s=wall_s,
            )
        )
        if args.json is not None:
            write_json(args.json, summary)
    _tell(console, summary, out)
    return 0


def _drive(
    args: argparse.Namespace,
    bundle: Bundle,
    first_seed: int,
    out: Path,
    limit_s: float,
    console: Console,
) -> tuple[list[Episode], dict[str, dict[str, str]]]:
    """Start the processes, run the episodes, stop the processes, whatever happens."""
    deadline = time.monotonic() + limit_s
    commands = _commands(args, bundle, first_seed, out)
    with running(commands, out, console, "the robot is simulated") as processes:

        def watch() -> None:
            processes.check()
            if time.monotonic() > deadline:
                raise WmError(
                    f"the run took longer than {limit_s:g} s; see the logs in {log_folder(out)}, "
                    "or give more time with --timeout."
                )

        from wm_node.nodes.demo_driver import DemoDriver

        with DemoDriver(args.goal, watch) as driver:
            with with_reasons(processes):
                driver.bring_up()
            episodes = _episodes(driver, args.episodes, console)
            driver.take_down()
            return episodes, driver.values


def _commands(
    args: argparse.Namespace, bundle: Bundle, first_seed: int, out: Path
) -> dict[str, list[str]]:
    robot = log_folder(out) / "robot.yaml"
    write_profile(robot, _with_space(bundle.profile))
    simulator = ros_arguments({"robot": str(robot), "seed": first_seed, "level": args.level})
    gate = ros_arguments({"robot": str(robot)}, str(resource("config/safety_gate.yaml")))
    return {
        "sim_robot": node_command("sim_robot", simulator),
        "safety_gate": node_command("safety_gate", gate),
        **observers(robot, bundle, args.backend, out),
    }


def _with_space(profile: RobotProfile) -> RobotProfile:
    """Add where the robot may be, which is the gate's to know: no bundle depends on it."""
    try:
        space = load_profile(profile.name).safety.space
    except WmError:  # a simulated robot of one's own, which does not ship
        return profile
    safety = profile.safety.model_copy(update={"space": space})
    return profile.model_copy(update={"safety": safety})


def _episodes(driver: DemoDriver, count: int, console: Console) -> list[Episode]:
    done: list[Episode] = []
    columns = (
        TextColumn("episodes"),
        BarColumn(bar_width=24),
        TextColumn("{task.completed:.0f}/{task.total:.0f}"),
        TimeElapsedColumn(),
        TextColumn("{task.fields[present]}"),
    )
    with progress_bar(console, columns, count, present="") as update:

        def show(present: Progress) -> None:
            text = f"{100 * present.distance:4.1f} cm to target, gate {present.gate}"
            update(completed=len(done), present=text)

        for number in range(1, count + 1):
            episode = driver.run_episode(number, show)
            done.append(episode)
            console.print(
                f"episode {number:>2}/{count}  {episode.outcome:<12}  seed {episode.seed:<6} "
                f"{100 * episode.start_distance:4.1f} cm -> {100 * episode.final_distance:4.1f} cm "
                f"in {episode.ticks / 10:.1f} s",
                soft_wrap=True,
            )
    return done


def _tell(console: Console, summary: dict[str, Any], out: Path) -> None:
    from wm_node.reporting.demo import search_size

    low, high = summary["success_wilson95"]
    reasons = summary["interventions"]
    steps_in = ", ".join(f"{name} {n}" for name, n in reasons.items()) or "none"
    plan, whole = summary["plan_ms"], summary["frame_to_command_ms"]
    lines = [
        "",
        f"success      {summary['successes']} of {summary['episodes']} episodes "
        f"(95 %: {100 * low:.0f} to {100 * high:.0f} %), falls {summary['falls']}, "
        f"zone entries {summary['zone_entries']}, other violations {summary['other_violations']}",
        f"gate         interventions: {steps_in}",
        f"control      {summary['cycles']} cycles at {_number(summary['control_hz'], 1)} Hz, "
        f"{summary['deadline_misses']} deadline misses",
        f"latency      plan p50 {_number(plan['p50'])} ms, p99 {_number(plan['p99'])} ms; frame to "
        f"command p50 {_number(whole['p50'])} ms, p99 {_number(whole['p99'])} ms",
        f"search       {search_size(summary)} candidates at the end, made smaller "
        f"{summary['search']['steps_down']} times because plans came late",
        f"frames       {summary['frames_received']} received of "
        f"{summary['frames_published']} published",
        f"bundle       {summary['bundle_sha256'][:16]} on {summary['backend']}",
        f"report       {out / 'report.html'}",
        f"bag          {out / 'bag'}",
        "The robot is simulated; nothing of this has run on hardware.",
    ]
    console.print("\n".join(lines), soft_wrap=True)
    sys.stdout.flush()


def _number(value: float, digits: int = 0) -> str:
    return f"{value:.{digits}f}" if math.isfinite(value) else "-"
