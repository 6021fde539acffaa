"""Ways of attending over all frames: one file each."""
