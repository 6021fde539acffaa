"""Dense attention a head and a few queries at a time, for processors with a cache."""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.blocks import leading
from vggt_jax.layers.chunking import map_chunks

# Scores of a head that exist at a time. With 2 to 16 MB it is as fast, with all heads of as many
# queries as 256 MB hold four times slower (3,892 tokens, 6 heads of 64, two cores).
_SCORE_BYTES = 4 * 2**20


def attend_by_head(
    q: Float[Array, "b t n h"],
    k: Float[Array, "b kv n h"],
    v: Float[Array, "b kv n h"],
    kv_lengths: Int[Array, " b"] | None,
    key_bias: Float[Array, "b n kv"] | None,
    precision: jax.lax.Precision,
) -> Float[Array, "b t n h"]:
    """See `dense_attention`; in plain JAX."""
    b, t, n, h = q.shape
    kv = k.shape[1]
    by_head = lambda x: jnp.moveaxis(x, 2, 1).reshape(b * n, x.shape[1], h)
    bias = key_bias
    if kv_lengths is not None:
        hidden = jnp.where(leading(kv_lengths, kv), 0.0, -jnp.inf)[:, None]
        bias = jnp.broadcast_to(hidden, (b, n, kv)) if bias is None else bias + hidden
    bias = None if bias is None else bias.reshape(b * n, kv)

    def head(arrays):
        q, k, v, bias = arrays

        def attend(q):
            scores = jnp.dot(q, k.T, precision=precision, preferred_element_type=jnp.float32)
            scores *= h**-0.5
            weights = jax.nn.softmax(scores if bias is None else scores + bias, axis=-1)
            return jnp.dot(
                weights.astype(v.dtype),
                v,
                precision=precision,
                preferred_element_type=jnp.float32,
            ).astype(v.dtype)

        return map_chunks(attend, q, axis=0, max_chunk=max(1, _SCORE_BYTES // (4 * kv)))

    attended = jax.lax.map(head, (by_head(q), by_head(k), by_head(v), bias))
    return jnp.moveaxis(attended.reshape(b, n, t, h), 1, 2)
