"""``wm doctor``: checks this machine, a profile and a bundle, and says what to do."""

from __future__ import annotations

import argparse
import importlib
import os
import platform
import shutil
import sys
from collections.abc import Callable, Iterator
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal
from xml.etree import ElementTree

import yaml
from rich.console import Console
from rich.markup import escape

from wm_node.bundle import Bundle, load_bundle
from wm_node.cli.shared_memory import remove_stale_segments, size_of, stale_segments
from wm_node.errors import WmError
from wm_node.json_file import write_json
from wm_node.profile import RobotProfile, load_profile
from wm_node.resources import BUNDLE, resource

Level = Literal["ok", "warn", "fail"]
STYLE: dict[Level, str] = {"ok": "green", "warn": "yellow", "fail": "red"}

PYTHON = ((3, 10), (3, 12))
MESSAGES = (
    "builtin_interfaces",
    "diagnostic_msgs",
    "geometry_msgs",
    "lifecycle_msgs",
    "nav_msgs",
    "rcl_interfaces",
    "rosgraph_msgs",
    "sensor_msgs",
    "std_msgs",
    "std_srvs",
    "trajectory_msgs",
    "visualization_msgs",
)
# Two segments of the shipped Fast DDS profile must fit, or images fall back to slower ways.
SHM_NEEDED_MB = 64
SHM_STALE_MB = 256
SEGMENT_BYTES = 4 << 20  # a segment below this loses 640x480 frames
SOCKET_BUFFER_BYTES = 2 << 20
DISK_MB = 4000


@dataclass(frozen=True)
class Finding:
    """What one check found, and what to do about it where it is not ``ok``."""

    level: Level
    check: str
    text: str
    remedy: str = ""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Declare the options."""
    parser.add_argument("--robot", help="robot profile to check: a path or a shipped name")
    parser.add_argument(
        "--bundle", type=Path, help="bundle to check (default: the shipped one, where there is one)"
    )
    parser.add_argument("--json", type=Path, metavar="FILE", help="also write the findings to FILE")
    parser.add_argument(
        "--clean",
        action="store_true",
        help="first free the shared memory of ROS processes that were killed",
    )


def run(args: argparse.Namespace) -> int:
    """Run all checks; 1 if one failed."""
    console = Console(highlight=False)
    if args.clean:
        freed = remove_stale_segments()
        console.print(f"{freed / 1e6:.1f} MB of shared memory of killed processes freed\n")
    found: list[Finding] = []
    for finding in findings(args.robot, args.bundle):
        found.append(finding)
        console.print(
            f"[{STYLE[finding.level]}]{finding.level:<4}[/]  {finding.check:<18} "
            f"{escape(finding.text)}",
            soft_wrap=True,
        )
        if finding.remedy:
            console.print(f"      {'':<18} -> {escape(finding.remedy)}", soft_wrap=True)
    count = {level: sum(f.level == level for f in found) for level in STYLE}
    console.print(f"\n{count['ok']} ok, {count['warn']} to look at, {count['fail']} failed")
    if args.json is not None:
        write_json(args.json, {"counts": count, "findings": [asdict(f) for f in found]})
    return 1 if count["fail"] else 0


def findings(robot: str | None, bundle: Path | None) -> Iterator[Finding]:
    """Run the checks one after the other."""
    machine: tuple[Callable[[], Finding], ...] = (
        check_python,
        check_processor,
        check_threads,
        check_shared_memory,
        check_socket_buffers,
        check_disk,
        check_ros,
        check_messages,
        check_middleware,
        check_dds_profile,
        check_network,
        check_camera_conversion,
        check_simulator,
    )
    for check in machine:
        yield check()
    backends = [check_backend("openvino"), check_backend("torch"), check_tensorrt()]
    yield from backends
    usable = [f.check.split()[-1] for f in backends if f.level == "ok"]
    if not usable:
        yield Finding("fail", "engine", "no engine is installed", "pip install 'wm_node[openvino]'")
    profile: RobotProfile | None = None
    if robot is not None:
        finding, profile = check_profile(robot)
        yield finding
    yield from check_bundle(bundle, profile, usable)


def check_python() -> Finding:
    """Whether this Python is one that is tested."""
    low, high = PYTHON
    text = f"Python {platform.python_version()} at {sys.executable}"
    if not low <= sys.version_info[:2] <= high:
        return Finding("fail", "python", text, "use Python 3.10, 3.11 or 3.12")
    return Finding("ok", "python", text)


def check_processor() -> Finding:
    """Cores, and the instructions that make inference fast."""
    cores = len(os.sched_getaffinity(0)) if hasattr(os, "sched_getaffinity") else os.cpu_count()
    flags = _cpu_flags()
    fast = [
        name for name in ("amx_bf16", "avx512_bf16", "avx512f", "avx2", "asimd") if name in flags
    ]
    text = f"{platform.machine()}, {cores} cores, {', '.join(fast) or 'no vector extensions known'}"
    if (cores or 1) < 2:
        return Finding("warn", "processor", text, "two cores are needed to plan in real time")
    return Finding("ok", "processor", text)


def _cpu_flags() -> set[str]:
    try:
        lines = Path("/proc/cpuinfo").read_text(encoding="utf-8").splitlines()
    except OSError:
        return set()
    return {
        flag
        for line in lines
        if line.lower().startswith(("flags", "features"))
        for flag in line.partition(":")[2].split()
    }


def check_threads() -> Finding:
    """Whether OpenMP may take all cores: spinning threads starve the other processes."""
    value = os.environ.get("OMP_NUM_THREADS", "")
    if value.isdigit():
        return Finding("ok", "threads", f"OMP_NUM_THREADS={value}")
    return Finding(
        "warn",
        "threads",
        "OMP_NUM_THREADS is not set",
        "export OMP_NUM_THREADS=1 for the node processes ('wm demo' and 'wm replay' do it)",
    )


def check_shared_memory() -> Finding:
    """Whether /dev/shm has room for the segments of the Fast DDS profile."""
    try:
        usage = shutil.disk_usage("/dev/shm")
    except OSError:
        return Finding(
            "warn",
            "shared memory",
            "there is no /dev/shm",
            "mount it; without shared memory images travel through the network stack",
        )
    free_mb, total_mb = usage.free >> 20, usage.total >> 20
    text = f"/dev/shm: {free_mb} of {total_mb} MB free"
    if free_mb < SHM_NEEDED_MB:
        return Finding(
            "fail",
            "shared memory",
            text,
            "make it larger (docker run --shm-size=512m), or try 'wm doctor --clean'",
        )
    stale_mb = size_of(stale_segments()) >> 20
    if stale_mb >= SHM_STALE_MB:
        return Finding(
            "warn",
            "shared memory",
            f"{text}; {stale_mb} MB belong to processes that were killed",
            "remove them with 'wm doctor --clean', also while ROS programs run",
        )
    return Finding("ok", "shared memory", text)


def check_socket_buffers() -> Finding:
    """Whether the kernel lets UDP buffers hold an image, for cameras on another machine."""
    try:
        size = int(Path("/proc/sys/net/core/rmem_max").read_text(encoding="utf-8"))
    except (OSError, ValueError):
        return Finding("ok", "socket buffers", "not known on this system")
    text = f"net.core.rmem_max is {size}"
    if size < SOCKET_BUFFER_BYTES:
        return Finding(
            "warn",
            "socket buffers",
            text,
            f"if a camera is on another machine: sysctl -w net.core.rmem_max={SOCKET_BUFFER_BYTES}",
        )
    return Finding("ok", "socket buffers", text)


def check_disk() -> Finding:
    """Whether there is room to record here."""
    free_mb = shutil.disk_usage(Path.cwd()).free // 1_000_000
    text = f"{free_mb} MB free at {Path.cwd()}"
    if free_mb < DISK_MB:
        return Finding(
            "warn",
            "disk",
            text,
            f"the flight recorder stops at {recorder_min_free_mb()} MB (its min_free_mb): record "
            "elsewhere, or make room",
        )
    return Finding("ok", "disk", text)


def recorder_min_free_mb() -> int:
    """Return the recorder's default; from its parameter file, which can be read without ROS."""
    text = resource("config/flight_recorder.yaml").read_text(encoding="utf-8")
    (node,) = yaml.safe_load(text).values()
    return int(node["ros__parameters"]["min_free_mb"])


def check_ros() -> Finding:
    """Whether the ROS client library can be imported."""
    try:
        importlib.import_module("rclpy")
    except ImportError as error:
        return Finding(
            "fail",
            "ros",
            f"rclpy cannot be imported: {error}",
            "source your ROS 2 installation, or pip install 'wm_node[ros]'",
        )
    distro = os.environ.get("ROS_DISTRO", "")
    if distro and distro != "jazzy":
        return Finding(
            "warn", "ros", f"rclpy of ROS 2 {distro}", "only Jazzy is tested: run the tests first"
        )
    return Finding("ok", "ros", f"rclpy is here ({distro or 'Python wheels'})")


def check_messages() -> Finding:
    """Whether every message package can be imported."""
    missing = []
    for package in MESSAGES:
        try:
            importlib.import_module(package)
        except ImportError:
            missing.append(package)
    if missing:
        return Finding(
            "fail",
            "messages",
            f"missing: {', '.join(missing)}",
            "install ros-jazzy-common-interfaces (apt), or pip install 'wm_node[ros]'",
        )
    return Finding("ok", "messages", f"{len(MESSAGES)} packages")


def check_middleware() -> Finding:
    """Which middleware ROS uses."""
    try:
        from wm_node.nodes.middleware import middleware_name

        name = middleware_name()
    except (ImportError, RuntimeError, OSError) as error:
        return Finding(
            "fail", "middleware", f"none loads: {error}", "install ros-jazzy-rmw-fastrtps-cpp"
        )
    if name != "rmw_fastrtps_cpp":
        return Finding(
            "warn",
            "middleware",
            name,
            "only Fast DDS is measured: export RMW_IMPLEMENTATION=rmw_fastrtps_cpp, or check that "
            "large images arrive",
        )
    return Finding("ok", "middleware", name)


def check_dds_profile() -> Finding:
    """Whether a Fast DDS profile is set whose shared memory holds an image."""
    variable = "FASTRTPS_DEFAULT_PROFILES_FILE"
    remedy = f"export {variable}={resource('config/fastdds_large_images.xml')}"
    value = os.environ.get(variable) or os.environ.get("FASTDDS_DEFAULT_PROFILES_FILE", "")
    if not value:
        return Finding(
            "warn", "dds profile", f"{variable} is not set: large images will be lost", remedy
        )
    try:
        sizes = _segment_sizes(Path(value))
    except (OSError, ElementTree.ParseError, ValueError) as error:
        return Finding("fail", "dds profile", f"{value} cannot be read: {error}", remedy)
    if not sizes or max(sizes) < SEGMENT_BYTES:
        return Finding("warn", "dds profile", f"{value} has no large shared-memory segment", remedy)
    return Finding("ok", "dds profile", f"{value}, segments of {max(sizes) >> 20} MB")


def _segment_sizes(path: Path) -> list[int]:
    tree = ElementTree.parse(path)
    return [
        int(element.text or 0)
        for element in tree.iter()
        if element.tag.rpartition("}")[2] == "segment_size"
    ]


def check_network() -> Finding:
    """Who can hear this robot."""
    domain = os.environ.get("ROS_DOMAIN_ID", "0")
    reach = os.environ.get("ROS_AUTOMATIC_DISCOVERY_RANGE", "SUBNET")
    text = f"domain {domain}, discovery range {reach}"
    if reach == "SUBNET" and domain == "0":
        return Finding(
            "warn",
            "network",
            text,
            "every ROS program on this network shares the robot's topics: set ROS_DOMAIN_ID, or "
            "ROS_AUTOMATIC_DISCOVERY_RANGE=LOCALHOST if everything runs on this machine",
        )
    return Finding("ok", "network", text)


def check_camera_conversion() -> Finding:
    """Which library converts camera messages."""
    try:
        importlib.import_module("cv2")
    except ImportError as error:
        return Finding(
            "fail",
            "images",
            f"OpenCV cannot be imported: {error}",
            "install python3-opencv (apt), or pip install opencv-python-headless",
        )
    for name in ("cv_bridge", "rosbags.image"):
        try:
            importlib.import_module(name)
        except ImportError:
            continue
        return Finding("ok", "images", f"converted by {name}")
    return Finding(
        "fail",
        "images",
        "neither cv_bridge nor rosbags-image is installed",
        "pip install rosbags-image",
    )


def check_simulator() -> Finding:
    """Whether the simulator of the demo can be imported."""
    try:
        module = importlib.import_module("mujoco")
    except ImportError as error:
        return Finding(
            "warn", "simulator", f"no MuJoCo ({error})", "only 'wm demo' needs it: wm_node[sim]"
        )
    return Finding("ok", "simulator", f"MuJoCo {module.__version__}")


def check_backend(name: str) -> Finding:
    """Whether an engine's library can be imported."""
    try:
        module = importlib.import_module(name)
    except ImportError as error:
        extra = "train" if name == "torch" else name
        return Finding(
            "warn", f"engine {name}", f"not installed ({error})", f"pip install 'wm_node[{extra}]'"
        )
    return Finding("ok", f"engine {name}", str(getattr(module, "__version__", "installed")))


def check_tensorrt() -> Finding:
    """Whether TensorRT, in either edition, and a GPU for it are here."""
    from wm_node.engine.cuda_device import current_device
    from wm_node.engine.tensorrt_adapter import find_tensorrt

    name = "engine tensorrt"
    try:
        found = find_tensorrt()
        device = current_device("TensorRT runs engines on nothing else")
    except WmError as error:
        return Finding("warn", name, str(error), "only robots with an NVIDIA GPU need it")
    return Finding("ok", name, f"{found.edition} {found.version} on {device.name}")


def check_profile(robot: str) -> tuple[Finding, RobotProfile | None]:
    """Whether a robot profile is valid, and what it still lacks."""
    try:
        profile = load_profile(robot)
    except WmError as error:
        return Finding("fail", "profile", str(error), "correct the file"), None
    text = (
        f"{profile.name}: {len(profile.cameras)} camera(s), {len(profile.joints.names)} joints, "
        f"{profile.action.kind} as {profile.action.message}"
    )
    if not profile.simulated and profile.action.delay_s is None:
        remedy = "measure how late the joints follow: wm calibrate --delay BAG"
        return Finding("warn", "profile", f"{text}; delays are not known", remedy), profile
    return Finding("ok", "profile", text), profile


def check_bundle(
    path: Path | None, profile: RobotProfile | None, backends: list[str]
) -> Iterator[Finding]:
    """Whether a bundle is whole, fits the robot, and every engine reproduces its golden arrays."""
    from wm_node.engine import load_engine

    if path is None:
        try:
            path = resource(BUNDLE)
        except WmError:
            yield Finding(
                "warn", "bundle", "none ships with this installation", "name one with --bundle"
            )
            return
    try:
        bundle = load_bundle(path)
    except WmError as error:
        yield Finding("fail", "bundle", str(error), "copy it again or train it: wm train")
        return
    yield Finding("ok", "bundle", f"{path}, robot '{bundle.profile.name}', {bundle.sha256[:16]}")
    if profile is not None:
        yield _check_match(bundle, profile)
    for name in backends:
        try:
            engine = load_engine(bundle, name)
        except WmError as error:
            yield Finding("fail", f"golden {name}", str(error), "choose another backend")
        else:
            yield Finding("ok", f"golden {name}", f"{engine.name} reproduces the golden arrays")


def _check_match(bundle: Bundle, profile: RobotProfile) -> Finding:
    from wm_node.nodes.foresight import check_match

    try:
        check_match(bundle.profile, profile)
    except WmError as error:
        return Finding("fail", "bundle and robot", str(error))
    return Finding("ok", "bundle and robot", f"the bundle fits the robot '{profile.name}'")
