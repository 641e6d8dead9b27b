"""wm_node.planning."""
