"""The transformer block of encoders, trunks, decoders and heads, and stacks of it."""

import math
from collections.abc import Callable
from typing import Literal, TypeVar

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vggt_jax.layers.abstract import OneKey
from vggt_jax.layers.attention import Attention, Dense, Rope, dense_attention, padded_tokens
from vggt_jax.layers.mlp import Mlp, SwiGlu, swiglu_hidden_dim
from vggt_jax.layers.norm import LayerNorm
from vggt_jax.layers.precision import Precision

ModuleT = TypeVar("ModuleT", bound=nnx.Module)
FfnKind = Literal["mlp", "swiglu"]


class Block(nnx.Module):
    """Pre-norm transformer block; the residual stream is float32.

    `before` and `after` lie on either side of attention, which the caller runs. Branches are scaled
    by LayerScale, which starts at `layer_scale`, or not at all where that is None. `ffn` is "mlp",
    or "swiglu", whose hidden layer is two thirds as wide, so that it has as many parameters.
    """

    def __init__(
        self,
        dim: int,
        num_heads: int,
        mlp_ratio: float,
        *,
        norm_eps: float,
        layer_scale: float | None,
        qk_norm: bool = False,
        ffn: FfnKind = "mlp",
        rngs: nnx.Rngs,
    ):
        self.norm1 = LayerNorm(dim, eps=norm_eps)
        self.attn = Attention(dim, num_heads, qk_norm=qk_norm, rngs=rngs)

        def scale():
            return (
                None if layer_scale is None else nnx.Param(jnp.full(dim, layer_scale, jnp.float32))
            )

        self.ls1 = scale()
        self.norm2 = LayerNorm(dim, eps=norm_eps)
        hidden_dim = int(dim * mlp_ratio)
        self.mlp = (
            Mlp(dim, hidden_dim, rngs=rngs)
            if ffn == "mlp"
            else SwiGlu(dim, swiglu_hidden_dim(hidden_dim), rngs=rngs)
        )
        self.ls2 = scale()

    def before(
        self,
        x: Float[Array, "*b p c"],
        rope: Rope | None,
        precision: Precision,
        *,
        implementation: Literal["xla"] | None = None,
    ):
        """Queries, keys, values `[*b p n h]` of the normalised stream; see `Attention.project`."""
        return self.attn.project(self.norm1(x), rope, precision, implementation=implementation)

    def after(
        self,
        x: Float[Array, "*b p c"],
        attended: Float[Array, "*b p n h"],
        precision: Precision,
        *,
        implementation: Literal["xla"] | None = None,
    ) -> Float[Array, "*b p c"]:
        """Adds the attention branch, then the MLP branch, to the stream.

        Args:
            implementation: of the MLP.
        """
        branch = self.attn.output(attended, precision)
        x = x + scaled(self.ls1, branch.astype(x.dtype))
        branch = self.mlp(self.norm2(x), precision, implementation=implementation)
        return x + scaled(self.ls2, branch.astype(x.dtype))

    def within_frames(
        self,
        x: Float[Array, "*b p c"],
        rope: Rope | None,
        dense: Dense,
        precision: Precision,
        *,
        num_valid: int,
    ) -> Float[Array, "*b p c"]:
        """The whole block, where the tokens of a frame see each other and no others.

        Args:
            num_valid: how many leading tokens of a frame count; the others are hidden from them.
        """
        p = x.shape[-2]
        q, k, v = self.before(x, rope, precision, implementation=dense.around)
        frames = lambda y: y.reshape(-1, *y.shape[-3:])
        num_frames = math.prod(x.shape[:-2])
        attended = dense_attention(
            frames(q),
            frames(k),
            frames(v),
            kv_lengths=None if num_valid == p else jnp.full(num_frames, num_valid, jnp.int32),
            precision=precision.matmul,
            implementation=dense.implementation,
        )
        return self.after(x, attended.reshape(q.shape), precision, implementation=dense.around)

    def stack_within_frames(
        self, x: Float[Array, "*b p c"], rope: Rope | None, dense: Dense, precision: Precision
    ) -> Float[Array, "*b p c"]:
        """`within_frames` of each block of a stack (`stack_modules`), one after the other."""
        p = x.shape[-2]
        x, rope = self.pad_tokens(x, rope, dense, precision)

        def layer(x, block: Block):
            return block.within_frames(x, rope, dense, precision, num_valid=p), None

        return jax.lax.scan(layer, x, self)[0][..., :p, :]

    def pad_tokens(
        self, x: Float[Array, "*b p c"], rope: Rope | None, dense: Dense, precision: Precision
    ) -> tuple[Float[Array, "*b p2 c"], Rope | None]:
        """Tokens and their tables with zeros behind those of each frame, as many as kernels like.

        Once for all blocks, since they would otherwise pad queries, keys, values and more in each.
        """
        p, c = x.shape[-2:]
        head_dim = c // self.attn.num_heads
        padded = padded_tokens(p, dense, head_dim=head_dim, dtype=precision.compute_dtype)
        if padded == p:
            return x, rope
        pad = lambda y: jnp.pad(y, [(0, 0)] * (y.ndim - 2) + [(0, padded - p), (0, 0)])
        return pad(x), rope and Rope(*map(pad, rope))


def scaled(scale: nnx.Param | None, branch: Float[Array, "*b c"]) -> Float[Array, "*b c"]:
    """A branch times its LayerScale, if any."""
    return branch if scale is None else jax.lax.broadcast_to_rank(scale[...], branch.ndim) * branch


def stack_modules(make: Callable[[nnx.Rngs], ModuleT], num: int, rngs: nnx.Rngs) -> ModuleT:
    """`num` modules in one, every parameter with a leading axis, for `jax.lax.scan` over layers."""
    keys = jax.random.split(rngs.params(), num)
    draws = lambda key: rngs if isinstance(rngs, OneKey) else nnx.Rngs(params=key)
    return jax.vmap(lambda key: make(draws(key)))(keys)
