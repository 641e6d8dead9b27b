"""wm_node.safety."""
