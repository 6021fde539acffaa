"""Sizes of the kernel for Hopper GPUs."""

# Rows, columns and depth of the tile that a thread block computes, step by step along the depth.
TILE_M, TILE_N, TILE_K = 128, 256, 64
# Steps whose operands are in shared memory at a time; they divide the steps of a tile.
STAGES = 4
# From how many tiles for each multiprocessor on the kernel is taken where none is named. It is
# faster for fewer, too (docs/kernels.md), but takes Python a second or two at every start.
MIN_ROUNDS = 16
