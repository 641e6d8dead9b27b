"""What ``wm demo`` and ``wm replay`` share: a run of the nodes that a command starts and ends."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from rich.console import Console

from wm_node.bundle import Bundle
from wm_node.cli.processes import (
    ProcessGroup,
    node_command,
    node_environment,
    own_environment,
    private_domain,
    ros_arguments,
)
from wm_node.errors import WmError
from wm_node.resources import resource


def log_folder(out: Path) -> Path:
    """Return the folder of a run's logs and of what its nodes are given to read."""
    return out / "log"


def observers(
    robot: Path, bundle: Bundle, backend: str, out: Path, recorded: bool = False
) -> dict[str, list[str]]:
    """Return the command lines, by name, of the recorder and the world model with its planner.

    Args:
        robot: file of the robot's profile.
        bundle: the model.
        backend: its engine.
        out: folder of the run; the recorder writes ``out/bag``.
        recorded: the nodes look on at a recording: its clock is theirs, nothing is commanded.
    """
    common: dict[str, Any] = {"robot": str(robot), "bundle": str(bundle.path)}
    model: dict[str, Any] = {"backend": backend}
    if recorded:
        common |= {"use_sim_time": True}
        model |= {"shadow": True}
    recorder = ros_arguments(
        common | {"bag_path": str(out / "bag")}, str(resource("config/flight_recorder.yaml"))
    )
    world = ros_arguments(
        common | model,
        str(resource("config/world_model.yaml")),
        str(resource("config/mpc_planner.yaml")),
    )
    return {
        "flight_recorder": node_command("flight_recorder", recorder),
        "world_model": node_command("world_model", world),
    }


@contextmanager
def running(
    commands: Mapping[str, Sequence[str]], out: Path, console: Console, note: str
) -> Iterator[ProcessGroup]:
    """Run node processes in a ROS domain of their own, which this process joins for a while.

    All of them are stopped at the end of the block, whatever ends it.

    Args:
        commands: command line by name, in the order in which they start.
        out: folder of the run; the processes write to ``out/log``.
        console: is told what was started.
        note: said after it.

    Raises:
        WmError: no domain is free, or a process cannot be started.
    """
    log_dir = log_folder(out)
    with private_domain() as domain:
        environment = node_environment(domain, log_dir)
        with own_environment(environment), ProcessGroup(environment, log_dir) as processes:
            for name, command in commands.items():
                processes.start(name, command)
            console.print(
                f"started {', '.join(processes.pids)} in ROS domain {domain}; {note}",
                soft_wrap=True,
            )
            yield processes


@contextmanager
def with_reasons(processes: ProcessGroup) -> Iterator[None]:
    """Add to an error of the block what the node that refused wrote into its log."""
    try:
        yield
    except WmError as error:
        for name in processes.pids:
            fault = processes.fault(name)
            if fault is not None:
                raise WmError(f"{error} It says: {fault}") from error
        raise
