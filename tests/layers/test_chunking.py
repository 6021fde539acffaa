"""Functions run over an axis piece by piece, against the functions run whole."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vggt_jax.layers.chunking import map_chunks, update_chunks

# Size, the largest piece, and the axis. Pieces that divide the whole and that do not, of one slice, and
# a whole that is not cut.
SIZES = [(7, 3, 0), (7, 6, 1), (12, 5, 1), (7, 0, 0), (8, 8, 1)]


def draw(*shape, seed=0):
    """Small whole numbers, so that sums and products are exact however they are compiled."""
    return np.random.default_rng(seed).integers(-9, 10, shape).astype(np.float32)


@pytest.mark.parametrize(("size", "max_chunk", "axis"), SIZES)
def test_mapped_chunks_equal_the_whole(size, max_chunk, axis):
    shape = (size, 3, 2) if axis == 0 else (3, size, 2)
    xs = {"a": draw(*shape), "b": draw(*shape[:2], seed=1)}
    sizes = []

    def fn(xs):
        sizes.append(xs["a"].shape[axis])
        # The results differ from the arguments in rank, width and type.
        return xs["a"].sum(-1) * xs["b"], jnp.repeat(xs["b"][..., None] > 0, 5, axis=-1)

    found = jax.jit(lambda xs: map_chunks(fn, xs, axis=axis, max_chunk=max_chunk))(xs)
    expected = xs["a"].sum(-1) * xs["b"], np.repeat(xs["b"][..., None] > 0, 5, axis=-1)
    jax.tree.map(np.testing.assert_array_equal, found, expected)
    assert [x.dtype for x in found] == [jnp.float32, jnp.bool_]
    assert max(sizes) <= max(1, max_chunk)


@pytest.mark.parametrize(("size", "max_chunk", "axis"), SIZES)
def test_updated_chunks_equal_the_whole(size, max_chunk, axis):
    shape = (size, 3, 2) if axis == 0 else (3, size, 2)
    x, other = draw(*shape), draw(*shape[:2], seed=1)
    sizes = []

    def fn(x, other):
        sizes.append(x.shape[axis])
        # Not idempotent: a slice that is computed twice from its own result shows.
        return 3 * x + other[..., None]

    cut = lambda x, other: update_chunks(fn, x, other, axis=axis, max_chunk=max_chunk)
    found = jax.jit(cut)(x, other)
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

    jax.eval_shape(lambda x: map_chunks(fn, x, axis=0, max_chunk=max_chunk), np.zeros((size, 2)))
    assert set(sizes) == {expected}


def test_what_fits_is_not_cut():
    x = jnp.asarray(draw(5, 2))
    assert map_chunks(lambda x: x, x, axis=0, max_chunk=5) is x
    assert update_chunks(lambda x, y: x, x, x, axis=0, max_chunk=5) is x


@pytest.mark.parametrize("max_chunk", [2, pytest.param(3, marks=pytest.mark.slow)])
def test_gradients_pass(max_chunk):
    x, other = draw(7, 3), draw(7, 3, seed=1)
    fn = lambda x, other: jnp.sin(x) * other

    @jax.jit
    def gradients(x, other):
        cut = {"axis": 0, "max_chunk": max_chunk}
        ways = [
            fn,
            lambda *xs: map_chunks(lambda xs: fn(*xs), xs, **cut),
            lambda *xs: update_chunks(fn, *xs, **cut),
        ]
        loss = lambda way: lambda *xs: jnp.sum(way(*xs) ** 2)
        return [jax.grad(loss(way), argnums=(0, 1))(x, other) for way in ways]

    whole, *others = gradients(x, other)
    for found in others:
        for a, b in zip(found, whole, strict=True):
            np.testing.assert_allclose(a, b, rtol=1e-6, atol=1e-6)
