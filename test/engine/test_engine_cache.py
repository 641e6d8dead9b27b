"""The engine cache: only whole entries of the very key are taken, one builder, bounded size."""

from __future__ import annotations

import json
import logging
import os
import subprocess
import sys
from dataclasses import asdict, replace
from pathlib import Path
from subprocess import PIPE

import pytest

from wm_node.engine.engine_cache import EngineCache, EngineKey
from wm_node.errors import WmError

KEY = EngineKey(
    graph="search",
    onnx_sha256="a" * 64,
    weights_sha256="b" * 64,
    tensorrt="tensorrt 10.3.0.30",
    cuda="12.6",
    device="Orin",
    target="sm_87",
    precision="fp16",
    axes={"candidates": [1, 32, 32]},
    workspace_mb=256,
    recipe=1,
)
ENGINE = bytes(range(256)) * 4


class Builder:
    """Counts how often it is asked to build."""

    def __init__(self, data: bytes = ENGINE) -> None:
        self.calls, self.data = 0, data

    def __call__(self) -> bytes:
        self.calls += 1
        return self.data


@pytest.fixture
def cache(tmp_path: Path) -> EngineCache:
    return EngineCache(tmp_path / "engines")


def test_an_engine_is_built_once(cache: EngineCache) -> None:
    build = Builder()
    first, second = cache.get(KEY, build), cache.get(KEY, build)
    assert (first.built, second.built, build.calls) == (True, False, 1)
    assert first.data == second.data == ENGINE
    assert not list(cache.folder.glob(".*"))


@pytest.mark.parametrize(
    "other",
    [
        {"onnx_sha256": "c" * 64},
        {"weights_sha256": "c" * 64},
        {"tensorrt": "tensorrt 10.3.0.31"},
        {"cuda": "12.8"},
        {"device": "Thor"},
        {"target": "sm_86"},
        {"precision": "fp32"},
        {"axes": {"candidates": [1, 64, 64]}},
        {"workspace_mb": 512},
        {"recipe": 2},
    ],
    ids=lambda other: next(iter(other)),
)
def test_everything_that_an_engine_depends_on_is_in_its_key(
    cache: EngineCache, other: dict[str, object]
) -> None:
    cache.get(KEY, Builder())
    assert cache.get(replace(KEY, **other), Builder(b"other")).data == b"other"  # type: ignore[arg-type]
    assert cache.get(KEY, Builder(b"never")).data == ENGINE


def _truncate(path: Path) -> None:
    path.write_bytes(path.read_bytes()[:-1])


def _flip(path: Path) -> None:
    path.write_bytes(b"\x00" + path.read_bytes()[1:-1] + b"\x00")


def _foreign(path: Path) -> None:
    sidecar = path.with_suffix(".json")
    said = json.loads(sidecar.read_text())
    said["key"]["device"] = "Thor"
    sidecar.write_text(json.dumps(said))


@pytest.mark.parametrize(
    ("harm", "words"),
    [
        (_truncate, "is damaged"),
        (_flip, "is damaged"),
        (_foreign, "was built for something else"),
        (lambda path: path.with_suffix(".json").write_text("{"), "unreadable sidecar"),
        (lambda path: path.with_suffix(".json").write_text("[]"), "unreadable sidecar"),
        (lambda path: path.with_suffix(".json").unlink(), "is incomplete"),
        (lambda path: path.unlink(), "is incomplete"),
    ],
    ids=["truncated", "flipped", "foreign", "no JSON", "no object", "no sidecar", "no engine"],
)
def test_what_cannot_be_taken_is_built_again_and_said(
    cache: EngineCache, harm: object, words: str, caplog: pytest.LogCaptureFixture
) -> None:
    harm(cache.get(KEY, Builder()).path)  # type: ignore[operator]
    build = Builder(b"again")
    with caplog.at_level(logging.WARNING, logger="wm_node.engine_cache"):
        assert cache.get(KEY, build).data == b"again"
    assert [words in record.getMessage() for record in caplog.records] == [True]
    assert not cache.get(KEY, build).built
    assert build.calls == 1


BUILDER = """
import json, logging, sys
from pathlib import Path
from wm_node.engine.engine_cache import EngineCache, EngineKey

def build():
    print("building", flush=True)
    sys.stdin.readline()
    return bytes(range(256)) * 4

logging.basicConfig(level=logging.INFO, stream=sys.stdout, format="%(message)s")
engine = EngineCache(Path(sys.argv[1])).get(EngineKey(**json.loads(sys.argv[2])), build)
print("built" if engine.built else "taken", len(engine.data), flush=True)
"""


def test_of_two_builders_one_builds(cache: EngineCache) -> None:
    """The second waits for the first, looks again, and takes its engine."""

    def start() -> subprocess.Popen[str]:
        command = [sys.executable, "-c", BUILDER, str(cache.folder), json.dumps(asdict(KEY))]
        return subprocess.Popen(command, stdin=PIPE, stdout=PIPE, text=True)

    with start() as first:
        try:
            assert first.stdout is not None
            assert first.stdout.readline() == "building\n"
            with start() as second:
                assert second.stdout is not None
                assert "waiting for another process" in second.stdout.readline()
                assert first.communicate("\n", timeout=60)[0] == "built 1024\n"
                assert second.communicate("\n", timeout=60)[0] == "taken 1024\n"
        finally:
            first.kill()


def test_a_failed_build_leaves_nothing_and_frees_the_lock(cache: EngineCache) -> None:
    def fail() -> bytes:
        raise WmError("no.")

    with pytest.raises(WmError, match="no"):
        cache.get(KEY, fail)
    assert {path.name for path in cache.folder.iterdir()} == {"lock"}
    assert cache.get(KEY, Builder()).built


def test_engines_not_used_for_longest_make_room(tmp_path: Path) -> None:
    cache = EngineCache(tmp_path, max_bytes=3 * len(ENGINE))
    keys = [replace(KEY, workspace_mb=size) for size in (100, 200, 300, 400)]
    for age, key in enumerate(keys[:3]):
        os.utime(cache.get(key, Builder()).path, (age, age))
    assert not cache.get(keys[0], Builder()).built  # used now: the second is the oldest
    (tmp_path / ".search-killed.engine.writing").write_bytes(b"half")
    cache.get(keys[3], Builder())
    assert [cache.get(key, Builder()).built for key in (keys[0], keys[2], keys[3])] == [False] * 3
    assert len(list(tmp_path.glob("*.engine"))) == len(list(tmp_path.glob("*.json"))) == 3
    assert not list(tmp_path.glob("*.writing"))
    assert cache.get(keys[1], Builder()).built


def test_an_engine_beyond_the_bound_is_kept_and_said(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    cache = EngineCache(tmp_path, max_bytes=10)
    with caplog.at_level(logging.WARNING, logger="wm_node.engine_cache"):
        assert cache.get(KEY, Builder()).path.exists()
    assert "is larger than 10 bytes" in caplog.text


def test_a_folder_that_cannot_be_written_is_one_sentence(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(WmError, match=r"cannot be written.*name another folder"):
        EngineCache(tmp_path / "file").get(KEY, Builder())


def test_the_sidecar_tells_what_the_engine_is(cache: EngineCache) -> None:
    path = cache.get(KEY, Builder()).path
    assert json.loads(path.with_suffix(".json").read_text())["key"] == asdict(KEY)
