"""Which types products run in."""

import jax
import jax.numpy as jnp
import pytest

from vggt_jax.layers.precision import Precision


def test_float32_is_the_parity_mode():
    precision = Precision.from_compute_dtype("float32")
    assert precision == Precision(jnp.dtype(jnp.float32), jax.lax.Precision.HIGHEST)
    assert precision.heads == precision


def test_bfloat16_leaves_the_heads_in_float32():
    precision = Precision.from_compute_dtype(jnp.bfloat16)
    assert precision == Precision(jnp.dtype(jnp.bfloat16), jax.lax.Precision.DEFAULT)
    assert precision.heads == Precision(jnp.dtype(jnp.float32), jax.lax.Precision.DEFAULT)


@pytest.mark.parametrize(("backend", "dtype"), [("cpu", jnp.float32), ("gpu", jnp.bfloat16)])
def test_the_default_follows_the_device(backend, dtype, monkeypatch):
    monkeypatch.setattr(jax, "default_backend", lambda: backend)
    assert Precision.from_compute_dtype(None) == Precision.from_compute_dtype(dtype)


@pytest.mark.parametrize("dtype", ["float16", "float64", "int32"])
def test_other_types_are_refused(dtype):
    with pytest.raises(ValueError, match=rf"compute_dtype={dtype} is not supported \(float32, bf"):
        Precision.from_compute_dtype(dtype)
