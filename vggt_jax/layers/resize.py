"""Bilinear resampling whose corners coincide (PyTorch's `align_corners=True`)."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def resize_bilinear(
    x: Float[Array, "b h w c"], height: int, width: int
) -> Float[Array, "b h2 w2 c"]:
    """Resizes images so that corner pixels keep their values (`jax.image.resize` cannot)."""
    return _resize_axis(_resize_axis(x, width, 2), height, 1)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2))
def _resize_axis(x, size: int, axis: int):
    old = x.shape[axis]
    if size == old:
        return x
    low, high, weight = _neighbours(old, size)
    weight = np.expand_dims(weight, tuple(d for d in range(x.ndim) if d != axis))
    at = lambda index: jnp.take(x, index, axis, mode="clip").astype(jnp.float32)
    return (1 - weight) * at(low) + weight * at(high)


def _neighbours(old: int, size: int):
    # PyTorch computes source positions in float32 as well.
    scale = np.float32((old - 1) / (size - 1)) if size > 1 else np.float32(0)
    position = np.arange(size, dtype=np.float32) * scale
    low = np.minimum(position.astype(np.int32), old - 1)
    return low, np.minimum(low + 1, old - 1), (position - low).astype(np.float32)


def _forward(x, size, axis):
    # An empty array carries the size and type of x into the backward pass.
    return _resize_axis(x, size, axis), jax.lax.slice_in_dim(x, 0, 0, axis=(axis + 1) % x.ndim)


def _backward(size, axis, empty, gradient):
    # The gradient of `take` would add at random places of memory, slowly and in no fixed order;
    # a small matrix does the same.
    old = empty.shape[axis]
    if size == old:
        return (gradient,)
    low, high, weight = _neighbours(old, size)
    matrix = np.zeros((size, old), np.float32)
    np.add.at(matrix, (np.arange(size), low), 1 - weight)
    np.add.at(matrix, (np.arange(size), high), weight)
    letters = "abcdefgh"[: gradient.ndim]
    result = letters.replace(letters[axis], "z")
    moved = jnp.einsum(f"{letters},{letters[axis]}z->{result}", gradient, matrix)
    return (moved.astype(empty.dtype),)


_resize_axis.defvjp(_forward, _backward)
