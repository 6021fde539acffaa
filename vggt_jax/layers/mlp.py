"""The perceptrons of transformer blocks."""

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


class SwiGlu(nnx.Module):
    """Two linear layers whose results are multiplied, one of them after SiLU, and a third.

    The official file is dinov2/layers/swiglu_ffn.py, whose first two layers are one parameter.
    """

    def __init__(self, dim: int, hidden_dim: int, *, rngs: nnx.Rngs):
        self.w12 = Linear(dim, 2 * hidden_dim, rngs=rngs)
        self.w3 = Linear(hidden_dim, dim, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "*b d"],
        precision: Precision,
        *,
        implementation: Literal["xla"] | None = None,
    ) -> Float[Array, "*b d"]:
        """`implementation`: of the first two layers and their SwiGLU; see `apply_linear`."""
        hidden = self.w12(x, precision, activation="swiglu", implementation=implementation)
        return self.w3(hidden, precision)


def swiglu_hidden_dim(mlp_hidden_dim: int) -> int:
    """Channels between the layers of a SwiGLU that stands in for an MLP of so many hidden ones.

    Two thirds, rounded up to a multiple of 8 (official file: dinov2/layers/swiglu_ffn.py).
    """
    return -(-(mlp_hidden_dim * 2 // 3) // 8) * 8
