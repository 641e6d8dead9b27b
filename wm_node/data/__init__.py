"""wm_node.data."""
