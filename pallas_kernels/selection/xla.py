"""Rows of selection on any device."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax

from pallas_kernels.selection import stripes
from pallas_kernels.selection.call import BlockSelection, SelectionCall
from pallas_kernels.selection.pooling import pool
from pallas_kernels.selection.row import keep_row


def run(call: SelectionCall) -> BlockSelection:
    return stripes.select(call, pool=pool, select_rows=select_rows)


def select_rows(results, place, scores, tokens, num_kept, probability, *, capacity, **options):
    """Selects for rows of scores [n r kb], and writes the results to their places.

    Args:
        results: lists [n qb capacity], and [n qb] counts, retained masses, blocks missing.
        place: the first head and the first row that the scores are of.
        tokens, num_kept, probability, options: as `row.keep_row` takes them; `num_kept` for each
            head or row, `probability` for each head.
    """
    num_blocks = scores.shape[-1]
    dtype = results[0].dtype

    def select_row(scores, num_kept, probability):
        (kept,), mass, missing = keep_row(
            (scores,), (tokens,), num_kept, probability, capacity=capacity, **options
        )
        # Where each kept block goes in the list; the others go past its end, and are dropped.
        slots = jnp.where(kept, jnp.cumsum(kept, dtype=jnp.int32) - 1, capacity)
        blocks = jnp.arange(num_blocks, dtype=dtype)
        indices = jnp.zeros(capacity, dtype).at[slots].set(blocks, mode="drop")
        return indices, jnp.sum(kept, dtype=jnp.int32), mass, missing

    per_head = functools.partial(jax.vmap, in_axes=(0, 0 if num_kept.ndim == 2 else None, None))
    parts = jax.vmap(per_head(select_row))(scores, num_kept, probability)
    start = lambda result: (*place, *(np.int32(0),) * (result.ndim - 2))
    return jax.tree.map(
        lambda result, part: lax.dynamic_update_slice(result, part, start(result)), results, parts
    )
