"""wm_node.reporting."""
