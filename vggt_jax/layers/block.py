"""The transformer block of encoder, trunk and camera head, and stacks of it."""

from collections.abc import Callable
from typing import TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vggt_jax.layers.attention import Attention, Rope
from vggt_jax.layers.mlp import Mlp
from vggt_jax.layers.norm import LayerNorm
from vggt_jax.layers.precision import Precision

ModuleT = TypeVar("ModuleT", bound=nnx.Module)


class Block(nnx.Module):
    """Pre-norm transformer block with LayerScale; the residual stream is float32.

    `before` and `after` lie on either side of attention, which the caller runs.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        *,
        norm_eps: float,
        layer_scale: float,
        qk_norm: bool = False,
        rngs: nnx.Rngs,
    ):
        self.norm1 = LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, num_heads, qk_norm=qk_norm, rngs=rngs)
        self.ls1 = nnx.Param(jnp.full(dim, layer_scale))
        self.norm2 = LayerNorm(dim, eps=norm_eps)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), rngs=rngs)
        self.ls2 = nnx.Param(jnp.full(dim, layer_scale))

    def before(self, x: Float[Array, "*b p c"], rope: Rope | None, precision: Precision):
        """Queries, keys and values `[*b p n h]` of the normalised stream."""
        return self.attn.project(self.norm1(x), rope, precision)

    def after(
        self, x: Float[Array, "*b p c"], attended: Float[Array, "*b p n h"], precision: Precision
    ) -> Float[Array, "*b p c"]:
        """Adds the attention branch, then the MLP branch, to the stream."""
        x = x + self.ls1[...] * self.attn.output(attended, precision).astype(x.dtype)
        return x + self.ls2[...] * self.mlp(self.norm2(x), precision).astype(x.dtype)


def stack_modules(make: Callable[[nnx.Rngs], ModuleT], num: int, rngs: nnx.Rngs) -> ModuleT:
    """`num` modules in one, every parameter with a leading axis, for `jax.lax.scan` over layers."""
    keys = jax.random.split(rngs.params(), num)
    return jax.vmap(lambda key: make(nnx.Rngs(params=key)))(keys)
