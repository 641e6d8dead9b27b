"""The levels of the task suite, by name; each lies in a module of its own."""

from __future__ import annotations

from wm_node.errors import WmError
from wm_node.sim.level import BASIC, Level
from wm_node.sim.level_clutter import CLUTTER
from wm_node.sim.level_edge import EDGE
from wm_node.sim.level_hand import MOVING_HAND
from wm_node.sim.level_shift import SHIFT
from wm_node.sim.level_varied import VARIED

LEVELS: dict[str, Level] = {
    level.name: level for level in (BASIC, EDGE, CLUTTER, MOVING_HAND, SHIFT, VARIED)
}


def find_level(name: str) -> Level:
    """Return the level of that name.

    Raises:
        WmError: there is none.
    """
    if name not in LEVELS:
        raise WmError(f"there is no level '{name}'; use one of {', '.join(LEVELS)}.")
    return LEVELS[name]
