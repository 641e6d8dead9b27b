"""Figures as JSON: readable by every parser, and one sentence where they cannot be written."""

from __future__ import annotations

import json
from pathlib import Path

import pytest

from wm_node.errors import WmError
from wm_node.json_file import write_json


def test_what_json_does_not_know_becomes_null_or_text(tmp_path: Path) -> None:
    path = tmp_path / "deep" / "figures.json"
    write_json(path, {"a": float("nan"), "b": [1, (float("-inf"), 2.5)], "c": Path("x"), 3: True})

    def refuse(constant: str) -> None:
        raise AssertionError(constant)

    read = json.loads(path.read_text(encoding="utf-8"), parse_constant=refuse)
    assert read == {"a": None, "b": [1, [None, 2.5]], "c": "x", "3": True}


def test_a_file_that_cannot_be_written_is_named(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("in the way")
    with pytest.raises(WmError, match=r"cannot write .*file/figures\.json: File exists\."):
        write_json(tmp_path / "file" / "figures.json", {})
