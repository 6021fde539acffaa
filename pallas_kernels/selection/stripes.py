"""Selection stripe by stripe, whichever backend pools and selects."""

from collections.abc import Callable

import jax.numpy as jnp
import numpy as np
from jax import lax

from pallas_kernels.block_map import BlockMap, index_dtype
from pallas_kernels.blocks import count_blocks, leading, tokens_per_block
from pallas_kernels.selection.call import BlockSelection, SelectionCall
from pallas_kernels.selection.pooled_softmax import pooled_softmax
from pallas_kernels.selection.rules import Stripe


def select(call: SelectionCall, *, pool: Callable, select_rows: Callable) -> BlockSelection:
    """The blocks that a rule keeps.

    Args:
        pool: as `pooling.pool`.
        select_rows: as `xla.select_rows`.
    """
    q, k, num_sink_blocks, capacity = call.q, call.k, call.num_sink_blocks, call.capacity
    q_tokens = tokens_per_block(call.q_length, q.shape[0], call.block_q)
    kv_tokens = tokens_per_block(call.kv_lengths, k.shape[0], call.block_k)
    num_blocks = jnp.sum(kv_tokens[num_sink_blocks:] > 0, dtype=jnp.int32)
    part, parts = call.score_block_q, call.block_q // call.score_block_q
    part_tokens = tokens_per_block(call.q_length, q.shape[0], part)
    part_tokens = jnp.pad(part_tokens, (0, q_tokens.size * parts - part_tokens.size))
    pooled_q = pool(q, part_tokens, part, call.pool_mode) * call.scale
    pooled_k = pool(k, kv_tokens, call.block_k, call.pool_mode)
    num_heads, num_rows = pooled_q.shape[0], q_tokens.size
    shape = (num_heads, num_rows)
    results = (
        jnp.zeros((*shape, capacity), index_dtype(kv_tokens.size)),
        jnp.zeros(shape, jnp.int32),
        jnp.zeros(shape, jnp.float32),
        jnp.zeros(shape, jnp.int32),
    )
    takes_part = (kv_tokens > 0) & (np.arange(kv_tokens.size) >= num_sink_blocks)
    heads, rows = _stripe(num_heads, num_rows, call.max_score_bytes // (4 * parts * kv_tokens.size))
    stripes = count_blocks(num_rows, rows)

    def select_stripe(i, carry):
        results, entropy = carry
        i = jnp.asarray(i, jnp.int32)
        # The last stripe of a head starts early enough to be whole; what it repeats comes out the
        # same.
        head, row = heads * (i // stripes), jnp.minimum(rows * (i % stripes), num_rows - rows)
        of_heads = lambda x: lax.dynamic_slice_in_dim(x, head, heads)
        queries = lax.dynamic_slice_in_dim(of_heads(pooled_q), row * parts, rows * parts, axis=1)
        scores = jnp.einsum(
            "nqh,nkh->nqk", queries, of_heads(pooled_k), precision=lax.Precision.HIGHEST
        )
        if parts > 1:
            counts = lax.dynamic_slice_in_dim(part_tokens, row * parts, rows * parts) > 0
            scores = _log_mean_probability(scores, counts, takes_part, parts)
        limits = call.rule.limits(
            Stripe(scores, takes_part, num_blocks, num_sink_blocks, head, row)
        )
        results = select_rows(
            results,
            (head, row),
            scores if limits.ranked is None else limits.ranked,
            kv_tokens,
            jnp.maximum(limits.num_kept, 1),
            limits.probability,
            num_sink_blocks=num_sink_blocks,
            capacity=capacity,
            may_overflow=call.may_overflow,
        )
        masses, here = pooled_softmax(scores, takes_part)
        write = lambda x, part: lax.dynamic_update_slice(x, part, (head, row))
        if limits.ranked is not None:
            # What was added up is no probability.
            indices, counts, retained_mass, missing = results
            place = (head, row, np.int32(0))
            indices = lax.dynamic_slice(indices, place, (heads, rows, capacity))
            count = lax.dynamic_slice(counts, (head, row), (heads, rows))
            is_kept = leading(count, capacity)
            kept = jnp.take_along_axis(masses, indices.astype(jnp.int32), axis=-1)
            kept = jnp.sum(jnp.where(is_kept, kept, 0.0), axis=-1)
            results = (results[0], counts, write(retained_mass, kept), missing)
        return results, write(entropy, here)

    (indices, counts, retained_mass, missing), entropy = lax.fori_loop(
        0, num_heads // heads * stripes, select_stripe, (results, jnp.zeros(shape, jnp.float32))
    )

    live = q_tokens > 0
    counts = jnp.where(live, counts, 0)
    num_q, num_kv = (jnp.sum(x, dtype=jnp.float32) for x in (live, kv_tokens > 0))
    pairs = jnp.maximum(num_q * num_kv, 1)
    return BlockSelection(
        block_map=BlockMap(
            indices=indices,
            counts=counts,
            num_kv_blocks=kv_tokens.size,
            block_q=call.block_q,
            block_k=call.block_k,
        ),
        retained_mass=jnp.where(live, retained_mass, 0.0),
        entropy=jnp.where(live, entropy, 0.0),
        density=jnp.sum(counts.astype(jnp.float32), axis=-1) / pairs,
        missing=jnp.where(live, missing, 0),
    )


def _log_mean_probability(scores, counts, takes_part, parts):
    """Scores [n r kb] of blocks of queries, from those of their parts [n r*parts kb].

    Each part has probabilities of its own, whose mean over the parts that count is that of the
    block; what does not take part has none.
    """
    masses, _ = pooled_softmax(scores, takes_part)
    masses = jnp.where(counts[:, None], masses, 0.0)
    n, _, num_blocks = masses.shape
    total = jnp.sum(masses.reshape(n, -1, parts, num_blocks), axis=2)
    number = jnp.sum(counts.reshape(-1, parts), axis=1, dtype=jnp.int32)
    mean = total / jnp.maximum(number, 1).astype(jnp.float32)[:, None]
    return jnp.log(jnp.maximum(mean, jnp.finfo(jnp.float32).tiny))


def _stripe(num_heads, num_rows, max_rows):
    """How many heads, and rows of each, to score at a time: whole heads, or some rows of one."""
    max_rows = max(1, max_rows)
    if max_rows < num_rows:
        return 1, max_rows
    heads = max(
        i for i in range(1, num_heads + 1) if num_heads % i == 0 and i * num_rows <= max_rows
    )
    return heads, num_rows
