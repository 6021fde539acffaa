"""Block-sparse attention in plain JAX: any device, bounded memory, differentiable."""

import functools

import jax
import jax.numpy as jnp
from jax import lax

from pallas_kernels.attention import overflow
from pallas_kernels.attention.call import AttentionCall
from pallas_kernels.blocks import count_blocks, leading, tokens_that_count
from pallas_kernels.key_mask import unpack_key_mask

# Keys and values gathered at a time, in bytes.
_MAX_GATHERED_BYTES = 32 * 2**20
# Keys per step of the softmax, where blocks are no larger: few steps, and few scores.
_KEYS_PER_STEP = 512


def run(call: AttentionCall):
    return attention(
        call.q,
        call.k,
        call.v,
        call.block_map,
        call.kv_tokens,
        call.scale,
        key_bias=call.key_bias,
        key_mask=call.key_mask,
    )


def attention(
    q,
    k,
    v,
    block_map,
    kv_tokens,
    scale,
    *,
    key_bias=None,
    key_mask=None,
    keys_per_step=_KEYS_PER_STEP,
    max_gathered_bytes=_MAX_GATHERED_BYTES,
):
    """The output [t n h] in q's type and the log-sum-exp [t n]; `kv_tokens` as `tokens_per_block`.

    Stripes of query blocks follow one another. Within a stripe the lists are walked some entries at
    a time: the listed keys and values are gathered, and the softmax is corrected as its maximum
    grows.
    """
    (t, n, h), num_keys = q.shape, k.shape[0]
    block_q, block_k = block_map.block_q, block_map.block_k
    # What does not count must not spoil a product by being infinite.
    counts = tokens_that_count(kv_tokens, k.shape[0], block_k)[:, None, None]
    k, v = (jnp.where(counts, x, 0) for x in (k, v))
    q = _in_blocks(q, block_map.num_q_blocks, block_q)  # [n, qb, block_q, h]
    k, v = (_in_blocks(x, block_map.num_kv_blocks, block_k) for x in (k, v))
    if key_bias is not None:  # In units of unscaled scores, [n, kb, block_k].
        key_bias = _in_blocks(key_bias.T / scale, block_map.num_kv_blocks, block_k)

    slots = min(block_map.capacity, max(1, keys_per_step // block_k))
    stripe = max(1, max_gathered_bytes // (4 * n * slots * block_k * h))
    stripe = min(stripe, block_map.num_q_blocks)
    # Steps are computed again for gradients, instead of keeping their weights.
    step = jax.checkpoint(functools.partial(_attend_to_some, k, v, kv_tokens, key_bias))

    @jax.checkpoint
    def attend(inputs):
        # [n, r, block_q, h], [n, r, capacity], [n, r], [n, r, words]
        queries, indices, counts, *mask = inputs
        halvings = overflow.halvings(queries)
        queries = overflow.halve(queries, halvings)
        factor = overflow.restore(halvings, scale)
        bias_factor = overflow.halve_bias(halvings)
        live = leading(counts, block_map.capacity)
        indices = indices.astype(jnp.int32)
        hidden = None
        if mask:
            hidden = unpack_key_mask(mask[0], num_keys)
            missing = block_map.num_kv_blocks * block_k - num_keys
            hidden = jnp.pad(hidden, ((0, 0), (0, 0), (0, missing)))
            hidden = hidden.reshape(*hidden.shape[:2], -1, block_k)  # [n, r, kb, block_k]
        lists = jax.tree.map(lambda x: _in_steps(x, slots), (indices, live))
        rows = queries.shape[:-1]
        start = (
            jnp.zeros(queries.shape, jnp.float32),
            jnp.full(rows, -jnp.inf, jnp.float32),
            jnp.zeros(rows, jnp.float32),
        )
        (out, top, total), _ = lax.scan(
            lambda carry, some: (step(hidden, queries, factor, bias_factor, carry, some), None),
            start,
            lists,
        )
        some = total > 0
        total = jnp.where(some, total, 1.0)
        lse = jnp.where(some, top * factor + jnp.log(total), -jnp.inf)
        return jnp.where(some[..., None], out / total[..., None], 0.0), lse

    operands = (q, block_map.indices, block_map.counts)
    operands += () if key_mask is None else (key_mask,)
    out, lse = lax.map(attend, jax.tree.map(lambda x: _in_stripes(x, stripe), operands))
    # [stripes, n, r, block_q, ...] -> [t, n, ...]
    out, lse = (jnp.moveaxis(x, 1, 3).reshape(-1, n, *x.shape[4:])[:t] for x in (out, lse))
    return out.astype(v.dtype), lse


def _attend_to_some(k, v, kv_tokens, key_bias, hidden, queries, factor, bias_factor, carry, some):
    """One step of the softmax over listed blocks; indices and whether they are live: [n, r, g].

    `hidden`: which keys of each block these queries leave out, [n, r, kb, block_k]. `factor` makes
    scaled scores of differences of scores, `bias_factor` a bias as small as these scores.
    """
    out, top, total = carry
    indices, live = some
    block_k = k.shape[2]
    gather = jax.vmap(lambda blocks, listed: blocks[listed])
    keys, values = gather(k, indices), gather(v, indices)  # [n, r, g, block_k, h]
    highest = lax.Precision.HIGHEST
    scores = jnp.einsum(
        "nrqh,nrgkh->nrqgk", queries, keys, precision=highest, preferred_element_type=jnp.float32
    )
    if key_bias is not None:
        scores += bias_factor[..., None, None] * gather(key_bias, indices)[:, :, None]
    counts = leading(jnp.where(live, kv_tokens[indices], 0), block_k)
    if hidden is not None:
        counts &= ~jnp.take_along_axis(hidden, indices[..., None], axis=2)
    scores = jnp.where(counts[:, :, None], scores, -jnp.inf)

    new_top = jnp.maximum(top, lax.stop_gradient(jnp.max(scores, axis=(-1, -2))))
    shift = jnp.where(new_top > -jnp.inf, new_top, 0.0)
    weights = jnp.exp((scores - shift[..., None, None]) * factor[..., None, None])
    correction = jnp.exp((top - shift) * factor)
    product = jnp.einsum(
        "nrqgk,nrgkh->nrqh",
        weights.astype(v.dtype),
        values,
        precision=highest,
        preferred_element_type=jnp.float32,
    )
    out = out * correction[..., None] + product
    return out, new_top, total * correction + jnp.sum(weights, axis=(-1, -2))


def _in_blocks(x, num_blocks, block):
    """[t n ...] -> [n blocks block ...], padded with zeros."""
    x = jnp.pad(x, ((0, num_blocks * block - x.shape[0]),) + ((0, 0),) * (x.ndim - 1))
    return jnp.moveaxis(x.reshape(num_blocks, block, *x.shape[1:]), 2, 0)


def _in_stripes(x, rows):
    """[n qb ...] -> [stripes n rows ...], padded with zeros."""
    stripes = count_blocks(x.shape[1], rows)
    x = jnp.pad(x, ((0, 0), (0, stripes * rows - x.shape[1])) + ((0, 0),) * (x.ndim - 2))
    return jnp.moveaxis(x.reshape(x.shape[0], stripes, rows, *x.shape[2:]), 1, 0)


def _in_steps(x, slots):
    """[n r capacity] -> [steps n r slots], padded with zeros."""
    steps = count_blocks(x.shape[-1], slots)
    x = jnp.pad(x, ((0, 0), (0, 0), (0, steps * slots - x.shape[-1])))
    return jnp.moveaxis(x.reshape(*x.shape[:-1], steps, slots), 2, 0)
