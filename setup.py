"""Installs wm_node by pip or colcon; files that are not code go to ``share/wm_node``."""

from pathlib import Path

from setuptools import find_packages, setup

PACKAGE = "wm_node"
ROOT = Path(__file__).parent
SHARE = f"share/{PACKAGE}"
X86_LINUX = 'sys_platform == "linux" and platform_machine == "x86_64"'
SKIPPED = ("__pycache__", ".git")


def shipped(folder: str) -> list[tuple[str, list[str]]]:
    """Return ``data_files`` entries that keep the layout of a whole folder under ``share/``."""
    found: dict[str, list[str]] = {}
    for path in sorted((ROOT / folder).rglob("*")):
        relative = path.relative_to(ROOT)
        if path.is_file() and not any(part in SKIPPED for part in relative.parts):
            found.setdefault(f"{SHARE}/{relative.parent.as_posix()}", []).append(
                relative.as_posix()
            )
    return list(found.items())


EXTRAS = {
    # The ROS 2 Jazzy client library and messages as Python wheels. A machine with a ROS
    # installation has them already: leave this extra out there.
    "ros": ["ros-jazzy-rclpy", "ros-jazzy-rmw-fastrtps-cpp", "ros-jazzy-common-interfaces"],
    "sim": ["mujoco>=3.2"],
    "openvino": ["openvino>=2025.0"],
    "train": [
        "torch>=2.6",
        "onnx>=1.17",
        "onnxscript>=0.3",
        "tensorboard>=2.18",
        "scikit-image>=0.24",
    ],
    # Engines for NVIDIA GPUs, built ahead of time without one (Linux on x86-64). A Jetson has its
    # own TensorRT and needs of these only onnx, and the cuda-bindings of its CUDA version.
    "tensorrt": [
        "onnx>=1.17",
        f"tensorrt-rtx-cu13-bindings>=1.7 ; {X86_LINUX}",
        f"tensorrt-rtx-cu13-libs>=1.7 ; {X86_LINUX}",
        f"cuda-bindings>=13.0 ; {X86_LINUX}",
    ],
    # Limits of jerk in the gate, for profiles that set max_jerk.
    "jerk": ["ruckig>=0.14"],
    "report": ["jinja2>=3.1", "matplotlib>=3.8"],
    "test": ["pytest", "pytest-timeout", "pytest-xdist", "hypothesis"],
    "dev": ["ruff", "mypy", "types-PyYAML", "types-psutil", "scipy-stubs"],
}

setup(
    name=PACKAGE,
    version="0.1.0",
    description="Robots with foresight: a learned video world model, planner and safety gate.",
    long_description=(ROOT / "README.md").read_text(encoding="utf-8"),
    long_description_content_type="text/markdown",
    license="Apache-2.0",
    author="The wm_node authors",
    maintainer="The wm_node maintainers",
    maintainer_email="maintainers@wm-node.example.org",
    python_requires=">=3.10",
    packages=find_packages(include=[PACKAGE, f"{PACKAGE}.*"]),
    package_data={PACKAGE: ["reporting/templates/*", "py.typed"]},
    data_files=[
        ("share/ament_index/resource_index/packages", [f"resource/{PACKAGE}"]),
        (SHARE, ["package.xml"]),
        *shipped("config"),
        *shipped("launch"),
        *shipped("bundles"),
    ],
    zip_safe=False,
    # What every command and node needs; ROS, the simulator, engines and training are extras.
    install_requires=[
        "setuptools",
        "numpy>=1.26",
        "scipy>=1.11",
        "pydantic>=2.6",
        "pyyaml>=6.0",
        "rich>=13.0",
        "psutil>=5.9",
        "pillow>=10.0",
        "mcap>=1.6",
        "mcap-ros2-support>=0.5",
        "rosbags>=0.10.4",
        "rosbags-image[opencv-headless]>=0.10",
        "zstandard>=0.22",
        "lz4>=4.0",
        "zarr>=2.18,<3",
        "numcodecs>=0.12",
        "safetensors>=0.4",
    ],
    extras_require=EXTRAS,
    entry_points={
        "console_scripts": [
            "wm = wm_node.cli.main:main",
            "world_model = wm_node.nodes.world_model:main",
            "safety_gate = wm_node.nodes.safety_gate:main",
            "flight_recorder = wm_node.nodes.flight_recorder:main",
            "sim_robot = wm_node.nodes.sim_robot:main",
        ]
    },
)
