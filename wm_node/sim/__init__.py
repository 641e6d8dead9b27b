"""wm_node.sim."""
