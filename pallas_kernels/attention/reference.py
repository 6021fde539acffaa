"""The oracle of block-sparse attention: every score, in float32 (which must be able to hold it)."""

import jax
import jax.numpy as jnp

from pallas_kernels.attention.call import AttentionCall
from pallas_kernels.blocks import tokens_that_count
from pallas_kernels.key_mask import unpack_key_mask


def run(call: AttentionCall):
    q, k, v, tokens = call.q, call.k, call.v, call.kv_tokens
    more = {"key_bias": call.key_bias, "key_mask": call.key_mask}
    out, lse = attention(q, k, v, call.block_map, tokens, call.scale, **more)
    return out.astype(q.dtype), lse


def attention(q, k, v, block_map, kv_tokens, scale, *, key_bias=None, key_mask=None):
    """q [t n h], k and v [kv n h]: the output [t n h] and the log-sum-exp of the scores [t n]."""
    q, k, v = (x.astype(jnp.float32) for x in (q, k, v))
    counts = tokens_that_count(kv_tokens, k.shape[0], block_map.block_k)
    k, v = (jnp.where(counts[:, None, None], x, 0.0) for x in (k, v))
    query_block = jnp.arange(q.shape[0], dtype=jnp.int32) // block_map.block_q
    key_block = jnp.arange(k.shape[0], dtype=jnp.int32) // block_map.block_k
    mask = block_map.to_dense_mask()[:, query_block][:, :, key_block]  # [n, t, kv]
    mask &= counts[None, None]
    if key_mask is not None:
        mask &= ~unpack_key_mask(key_mask, k.shape[0])[:, query_block]

    highest = jax.lax.Precision.HIGHEST
    scores = scale * jnp.einsum("tnh,snh->nts", q, k, precision=highest)
    if key_bias is not None:
        scores += key_bias[:, None]
        mask &= key_bias[:, None] > -jnp.inf
    scores = jnp.where(mask, scores, -jnp.inf)
    lse = jax.nn.logsumexp(scores, axis=-1)
    # Queries that keep nothing have no probabilities: their output is zero.
    probabilities = jnp.where(mask, jnp.exp(scores - lse[..., None]), 0.0)
    return jnp.einsum("nts,snh->tnh", probabilities, v, precision=highest), lse.T
