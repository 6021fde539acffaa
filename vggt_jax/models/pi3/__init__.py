"""π³: Permutation-Equivariant Visual Geometry Learning (arXiv:2507.13347)."""
