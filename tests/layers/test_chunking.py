"""Functions run over an axis piece by piece, against the functions run whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vggt_jax.layers.chunking import map_chunks, update_chunks

SIZES = [(1, 1), (7, 1), (7, 2), (7, 3), (7, 6), (7, 7), (7, 100), (8, 3), (12, 5), (7, 0)]


def draw(*shape, seed=0):
    """Small whole numbers, so that sums and products are exact however they are compiled."""
    return jnp.asarray(np.random.default_rng(seed).integers(-9, 10, shape), jnp.float32)


@pytest.mark.parametrize(("size", "max_chunk"), SIZES)
@pytest.mark.parametrize("axis", [0, 1])
def test_mapped_chunks_equal_the_whole(size, max_chunk, axis):
    shape = (size, 3, 2) if axis == 0 else (3, size, 2)
    xs = {"a": draw(*shape), "b": draw(*shape[:2], seed=1)}
    sizes = []

    def fn(xs):
        sizes.append(xs["a"].shape[axis])
        # The results differ from the arguments in rank, width and type.
        return xs["a"].sum(-1) * xs["b"], jnp.repeat(xs["b"][..., None] > 0, 5, axis=-1)

    expected = fn(xs)
    sizes.clear()
    found = map_chunks(fn, xs, axis=axis, max_chunk=max_chunk)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert [x.dtype for x in found] == [jnp.float32, jnp.bool_]
    assert max(sizes) <= max(1, max_chunk)


@pytest.mark.parametrize(("size", "max_chunk"), SIZES)
@pytest.mark.parametrize("axis", [0, 1])
def test_updated_chunks_equal_the_whole(size, max_chunk, axis):
    shape = (size, 3, 2) if axis == 0 else (3, size, 2)
    x, other = draw(*shape), draw(*shape[:2], seed=1)
    sizes = []

    def fn(x, other):
        sizes.append(x.shape[axis])
        # Not idempotent: a slice that is computed twice from its own result shows.
        return 3 * x + other[..., None]

    found = update_chunks(fn, x, other, axis=axis, max_chunk=max_chunk)
    assert max(sizes) <= max(1, max_chunk)
    np.testing.assert_array_equal(found, fn(x, other))


@pytest.mark.parametrize(
    ("size", "max_chunk", "expected"),
    # 6 and not 10 with 1 left over; 4 pieces of 5 where 3 of 7 would compute a slice twice; 4 of 9
    # where only many more would divide the whole.
    [(11, 10, 6), (20, 7, 5), (33, 10, 9)],
)
def test_pieces_are_even_and_divide_the_whole_if_they_can(size, max_chunk, expected):
    sizes = []

    def fn(x):
        sizes.append(len(x))
        return x

    map_chunks(fn, jnp.zeros((size, 2)), axis=0, max_chunk=max_chunk)
    assert set(sizes) == {expected}


def test_what_fits_is_not_cut():
    x = draw(5, 2)
    assert map_chunks(lambda x: x, x, axis=0, max_chunk=5) is x
    assert update_chunks(lambda x, y: x, x, x, axis=0, max_chunk=5) is x


@pytest.mark.parametrize("max_chunk", [2, 3, 7])
def test_gradients_pass(max_chunk):
    x, other = draw(7, 3), draw(7, 3, seed=1)
    fn = lambda x, other: jnp.sin(x) * other
    whole = jax.grad(lambda *xs: jnp.sum(fn(*xs) ** 2), argnums=(0, 1))(x, other)
    mapped = jax.grad(
        lambda *xs: jnp.sum(map_chunks(lambda xs: fn(*xs), xs, axis=0, max_chunk=max_chunk) ** 2),
        argnums=(0, 1),
    )(x, other)
    updated = jax.grad(
        lambda *xs: jnp.sum(update_chunks(fn, *xs, axis=0, max_chunk=max_chunk) ** 2),
        argnums=(0, 1),
    )(x, other)
    for found in (mapped, updated):
        for a, b in zip(found, whole, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
