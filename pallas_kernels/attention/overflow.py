"""Scores that float32 cannot hold.

bfloat16 numbers reach 3e38, so a product of two vectors of them can overflow, and infinities make
NaN of a softmax. Queries are therefore halved as often as the largest finite key could ask for, and
differences of scores are doubled as often: both are exact.
"""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Float

# Beyond this power of two, float32 overflows: with a factor of a few to spare for sums and scales.
_MAX_EXPONENT = 124.0


def halvings(q: Float[Array, "*q h"]) -> Float[Array, "*q"]:
    """How often to halve each query so that its scores are finite, whatever the keys."""
    if q.dtype == jnp.float16:  # Its numbers are too small to overflow.
        return jnp.zeros(q.shape[:-1], jnp.float32)
    largest = jnp.max(jnp.abs(lax.stop_gradient(q).astype(jnp.float32)), axis=-1)
    largest_key = 128.0
    log2 = jnp.log2(jnp.maximum(largest, 1e-37)) + largest_key + jnp.log2(jnp.float32(q.shape[-1]))
    return jnp.maximum(jnp.ceil(log2 - _MAX_EXPONENT), 0.0)


def halve(q: Float[Array, "*q h"], times: Float[Array, "*q"]) -> Float[Array, "*q h"]:
    """`q / 2**times`, in two steps: together they may pass what float32 holds."""
    first = jnp.floor(0.5 * times)
    smaller = q.astype(jnp.float32) * jnp.exp2(-first)[..., None]
    return (smaller * jnp.exp2(first - times)[..., None]).astype(q.dtype)


def halve_bias(times: Float[Array, "*q"]) -> Float[Array, "*q"]:
    """The factor `2**-times` of what is added to scores; never 0, which makes NaN of -inf."""
    return jnp.exp2(-jnp.minimum(times, 126.0))


def restore(times: Float[Array, "*q"], scale: float) -> Float[Array, "*q"]:
    """The factor that makes scaled scores of differences: `scale * 2**times`.

    Where float32 cannot hold it, almost as much: such scores differ by more than an exponential can
    tell, or not at all.
    """
    return jnp.minimum(scale * jnp.exp2(jnp.minimum(times, 126.0)), 2.0**126)
