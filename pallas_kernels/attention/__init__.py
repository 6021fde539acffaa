"""Attention over the blocks of keys that a block map keeps."""

from pallas_kernels.attention.api import block_sparse_attention
from pallas_kernels.attention.config import TritonConfig

__all__ = ["TritonConfig", "block_sparse_attention"]
