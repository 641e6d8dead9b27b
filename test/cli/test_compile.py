"""``wm compile`` fills the cache, takes what lies there, and writes its figures."""

from __future__ import annotations

import json
import platform
import sys
from pathlib import Path

import pytest

from wm_node.cli.main import build_parser, main
from wm_node.resources import resource

pytestmark = pytest.mark.skipif(
    sys.platform != "linux" or platform.machine() != "x86_64",
    reason="make setup installs TensorRT for RTX on Linux, x86-64",
)


def test_compiling_twice_builds_once(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    words = ["compile", "--bundle", str(resource("bundles/tabletop")), "--target", "sm_86"]
    words += ["--precision", "fp16", "--candidates", "8", "--cache", str(tmp_path / "cache")]
    for graph in ("propose", "read", "decode"):
        words += ["--graph", graph]
    words += ["--json", str(tmp_path / "figures.json")]
    assert main(words) == 0
    assert "propose       fp16" in capsys.readouterr().err
    first = json.loads((tmp_path / "figures.json").read_text())
    assert main(words) == 0
    assert "was in the cache" in capsys.readouterr().err
    second = json.loads((tmp_path / "figures.json").read_text())
    assert list(first["graphs"]) == ["propose", "read", "decode"]
    for graph, figures in first["graphs"].items():
        assert figures["built"]
        assert not second["graphs"][graph]["built"]
        assert Path(figures["file"]).stat().st_size == figures["bytes"]
        assert figures["precision"] == ("fp32" if graph == "decode" else "fp16")


def test_a_target_that_cannot_be_built_for_is_status_1(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    bundle = str(resource("bundles/tabletop"))
    assert main(["compile", "--bundle", bundle, "--target", "sm_87"]) == 1
    assert "on the robot itself use --target current" in capsys.readouterr().err


def test_an_unknown_graph_is_status_1(capsys: pytest.CaptureFixture[str]) -> None:
    bundle = str(resource("bundles/tabletop"))
    words = ["compile", "--bundle", bundle, "--target", "sm_86", "--graph", "dream"]
    assert main(words) == 1
    assert "no graph 'dream'; it has encode" in capsys.readouterr().err


def test_help_names_the_targets(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        build_parser(["compile"]).parse_args(["compile", "--help"])
    text = capsys.readouterr().out
    assert "wm compile --bundle my_bundle --target sm_86 --cache engines" in text
    assert "Orin (sm_87) is not among them" in text
