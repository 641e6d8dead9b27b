"""wm_node.recording."""
