"""The scale head of MapAnything: the scene's token to metres."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vggt_jax.layers.linear import Linear
from vggt_jax.layers.precision import Precision


class ScaleHead(nnx.Module):
    """Official file: uniception/models/prediction_heads/mlp_head.py."""

    def __init__(self, dim: int, hidden_dim: int, *, num_layers: int, rngs: nnx.Rngs):
        self.proj = Linear(dim, hidden_dim, rngs=rngs)
        self.mlp = nnx.List([Linear(hidden_dim, hidden_dim, rngs=rngs) for _ in range(num_layers)])
        self.output_proj = Linear(hidden_dim, 1, rngs=rngs)

    def __call__(self, token: Float[Array, "*b c"], precision: Precision) -> Float[Array, "*b 1"]:
        """The logarithm of the scene's scale."""
        x = self.proj(token, precision)
        for linear in self.mlp:
            x = jax.nn.relu(linear(x, precision))
        return self.output_proj(x, precision)


def scale_from_raw(raw: Float[Array, "*b 1"]) -> Float[Array, "*b 1"]:
    """Metres of a unit of the other heads (official: prediction_heads/adaptors.py)."""
    return jnp.maximum(jnp.exp(raw), 1e-8)
