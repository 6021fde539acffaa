"""One vector for each block of tokens."""

from typing import Literal

import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels.blocks import leading

PoolMode = Literal["avg", "max"]


def pool(
    x: Float[Array, "t n h"], tokens: Int[Array, " blocks"], block: int, mode: PoolMode
) -> Float[Array, "n blocks h"]:
    """The mean or maximum of each block over its leading tokens that count, in float32.

    Blocks without any are zero.
    """
    t, n, h = x.shape
    num_blocks = tokens.shape[0]
    x = jnp.pad(x, ((0, num_blocks * block - t), (0, 0), (0, 0)))
    x = x.reshape(num_blocks, block, n, h).astype(jnp.float32)
    counts = leading(tokens, block)[..., None, None]
    if mode == "avg":
        total = jnp.sum(jnp.where(counts, x, 0.0), axis=1)
        pooled = total / jnp.maximum(tokens, 1).astype(jnp.float32)[:, None, None]
    else:
        pooled = jnp.max(jnp.where(counts, x, -jnp.inf), axis=1)
        pooled = jnp.where((tokens > 0)[:, None, None], pooled, 0.0)
    return pooled.swapaxes(0, 1)
