"""The arguments of block-sparse attention as backends take them."""

import dataclasses

import jax
from jaxtyping import Array, Float, Int, UInt32

from pallas_kernels.block_map import BlockMap
from pallas_kernels.blocks import tokens_per_block


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class AttentionCall:
    """See `block_sparse_attention`; `scale` is what to use, a number."""

    q: Float[Array, "t n h"]
    k: Float[Array, "kv n h"]
    v: Float[Array, "kv n h"]
    block_map: BlockMap
    kv_lengths: int | Int[Array, "..."] | None
    key_bias: Float[Array, "n kv"] | None
    key_mask: UInt32[Array, "n qb words"] | None
    scale: float = dataclasses.field(metadata={"static": True})

    @property
    def kv_tokens(self) -> Int[Array, " kb"]:
        """How many tokens of each key block count."""
        return tokens_per_block(self.kv_lengths, self.k.shape[0], self.block_map.block_k)

    @property
    def partial_kv_tokens(self) -> Int[Array, " kb"] | None:
        """`kv_tokens`, or None where all blocks are known to be whole, which saves kernels work."""
        if self.kv_lengths is None and self.k.shape[0] % self.block_map.block_k == 0:
            return None
        return self.kv_tokens

    @property
    def for_kernels(self) -> tuple[Array, Array, Array, BlockMap, Array | None, float]:
        """What kernels take first: q, k, v, the map, `partial_kv_tokens` and the scale."""
        return self.q, self.k, self.v, self.block_map, self.partial_kv_tokens, self.scale


def blocks_unsupported_because(
    block_map: BlockMap, *, smallest_q: int, smallest_k: int, max_capacity: int
) -> str | None:
    """Why a kernel cannot take blocks of these sizes; None if it can."""
    block_q, block_k = block_map.block_q, block_map.block_k
    if (
        block_q < smallest_q
        or block_k < smallest_k
        or (block_q & (block_q - 1)) | (block_k & (block_k - 1))
    ):
        return (
            f"{block_map.block_q=} and {block_map.block_k=} must be powers of two, from "
            f"{smallest_q} and {smallest_k} on"
        )
    if block_map.capacity > max_capacity:
        return f"{block_map.capacity=} is above {max_capacity}"
    return None
