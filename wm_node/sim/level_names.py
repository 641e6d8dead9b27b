"""Names of the task suite's levels, for help texts, which must not load the simulator."""

from __future__ import annotations

LEVEL_NAMES = (
    "basic",
    "edge",
    "clutter",
    "moving_hand",
    "shift",
    "varied",
    "restless",
    "careless_hand",
    "scattered",
)
TO_COLLECT_ON = ("scattered",)
"""Of these, the levels that cannot be played."""


def _text(names: list[str]) -> str:
    return f"{', '.join(names[:-1])} or {names[-1]}"


LEVELS_TEXT = _text(list(LEVEL_NAMES))
PLAYED_TEXT = _text([name for name in LEVEL_NAMES if name not in TO_COLLECT_ON])
