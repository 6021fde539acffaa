"""The primitive around kernel calls, with a plain function in place of the kernel."""

import functools
import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.experimental import pallas as pl
from jax.extend.core import Primitive
from jax.interpreters import batching, mlir

from pallas_kernels.triton_call import triton_call

DEPRECATED = "The Pallas Triton backend is deprecated and will be removed in a future JAX version."

# Warns while a program is compiled, as kernels do.
_noisy_p = Primitive("noisy_identity")
_noisy_p.def_abstract_eval(lambda x, *, text: x)


def _lower_noisily(ctx, x, *, text):
    warnings.warn(text, DeprecationWarning, stacklevel=2)
    return [x]


def _batch_noisily(args, axes, *, text):
    return _noisy_p.bind(*args, text=text), *axes


mlir.register_lowering(_noisy_p, _lower_noisily)
batching.primitive_batchers[_noisy_p] = _batch_noisily


@pytest.fixture
def call(monkeypatch):
    """`triton_call` of a plain function of two arrays, which gives two."""
    monkeypatch.setattr(pl, "pallas_call", lambda kernel, **options: kernel)
    return functools.partial(triton_call, num_warps=4, num_stages=2, interpret=False)


def sum_and_outer(x, y):
    return [x + y, x[:, None] * y]


@pytest.fixture
def arrays(draw):
    return draw(0, (3, 5, 7), (3, 5, 7))


def assert_all_equal(found, expected):
    for a, b in zip(found, expected, strict=True):
        np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_call(call, arrays, transform):
    x, y = (np.asarray(a)[0, 0] for a in arrays)
    assert_all_equal(transform(call(sum_and_outer))(x, y), (x + y, x[:, None] * y))


@pytest.mark.parametrize("transform", [lambda f: f, jax.jit], ids=["eager", "jit"])
def test_vmap(call, arrays, transform):
    x, y = map(np.asarray, arrays)
    found = transform(jax.vmap(jax.vmap(call(sum_and_outer))))(x, y)
    assert_all_equal(found, (x + y, x[..., None] * y[..., None, :]))
    # Axes elsewhere, and an argument that all share.
    found = transform(jax.vmap(call(sum_and_outer), in_axes=(1, None)))(x[0].T, y[0, 0])
    assert_all_equal(found, (x[0] + y[0, 0], x[0][..., None] * y[0, 0]))
    found = transform(jax.vmap(call(sum_and_outer), in_axes=(None, 0), out_axes=-1))(x[0, 0], y[0])
    expected = (x[0, 0] + y[0], x[0, 0][:, None] * y[0][:, None])
    assert_all_equal(found, (np.moveaxis(a, 0, -1) for a in expected))


def test_shapes_are_known_without_running(call):
    x = jax.ShapeDtypeStruct((5,), jnp.bfloat16)
    outs = jax.eval_shape(call(sum_and_outer), x, x)
    assert [(out.shape, out.dtype) for out in outs] == [((5,), "bfloat16"), ((5, 5), "bfloat16")]


def warns_with(text):
    return lambda x, y: [_noisy_p.bind(x, text=text), y]


@pytest.mark.parametrize("vectorize", [lambda f: f, jax.vmap], ids=["one", "batch"])
def test_deprecation_is_not_told(call, vectorize):
    x = jnp.ones((3, 5))
    noisy = warns_with(DEPRECATED)
    with pytest.warns(DeprecationWarning, match="Triton"):  # without the primitive
        jax.jit(vectorize(noisy)).lower(x, x)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        jax.jit(vectorize(call(noisy))).lower(x, x).compile()
        vectorize(call(noisy))(x, x)
    assert caught == []


def test_other_warnings_are_told(call):
    x = jnp.ones((3, 5))
    for text in ("Something else of Pallas is deprecated", "Beware: " + DEPRECATED):
        with pytest.warns(DeprecationWarning, match="deprecated"):
            jax.jit(call(warns_with(text))).lower(x, x)


def test_filters_are_left_as_they_were(call):
    x = jnp.ones((3, 5))
    before = list(warnings.filters)
    jax.jit(call(warns_with(DEPRECATED))).lower(x, x)
    assert list(warnings.filters) == before


def test_interpreted_calls_are_left_alone(arrays):
    def kernel(x_ref, out_ref):
        out_ref[...] = 2 * x_ref[...]

    x, _ = arrays
    shape = jax.ShapeDtypeStruct(x.shape, x.dtype)
    call = triton_call(kernel, num_warps=1, num_stages=1, interpret=True, out_shape=shape)
    np.testing.assert_array_equal(call(x), 2 * x)
