"""Block-sparse attention for JAX in Pallas kernels, and what surrounds it; usable without VGGT."""

from pallas_kernels.attention import (
    MosaicGpuConfig,
    TritonConfig,
    attention_obstacles,
    block_sparse_attention,
)
from pallas_kernels.block_map import BlockMap
from pallas_kernels.matmul import linear
from pallas_kernels.rope import norm_rope
from pallas_kernels.selection import BlockSelection, select_blocks

__all__ = [
    "BlockMap",
    "BlockSelection",
    "MosaicGpuConfig",
    "TritonConfig",
    "attention_obstacles",
    "block_sparse_attention",
    "linear",
    "norm_rope",
    "select_blocks",
]
