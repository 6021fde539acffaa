"""Lists of key blocks as kernels walk them: whole blocks first, then those that count in part."""

import dataclasses

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.blocks import next_power_of_2
from pallas_kernels.triton_call import triton_call


@dataclasses.dataclass(frozen=True)
class KeyLists:
    """Key blocks of each head and query block.

    Attributes:
        indices: the listed blocks [n qb capacity], those of which all tokens count first.
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


def list_keys(block_map, kv_tokens, *, interpret) -> KeyLists:
    """The lists of a map, given how many tokens of each key block count; None for all."""
    indices, counts = block_map.indices, block_map.counts
    if kv_tokens is None:
        return KeyLists(indices, counts, counts, None)
    return _whole_blocks_first(indices, counts, kv_tokens, block_map.block_k, interpret=interpret)


def _whole_blocks_first(indices, counts, kv_tokens, block_k, *, interpret):
    """Reorders each row's list: blocks of which all tokens count, then those of which some do.

    Blocks of which none do are left out. A row is reordered in the registers of one program, which
    has room for `config.MAX_CAPACITY` blocks.
    """
    n, num_rows, capacity = indices.shape
    lists = pl.BlockSpec((None, capacity), lambda i: (i, 0))
    count = pl.BlockSpec((1,), lambda i: (i,))
    rows = n * num_rows
    width = next_power_of_2(capacity)

    def kernel(indices_ref, counts_ref, tokens_ref, out_ref, num_whole_ref, num_listed_ref):
        lanes = lax.broadcasted_iota(jnp.int32, (width,), 0)
        listed = lanes < counts_ref[0]
        blocks = plgpu.load(indices_ref.at[lanes], mask=listed, other=0)
        tokens = tokens_ref[blocks.astype(jnp.int32)]
        whole = listed & (tokens == block_k)
        partial = listed & (tokens > 0) & (tokens < block_k)
        whole_slots, partial_slots = (jnp.cumsum(x, dtype=jnp.int32) for x in (whole, partial))
        num_whole = jnp.max(whole_slots)
        slots = jnp.where(whole, whole_slots - 1, num_whole + partial_slots - 1)
        kept = whole | partial
        plgpu.store(out_ref.at[jnp.where(kept, slots, capacity)], blocks, mask=kept)
        num_whole_ref[0] = num_whole
        num_listed_ref[0] = num_whole + jnp.max(partial_slots)

    out, num_whole, num_listed = triton_call(
        kernel,
        grid=(rows,),
        in_specs=[lists, count, pl.BlockSpec(kv_tokens.shape, lambda i: (0,))],
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
    )(indices.reshape(rows, capacity), counts.reshape(rows), kv_tokens)
    return KeyLists(
        out.reshape(indices.shape),
        num_whole.reshape(counts.shape),
        num_listed.reshape(counts.shape),
        kv_tokens,
    )
