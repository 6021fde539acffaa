"""Attention over the blocks of keys that a block map keeps."""

from pallas_kernels.attention.api import (
    attention_obstacles,
    attention_unsupported_because,
    block_sparse_attention,
)
from pallas_kernels.attention.config import MosaicGpuConfig, TritonConfig

__all__ = [
    "MosaicGpuConfig",
    "TritonConfig",
    "attention_obstacles",
    "attention_unsupported_because",
    "block_sparse_attention",
]
