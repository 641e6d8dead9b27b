"""wm_node.engine."""
