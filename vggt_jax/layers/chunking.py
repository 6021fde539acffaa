"""Running a function over an axis piece by piece, so that its temporaries stay small."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import PyTree


def map_chunks(
    fn: Callable[[PyTree], PyTree], xs: PyTree, *, axis: int, max_chunk: int
) -> PyTree:
    """Equals `fn(xs)` for a `fn` that treats the slices along `axis` independently.

    Pieces are as even as possible and of one size, so that `fn` is compiled once: the last piece
    starts early and computes a few slices a second time, with the same result.

    Args:
        fn: maps arrays to arrays, all with the same size along `axis` as each other.
        xs: arrays that agree in size along `axis`.
        axis: the axis to cut, of the inputs and of the outputs; not negative.
        max_chunk: the largest size of a piece.
    """
    size = jax.tree.leaves(xs)[0].shape[axis]
    num_chunks = -(-size // max(1, max_chunk))
    if num_chunks <= 1:
        return fn(xs)
    chunk = -(-size // num_chunks)

    def piece(start):
        return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, chunk, axis), xs)

    def step(outputs, start):
        results = fn(piece(start))
        write = lambda out, y: jax.lax.dynamic_update_slice_in_dim(out, y, start, axis)
        return jax.tree.map(write, outputs, results), None

    shapes = jax.eval_shape(lambda: fn(piece(0)))
    outputs = jax.tree.map(
        lambda y: jnp.zeros((*y.shape[:axis], size, *y.shape[axis + 1 :]), y.dtype), shapes
    )
    starts = jnp.minimum(jnp.arange(num_chunks) * chunk, size - chunk)
    return jax.lax.scan(step, outputs, starts)[0]
