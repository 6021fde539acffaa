"""Linear, convolution and upsampling against explicit loops in float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from flax import nnx

from vggt_jax.layers.linear import Conv, Linear, Upsample
from vggt_jax.layers.precision import Precision

FLOAT32 = Precision.from_compute_dtype(jnp.float32)
BFLOAT16 = Precision.from_compute_dtype(jnp.bfloat16)

apply = jax.jit(lambda layer, x, precision: layer(x, precision), static_argnums=2)


def parameters(layer):
    return np.asarray(layer.kernel[...]), 0.0 if layer.bias is None else np.asarray(layer.bias[...])


def draw(*shape):
    return np.random.default_rng(9).normal(size=shape).astype(np.float32)


def test_linear(randomised):
    layer = randomised(lambda rngs: Linear(5, 3, rngs=rngs))
    kernel, bias = parameters(layer)
    x = draw(2, 7, 5)
    expected = x.astype(np.float64) @ kernel + bias
    np.testing.assert_allclose(apply(layer, x, FLOAT32), expected, rtol=1e-5, atol=1e-5)


def test_bfloat16_rounds_operands_and_result_but_not_the_sum(randomised):
    layer = randomised(lambda rngs: Linear(3000, 3, rngs=rngs))
    x = draw(2, 3000)
    found = apply(layer, x, BFLOAT16)
    assert found.dtype == jnp.bfloat16
    rounded = lambda x: np.asarray(jnp.asarray(x, jnp.bfloat16), np.float64)
    kernel, bias = map(rounded, parameters(layer))
    exact = rounded(x) @ kernel
    # Product and sum with the bias are each rounded to 8 bits, by up to 2^-8 of their size.
    limit = 2**-8 * (np.abs(exact) + np.abs(exact + bias)) + 1e-4
    assert np.all(np.abs(np.asarray(found, np.float64) - (exact + bias)) <= limit)


@pytest.mark.parametrize(
    ("kernel_size", "stride", "use_bias"), [(3, 1, False), (3, 2, True), (1, 1, True)]
)
def test_convolution(kernel_size, stride, use_bias, randomised):
    layer = randomised(
        lambda rngs: Conv(4, 3, kernel_size, stride=stride, use_bias=use_bias, rngs=rngs)
    )
    kernel, bias = parameters(layer)
    x = draw(2, 5, 6, 4)
    border = kernel_size // 2
    padded = np.pad(x, ((0, 0), (border, border), (border, border), (0, 0))).astype(np.float64)
    expected = np.empty((2, -(-5 // stride), -(-6 // stride), 3))
    for i, j in np.ndindex(*expected.shape[1:3]):
        y, x0 = i * stride, j * stride
        window = padded[:, y : y + kernel_size, x0 : x0 + kernel_size]
        expected[:, i, j] = np.einsum("bhwi,hwio->bo", window, kernel) + bias
    np.testing.assert_allclose(apply(layer, x, FLOAT32), expected, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("factor", [2, pytest.param(4, marks=pytest.mark.slow)])
def test_upsampling_makes_a_tile_of_every_pixel(factor, randomised):
    layer = randomised(lambda rngs: Upsample(5, 3, factor, rngs=rngs))
    kernel, bias = parameters(layer)
    x = draw(2, 3, 4, 5)
    expected = np.empty((2, 3 * factor, 4 * factor, 3))
    for i, j in np.ndindex(*expected.shape[1:3]):
        pixel = x[:, i // factor, j // factor].astype(np.float64)
        expected[:, i, j] = pixel @ kernel[:, i % factor, j % factor] + bias
    np.testing.assert_allclose(apply(layer, x, FLOAT32), expected, rtol=1e-5, atol=1e-5)


def test_fresh_kernels_are_small_and_biases_zero():
    kernel, bias = parameters(jax.jit(lambda: Linear(60, 50, rngs=nnx.Rngs(0)))())
    assert not bias.any()
    assert np.abs(kernel).max() <= 0.04  # cut at two standard deviations
    np.testing.assert_allclose(kernel.std(), 0.02 * 0.88, rtol=0.05)  # of the normal, cut there


def test_convolution_beyond_the_border_sees_the_nearest_pixel():
    conv = Conv(2, 3, padding="edge", rngs=nnx.Rngs(0))
    x = jnp.asarray(np.random.default_rng(0).normal(size=(1, 4, 5, 2)), jnp.float32)
    larger = jnp.pad(x, ((0, 0), (3, 3), (3, 3), (0, 0)), mode="edge")
    zeros = Conv(2, 3, rngs=nnx.Rngs(0))  # the same kernel
    expected = zeros(larger, FLOAT32)[:, 3:-3, 3:-3]
    np.testing.assert_allclose(conv(x, FLOAT32), expected, rtol=0, atol=1e-6)
