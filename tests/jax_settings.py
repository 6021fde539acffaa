"""Settings of JAX that programs choose, for the tests that run under them."""

import contextlib

import jax


@contextlib.contextmanager
def strict_types():
    """64-bit types, strict promotion of types, and of ranks: what all allow, each of them does."""
    with (
        jax.enable_x64(True),
        jax.numpy_dtype_promotion("strict"),
        jax.numpy_rank_promotion("raise"),
    ):
        yield
