import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vggt_jax.layers.resize import resize_bilinear


@pytest.mark.parametrize("size", [(11, 3), pytest.param((1, 7), marks=pytest.mark.slow)])
def test_gradient_is_the_transpose(size):
    rng = np.random.default_rng(0)
    x = rng.normal(size=(2, 5, 7, 3)).astype(np.float32)
    weights = rng.normal(size=(2, *size, 3)).astype(np.float32)
    resize = lambda x: resize_bilinear(x, *size)
    found = np.asarray(jax.jit(lambda x, weights: jax.vjp(resize, x)[1](weights)[0])(x, weights))
    # The map is linear, <weights, A direction> is <A^T weights, direction> for every direction, and no
    # image and no channel meets another: the directions of one of them are a batch.
    directions = np.eye(5 * 7, dtype=np.float32).reshape(35, 5, 7, 1)
    resized = np.asarray(jax.jit(resize)(directions), np.float64)[..., 0]
    expected = np.einsum("byxc,pyx->bpc", weights, resized).reshape(x.shape)
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_gradient_keeps_the_type():
    x = np.ones((1, 2, 2, 1), jnp.bfloat16)
    gradient = jax.jit(jax.grad(lambda x: resize_bilinear(x, 5, 5).sum()))(x)
    assert gradient.dtype == jnp.bfloat16
    assert np.asarray(gradient, np.float32).sum() == pytest.approx(25, rel=0.02)
