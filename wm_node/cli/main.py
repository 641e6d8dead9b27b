"""Entry point of ``wm``: finds the command, parses its arguments, turns faults into sentences."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence

from wm_node import __version__
from wm_node.cli.help import Help
from wm_node.errors import WmError

# name -> (module, one-line help). A command module offers `add_arguments(parser)` and
# `run(args) -> int`; it is imported only when its command is asked for, so that `wm --help`
# needs neither torch nor ROS.
COMMANDS: dict[str, tuple[str, str]] = {
    "demo": ("wm_node.cli.demo", "closed loop with a simulated robot over real ROS 2 topics"),
    "collect": ("wm_node.cli.collect", "simulated episodes -> rosbag2 bags"),
    "ingest": ("wm_node.cli.ingest", "bags + robot profile -> dataset"),
    "label": ("wm_node.cli.label", "pictures of bags, for a person to say when events happened"),
    "train": ("wm_node.cli.train", "dataset -> bundle"),
    "evaluate": ("wm_node.cli.evaluate", "score a bundle on a task suite or on recorded bags"),
    "export": ("wm_node.cli.export", "a bundle's graphs again, as this version plans"),
    "compile": ("wm_node.cli.compile", "bundle -> engines for an NVIDIA GPU"),
    "benchmark": ("wm_node.cli.benchmark", "how long plans take here, beside the machine's floor"),
    "calibrate": (
        "wm_node.cli.calibrate",
        "delays of a robot, thresholds of risk, limits of doubt -> overlay",
    ),
    "replay": ("wm_node.cli.replay", "play a bag through the nodes in shadow mode"),
    "recover": ("wm_node.cli.recover", "repair a bag whose recorder was killed"),
    "doctor": ("wm_node.cli.doctor", "check this machine, a profile and a bundle"),
}


def build_parser(argv: Sequence[str]) -> argparse.ArgumentParser:
    """Build the parser; only the asked-for command's module is imported."""
    parser = argparse.ArgumentParser(
        prog="wm",
        description="Robots with foresight: collect, train, evaluate and run a video world model.",
        epilog="'wm COMMAND --help' explains a command. Start with 'wm demo'.",
    )
    parser.add_argument("--version", action="version", version=f"wm_node {__version__}")
    commands = parser.add_subparsers(dest="command", metavar="COMMAND", required=True)
    asked = next((word for word in argv if not word.startswith("-")), None)
    for name, (module, summary) in COMMANDS.items():
        sub = commands.add_parser(
            name,
            help=summary,
            description=summary[0].upper() + summary[1:] + ".",
            formatter_class=Help,
        )
        if name == asked:
            importlib.import_module(module).add_arguments(sub)
    return parser


def main(argv: Sequence[str] | None = None) -> int:
    """Run one command; return its exit status (0 only on success, 2 on wrong usage)."""
    words = list(sys.argv[1:] if argv is None else argv)
    args = build_parser(words).parse_args(words)
    module = importlib.import_module(COMMANDS[args.command][0])
    try:
        return int(module.run(args))
    except WmError as error:
        print(f"wm {args.command}: {error}", file=sys.stderr)
        return 1
    except KeyboardInterrupt:
        print(f"wm {args.command}: interrupted", file=sys.stderr)
        return 130
    except BrokenPipeError:  # the reader of our output (head, less) has gone
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 1


if __name__ == "__main__":
    sys.exit(main())
