"""SwiGLU, half of the numbers after SiLU times the other half, in two forms."""

import math

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def swiglu(y: Float[Array, "*b o"]) -> Float[Array, "*b out"]:
    """`silu(first half) * second half` of the last axis, computed in float32."""
    gate, value = jnp.split(y, 2, axis=-1)
    return (jax.nn.silu(gate.astype(jnp.float32)) * value.astype(jnp.float32)).astype(y.dtype)


def swiglu_in_few_operations(
    gate: Float[Array, "*b"], value: Float[Array, "*b"]
) -> Float[Array, "*b"]:
    """`silu(gate) * value` of float32 numbers in half a dozen operations without a branch, which a
    division would have."""
    root = jax.lax.rsqrt(1 + jnp.exp2(gate * np.float32(-math.log2(math.e))))
    return gate * (root * root) * value  # The factor first: `gate * value` may overflow.
