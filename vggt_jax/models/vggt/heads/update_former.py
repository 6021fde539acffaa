"""The transformer inside the tracker: attention along tracks, and across tracks within a frame."""

import jax
import jax.numpy as jnp
from flax import nnx
from jaxtyping import Array, Float, Int

from vggt_jax.layers.attention import dense_attention
from vggt_jax.layers.block import stack_modules
from vggt_jax.layers.chunking import map_chunks
from vggt_jax.layers.linear import Linear, apply_linear
from vggt_jax.layers.mlp import Mlp
from vggt_jax.layers.norm import LayerNorm
from vggt_jax.layers.precision import Precision

_MLP_RATIO = 4  # official file: heads/track_modules/blocks.py, mlp_ratio

# Tokens of one chunk: the hidden layer of the MLPs, the widest temporary, takes 400 MiB for the
# released sizes in float32.
_TOKENS_PER_CHUNK = 65536


class MultiHeadAttention(nnx.Module):
    """Attention with a joint projection kernel, as `torch.nn.MultiheadAttention` keeps it."""

    def __init__(self, dim: int, num_heads: int, *, rngs: nnx.Rngs):
        self.num_heads = num_heads
        self.in_proj = Linear(dim, 3 * dim, rngs=rngs)
        self.out_proj = Linear(dim, dim, rngs=rngs)

    def __call__(
        self,
        x: Float[Array, "b t c"],
        context: Float[Array, "b kv c"],
        precision: Precision,
        kv_lengths: Int[Array, " b"] | None = None,
    ) -> Float[Array, "b t c"]:
        """Queries from `x`, keys and values from `context`."""
        c = x.shape[-1]
        kernel, bias = self.in_proj.kernel[...], self.in_proj.bias[...]
        heads = lambda y: y.reshape(*y.shape[:-1], self.num_heads, -1)
        q = heads(apply_linear(x, kernel[:, :c], bias[:c], precision))
        k = heads(apply_linear(context, kernel[:, c : 2 * c], bias[c : 2 * c], precision))
        v = heads(apply_linear(context, kernel[:, 2 * c :], bias[2 * c :], precision))
        attended = dense_attention(
            q, k, v, kv_lengths=kv_lengths, precision=precision.matmul, implementation="xla"
        )
        return self.out_proj(attended.reshape(x.shape), precision)


class SelfBlock(nnx.Module):
    """Self-attention block. Unlike elsewhere, the residual starts from the normalised input."""

    def __init__(self, dim: int, num_heads: int, *, rngs: nnx.Rngs):
        self.norm1 = LayerNorm(dim)
        self.attn = MultiHeadAttention(dim, num_heads, rngs=rngs)
        self.norm2 = LayerNorm(dim)
        self.mlp = Mlp(dim, _MLP_RATIO * dim, rngs=rngs)

    def __call__(self, x: Float[Array, "b t c"], precision: Precision, kv_lengths=None):
        x = self.norm1(x)
        x = x + self.attn(x, x, precision, kv_lengths)
        return x + self.mlp(self.norm2(x), precision)


class CrossBlock(nnx.Module):
    """Cross-attention block, with the same residual."""

    def __init__(self, dim: int, num_heads: int, *, rngs: nnx.Rngs):
        self.norm1 = LayerNorm(dim)
        self.norm_context = LayerNorm(dim)
        self.cross_attn = MultiHeadAttention(dim, num_heads, rngs=rngs)
        self.norm2 = LayerNorm(dim)
        self.mlp = Mlp(dim, _MLP_RATIO * dim, rngs=rngs)

    def __call__(self, x: Float[Array, "b t c"], context: Float[Array, "b kv c"], precision):
        x = self.norm1(x)
        x = x + self.cross_attn(x, self.norm_context(context), precision)
        return x + self.mlp(self.norm2(x), precision)


class UpdateFormer(nnx.Module):
    """Tokens of every track in every frame to corrections of position and features.

    Tracks exchange information only through virtual tracks, which read all points of a frame and
    are read by them. So a point's result depends on which other points are tracked with it.
    Official file: heads/track_modules/blocks.py, EfficientUpdateFormer.
    """

    def __init__(
        self,
        in_dim: int,
        dim: int,
        out_dim: int,
        *,
        depth: int,
        num_heads: int,
        num_virtual_tracks: int,
        rngs: nnx.Rngs,
    ):
        self.input_norm = LayerNorm(in_dim)
        self.input_transform = Linear(in_dim, dim, rngs=rngs)
        self.virtual_tracks = nnx.Param(
            jax.random.normal(rngs.params(), (num_virtual_tracks, dim), jnp.float32)
        )
        self_block = lambda rngs: SelfBlock(dim, num_heads, rngs=rngs)
        cross_block = lambda rngs: CrossBlock(dim, num_heads, rngs=rngs)
        self.time_blocks = stack_modules(self_block, depth, rngs)
        self.space_virtual_blocks = stack_modules(self_block, depth, rngs)
        self.space_point2virtual_blocks = stack_modules(cross_block, depth, rngs)
        self.space_virtual2point_blocks = stack_modules(cross_block, depth, rngs)
        self.output_norm = LayerNorm(dim)
        self.flow_head = Linear(dim, out_dim, rngs=rngs)

    def __call__(
        self,
        tokens: Float[Array, "b m s i"],
        precision: Precision,
        num_frames: Int[Array, " b"] | None = None,
    ) -> Float[Array, "b m s o"]:
        b, m, s, _ = tokens.shape
        points = self.input_transform(self.input_norm(tokens), precision)
        virtual = self.virtual_tracks[...][:, None]
        virtual = jnp.broadcast_to(virtual, (b, virtual.shape[0], s, virtual.shape[-1]))
        num_tracks = m + virtual.shape[1]
        lengths = None if num_frames is None else jnp.repeat(num_frames, num_tracks)

        def layer(x, blocks):
            time, virtual_to_point, virtual_self, point_to_virtual = blocks

            def along_time(xs):
                x, lengths = xs
                return time(x, precision, lengths)

            def within_frame(x):
                points, virtual = x[:, :m], x[:, m:]
                virtual = virtual_self(virtual_to_point(virtual, points, precision), precision)
                points = point_to_virtual(points, virtual, precision)
                return jnp.concatenate([points, virtual], axis=1)

            c = x.shape[-1]
            if lengths is None:
                run, xs = lambda x: time(x, precision), x.reshape(-1, s, c)
            else:
                run, xs = along_time, (x.reshape(-1, s, c), lengths)
            x = map_chunks(run, xs, axis=0, max_chunk=_TOKENS_PER_CHUNK // s)
            x = x.reshape(b, num_tracks, s, c).swapaxes(1, 2).reshape(-1, num_tracks, c)
            x = map_chunks(within_frame, x, axis=0, max_chunk=_TOKENS_PER_CHUNK // num_tracks)
            return x.reshape(b, s, num_tracks, c).swapaxes(1, 2), None

        blocks = (
            self.time_blocks,
            self.space_virtual2point_blocks,
            self.space_virtual_blocks,
            self.space_point2virtual_blocks,
        )
        x, _ = jax.lax.scan(layer, jnp.concatenate([points, virtual], axis=1), blocks)
        return self.flow_head(self.output_norm(x[:, :m] + points), precision)
