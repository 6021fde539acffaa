"""Bias, layer normalisation and rotary embedding in plain JAX, on any device."""

import jax
import jax.numpy as jnp
import numpy as np
from jax.lax import broadcast_to_rank
from jaxtyping import Array, Float

from pallas_kernels.norm_rope.call import NormRopeCall


def run(call: NormRopeCall) -> Float[Array, "*b p n h"]:
    rotation, parameters = (call.cos, call.sin), (call.bias, call.scale, call.offset)
    return norm_rope(call.x, *rotation, *parameters, call.eps)


def norm_rope(
    x: Float[Array, "*b p n h"],
    cos: Float[Array, "p h"],
    sin: Float[Array, "p h"],
    bias: Float[Array, "n h"],
    scale: Float[Array, " h"],
    offset: Float[Array, " h"],
    eps: float,
) -> Float[Array, "*b p n h"]:
    """As `pallas_kernels.norm_rope`."""
    y = x.astype(jnp.float32) + broadcast_to_rank(bias.astype(jnp.float32), x.ndim)
    mean = jnp.mean(y, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(y - mean), axis=-1, keepdims=True)
    # Left alone, XLA makes one kernel of the norm, which the turn cannot join: its result would go
    # through memory in float32. With means and variances as arrays of their own, the rest is one.
    mean, variance = jax.lax.optimization_barrier((mean, variance))
    normalized = (y - mean) * jax.lax.rsqrt(variance + eps)
    scale, offset = (broadcast_to_rank(y, x.ndim) for y in (scale, offset))
    return apply_rope(normalized * scale + offset, cos, sin).astype(x.dtype)


def apply_rope(
    x: Float[Array, "*b p n h"],
    cos: Float[Array | np.ndarray, "p h"],
    sin: Float[Array | np.ndarray, "p h"],
) -> Float[Array, "*b p n h"]:
    """Turns the heads of every token by its tables, in and to float32.

    A head is four quarters; the first two are the members of pairs that turn together, and so are
    the last two.
    """
    x = x.astype(jnp.float32)
    pairs = x.reshape(*x.shape[:-1], 2, 2, x.shape[-1] // 4)  # [..., half, member, pair]
    first, second = pairs[..., 0, :], pairs[..., 1, :]
    turned = jnp.stack([-second, first], axis=-2).reshape(x.shape)
    cos, sin = (broadcast_to_rank(table[:, None, :], x.ndim) for table in (cos, sin))
    return x * cos + turned * sin
