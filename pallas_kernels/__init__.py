"""Block-sparse attention for JAX in Pallas kernels, usable without VGGT."""

from pallas_kernels.attention import (
    MosaicGpuConfig,
    TritonConfig,
    attention_obstacles,
    block_sparse_attention,
)
from pallas_kernels.block_map import BlockMap
from pallas_kernels.selection import BlockSelection, select_blocks

__all__ = [
    "BlockMap",
    "BlockSelection",
    "MosaicGpuConfig",
    "TritonConfig",
    "attention_obstacles",
    "block_sparse_attention",
    "select_blocks",
]
