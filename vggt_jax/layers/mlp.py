"""The two-layer perceptron of transformer blocks."""

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Float

from vggt_jax.layers.linear import Linear
from vggt_jax.layers.precision import Precision


class Mlp(nnx.Module):
    """Linear, exact (erf) GELU, linear."""

    def __init__(self, dim: int, hidden_dim: int, out_dim: int | None = None, *, rngs: nnx.Rngs):
        self.fc1 = Linear(dim, hidden_dim, rngs=rngs)
        self.fc2 = Linear(hidden_dim, dim if out_dim is None else out_dim, rngs=rngs)

    def __call__(self, x: Float[Array, "*b d"], precision: Precision) -> Float[Array, "*b o"]:
        return self.fc2(gelu(self.fc1(x, precision)), precision)


def gelu(x: Float[Array, "*b"]) -> Float[Array, "*b"]:
    """Exact GELU, computed in float32.

    `jax.nn.gelu(approximate=False)` goes through `erfc`, which costs twice the time on a GPU.
    """
    wide = x.astype(jnp.float32)
    return (0.5 * wide * (1 + jax.lax.erf(wide * np.float32(0.5**0.5)))).astype(x.dtype)
