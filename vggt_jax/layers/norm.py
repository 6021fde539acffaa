"""Layer normalisation."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float


class LayerNorm(nnx.Module):
    """Layer normalisation over the last axis, in and to float32."""

    def __init__(self, dim: int, *, eps: float = 1e-5):
        self.eps = eps
        self.scale = nnx.Param(jnp.ones(dim))
        self.bias = nnx.Param(jnp.zeros(dim))

    def __call__(
        self, x: Float[Array, "*b d"], *, fuse_with_next: bool = False
    ) -> Float[Array, "*b d"]:
        normalized = normalize(x, eps=self.eps, fuse_with_next=fuse_with_next)
        return normalized * self.scale[...] + self.bias[...]


def normalize(
    x: Float[Array, "*b d"], *, eps: float, fuse_with_next: bool = False
) -> Float[Array, "*b d"]:
    """Zero mean and unit variance over the last axis, in and to float32.

    With `fuse_with_next` means and variances are arrays of their own. Left alone, XLA makes one kernel
    of all this, which pays unless what follows cannot join it: then the result goes through memory.
    """
    x = x.astype(jnp.float32)
    mean = jnp.mean(x, axis=-1, keepdims=True)
    variance = jnp.mean(jnp.square(x - mean), axis=-1, keepdims=True)
    if fuse_with_next:
        mean, variance = jax.lax.optimization_barrier((mean, variance))
    return (x - mean) * jax.lax.rsqrt(variance + eps)
