"""The metric scale of a scene: one token that reads all tokens of the trunk."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from pallas_kernels.norm_rope import apply_rope
from vggt_jax.layers.attention import Dense, Rope, dense_attention
from vggt_jax.layers.block import stack_modules
from vggt_jax.layers.linear import Linear
from vggt_jax.layers.mlp import Mlp
from vggt_jax.layers.norm import LayerNorm
from vggt_jax.layers.precision import Precision

_NORM_EPS = 1e-6  # official file: pi3/models/layers/transformer_head.py


class CrossAttention(nnx.Module):
    """Projections of queries, of keys and values of other tokens, and of what was attended to."""

    def __init__(self, dim: int, num_heads: int, *, rngs: nnx.Rngs):
        self.num_heads = num_heads
        self.q_proj, self.k_proj, self.v_proj, self.proj = (
            Linear(dim, dim, rngs=rngs) for _ in range(4)
        )

    def __call__(
        self,
        x: Float[Array, "b t c"],
        context: Float[Array, "b s p c"],
        rope: Rope,
        num_frames: Int[Array, " b"] | None,
        dense: Dense,
        precision: Precision,
    ) -> Float[Array, "b t c"]:
        """Queries stand at position 0, which turns nothing; keys where `rope` puts them."""
        heads = lambda y: y.reshape(*y.shape[:-1], self.num_heads, -1)
        v = heads(self.v_proj(context, precision))
        k = apply_rope(heads(self.k_proj(context, precision)), *rope).astype(v.dtype)
        b, s, p, n, h = k.shape
        attended = dense_attention(
            heads(self.q_proj(x, precision)),
            k.reshape(b, s * p, n, h),
            v.reshape(b, s * p, n, h),
            kv_lengths=None if num_frames is None else num_frames * p,
            precision=precision.matmul,
            implementation=dense.implementation,
        )
        return self.proj(attended.reshape(*x.shape[:-1], -1), precision)


class CrossBlock(nnx.Module):
    """Attention to other tokens, then an MLP; the queries do not see each other.

    The official file is pi3/models/layers/block.py (CrossOnlyBlockRope).
    """

    def __init__(self, dim: int, num_heads: int, mlp_ratio: float, *, rngs: nnx.Rngs):
        self.norm2, self.norm_y, self.norm3 = (LayerNorm(dim, eps=_NORM_EPS) for _ in range(3))
        self.cross_attn = CrossAttention(dim, num_heads, rngs=rngs)
        self.mlp = Mlp(dim, int(dim * mlp_ratio), rngs=rngs)

    def __call__(self, x, context, rope, num_frames, dense, precision):
        """The arguments are those of `CrossAttention`."""
        seen = self.norm_y(context)
        branch = self.cross_attn(self.norm2(x), seen, rope, num_frames, dense, precision)
        x = x + branch.astype(x.dtype)
        return x + self.mlp(self.norm3(x), precision, implementation=dense.around).astype(x.dtype)


class ContextDecoder(nnx.Module):
    """A token that becomes what it reads in others.

    The official file is pi3/models/layers/transformer_head.py (ContextOnlyTransformerDecoder).
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        *,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        rngs: nnx.Rngs,
    ):
        self.projects_x, self.projects_y = (Linear(in_dim, dim, rngs=rngs) for _ in range(2))
        make = lambda rngs: CrossBlock(dim, num_heads, mlp_ratio, rngs=rngs)
        self.blocks = stack_modules(make, depth, rngs)
        self.linear_out = Linear(dim, dim, rngs=rngs)

    def __call__(
        self,
        token: Float[Array, "b t c"],
        context: Float[Array, "b s p c"],
        rope: Rope,
        *,
        num_frames: Int[Array, " b"] | None,
        dense: Dense,
        precision: Precision,
    ) -> Float[Array, "b t d"]:
        """Decoded tokens, float32.

        Args:
            context: tokens of all frames.
            rope: tables for the tokens of a frame and the heads of this decoder.
            num_frames: how many leading frames of each scene count; None for all.
        """
        x = self.projects_x(token, precision).astype(jnp.float32)
        context = self.projects_y(context, precision)

        def layer(x, block: CrossBlock):
            return block(x, context, rope, num_frames, dense, precision), None

        x, _ = jax.lax.scan(layer, x, self.blocks)
        return self.linear_out(x, precision).astype(jnp.float32)
