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
from vggt_jax.layers.shards import FrameShards

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
    parts = _attend_to_parts(q, k, v, attend, block_q=block_q, block_k=block_k)
    return merged(*parts)[0].astype(q.dtype)


def attend_on_all_devices(
    q: Float[Array, "t n h"],
    k: Float[Array, "kv n h"],
    v: Float[Array, "kv n h"],
    attend: Callable[..., Any],
    shards: FrameShards,
    *,
    block_q: int,
    block_k: int,
) -> Float[Array, "t n h"]:
    """`attend_to_everything` where every device has the same queries and keys of its own; results,
    which all of them get, are exchanged in the place of keys.

    Args:
        attend: as there; it says which keys of this device count.
    """
    parts = _attend_to_parts(q, k, v, attend, block_q=block_q, block_k=block_k)
    return merged(*map(shards.stacked, merged(*parts)))[0].astype(q.dtype)


def _attend_to_parts(q, k, v, attend, *, block_q, block_k):
    """Results [parts t n h] of attention to parts of the keys, and log-sum-exps [parts t n]."""
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
    return tuple(x.reshape(num_parts, -1, *x.shape[1:])[:, :t] for x in (out, lse))


def merged(
    out: Float[Array, "parts *rows h"], lse: Float[Array, "parts *rows"]
) -> tuple[Float[Array, "*rows h"], Float[Array, "*rows"]]:
    """The results of attention to all keys from those to parts of them, float32, and its
    log-sum-exps.

    Args:
        out, lse: of each part.
    """
    weights, total = weights_of_parts(lse)
    merged = jnp.sum(weights[..., None] * out.astype(jnp.float32), axis=0) / total[..., None]
    top = jax.lax.stop_gradient(jnp.max(lse, axis=0))
    return merged, jnp.where(top == -jnp.inf, -jnp.inf, top + jnp.log(total))


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
