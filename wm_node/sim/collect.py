"""Simulated episodes as rosbag2 bags: the topics that the simulated robot publishes, one bag each.

Time is simulated, so bags are written faster than they would be recorded. The names of topics come
from the robot profile.
"""

from __future__ import annotations

import json
import shutil
from collections.abc import Iterator
from dataclasses import asdict, dataclass
from math import isfinite
from pathlib import Path
from typing import Any

from wm_node.data import messages
from wm_node.data.bag_writer import BagWriter
from wm_node.data.images import encode_jpeg
from wm_node.errors import WmError
from wm_node.profile import RobotProfile
from wm_node.sim.arm import JOINT_NAMES
from wm_node.sim.episode import Streams, record_episode
from wm_node.sim.generate import shared_simulator
from wm_node.sim.level import BASIC
from wm_node.sim.mix import MakeBehaviour, Mix, make_behaviour
from wm_node.sim.processes import in_processes
from wm_node.sim.scene import TIP_HEIGHT

INDEX_NAME = "collect.jsonl"
EVENT_EVERY = 10  # samples of 100 Hz between repeats of an unchanged event
MUG_TOPIC, TIP_TOPIC = "/sim_robot/mug_pose", "/sim_robot/tip"
OTHER_TOPIC = "/sim_robot/{}"  # of one of sim.level.OTHERS


@dataclass(frozen=True)
class Settings:
    """What decides the contents of the bags, but for their number."""

    seed: int
    behaviours: dict[str, float]
    width: int
    height: int
    camera_rate_hz: float
    images: str
    """``raw`` or ``compressed``."""
    bundle_sha256: str = ""
    """Of the bundle that the planner plays with, if it is among the behaviours."""
    level: str = BASIC.name
    """Of the task suite, whose scene the episodes play in."""


@dataclass(frozen=True)
class EpisodeInfo:
    """What is in one bag."""

    bag: str
    seed: int
    behaviour: str
    fell: bool
    zone: bool
    hit: bool = False


def absolute(topic: str) -> str:
    """Return a topic of the profile in the root namespace."""
    return topic if topic.startswith("/") else f"/{topic}"


def write_bag(path: Path, streams: Streams, profile: RobotProfile, compressed: bool) -> None:
    """Write one episode as a rosbag2 MCAP bag.

    Args:
        path: the bag's directory, which must not exist.
        streams: the episode.
        profile: names the topics of camera, joints and command, and the events that are told.
        compressed: JPEG on ``<camera topic>/compressed`` in place of raw images.
    """
    camera, action = profile.cameras[0], profile.action
    image_topic = absolute(camera.topic.removesuffix("/compressed"))
    image_type = "sensor_msgs/msg/Image"
    if compressed:
        image_topic, image_type = f"{image_topic}/compressed", "sensor_msgs/msg/CompressedImage"
    joint_topic, command_topic = absolute(profile.joints.topic), absolute(action.topic)
    with BagWriter(path) as bag:
        bag.add_topic(image_topic, image_type)
        bag.add_topic(joint_topic, "sensor_msgs/msg/JointState")
        bag.add_topic(command_topic, "geometry_msgs/msg/TwistStamped")
        bag.add_topic(MUG_TOPIC, "geometry_msgs/msg/PoseStamped")
        bag.add_topic(TIP_TOPIC, "geometry_msgs/msg/PointStamped")
        others = {OTHER_TOPIC.format(name): places for name, places in streams.others.items()}
        for topic in others:
            bag.add_topic(topic, "geometry_msgs/msg/PointStamped")
        events = {absolute(event.topic): streams.events[event.name] for event in profile.events}
        for topic in events:
            bag.add_topic(topic, "std_msgs/msg/Bool")
        frames = dict(zip(streams.frame_stamps.tolist(), streams.frames, strict=True))
        commands = dict(zip(streams.command_stamps.tolist(), streams.commands, strict=True))
        for k, stamp in enumerate(streams.stamps.tolist()):
            state = messages.joint_state(
                stamp, JOINT_NAMES, streams.joints[k], streams.joint_velocities[k]
            )
            bag.write(joint_topic, state, stamp)
            x, y, z = streams.mug_position[k].tolist()
            qx, qy, qz, qw = streams.mug_orientation[k].tolist()
            pose = messages.pose_stamped(stamp, "table", (x, y, z), (qx, qy, qz, qw))
            bag.write(MUG_TOPIC, pose, stamp)
            tip_x, tip_y = streams.tip[k].tolist()
            tip = messages.point_stamped(stamp, "table", (tip_x, tip_y, TIP_HEIGHT))
            bag.write(TIP_TOPIC, tip, stamp)
            for topic, places in others.items():
                x, y = places[k].tolist()
                if isfinite(x):
                    other = messages.point_stamped(stamp, "table", (x, y, 0.0))
                    bag.write(topic, other, stamp)
            for topic, active in events.items():
                if k % EVENT_EVERY == 0 or active[k] != active[k - 1]:
                    bag.write(topic, messages.boolean(bool(active[k])), stamp)
            if (frame := frames.get(stamp)) is not None:
                picture = (
                    messages.compressed_image(stamp, camera.name, encode_jpeg(frame))
                    if compressed
                    else messages.image(stamp, camera.name, frame)
                )
                bag.write(image_topic, picture, stamp)
            if (command := commands.get(stamp)) is not None:
                vx, vy = command.tolist()
                twist = messages.twist_stamped(stamp, action.frame_id, (vx, vy, 0.0))
                bag.write(command_topic, twist, stamp)


@dataclass(frozen=True)
class _Job:
    bag: Path
    seed: int
    settings: Settings
    profile: RobotProfile
    make: MakeBehaviour


def _collect_one(job: _Job) -> EpisodeInfo:
    settings = job.settings
    sim = shared_simulator(settings.width, settings.height, True, settings.level)
    mix = Mix(settings.behaviours)
    streams = record_episode(sim, job.seed, mix, settings.camera_rate_hz, make=job.make)
    if job.bag.exists():  # left over from a run that was stopped
        shutil.rmtree(job.bag)
    try:
        write_bag(job.bag, streams, job.profile, settings.images == "compressed")
    except OSError as error:
        raise WmError(f"cannot write the bag {job.bag}: {error.strerror}.") from error
    return EpisodeInfo(
        bag=job.bag.name,
        seed=job.seed,
        behaviour=streams.behaviour,
        fell=bool(streams.fell.any()),
        zone=bool(streams.zone.any()),
        hit=bool(streams.hit.any()),
    )


def read_index(out: Path, settings: Settings) -> dict[int, EpisodeInfo]:
    """Return the complete bags of an earlier run by seed; empty for a new folder.

    Raises:
        WmError: the folder was collected with other settings, or its index is damaged.
    """
    path = out / INDEX_NAME
    if not path.exists():
        return {}
    try:
        lines = path.read_text(encoding="utf-8").splitlines()
        earlier = json.loads(lines[0])
        rows = [json.loads(line) for line in lines[1:]]
        known = {row["seed"]: EpisodeInfo(**row) for row in rows}
    except (OSError, ValueError, IndexError, KeyError, TypeError) as error:
        raise WmError(f"{path} is damaged; collect into another folder.") from error
    # Folders from before bundles could play, and levels be chosen, lack the keys.
    if {"bundle_sha256": "", "level": BASIC.name, **earlier} != asdict(settings):
        raise WmError(
            f"{out} holds bags of other settings (see the first line of {INDEX_NAME}); use the "
            "same settings or another folder."
        )
    return {
        seed: info for seed, info in known.items() if (out / info.bag / "metadata.yaml").is_file()
    }


def collect(
    out: Path,
    profile: RobotProfile,
    settings: Settings,
    episodes: int,
    workers: int,
    make: MakeBehaviour = make_behaviour,
) -> Iterator[tuple[EpisodeInfo, bool]]:
    """Write the bags ``<out>/episode_<seed>`` that are missing.

    Args:
        out: folder of the bags; made if need be. Complete bags in it are kept.
        profile: names the topics.
        settings: what decides the contents.
        episodes: number of bags; seeds are ``settings.seed``, ``settings.seed + 1`` and so on.
        workers: processes.
        make: builds behaviours by name; picklable.

    Yields:
        Each bag's contents, in order of seeds, and whether it was written now.

    Raises:
        WmError: other settings than the folder's, or the disk is full.
    """
    done = read_index(out, settings)
    try:
        out.mkdir(parents=True, exist_ok=True)
        index = (out / INDEX_NAME).open("w", encoding="utf-8")
    except OSError as error:
        raise WmError(f"cannot write to {out}: {error.strerror}.") from error
    seeds = range(settings.seed, settings.seed + episodes)
    todo = (
        _Job(out / f"episode_{seed:08d}", seed, settings, profile, make)
        for seed in seeds
        if seed not in done
    )
    with index:
        _append(index, asdict(settings))
        for info in done.values():
            _append(index, asdict(info))
        written = in_processes(_collect_one, todo, workers)
        for seed in seeds:
            if seed in done:
                yield done[seed], False
                continue
            info = next(written)
            _append(index, asdict(info))
            yield info, True


def _append(index: Any, row: dict[str, Any]) -> None:
    index.write(json.dumps(row) + "\n")
    index.flush()
