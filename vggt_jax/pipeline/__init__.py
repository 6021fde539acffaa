"""From photographs to files: one scene, or many."""
