import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vggt_jax.layers.resize import resize_bilinear


@pytest.mark.parametrize("size", [(5, 7), (11, 13), (3, 2), (1, 1)])
def test_gradient_is_the_transpose(size):
    rng = np.random.default_rng(0)
    x = jnp.asarray(rng.normal(size=(2, 5, 7, 3)), jnp.float32)
    gradient = jnp.asarray(rng.normal(size=(2, *size, 3)), jnp.float32)
    _y, back = jax.vjp(lambda x: resize_bilinear(x, *size), x)
    # The map is linear: <gradient, A direction> is <A^T gradient, direction> for every direction.
    (found,) = back(gradient)
    for i in np.ndindex(1, 5, 7, 1):
        direction = jnp.zeros_like(x).at[i].set(1.0)
        expected = jnp.vdot(gradient, resize_bilinear(direction, *size))
        assert found[i] == pytest.approx(float(expected), abs=1e-5)


def test_gradient_keeps_the_type():
    x = jnp.ones((1, 2, 2, 1), jnp.bfloat16)
    gradient = jax.grad(lambda x: resize_bilinear(x, 5, 5).sum())(x)
    assert gradient.dtype == jnp.bfloat16
    assert gradient.astype(jnp.float32).sum() == pytest.approx(25, rel=0.02)
