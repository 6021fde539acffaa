"""The perceptron of transformer blocks and its activation."""

import math

import jax
import jax.numpy as jnp
import numpy as np

from vggt_jax.layers.mlp import Mlp, gelu
from vggt_jax.layers.precision import Precision


def exact(x):
    return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))


def test_gelu_is_the_exact_one():
    x = np.linspace(-6, 6, 401, dtype=np.float32)
    found = np.asarray(gelu(jnp.asarray(x)), np.float64)
    expected = np.asarray([exact(float(value)) for value in x])
    # Rounding of erf, 6e-8, times |x| / 2; the approximation by tanh is off by 5e-4.
    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-6)


def test_gelu_keeps_the_type_and_computes_in_float32():
    x = jnp.asarray([-2.5, -0.75, 0.5, 3.0], jnp.bfloat16)
    found = gelu(x)
    assert found.dtype == jnp.bfloat16
    expected = jnp.asarray([exact(float(value)) for value in x], jnp.bfloat16)
    np.testing.assert_array_equal(np.asarray(found), np.asarray(expected))


def test_two_layers_with_an_activation_between(randomised):
    mlp = randomised(lambda rngs: Mlp(5, 7, 3, rngs=rngs))
    (kernel1, bias1), (kernel2, bias2) = (
        (np.asarray(layer.kernel[...]), np.asarray(layer.bias[...])) for layer in (mlp.fc1, mlp.fc2)
    )
    x = np.random.default_rng(1).normal(size=(2, 4, 5)).astype(np.float32)
    hidden = np.vectorize(exact)(x.astype(np.float64) @ kernel1 + bias1)
    precision = Precision.from_compute_dtype(jnp.float32)
    found = jax.jit(lambda mlp, x: mlp(x, precision))(mlp, x)
    np.testing.assert_allclose(found, hidden @ kernel2 + bias2, rtol=1e-5, atol=1e-5)


def test_the_width_out_is_the_width_in_unless_given(randomised):
    assert randomised(lambda rngs: Mlp(5, 7, rngs=rngs)).fc2.kernel.shape == (7, 5)
