"""The two-layer perceptron of transformer blocks."""

from typing import Literal

from flax import nnx
from jaxtyping import Array, Float

from vggt_jax.layers.linear import Linear
from vggt_jax.layers.precision import Precision


class Mlp(nnx.Module):
    """Linear, exact (erf) GELU, linear."""

    def __init__(self, dim: int, hidden_dim: int, out_dim: int | None = None, *, rngs: nnx.Rngs):
        self.fc1 = Linear(dim, hidden_dim, rngs=rngs)
        self.fc2 = Linear(hidden_dim, dim if out_dim is None else out_dim, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "*b d"],
        precision: Precision,
        *,
        implementation: Literal["xla"] | None = None,
    ) -> Float[Array, "*b o"]:
        """`implementation`: of the first layer and its GELU; see `apply_linear`."""
        hidden = self.fc1(x, precision, activation="gelu", implementation=implementation)
        return self.fc2(hidden, precision)
