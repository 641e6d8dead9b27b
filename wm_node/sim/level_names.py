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
    "scattered",
)
LEVELS_TEXT = f"{', '.join(LEVEL_NAMES[:-1])} or {LEVEL_NAMES[-1]}"
