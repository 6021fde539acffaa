"""Resampling as PyTorch does it: bilinear in both of its ways, and bicubic by factors that are not
those of the sizes."""

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float


def resize_bilinear(
    x: Float[Array, "b h w c"], height: int, width: int, *, align_corners: bool = True
) -> Float[Array, "b h2 w2 c"]:
    """Resizes images, without antialiasing.

    Args:
        align_corners: whether the centres of corner pixels coincide, so that those keep their
            values; otherwise the corners of the images do.
    """
    return _resize_axis(_resize_axis(x, width, 2, align_corners), height, 1, align_corners)


@functools.partial(jax.custom_vjp, nondiff_argnums=(1, 2, 3))
def _resize_axis(x, size: int, axis: int, align_corners: bool):
    old = x.shape[axis]
    if size == old:
        return x
    low, high, weight = _neighbours(old, size, align_corners)
    weight = np.expand_dims(weight, tuple(d for d in range(x.ndim) if d != axis))
    at = lambda index: jnp.take(x, index, axis, mode="clip").astype(jnp.float32)
    return (1 - weight) * at(low) + weight * at(high)


def _neighbours(old: int, size: int, align_corners: bool):
    # PyTorch computes source positions in float32 as well.
    position = np.arange(size, dtype=np.float32)
    if align_corners:
        position *= np.float32((old - 1) / (size - 1)) if size > 1 else np.float32(0)
    else:
        half = np.float32(0.5)
        position = np.maximum((position + half) * np.float32(old / size) - half, np.float32(0))
    low = np.minimum(position.astype(np.int32), old - 1)
    return low, np.minimum(low + 1, old - 1), (position - low).astype(np.float32)


def _forward(x, size, axis, align_corners):
    # An empty array carries the size and type of x into the backward pass.
    return _resize_axis(x, size, axis, align_corners), jax.lax.slice_in_dim(
        x, 0, 0, axis=(axis + 1) % x.ndim
    )


def _backward(size, axis, align_corners, empty, gradient):
    # The gradient of `take` would add at random places of memory, slowly and in no fixed order;
    # a small matrix does the same.
    old = empty.shape[axis]
    if size == old:
        return (gradient,)
    low, high, weight = _neighbours(old, size, align_corners)
    matrix = np.zeros((size, old), np.float32)
    np.add.at(matrix, (np.arange(size), low), 1 - weight)
    np.add.at(matrix, (np.arange(size), high), weight)
    letters = "abcdefgh"[: gradient.ndim]
    result = letters.replace(letters[axis], "z")
    moved = jnp.einsum(f"{letters},{letters[axis]}z->{result}", gradient, matrix)
    return (moved.astype(empty.dtype),)


_resize_axis.defvjp(_forward, _backward)


def resize_bicubic(
    x: Float[Array, "b h w c"], height: int, width: int, *, scales: Sequence[float]
) -> Float[Array, "b h2 w2 c"]:
    """Bicubic resampling without antialiasing, of images that go on as their border.

    Args:
        scales: by how much it enlarges, up and across: the new pixel `i` lies at
            `(i + 0.5) / scale - 0.5`, where `jax.image.resize` has the quotient of the sizes.
    """
    rows, columns = (
        _cubic_matrix(old, new, scale)
        for old, new, scale in zip(x.shape[1:3], (height, width), scales, strict=True)
    )
    highest = jax.lax.Precision.HIGHEST
    return jnp.einsum("yh,bhwc,xw->byxc", rows, x.astype(jnp.float32), columns, precision=highest)


def _cubic_matrix(old: int, new: int, scale: float) -> Float[np.ndarray, "new old"]:
    """The weights of the old pixels in each new one: four, by Keys' kernel with a = -0.75
    (PyTorch's; `jax.image.resize` has -0.5)."""
    a = -0.75
    position = (np.arange(new) + 0.5) / scale - 0.5
    first = np.floor(position).astype(int) - 1
    matrix = np.zeros((new, old))
    for tap in range(4):
        distance = np.abs(position - (first + tap))
        near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
        far = a * (((distance - 5) * distance + 8) * distance - 4)
        at = np.clip(first + tap, 0, old - 1)
        np.add.at(matrix, (np.arange(new), at), np.where(distance <= 1, near, far))
    return matrix.astype(np.float32)
