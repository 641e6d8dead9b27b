"""Which behaviours episodes are collected with: by name, and by share."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping
from dataclasses import dataclass

import numpy as np

from wm_node.errors import WmError
from wm_node.sim.behaviours import AimedPush, Behaviour, Bump, Wander
from wm_node.sim.careful import CarefulPushes


@dataclass(frozen=True)
class Mix:
    """Shares of the collecting behaviours, by name; they need not add up to one."""

    shares: Mapping[str, float]

    def draw(self, rng: np.random.Generator) -> str:
        """Return the name of one behaviour."""
        names = list(self.shares)
        weights = np.array([self.shares[name] for name in names])
        return names[int(rng.choice(len(names), p=weights / weights.sum()))]


PLANNER, CARELESS = "planner", "careless"
PLANNED = (PLANNER, CARELESS)
"""Names of the behaviours that plan with a bundle: :mod:`wm_node.training.planned_play`."""
_PUSHES = {
    "aimed": "table",
    "edge": "edge",
    "zone": "zone",
    "meet": "mover",
    "crowd": "obstacle",
}
BEHAVIOURS = ("wander", "careful", "bump", *_PUSHES)
DEFAULT_MIX = Mix({"wander": 0.25, "aimed": 0.40, "edge": 0.22, "zone": 0.13})


def make_behaviour(name: str) -> Behaviour:
    """Build a collecting behaviour by one of the names in :data:`BEHAVIOURS`.

    Raises:
        WmError: there is no such behaviour.
    """
    if name == "wander":
        return Wander()
    if name == "careful":
        return CarefulPushes()
    if name == "bump":
        return Bump()
    if name in _PUSHES:
        return AimedPush(_PUSHES[name])
    raise WmError(f"there is no behaviour '{name}'; use one of {', '.join(BEHAVIOURS)}.")


MakeBehaviour = Callable[[str], Behaviour]
"""Builds a behaviour by name; picklable, where worker processes call it."""


def parse_mix(text: str, more: Collection[str] = ()) -> Mix:
    """Read shares such as ``wander=0.3,aimed=0.7``, or names alone for equal shares.

    Args:
        text: what to read.
        more: names that are known beside :data:`BEHAVIOURS`.

    Raises:
        WmError: an unknown name, or a share that is no positive number.
    """
    shares: dict[str, float] = {}
    for part in text.split(","):
        name, _, share = part.strip().partition("=")
        if name not in more:
            make_behaviour(name)
        try:
            value = float(share) if share else 1.0
        except ValueError:
            value = -1.0
        if not 0.0 < value < float("inf"):
            raise WmError(f"'{part.strip()}' is no share of a behaviour; write e.g. aimed=0.5.")
        shares[name] = value
    return Mix(shares)
