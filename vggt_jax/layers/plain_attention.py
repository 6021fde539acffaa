"""Softmax attention in plain JAX, on any device, with few scores in memory at a time."""

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels import tuned
from pallas_kernels.blocks import leading
from vggt_jax.layers.chunking import map_chunks


def plain_attention(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b kv n h"],
    v: Float[Array, "b kv n h"],
    kv_lengths: Int[Array, " b"] | None,
    key_bias: Float[Array, "b n kv"] | None,
    precision: jax.lax.Precision,
    *,
    max_score_bytes: int | None = None,
    wrap: Callable[[Callable[..., Array]], Callable[..., Array]] = lambda fn: fn,
) -> Float[Array, "b t n h"]:
    """`dense_attention` by "xla": in chunks of heads or, where the scores of one are too many, of
    its queries. On a CPU it takes a third to a half of the time if scores stay in its caches.

    Args:
        wrap: around what a chunk does; with `jax.checkpoint` no scores are kept for a gradient.
    """
    b, t, n, h = q.shape
    most = tuned.value("dense.max_score_bytes") if max_score_bytes is None else max_score_bytes
    of_query = 4 * k.shape[1]
    by_head = lambda x: jnp.swapaxes(x, 1, 2).reshape(b * n, x.shape[1], h)
    lengths = None if kv_lengths is None else jnp.repeat(kv_lengths, n)
    bias = None if key_bias is None else key_bias.reshape(b * n, -1)

    def of_heads(arrays: Any) -> Array:
        q, k, v, lengths, bias = arrays
        attend = wrap(lambda queries: _attend(queries, k, v, lengths, bias, precision))
        return map_chunks(attend, q, axis=1, max_chunk=most // (len(q) * of_query))

    arrays = (by_head(q), by_head(k), by_head(v), lengths, bias)
    attended = map_chunks(of_heads, arrays, axis=0, max_chunk=most // (t * of_query))
    return jnp.swapaxes(attended.reshape(b, n, t, h), 1, 2)


def _attend(
    q: Float[Array, "r t h"],
    k: Float[Array, "r kv h"],
    v: Float[Array, "r kv h"],
    lengths: Int[Array, " r"] | None,
    key_bias: Float[Array, "r kv"] | None,
    precision: jax.lax.Precision,
) -> Float[Array, "r t h"]:
    """Attention of heads, of some scenes or frames."""
    scores = jnp.einsum(
        "rth,rkh->rtk", q, k, precision=precision, preferred_element_type=jnp.float32
    )
    scores *= q.shape[-1] ** -0.5
    if key_bias is not None:
        scores += key_bias[:, None]
    if lengths is not None:
        scores = jnp.where(leading(lengths, k.shape[1])[:, None], scores, -jnp.inf)
    weights = jax.nn.softmax(scores, axis=-1).astype(v.dtype)
    return jnp.einsum(
        "rtk,rkh->rth", weights, v, precision=precision, preferred_element_type=jnp.float32
    ).astype(v.dtype)
