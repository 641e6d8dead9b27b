"""``wm replay``: a recorded bag through the real nodes in shadow mode; predicted against real."""

from __future__ import annotations

import argparse
import time
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.progress import BarColumn, TextColumn, TimeElapsedColumn

from wm_node.bundle import Bundle, load_bundle
from wm_node.cli.node_run import log_folder, observers, running, with_reasons
from wm_node.cli.processes import (
    interrupts_on_termination,
    prepare_output,
    require,
    write_profile,
)
from wm_node.cli.progress import progress_bar
from wm_node.data.bags import Bag, BagError, find_bags
from wm_node.data.overlay import with_overlay
from wm_node.data.recorded_topics import RecordedTopics
from wm_node.data.streams import IMAGE_TRANSPORTS, IMAGE_TYPES
from wm_node.errors import WmError
from wm_node.json_file import write_json
from wm_node.profile import Camera, RobotProfile, load_profile

NS = 1_000_000_000


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("bag", type=Path, help="rosbag2 bag to play")
    parser.add_argument("--bundle", type=Path, required=True, help="bundle whose model looks on")
    parser.add_argument("--robot", help="robot profile (default: the bundle's)")
    parser.add_argument(
        "--overlay", type=Path, help="overlay written by 'wm calibrate --delay' (default: none)"
    )
    parser.add_argument("--out", type=Path, default=Path("wm_replay"), help="folder of the results")
    parser.add_argument("--rate", type=float, default=1.0, help="playback rate; 1: as recorded")
    parser.add_argument("--seconds", type=float, help="play only so much of the recording")
    parser.add_argument("--backend", default="openvino", help="engine: openvino or torch")
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the figures to FILE")


def run(args: argparse.Namespace) -> int:
    """Play the bag; write summary, report and the bag of what the nodes made of it."""
    if not 0.05 <= args.rate <= 20.0:
        raise WmError(f"--rate {args.rate:g} is not between 0.05 and 20.")
    require(("rclpy", "ros"), ("jinja2", "report"), ("matplotlib", "report"))
    bundle = load_bundle(args.bundle)
    profile = bundle.profile if args.robot is None else load_profile(args.robot)
    profile = with_overlay(profile, args.overlay, bundle.sha256)
    sources = find_bags([args.bag])
    if len(sources) > 1:
        raise WmError(f"{args.bag} holds {len(sources)} bags; name one of them.")
    console = Console(highlight=False)
    started = time.monotonic()
    with interrupts_on_termination():
        try:
            with Bag(sources[0]) as bag:
                matched, topics = match_topics(profile, bag.held)
                out = prepare_output(args.out, "replay")
                played, values = _drive(args, bundle, matched, bag, topics, out, console)
        except BagError as error:
            raise WmError(f"the bag {sources[0].path}: {error}.") from error
        console.print("all processes have stopped; comparing what was predicted with what happened")
        from wm_node.reporting.replay import ReplayRun, finish

        summary = finish(
            ReplayRun(
                out=out,
                source=sources[0].path,
                bundle=bundle,
                profile=matched,
                backend=args.backend,
                rate=args.rate,
                played=played,
                values=values,
                wall_s=time.monotonic() - started,
            )
        )
    if args.json is not None:
        write_json(args.json, summary)
    _tell(console, summary, out)
    return 0


def match_topics(
    profile: RobotProfile, recorded: Mapping[str, str]
) -> tuple[RobotProfile, dict[str, str]]:
    """Find the profile's topics in a bag, in whatever namespace they were recorded.

    Returns:
        The profile with the bag's own topic names and image transports, and the message type of
        each topic to be played.

    Raises:
        WmError: frames, joints or applied actions are missing.
    """
    known = RecordedTopics(profile, recorded.items())
    topics: dict[str, str] = {}

    def played(name: str | None) -> str | None:
        if name is not None:
            topics[name] = recorded[name]
        return name

    def find(topic: str, kind: str) -> str | None:
        return played(known.find(topic, kind))

    def missing(topic: str, kinds: tuple[str, ...], what: str) -> WmError:
        held = ", ".join(f"{name} ({kind})" for name, kind in sorted(recorded.items()))
        return WmError(
            f"the bag has no topic '{topic}' of type {' or '.join(kinds)}, which carries "
            f"{what}; it holds {held or 'nothing'}; correct the robot profile."
        )

    def need(topic: str, kind: str, what: str) -> str:
        found = find(topic, kind)
        if found is None:
            raise missing(topic, (kind,), what)
        return found

    def camera_of(camera: Camera) -> Camera:
        name = played(known.find_camera(camera))
        if name is None:
            what = f"the frames of camera '{camera.name}'"
            raise missing(camera.topic, IMAGE_TYPES, what)
        return camera.model_copy(
            update={"topic": name, "transport": IMAGE_TRANSPORTS[recorded[name]]}
        )

    cameras = tuple(camera_of(camera) for camera in profile.cameras)
    joints = need(profile.joints.topic, "sensor_msgs/msg/JointState", "the joint positions")
    readback = profile.action.readback
    applied = need(readback.topic, readback.message, "the applied actions")
    labels = tuple(
        label.model_copy(update={"topic": find(label.topic, label.message) or label.topic})
        for label in profile.labels
    )
    events = tuple(
        event.model_copy(update={"topic": find(event.topic, event.message) or event.topic})
        for event in profile.events
    )
    action = profile.action.model_copy(
        update={
            "readback": readback.model_copy(update={"topic": applied}),
            # The planner's own topic must not be the one that the recording is played on.
            "topic": "wm_replay/command",
        }
    )
    matched = profile.model_copy(
        update={
            "cameras": cameras,
            "joints": profile.joints.model_copy(update={"topic": joints}),
            "action": action,
            "labels": labels,
            "events": events,
        }
    )
    return matched, topics


def _drive(
    args: argparse.Namespace,
    bundle: Bundle,
    profile: RobotProfile,
    bag: Bag,
    topics: dict[str, str],
    out: Path,
    console: Console,
) -> tuple[dict[str, int], dict[str, dict[str, str]]]:
    """Start the nodes, play, stop the nodes, whatever happens."""
    messages = bag.messages(list(topics))
    try:
        first = next(messages)
    except StopIteration as error:
        raise BagError("it holds no message of the robot's topics") from error
    end_ns = first[1] + round(args.seconds * NS) if args.seconds else None
    robot = log_folder(out) / "robot.yaml"
    write_profile(robot, profile)
    commands = observers(robot, bundle, args.backend, out, recorded=True)
    with running(commands, out, console, "shadow mode: nothing is commanded") as processes:
        from wm_node.nodes.bag_player import BagPlayer

        with BagPlayer(topics, first[1], processes.check) as player:
            with with_reasons(processes):
                player.bring_up([profile.cameras[0].topic, profile.joints.topic])
            columns = (
                TextColumn("playing"),
                BarColumn(bar_width=40),
                TextColumn("{task.completed:.1f} of {task.total:.1f} s"),
                TimeElapsedColumn(),
            )
            seconds = _seconds(bag, args.seconds)
            if not console.is_terminal:
                console.print(f"playing {seconds:.1f} s of the recording")
            with progress_bar(console, columns, seconds) as update:
                player.play(
                    _until(first, messages, end_ns),
                    args.rate,
                    lambda now_ns: update(completed=(now_ns - first[1]) / NS),
                )
            player.take_down()
            return player.played, player.values


def _until(
    first: tuple[str, int, bytes], rest: Iterator[tuple[str, int, bytes]], end_ns: int | None
) -> Iterator[tuple[str, int, bytes]]:
    yield first
    for item in rest:
        if end_ns is not None and item[1] > end_ns:
            return
        yield item


def _seconds(bag: Bag, limit: float | None) -> float:
    whole = bag.duration_s
    return whole if limit is None else min(limit, whole)


def _tell(console: Console, summary: dict[str, Any], out: Path) -> None:
    lines = [
        "",
        f"frames       {summary['frames_received']} received of {summary['frames_played']} played",
        f"bundle       {summary['bundle_sha256'][:16]} on {summary['backend']}",
    ]
    for name, share in summary["of_limit"].items():
        lines.append(
            f"{name:<12} p50 {100 * share['p50']:.0f} %, p99 {100 * share['p99']:.0f} %, "
            f"at most {100 * share['max']:.0f} % of its limit"
        )
    scores = summary["prediction"]
    if scores is None:
        lines.append("prediction   no moment with enough frames, joints and actions around it")
    else:
        for i, seconds in enumerate(scores["seconds"]):
            lines.append(
                f"{'prediction' if i == 0 else '':<12} {seconds:4.2f} s ahead: joint RMSE "
                f"{scores['joint_rmse'][i]:.4f} (hold last {scores['joint_rmse_hold'][i]:.4f}), "
                f"PSNR {scores['psnr'][i]:.1f} dB (copy last {scores['psnr_copy'][i]:.1f})"
            )
    lines += [f"report       {out / 'report.html'}", f"bag          {out / 'bag'}"]
    console.print("\n".join(lines), soft_wrap=True)
