"""The perceptron of transformer blocks and its activation."""

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import pallas_kernels
from vggt_jax.layers.mlp import Mlp, SwiGlu
from vggt_jax.layers.precision import Precision


def exact(x):
    return 0.5 * x * (1 + math.erf(x / math.sqrt(2)))


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


@pytest.mark.parametrize(("implementation", "dtype"), [("xla", "float32"), (None, "bfloat16")])
@pytest.mark.parametrize(
    ("kind", "columns", "activation"), [(Mlp, 7, "gelu"), (SwiGlu, 14, "swiglu")]
)
def test_the_first_layer_and_its_activation_are_one_call(
    randomised, monkeypatch, kind, columns, activation, implementation, dtype
):
    mlp = randomised(lambda rngs: kind(5, 7, rngs=rngs))
    asked = []
    linear = pallas_kernels.linear

    def note(x, kernel, bias, **options):
        asked.append((kernel.shape, x.dtype, options["activation"], options["implementation"]))
        return linear(x, kernel, bias, **options)

    monkeypatch.setattr(pallas_kernels, "linear", note)
    precision = Precision.from_compute_dtype(dtype)
    jax.eval_shape(lambda x: mlp(x, precision, implementation=implementation), jnp.zeros((2, 5)))
    first, second = ((5, columns), dtype, activation, implementation), ((7, 5), dtype, None, "xla")
    assert asked == [first, second]
