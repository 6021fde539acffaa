"""Attention of few queries to many keys, cut along the keys so that all of a GPU is busy."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from pallas_kernels import BlockMap
from pallas_kernels.block_map import index_dtype
from pallas_kernels.blocks import count_blocks

# Keys are cut into parts, until there are so many tiles of queries that all of a GPU is busy for
# two rounds of them.
_ENOUGH_TILES = 512


def attend_to_everything(
    q: Float[Array, "t n h"],
    k: Float[Array, "kv n h"],
    v: Float[Array, "kv n h"],
    attend: Callable[..., Any],
    *,
    block_q: int,
    block_k: int,
) -> Float[Array, "t n h"]:
    """Attention of a few queries to all keys: in parts of the keys, merged by their log-sum-exps.

    Args:
        attend: `block_sparse_attention`, with what is to be the same for all parts.
        block_q, block_k: tokens in a block of queries and of keys.
    """
    t, n, _ = q.shape
    rows = count_blocks(t, block_q)
    num_blocks = count_blocks(k.shape[0], block_k)
    num_parts = min(num_blocks, count_blocks(_ENOUGH_TILES, n * rows))
    size = count_blocks(num_blocks, num_parts)
    # The queries once for each part, each time in whole blocks of their own.
    padded = jnp.pad(q, ((0, rows * block_q - t), (0, 0), (0, 0)))
    starts = np.repeat(np.arange(num_parts) * size, rows)
    block_map = BlockMap(
        indices=jnp.broadcast_to(
            jnp.asarray(starts[:, None] + np.arange(size), index_dtype(num_blocks)),
            (n, starts.size, size),
        ),
        counts=jnp.broadcast_to(
            jnp.asarray(np.clip(num_blocks - starts, 0, size), jnp.int32), (n, starts.size)
        ),
        num_kv_blocks=num_blocks,
        block_q=block_q,
        block_k=block_k,
    )
    out, lse = attend(jnp.tile(padded, (num_parts, 1, 1)), k, v, block_map, return_lse=True)
    out, lse = (x.reshape(num_parts, -1, *x.shape[1:])[:, :t] for x in (out, lse))
    weights, total = weights_of_parts(lse)
    merged = jnp.sum(weights[..., None] * out.astype(jnp.float32), axis=0) / total[..., None]
    return merged.astype(q.dtype)


def weights_of_parts(
    lse: Float[Array, "parts *rows"],
) -> tuple[Float[Array, "parts *rows"], Float[Array, "*rows"]]:
    """What the results of attention to parts of the keys weigh in that to all, and the sum of that.

    Args:
        lse: log-sum-exps of each part; -inf, and thereby no weight, where no key of it counts.
    """
    top = jax.lax.stop_gradient(jnp.max(lse, axis=0))  # It cancels.
    weights = jnp.exp(lse - jnp.where(top == -jnp.inf, 0.0, top)[None])
    return weights, jnp.maximum(jnp.sum(weights, axis=0), jnp.finfo(jnp.float32).tiny)
