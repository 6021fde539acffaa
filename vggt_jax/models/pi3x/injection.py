"""How known poses are shown to the trunk of Pi3X: attention whose tokens carry their cameras.

Half of the channels of a head go through the 4x4 matrix of their frame's camera, so that scores and
results depend on the relative pose of two frames alone (GTA, arXiv:2310.10375; official files:
pi3/models/layers/block.py, PoseInjectBlock, and pi3/models/layers/prope.py). The others turn with
the column and the row of the patch, values included.
"""

from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from flax import nnx
from jaxtyping import Array, Bool, Float, Int

from vggt_jax import geometry
from vggt_jax.layers.attention import Dense, dense_attention
from vggt_jax.layers.block import Block, scaled
from vggt_jax.layers.chunking import update_chunks
from vggt_jax.layers.precision import Precision
from vggt_jax.layers.shards import FrameShards, of_all

_BASE_FREQUENCY = 100.0  # official file: pi3/models/layers/prope.py


class Turns(NamedTuple):
    """What patches of a scene are turned by.

    Attributes:
        camera_from_world, world_from_camera: of each frame.
        cos, sin: of each patch of a frame, for its column and its row.
    """

    camera_from_world: Float[Array, "b s 4 4"]
    world_from_camera: Float[Array, "b s 4 4"]
    cos: Float[np.ndarray, "p 2 f"]
    sin: Float[np.ndarray, "p 2 f"]

    @classmethod
    def of(
        cls, poses: Float[Array, "b s 4 4"], places: Int[np.ndarray, "p 2"], head_dim: int
    ) -> "Turns":
        """For poses (world_from_camera) and the (y, x) of patches, which count from 0."""
        num = head_dim // 8
        frequencies = np.float32(_BASE_FREQUENCY) ** (
            -np.arange(num, dtype=np.float32) / np.float32(num)
        )
        angles = places[:, ::-1, None].astype(np.float32) * frequencies  # x, then y
        return cls(geometry.invert_rigid(poses), poses, np.cos(angles), np.sin(angles))

    def queries(self, q: Float[Array, "b s p n h"]) -> Float[Array, "b s p n h"]:
        """Queries, float32."""
        return self._turn(q, jnp.swapaxes(self.camera_from_world, -1, -2), 1)

    def keys(self, k: Float[Array, "b s p n h"]) -> Float[Array, "b s p n h"]:
        """Keys or values, float32."""
        return self._turn(k, self.world_from_camera, 1)

    def results(self, x: Float[Array, "b s p n h"]) -> Float[Array, "b s p n h"]:
        """What queries attended to, in their own coordinates again, float32."""
        return self._turn(x, self.camera_from_world, -1)

    def _turn(self, x, matrix, sign: int):
        x = x.astype(jnp.float32)
        half = x.shape[-1] // 2
        points = x[..., :half].reshape(*x.shape[:-1], half // 4, 4)
        # Written out: products of matrices would round differently by device.
        of_column = lambda i: matrix[:, :, None, None, None, :, i] * points[..., i, None]
        moved = of_column(0) + of_column(1) + of_column(2) + of_column(3)
        pairs = x[..., half:].reshape(*x.shape[:-1], 2, 2, half // 4)  # [.., axis, member, f]
        first, second = pairs[..., 0, :], pairs[..., 1, :]
        cos, sin = (t[None, None, :, None] for t in (self.cos, np.float32(sign) * self.sin))
        turned = jnp.stack(
            [cos * first + sin * second, cos * second - sin * first], axis=-2
        ).reshape(*x.shape[:-1], half)
        return jnp.concatenate([moved.reshape(turned.shape), turned], axis=-1)


class PoseInjection(nnx.Module):
    """Blocks that show known poses to the patches of a scene, one after each of some layers."""

    def __init__(self, blocks: Block):
        self.blocks = blocks

    def __call__(
        self,
        index: Int[Array, ""],
        tokens: Float[Array, "b s p c"],
        poses: Float[Array, "b s 4 4"],
        shown: Bool[Array, "b s"],
        positions: Int[np.ndarray, "p2 2"],
        *,
        num_special: int,
        dense: Dense,
        precision: Precision,
        frames_per_chunk: int,
        shards: FrameShards | None = None,
    ) -> Float[Array, "b s p c"]:
        """Adds what a block makes of the patches of the frames whose poses are shown.

        Args:
            index: of the block.
            tokens: of all frames; special ones first, and padding behind what `positions` tell of.
            positions: see `TokenLayout.positions`, in the order of the tokens.
            shards: see `SceneAttention.attend`; tokens and poses are those of this device.
        """
        block = jax.tree.map(lambda x: x[index], self.blocks)
        p = len(positions)
        patches = slice(num_special, p)
        attended = self._attend(
            block,
            tokens[:, :, patches],
            poses,
            shown,
            positions[patches] - 1,
            dense,
            precision,
            shards,
        )

        def add(tokens, attended, shown):
            x = tokens[:, :, patches]
            branch = block.attn.output(attended, precision).astype(x.dtype)
            added = scaled(block.ls1, branch)
            # Of the tokens as they were, not of what attention added to them.
            branch = block.mlp(block.norm2(x), precision, implementation=dense.around)
            added += scaled(block.ls2, branch.astype(x.dtype))
            zero = jnp.zeros((), x.dtype)
            x = x + jnp.where(shown[:, :, None, None], added, zero)
            return jax.lax.dynamic_update_slice_in_dim(tokens, x, num_special, axis=2)

        return update_chunks(add, tokens, attended, shown, axis=1, max_chunk=frames_per_chunk)

    def _attend(self, block, x, poses, shown, places, dense, precision, shards):
        """What patches of frames whose poses are shown see of each other."""
        b, s, p, c = x.shape
        num_heads = block.attn.num_heads
        turns = Turns.of(poses, places, c // num_heads)
        q, k, v = block.before(x, None, precision, implementation=dense.around)
        q, k, v = (
            turn(y).astype(y.dtype).reshape(b, s * p, num_heads, -1)
            for turn, y in ((turns.queries, q), (turns.keys, k), (turns.keys, v))
        )
        k, v, shown = (of_all(shards, y) for y in (k, v, shown))
        # Frames without a pose are hidden, but where no frame has one: keys must be left, and
        # results do not count.
        seen = shown | ~jnp.any(shown, axis=1, keepdims=True)
        bias = jnp.where(seen, jnp.float32(0), jnp.float32(-jnp.inf))
        bias = jnp.broadcast_to(bias[:, None, :, None], (b, num_heads, shown.shape[1], p))
        attended = dense_attention(
            q,
            k,
            v,
            key_bias=bias.reshape(b, num_heads, -1),
            precision=precision.matmul,
            implementation=_with_bias(dense),
        )
        attended = attended.reshape(b, s, p, num_heads, -1)
        return turns.results(attended).astype(attended.dtype)


def _with_bias(dense: Dense):
    """cuDNN's attention takes no bias for each key, which hides frames here."""
    return None if dense.implementation == "cudnn" else dense.implementation
