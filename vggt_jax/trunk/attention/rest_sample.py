"""Attention to blocks of patches, and to a sample that stands for the patches of all others."""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pallas_kernels import BlockMap, block_sparse_attention, pack_key_mask
from pallas_kernels.blocks import count_blocks
from vggt_jax.layers.few_queries import weights_of_parts

# Sampled patches in a block.
_SAMPLE_BLOCK = 64


def with_a_sample_of_the_rest(
    q, k, v, block_map, attend, *, block_q, implementation, sample, first_patch
) -> tuple[Float[Array, "t n h"], Float[Array, ""]]:
    """Attention to kept blocks, and to sampled patches that stand for all others.

    One softmax over both, by the log-sum-exps of its two parts. A sampled patch of a kept block
    is left out of the sample, for it is seen already.

    Args:
        attend: `block_sparse_attention` with the lengths of the blocks.
        block_q: queries in a block.
        implementation: of attention to the sample.
        sample: of `draw_patches`.
        first_patch: where patches begin among the keys.

    Returns:
        The results, and which share of the patches was sampled.
    """
    patches, num_sampled, weight = sample
    n, kv = q.shape[1], k.shape[0]
    slots = count_blocks(len(patches), _SAMPLE_BLOCK) * _SAMPLE_BLOCK
    keys = first_patch + jnp.pad(patches, ((0, slots - len(patches)), (0, 0)))
    heads = np.arange(n, dtype=np.int32)[None]
    gather = lambda x: x.at[keys, heads].get(mode="promise_in_bounds")
    sampled_map = BlockMap.full(n, len(q), slots, block_q=block_q, block_k=_SAMPLE_BLOCK)
    of_blocks, lse_of_blocks = attend(q, k, v, block_map, return_lse=True)
    of_sample, lse_of_sample = block_sparse_attention(
        q,
        gather(k),
        gather(v),
        sampled_map,
        kv_lengths=num_sampled,
        key_mask=_seen_already(block_map, keys, kv),
        implementation=implementation,
        return_lse=True,
    )
    lse_of_sample += jnp.log(weight)
    parts, total = weights_of_parts(jnp.stack([lse_of_blocks, lse_of_sample]))
    weigh = lambda part, out: (part / total)[..., None] * out.astype(jnp.float32)
    merged = weigh(parts[0], of_blocks) + weigh(parts[1], of_sample)
    return merged.astype(q.dtype), 1 / weight


def _seen_already(block_map, keys, num_keys):
    """Bits for `key_mask`: which of some keys [m n] are in blocks that a row keeps."""
    block_of_key = jnp.arange(num_keys, dtype=jnp.int32) // block_map.block_k

    def of_head(head):
        indices, counts, keys = head
        listed = np.arange(block_map.capacity) < counts[:, None]
        # What is not listed goes past the end, and is dropped.
        blocks = jnp.where(listed, indices.astype(jnp.int32), block_map.num_kv_blocks)
        rows = np.arange(block_map.num_q_blocks)[:, None]
        kept = jnp.zeros((block_map.num_q_blocks, block_map.num_kv_blocks), bool)
        kept = kept.at[rows, blocks].set(True, mode="drop")
        return pack_key_mask(kept[:, block_of_key[keys]])

    return jax.lax.map(of_head, (block_map.indices, block_map.counts, keys.T))
