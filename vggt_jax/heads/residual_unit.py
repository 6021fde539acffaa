"""What the camera heads of several models are made of."""

import jax
from flax import nnx
from jaxtyping import Array, Float

from vggt_jax.layers.linear import Linear
from vggt_jax.layers.precision import Precision


class ResidualUnit(nnx.Module):
    """Three linear layers, each with a ReLU, beside a skip connection."""

    def __init__(self, dim: int, *, rngs: nnx.Rngs):
        self.res_conv1, self.res_conv2, self.res_conv3 = (
            Linear(dim, dim, rngs=rngs) for _ in range(3)
        )

    def __call__(self, x: Float[Array, "*b c"], precision: Precision) -> Float[Array, "*b c"]:
        skip = x
        for linear in (self.res_conv1, self.res_conv2, self.res_conv3):
            x = jax.nn.relu(linear(x, precision))
        return skip + x
