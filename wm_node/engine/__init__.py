"""Runs a bundle's graphs on an accelerator, behind one small protocol."""

from wm_node.engine.load import BACKENDS, load_engine
from wm_node.engine.protocol import Engine

__all__ = ["BACKENDS", "Engine", "load_engine"]
