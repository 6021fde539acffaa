"""Layer normalisation against its formula in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from vggt_jax.layers.norm import GroupNorm, LayerNorm, normalize

apply = jax.jit(lambda norm, x: norm(x))
normalize = jax.jit(normalize, static_argnames="eps")


def oracle(x, eps):
    x = np.asarray(x, np.float64)
    variance = x.var(axis=-1, keepdims=True)  # over the number of channels, not one less
    return (x - x.mean(axis=-1, keepdims=True)) / np.sqrt(variance + eps)


# A spread of 1e-3 has a variance of 1e-6, where the eps of the two kinds of norm differ by far.
@pytest.mark.parametrize("eps", [1e-5, 1e-6])
@pytest.mark.parametrize("spread", [1.0, 1e-3])
def test_equals_the_formula(eps, spread, randomised):
    rng = np.random.default_rng(0)
    x = (0.1 + spread * rng.normal(size=(3, 5, 7))).astype(np.float32)
    norm = randomised(lambda rngs: LayerNorm(7, eps=eps))
    scale, bias = np.asarray(norm.scale[...]), np.asarray(norm.bias[...])
    # Values of 0.1 and their mean are rounded to 1e-8, which is 1e-5 of the smaller spread.
    np.testing.assert_allclose(apply(norm, x), oracle(x, eps) * scale + bias, atol=1e-4)
    np.testing.assert_allclose(normalize(x, eps=eps), oracle(x, eps), atol=1e-4)


def test_the_usual_eps():
    x = (1e-3 * np.random.default_rng(1).normal(size=(3, 5, 7))).astype(np.float32)
    found = jax.jit(lambda x: LayerNorm(7)(x))(x)
    np.testing.assert_allclose(found, oracle(x, 1e-5), atol=1e-5)


def test_a_large_mean_does_not_drown_the_variance():
    x = jnp.asarray(1000 + np.random.default_rng(2).normal(size=(4, 64)), jnp.float32)
    # Values near 1000 are rounded to 6e-5; the mean of squares would be off by one unit in 1e6.
    np.testing.assert_allclose(normalize(x, eps=1e-6), oracle(x, 1e-6), atol=1e-3)


def test_bfloat16_is_normalised_in_float32():
    x = jnp.asarray(np.random.default_rng(3).normal(size=(2, 33)), jnp.bfloat16)
    found = normalize(x, eps=1e-6)
    assert found.dtype == jnp.float32
    np.testing.assert_allclose(found, oracle(x, 1e-6), atol=1e-5)


def test_equal_channels_become_zero():
    x = np.full((4, 64), 3.0, np.float32)
    np.testing.assert_array_equal(normalize(x, eps=1e-6), 0.0)


def test_group_norm_takes_all_pixels_of_a_group_of_channels():
    x = np.random.default_rng(0).normal(2, 3, (2, 3, 5, 6)).astype(np.float32)
    norm = GroupNorm(3, 6)
    norm.scale[...] = jnp.arange(1, 7, dtype=jnp.float32)
    norm.bias[...] = jnp.full(6, 0.5, jnp.float32)
    groups = x.astype(np.float64).reshape(2, 15, 3, 2)
    mean, variance = (f(groups, axis=(1, 3), keepdims=True) for f in (np.mean, np.var))
    expected = ((groups - mean) / np.sqrt(variance + 1e-5)).reshape(x.shape) * np.arange(1, 7) + 0.5
    np.testing.assert_allclose(norm(jnp.asarray(x)), expected, rtol=0, atol=1e-5)
