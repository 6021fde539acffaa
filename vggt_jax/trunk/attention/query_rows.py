"""Whole blocks of queries for each of the devices that divide the frames of a scene."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from pallas_kernels.blocks import count_blocks
from vggt_jax.layers.shards import FrameShards


@dataclasses.dataclass(frozen=True)
class QueryRows:
    """The blocks of queries that are a device's: those that begin with a token of its frames.

    Frames are no whole blocks. So the tokens before its first block go to the device before, and
    those that its last block lacks come from the next: blocks are those of a single device.

    Attributes:
        shards: the devices.
        num_tokens: tokens of each.
        block: tokens in a block; no more than a device has.
    """

    shards: FrameShards
    num_tokens: int
    block: int

    def __post_init__(self):
        if self.num_tokens < self.block:
            raise ValueError(
                f"{self.num_tokens} patches on each of {self.shards.num} devices, fewer than "
                f"block_q={self.block}; use fewer devices or Dense()"
            )

    @property
    def num_rows(self) -> int:
        """Blocks that a device has at most."""
        return count_blocks(self.num_tokens, self.block)

    def _num_before(self):
        """Tokens of this device that are of a block of the device before."""
        return -self.shards.first(self.num_tokens) % np.int32(self.block)

    def count(self, num_tokens: int | Int[Array, ""]) -> Int[Array, ""]:
        """How many leading queries of the blocks of this device count, if so many of all do."""
        first = self.shards.first(self.num_tokens)
        up = lambda x: x + -x % np.int32(self.block)
        start, end = up(first), up(first + np.int32(self.num_tokens))
        return jnp.maximum(jnp.minimum(jnp.int32(num_tokens), end) - start, 0)

    def whole(self, x: Float[Array, "t n h"]) -> Float[Array, "rows n h"]:
        """Queries in the blocks of this device, from those of its frames."""
        last = self.shards.num - 1
        to_previous = [(i + 1, i) for i in range(last)]
        following = jax.lax.ppermute(x[: self.block], self.shards.axis, to_previous)
        x = jnp.concatenate([x, following, jnp.zeros_like(following)])
        length = self.num_rows * self.block
        return jax.lax.dynamic_slice_in_dim(x, self._num_before(), length)

    def back(self, x: Float[Array, "rows n h"]) -> Float[Array, "t n h"]:
        """Results of the frames of this device, from those of its blocks."""
        num_before, block = self._num_before(), self.block
        padding = jnp.zeros((block, *x.shape[1:]), x.dtype)
        x = jnp.concatenate([padding, x, padding])
        of = lambda start, length: jax.lax.dynamic_slice_in_dim(x, start, length)
        own = of(block - num_before, self.num_tokens)
        after = of(block + self.num_tokens - num_before, block)
        to_next = [(i, i + 1) for i in range(self.shards.num - 1)]
        before = jax.lax.ppermute(after, self.shards.axis, to_next)
        is_before = jnp.arange(block, dtype=jnp.int32)[:, None, None] < num_before
        return own.at[:block].set(jnp.where(is_before, before, own[:block]))
