"""wm_node.training."""
