"""The camera head of MapAnything: patches of a frame to where its camera stands."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vggt_jax.heads.residual_unit import ResidualUnit
from vggt_jax.layers.linear import Linear
from vggt_jax.layers.precision import Precision

_SMALLEST_LENGTH = 1e-8  # official file: uniception/models/prediction_heads/adaptors.py


class PoseHead(nnx.Module):
    """Tokens of patches to poses (official file: uniception/models/prediction_heads/pose_head.py).

    Args:
        dim: of the tokens.
    """

    def __init__(self, dim: int, hidden_dim: int, *, num_blocks: int, rngs: nnx.Rngs):
        self.proj = Linear(dim, hidden_dim, rngs=rngs)
        self.res_conv = nnx.List([ResidualUnit(hidden_dim, rngs=rngs) for _ in range(num_blocks)])
        self.mlp_1, self.mlp_2 = (Linear(hidden_dim, hidden_dim, rngs=rngs) for _ in range(2))
        self.fc_t = Linear(hidden_dim, 3, rngs=rngs)
        self.fc_rot = Linear(hidden_dim, 4, rngs=rngs)

    def __call__(
        self, tokens: Float[Array, "*b p c"], precision: Precision
    ) -> tuple[Float[Array, "*b 3"], Float[Array, "*b 4"]]:
        """Position, not yet in metres, and raw quaternion (x, y, z, w) of every frame's camera."""
        x = self.proj(tokens, precision)
        for unit in self.res_conv:
            x = unit(x, precision)
        x = jnp.mean(x, axis=-2)
        for linear in (self.mlp_1, self.mlp_2):
            x = jax.nn.relu(linear(x, precision))
        return self.fc_t(x, precision), self.fc_rot(x, precision)


def normalized(vector: Float[Array, "*b d"]) -> Float[Array, "*b d"]:
    """Vectors of length 1; those that are nearly 0 stay short."""
    squared = jnp.sum(vector * vector, axis=-1, keepdims=True)
    return vector / jnp.sqrt(jnp.maximum(squared, _SMALLEST_LENGTH**2))
