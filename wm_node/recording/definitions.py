"""Message definitions in the form that an MCAP schema holds them (``ros2msg``).

The text of a type is its ``.msg`` file followed by those of all types that it contains, each
under a separator and a ``MSG:`` line, as rosbag2 writes it. Readers need no ROS installation then.
"""

from __future__ import annotations

import json
import os
import re
import sysconfig
from functools import lru_cache
from pathlib import Path

from wm_node.errors import WmError

SEPARATOR = "=" * 80

_BUILTIN = {"bool", "byte", "char", "string", "wstring", "float32", "float64"} | {
    f"{sign}int{bits}" for sign in ("", "u") for bits in (8, 16, 32, 64)
}
_TYPE = re.compile(r"^[a-z][a-z0-9_]*/msg/[A-Z][A-Za-z0-9]*$")
_FIELD = re.compile(r"^(?P<type>[A-Za-z][A-Za-z0-9_/]*)(?:<=\d+)?(?:\[[^\]]*\])?\s+[A-Za-z]\w*")


def _share_folders() -> list[Path]:
    prefixes = [Path(p) for p in os.environ.get("AMENT_PREFIX_PATH", "").split(os.pathsep) if p]
    prefixes.append(Path(sysconfig.get_path("data")))
    return [prefix / "share" for prefix in prefixes]


def _read(message_type: str) -> str:
    package, _, name = message_type.split("/")
    for share in _share_folders():
        path = share / package / "msg" / f"{name}.msg"
        if path.is_file():
            return path.read_text(encoding="utf-8")
    looked = ", ".join(str(share) for share in _share_folders())
    raise WmError(
        f"the definition of message type '{message_type}' was not found (looked in {looked}); "
        "install its package or source its workspace."
    )


def _contained(text: str, package: str) -> list[str]:
    """Return the full names of the message types that a definition's fields have."""
    found = []
    for line in text.splitlines():
        match = _FIELD.match(line.split("#", 1)[0].strip())
        if match is None or match["type"] in _BUILTIN:
            continue
        parts = match["type"].split("/")
        if len(parts) == 1:  # "Header" alone is an old spelling of std_msgs/Header
            owner = "std_msgs" if parts[0] == "Header" and package != "std_msgs" else package
            found.append(f"{owner}/msg/{parts[0]}")
        else:
            found.append(f"{parts[0]}/msg/{parts[-1]}")
    return found


@lru_cache(maxsize=256)
def message_definition(message_type: str) -> str:
    """Return the complete ``ros2msg`` text of a type such as ``sensor_msgs/msg/Image``.

    Raises:
        WmError: not the name of a message type, or its ``.msg`` file is not installed.
    """
    if not _TYPE.match(message_type):
        raise WmError(f"'{message_type}' is not a message type like 'sensor_msgs/msg/Image'.")
    first = _read(message_type)
    parts = [first]
    seen = {message_type}
    pending = _contained(first, message_type.split("/")[0])
    while pending:
        name = pending.pop(0)
        if name in seen:
            continue
        seen.add(name)
        text = _read(name)
        package, _, short = name.split("/")
        parts.append(f"{SEPARATOR}\nMSG: {package}/{short}\n{text}")
        pending.extend(_contained(text, package))
    return "\n".join(part.rstrip("\n") + "\n" for part in parts)


@lru_cache(maxsize=256)
def type_hash(message_type: str) -> str:
    """Return the RIHS01 hash of a type as its package tells it, empty where it tells none."""
    package, _, name = message_type.split("/")
    for share in _share_folders():
        path = share / package / "msg" / f"{name}.json"
        if path.is_file():
            for entry in json.loads(path.read_text(encoding="utf-8")).get("type_hashes", []):
                if entry.get("type_name") == message_type:
                    return str(entry.get("hash_string", ""))
    return ""
