"""Running a function over an axis chunk by chunk, so that its temporaries stay small."""

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Array, PyTree


def map_chunks(fn: Callable[[PyTree], PyTree], xs: PyTree, *, axis: int, max_chunk: int) -> PyTree:
    """Equals `fn(xs)` for a `fn` that treats the slices along `axis` independently.

    Chunks are as even as possible and of one size, so that `fn` is compiled once. If they do not
    divide the whole, the last chunk starts early and computes a few slices a second time, with the
    same result.

    Args:
        fn: maps arrays to arrays, all with the same size along `axis` as each other.
        xs: arrays that agree in size along `axis`.
        axis: the axis to cut, of the inputs and of the outputs; not negative.
        max_chunk: the largest size of a chunk.
    """
    size = jax.tree.leaves(xs)[0].shape[axis]
    chunk, starts = _cut(size, max_chunk)
    if chunk == size:
        return fn(xs)

    def step(outputs, start):
        results = fn(_slice(xs, start, chunk, axis))
        write = lambda out, y: jax.lax.dynamic_update_slice_in_dim(out, y, start, axis)
        return jax.tree.map(write, outputs, results), None

    shapes = jax.eval_shape(lambda: fn(_slice(xs, 0, chunk, axis)))
    outputs = jax.tree.map(
        lambda y: jnp.zeros((*y.shape[:axis], size, *y.shape[axis + 1 :]), y.dtype), shapes
    )
    return jax.lax.scan(step, outputs, starts)[0]


def update_chunks(
    fn: Callable[..., Array], x: Array, *others: PyTree, axis: int, max_chunk: int
) -> Array:
    """Equals `fn(x, *others)`, where the result replaces `x` in place, as in a residual stream.

    Unlike `map_chunks` this needs no second array of the size of `x`.

    Args:
        fn: treats slices along `axis` independently; its result is shaped like its first argument.
        x, others: arrays, the others also trees of them, that agree in size along `axis`.
        axis, max_chunk: as for `map_chunks`.
    """
    size = x.shape[axis]
    chunk, starts = _cut(size, max_chunk)
    if chunk == size:
        return fn(x, *others)

    def step(x, start_and_first_new):
        start, first_new = start_and_first_new
        before = _slice(x, start, chunk, axis)
        result = fn(before, *_slice(others, start, chunk, axis))
        if size % chunk:  # the last chunk begins with slices that are replaced already
            shape = [chunk if d == axis else 1 for d in range(x.ndim)]
            is_new = (start + jnp.arange(chunk, dtype=jnp.int32) >= first_new).reshape(shape)
            result = jnp.where(is_new, result, before)
        return jax.lax.dynamic_update_slice_in_dim(x, result, start, axis), None

    first_new = chunk * jnp.arange(len(starts), dtype=jnp.int32)
    return jax.lax.scan(step, x, (starts, first_new))[0]


def _cut(size: int, max_chunk: int):
    """Size of the chunks and where they start.

    Chunks that divide the whole compute no slice twice, so they may be up to a third more. Where
    there are none, the last chunk reaches back to be as long as the others.
    """
    fewest = -(-size // max(1, max_chunk))
    divisors = (n for n in range(fewest, 4 * fewest // 3 + 1) if size % n == 0)
    num_chunks = next(divisors, fewest)
    chunk = -(-size // num_chunks)
    return chunk, jnp.minimum(chunk * jnp.arange(num_chunks, dtype=jnp.int32), size - chunk)


def _slice(xs, start, chunk: int, axis: int):
    return jax.tree.map(lambda x: jax.lax.dynamic_slice_in_dim(x, start, chunk, axis), xs)
