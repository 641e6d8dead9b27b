"""The levels of the task suite, by name; each lies in a module of its own."""

from __future__ import annotations

from pathlib import Path

from wm_node.errors import WmError
from wm_node.resources import BUNDLE, HAZARDS_BUNDLE, LABEL_FREE_BUNDLE, resource
from wm_node.sim.level import BASIC, Level
from wm_node.sim.level_clutter import CLUTTER
from wm_node.sim.level_edge import EDGE
from wm_node.sim.level_hand import CARELESS_HAND, MOVING_HAND
from wm_node.sim.level_names import LEVEL_NAMES
from wm_node.sim.level_scattered import SCATTERED
from wm_node.sim.level_shift import SHIFT
from wm_node.sim.level_varied import RESTLESS, VARIED

LEVELS: dict[str, Level] = dict(
    zip(
        LEVEL_NAMES,
        (BASIC, EDGE, CLUTTER, MOVING_HAND, SHIFT, VARIED, RESTLESS, CARELESS_HAND, SCATTERED),
        strict=True,
    )
)


def bundle_for(level: str, goal: str) -> Path:
    """Return the shipped bundle that a level is played with, for a goal by ``state`` or pictures.

    Raises:
        WmError: there is no such level, or it is not to be played.
    """
    found = find_played_level(level)
    pictured = goal != "state"
    if found.adds or (pictured and found is not BASIC):
        return resource(HAZARDS_BUNDLE)
    return resource(LABEL_FREE_BUNDLE if pictured else BUNDLE)


def find_level(name: str) -> Level:
    """Return the level of that name.

    Raises:
        WmError: there is none.
    """
    if name not in LEVELS:
        raise WmError(f"there is no level '{name}'; use one of {', '.join(LEVELS)}.")
    return LEVELS[name]


def find_played_level(name: str) -> Level:
    """Return the level of that name, for a robot or the suite to play.

    Raises:
        WmError: there is none, or every picture of it is another scene.
    """
    level = find_level(name)
    if level.scattered:
        raise WmError(
            f"level '{name}' shows another scene in every picture, so nothing can be done in it: "
            "it is for 'wm collect' and 'wm train --stills'."
        )
    return level
