"""Bilinear resampling whose corners coincide (PyTorch's `align_corners=True`)."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def resize_bilinear(
    x: Float[Array, "b h w c"], height: int, width: int
) -> Float[Array, "b h2 w2 c"]:
    """Resizes images so that corner pixels keep their values (`jax.image.resize` cannot)."""
    return _resize_axis(_resize_axis(x, width, axis=2), height, axis=1)


def _resize_axis(x, size: int, *, axis: int):
    old = x.shape[axis]
    if size == old:
        return x
    # PyTorch computes source positions in float32 as well.
    scale = np.float32((old - 1) / (size - 1)) if size > 1 else np.float32(0)
    position = np.arange(size, dtype=np.float32) * scale
    low = np.minimum(position.astype(np.int32), old - 1)
    high = np.minimum(low + 1, old - 1)
    weight = np.expand_dims(position - low, [d for d in range(x.ndim) if d != axis])
    return (1 - weight) * jnp.take(x, low, axis, mode="clip") + weight * jnp.take(
        x, high, axis, mode="clip"
    )
