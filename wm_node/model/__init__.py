"""wm_node.model."""
