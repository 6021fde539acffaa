"""How wrong attention to a sample is, from how much its two halves differ."""

import jax.numpy as jnp
import numpy as np
from jax import lax
from jaxtyping import Array, Float, Int

# Queries, spread evenly over the scene, for which the sampling error is estimated in each layer.
NUM_PROBES = 128


def probes(num_that_count, num_patches, num_special, width) -> Int[Array, " probes"]:
    """Tokens of patches, spread evenly over those that count."""
    patch = jnp.arange(NUM_PROBES, dtype=jnp.float32) * (jnp.float32(1 / NUM_PROBES))
    num_that_count = jnp.int32(num_that_count)
    patch = (patch * num_that_count.astype(jnp.float32)).astype(jnp.int32)
    patch = jnp.clip(patch, 0, jnp.maximum(num_that_count - 1, 0))
    return patch // num_patches * width + num_special + patch % num_patches


def sampling_error(
    q: Float[Array, "probes n h"],
    k: Float[Array, "keys n h"],
    v: Float[Array, "keys n h"],
    bias: Float[Array, " keys"],
    *,
    first_sampled: int,
) -> Float[Array, " n"]:
    """The sampling error of attention to keys, as a share of the root mean square of its results.

    Half of the difference of two estimates, by every other sampled key, whose weights are doubled.
    That is the standard deviation of their mean, if halves are independent; they are spread
    evenly, and so are a little better together.

    Args:
        bias: added to the scores of all heads; -inf for keys that do not count.
        first_sampled: from which key on they are a sample.
    """
    q, k, v = (lax.stop_gradient(x) for x in (q, k, v))
    place = np.arange(len(k))
    is_even, is_sampled = place % 2 == 0, place >= first_sampled
    scores = jnp.einsum("pnh,knh->npk", q, k, preferred_element_type=jnp.float32)
    scores = scores * np.float32(q.shape[-1] ** -0.5) + bias[None, None]
    top = jnp.max(scores, axis=-1, keepdims=True)
    weights = jnp.exp(scores - jnp.where(top > -jnp.inf, top, 0.0))

    def by_half(half):
        count = np.where(is_sampled, 2.0 * half, 1.0).astype(np.float32)
        of_half = weights * count[None, None]
        total = jnp.maximum(jnp.sum(of_half, axis=-1), jnp.finfo(jnp.float32).tiny)
        summed = jnp.einsum(
            "npk,knh->pnh", of_half.astype(v.dtype), v, preferred_element_type=jnp.float32
        )
        return summed / total.T[..., None]

    one, other = by_half(is_even), by_half(~is_even)
    mean_square = lambda x: jnp.mean(jnp.square(x), axis=(0, 2))
    size = jnp.maximum(mean_square((one + other) / 2), jnp.finfo(jnp.float32).tiny)
    return jnp.sqrt(mean_square((one - other) / 2) / size)
