"""Lists of key blocks as kernels walk them: whole blocks first, then those that need masks."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.blocks import count_blocks, next_power_of_2, tokens_per_block
from pallas_kernels.triton_call import triton_call


@dataclasses.dataclass(frozen=True)
class KeyLists:
    """Key blocks of each head and query block.

    Attributes:
        indices: the listed blocks [n qb capacity], whole ones first: all their tokens count, with
            one bias for all.
        num_whole: how many of each list those are [n qb].
        num_listed: how many blocks of each list have tokens that count [n qb].
        kv_tokens: how many tokens of each key block count [kb]; None where all blocks are whole.
    """

    indices: jax.Array
    num_whole: jax.Array
    num_listed: jax.Array
    kv_tokens: jax.Array | None

    def operands(self):
        """What a kernel takes: lists and counts, and what tells partial blocks if there are any."""
        partial = () if self.kv_tokens is None else (self.num_listed, self.kv_tokens)
        return [self.indices, self.num_whole, *partial]


def list_keys(block_map, kv_tokens, key_bias=None, *, interpret) -> KeyLists:
    """The lists of a map.

    Args:
        kv_tokens: how many tokens of each key block count; None for all.
        key_bias: of each head and key [n kv], or None.
    """
    indices, counts, block_k = block_map.indices, block_map.counts, block_map.block_k
    kinds = None
    if key_bias is not None:
        kinds = _kinds_of_blocks(key_bias, block_k)
        if kv_tokens is None:
            kv_tokens = tokens_per_block(None, key_bias.shape[1], block_k)
    if kv_tokens is None:
        return KeyLists(indices, counts, counts, None)
    return _whole_blocks_first(indices, counts, kv_tokens, kinds, block_k, interpret=interpret)


# What the biases of a block of keys are.
_HIDDEN, _MIXED, _UNIFORM = np.int32(0), np.int32(1), np.int32(2)


def _kinds_of_blocks(key_bias, block_k):
    """For each head and block [n kb]: all keys left out, biases that differ, or one for all."""
    n, kv = key_bias.shape
    num_blocks = count_blocks(kv, block_k)
    padded = jnp.pad(key_bias, ((0, 0), (0, num_blocks * block_k - kv)), mode="edge")
    blocks = padded.reshape(n, num_blocks, block_k)
    low, high = jnp.min(blocks, axis=-1), jnp.max(blocks, axis=-1)
    kinds = jnp.where(low == high, _UNIFORM, _MIXED)
    return jnp.where(high == -jnp.inf, _HIDDEN, kinds)


def _whole_blocks_first(indices, counts, kv_tokens, kinds, block_k, *, interpret):
    """Reorders each row's list: whole blocks, then those in part, and those of mixed biases.

    Blocks of which no token counts are left out. A row is reordered in the registers of one
    program, which has room for `config.MAX_CAPACITY` blocks.
    """
    n, num_rows, capacity = indices.shape
    kinds = () if kinds is None else (kinds,)
    lists = pl.BlockSpec((None, capacity), lambda i: (i, 0))
    count = pl.BlockSpec((1,), lambda i: (i,))
    rows = n * num_rows
    width = next_power_of_2(capacity)

    def kernel(indices_ref, counts_ref, tokens_ref, *refs):
        *kinds_ref, out_ref, num_whole_ref, num_listed_ref = refs
        places = lax.broadcasted_iota(jnp.int32, (width,), 0)
        listed = places < counts_ref[0]
        blocks = plgpu.load(indices_ref.at[places], mask=listed, other=0)
        tokens = tokens_ref[blocks.astype(jnp.int32)]
        whole = listed & (tokens == block_k)
        kept = listed & (tokens > 0)
        if kinds_ref:
            kind = kinds_ref[0][blocks.astype(jnp.int32)]
            whole, kept = whole & (kind == _UNIFORM), kept & (kind != _HIDDEN)
        partial = kept & ~whole
        whole_slots, partial_slots = (jnp.cumsum(x, dtype=jnp.int32) for x in (whole, partial))
        num_whole = jnp.max(whole_slots)
        slots = jnp.where(whole, whole_slots - 1, num_whole + partial_slots - 1)
        plgpu.store(out_ref.at[jnp.where(kept, slots, capacity)], blocks, mask=kept)
        num_whole_ref[0] = num_whole
        num_listed_ref[0] = num_whole + jnp.max(partial_slots)

    out, num_whole, num_listed = triton_call(
        kernel,
        grid=(rows,),
        in_specs=[
            lists,
            count,
            pl.BlockSpec(kv_tokens.shape, lambda i: (0,)),
            *(pl.BlockSpec((None, x.shape[1]), lambda i: (i // num_rows, 0)) for x in kinds),
        ],
        out_specs=[lists, count, count],
        out_shape=[
            jax.ShapeDtypeStruct((rows, capacity), indices.dtype),
            jax.ShapeDtypeStruct((rows,), jnp.int32),
            jax.ShapeDtypeStruct((rows,), jnp.int32),
        ],
        num_warps=min(16, max(1, width // 1024)),
        num_stages=1,
        interpret=interpret,
        name="whole_blocks_first",
    )(indices.reshape(rows, capacity), counts.reshape(rows), kv_tokens, *kinds)
    return KeyLists(
        out.reshape(indices.shape),
        num_whole.reshape(counts.shape),
        num_listed.reshape(counts.shape),
        kv_tokens,
    )
