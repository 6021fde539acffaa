"""Sizes that the kernel for Hopper GPUs is written for."""

# Rows, columns and depth of the tile that a thread block computes, step by step along the depth.
TILE_M, TILE_N, TILE_K = 128, 256, 64
# Steps whose operands are in shared memory at a time; they divide the steps of a tile.
STAGES = 4
