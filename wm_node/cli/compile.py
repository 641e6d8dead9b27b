"""``wm compile``: from a bundle to engines for an NVIDIA GPU, here or for another machine."""

from __future__ import annotations

import argparse
import time
from dataclasses import asdict
from pathlib import Path
from typing import TYPE_CHECKING, Any

from rich.console import Console
from rich.progress import BarColumn, Progress, TextColumn, TimeElapsedColumn

from wm_node.cli.help import Help
from wm_node.errors import WmError
from wm_node.json_file import write_json

if TYPE_CHECKING:
    from wm_node.bundle import Bundle
    from wm_node.engine.engine_cache import EngineCache
    from wm_node.engine.tensorrt_adapter import TensorRt
    from wm_node.engine.tensorrt_build import BuildSettings

EPILOG = """
The engines go to a cache, keyed by the graph and its weights, the full TensorRT version, the GPU,
precision and sizes: compiling again only builds what is missing, and an engine that fits nothing
any more is never taken. On a Jetson, which brings its own TensorRT, compile on the robot:

  wm compile --bundle my_bundle

With TensorRT for RTX (pip install 'wm_node[tensorrt]') no GPU is needed; name the one to build for,
and copy the cache to a machine with the same TensorRT version:

  wm compile --bundle my_bundle --target sm_86 --cache engines

Targets: sm_75 (RTX 20), sm_80 (A100), sm_86 (RTX 30, A10), sm_89 (RTX 40, L4), sm_120 (RTX 50),
sm_121 (GB10). Orin (sm_87) is not among them. fp16 lets matrix products and convolutions compute
in half precision and leaves the rest, and graphs that the bundle marks, in fp32.
"""


def add_arguments(parser: argparse.ArgumentParser) -> None:
    """Add the command's arguments."""
    from wm_node.engine.engine_cache import default_folder

    parser.formatter_class = _Formatter
    parser.epilog = EPILOG
    parser.add_argument("--bundle", type=Path, required=True, help="what 'wm train' wrote")
    parser.add_argument(
        "--target",
        default="current",
        help="'current': the GPU of this machine; or a compute capability, such as sm_86",
    )
    parser.add_argument(
        "--graph", action="append", metavar="NAME", help="only this graph; may be repeated"
    )
    parser.add_argument("--precision", choices=["fp32", "fp16"], default="fp32")
    parser.add_argument(
        "--cache", type=Path, default=default_folder(), metavar="DIR", help="where engines are kept"
    )
    parser.add_argument(
        "--cache-gb", type=float, default=4.0, help="beyond it, engines not used for longest go"
    )
    parser.add_argument(
        "--candidates", type=int, default=64, help="as the planner's parameter of that name"
    )
    parser.add_argument(
        "--workspace-mb", type=int, default=1024, help="most scratch memory on the GPU, a graph"
    )
    parser.add_argument("--threads", type=int, default=1, help="CPU threads of the builder")
    parser.add_argument("--json", type=Path, default=None, help="write the figures here")


class _Formatter(Help, argparse.RawDescriptionHelpFormatter):
    """Shows defaults, and keeps the lines of the examples."""


def run(args: argparse.Namespace) -> int:
    """Build what is missing in the cache; print a line a graph."""
    from wm_node.bundle import load_bundle
    from wm_node.engine.engine_cache import EngineCache
    from wm_node.engine.tensorrt_adapter import find_tensorrt
    from wm_node.engine.tensorrt_build import BuildSettings

    settings = BuildSettings(
        target=args.target,
        precision=args.precision,
        candidates=args.candidates,
        workspace_mb=args.workspace_mb,
        threads=args.threads,
    )
    bundle = load_bundle(args.bundle)
    chosen = args.graph or list(bundle.graphs)
    if unknown := [name for name in chosen if name not in bundle.graphs]:
        raise WmError(f"the bundle has no graph '{unknown[0]}'; it has {', '.join(bundle.graphs)}.")
    trt = find_tensorrt(args.target)
    cache = EngineCache(args.cache, int(args.cache_gb * 2**30))
    console = Console(stderr=True, highlight=False)
    console.print(f"{trt.edition} {trt.version}, target {args.target}, cache {cache.folder}")
    graphs = _compile(trt, bundle, chosen, settings, cache, console)
    figures = {
        "bundle": str(bundle.path),
        "bundle_sha256": bundle.sha256,
        "tensorrt": f"{trt.edition} {trt.version}",
        "settings": asdict(settings),
        "cache": str(cache.folder),
        "graphs": graphs,
    }
    if args.json is not None:
        write_json(args.json, figures)
    return 0


def _compile(
    trt: TensorRt,
    bundle: Bundle,
    graphs: list[str],
    settings: BuildSettings,
    cache: EngineCache,
    console: Console,
) -> dict[str, Any]:
    from wm_node.engine.tensorrt_build import cached_engine

    figures: dict[str, Any] = {}
    columns = (
        TextColumn("{task.description}"),
        BarColumn(),
        TextColumn("{task.completed}/{task.total}"),
        TimeElapsedColumn(),
    )
    with Progress(*columns, console=console, disable=not console.is_terminal) as progress:
        whole = progress.add_task("graphs", total=len(graphs))
        part = progress.add_task("", total=1, visible=False)

        def watch(phase: str, done: int, steps: int) -> None:
            progress.update(
                part, description=phase, completed=done, total=max(steps, 1), visible=True
            )

        for graph in graphs:
            progress.update(whole, description=graph)
            begun = time.monotonic()
            engine = cached_engine(trt, bundle, graph, settings, cache, watch)
            seconds = time.monotonic() - begun
            progress.advance(whole)
            console.print(
                f"{graph:<13} {engine.key.precision}  {len(engine.data) / 1e6:6.1f} MB  "
                + (f"built in {seconds:.1f} s" if engine.built else "was in the cache")
            )
            figures[graph] = {
                "file": str(engine.path),
                "bytes": len(engine.data),
                "precision": engine.key.precision,
                "target": engine.key.target,
                "built": engine.built,
                "seconds": round(seconds, 3),
            }
    return figures
