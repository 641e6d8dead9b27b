"""wm_node.nodes."""
