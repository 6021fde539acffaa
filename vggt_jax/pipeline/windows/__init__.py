"""Scenes of more frames than a model takes at once: overlapping windows, joined."""
