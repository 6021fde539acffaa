"""Depth Anything 3 (any-view): one vision transformer whose later blocks also see all frames."""
