"""Block-sparse attention for JAX in Pallas kernels, and what surrounds it; usable without VGGT."""

from pallas_kernels import tuned
from pallas_kernels.attention import (
    MosaicGpuConfig,
    TritonConfig,
    attention_obstacles,
    attention_unsupported_because,
    block_sparse_attention,
)
from pallas_kernels.block_map import BlockMap
from pallas_kernels.key_mask import pack_key_mask
from pallas_kernels.linear import linear
from pallas_kernels.norm_rope import norm_rope
from pallas_kernels.selection import (
    BlockSelection,
    Limits,
    Mass,
    RandomBaseline,
    Ratio,
    RatioOrMass,
    Rule,
    Stripe,
    select_blocks,
)

__all__ = [
    "BlockMap",
    "BlockSelection",
    "Limits",
    "Mass",
    "MosaicGpuConfig",
    "RandomBaseline",
    "Ratio",
    "RatioOrMass",
    "Rule",
    "Stripe",
    "TritonConfig",
    "attention_obstacles",
    "attention_unsupported_because",
    "block_sparse_attention",
    "linear",
    "norm_rope",
    "pack_key_mask",
    "select_blocks",
    "tuned",
]
