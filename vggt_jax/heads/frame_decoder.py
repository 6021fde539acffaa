"""The decoder of each head of π³: a few blocks over the tokens of a frame."""

import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float

from vggt_jax.layers.attention import Dense, Rope
from vggt_jax.layers.block import Block, stack_modules
from vggt_jax.layers.linear import Linear
from vggt_jax.layers.precision import Precision

_NORM_EPS = 1e-6  # official file: pi3/models/layers/transformer_head.py


class FrameDecoder(nnx.Module):
    """Tokens of the trunk to tokens of a head, frame by frame.

    The official file is pi3/models/layers/transformer_head.py (TransformerDecoder). Under autocast
    its residual stream is bfloat16; here it is float32, like every other.
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        out_dim: int,
        *,
        depth: int,
        num_heads: int,
        mlp_ratio: float,
        rngs: nnx.Rngs,
    ):
        self.projects = Linear(in_dim, dim, rngs=rngs)
        make = lambda rngs: Block(
            dim, num_heads, mlp_ratio, norm_eps=_NORM_EPS, layer_scale=None, rngs=rngs
        )
        self.blocks = stack_modules(make, depth, rngs)
        self.linear_out = Linear(dim, out_dim, rngs=rngs)

    def __call__(
        self, tokens: Float[Array, "*b p c"], rope: Rope, dense: Dense, precision: Precision
    ) -> Float[Array, "*b p d"]:
        """Decodes all tokens of each frame, special ones included, float32.

        Args:
            rope: tables for the tokens of a frame and the heads of this decoder.
        """
        x = self.projects(tokens, precision).astype(jnp.float32)
        x = self.blocks.stack_within_frames(x, rope, dense, precision)
        return self.linear_out(x, precision).astype(jnp.float32)
