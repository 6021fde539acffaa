"""Pi3X: π³ that takes what is already known of cameras and depth, and answers in metres."""
