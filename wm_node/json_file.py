"""Figures as a JSON file, for ``--json FILE`` of every command and for ``summary.json``."""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from wm_node.errors import WmError


def write_json(path: Path, figures: Mapping[str, Any]) -> None:
    """Write figures as JSON; NaN and infinity, which JSON does not know, become null.

    Args:
        path: of the file; its folder is made.
        figures: plain data.

    Raises:
        WmError: the file cannot be written.
    """
    text = json.dumps(_plain(figures), indent=2, allow_nan=False)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as error:
        raise WmError(f"cannot write {path}: {error.strerror or error}.") from error


def _plain(value: Any) -> Any:
    if isinstance(value, Mapping):
        return {str(key): _plain(item) for key, item in value.items()}
    if isinstance(value, list | tuple):
        return [_plain(item) for item in value]
    if isinstance(value, float) and not math.isfinite(value):
        return None
    if isinstance(value, Path):
        return str(value)
    return value
