"""A scene: its reconstruction, the file that keeps it, and what can be done with it."""
