"""Layer and group normalisation."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis, in and to float32."""

    def __init__(self, dim: int, *, eps: float = 1e-5):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(dim, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(dim, jnp.float32))

    def __call__(self, x: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
        scale, bias = (jax.lax.broadcast_to_rank(y[...], x.ndim) for y in (self.scale, self.bias))
        return normalize(x, eps=self.eps) * scale + bias


class GroupNorm(nnx.Module):
    """Normalisation of maps over all pixels and a group of channels, in and to float32."""

    def __init__(self, num_groups: int, dim: int, *, eps: float = 1e-5):
        self.num_groups, self.eps = num_groups, eps
        self.scale = nnx.Param(jnp.ones(dim, jnp.float32))
        self.bias = nnx.Param(jnp.zeros(dim, jnp.float32))

    def __call__(self, x: Float[Array, "b h w c"]) -> Float[Array, "b h w c"]:
        scale, bias = (y[...][None, None, None] for y in (self.scale, self.bias))
        groups = x.astype(jnp.float32).reshape(*x.shape[:3], self.num_groups, -1)
        mean = jnp.mean(groups, axis=(1, 2, 4), keepdims=True)
        variance = jnp.mean(jnp.square(groups - mean), axis=(1, 2, 4), keepdims=True)
        normalized = (groups - mean) * jax.lax.rsqrt(variance + self.eps)
        return normalized.reshape(x.shape) * scale + bias


def normalize(x: Float[Array, "*b d"], *, eps: float) -> Float[Array, "*b d"]:
    """Zero mean and unit variance over the last axis, in and to float32."""
    x = x.astype(jnp.float32)
    mean = jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(x - mean), axis=-1, keepdims=True)
    return (x - mean) * jax.lax.rsqrt(variance + eps)
