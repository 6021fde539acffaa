"""Arithmetic on blocks of tokens, shared by selection and attention."""

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Int


def count_blocks(length: int, block: int) -> int:
    return -(-length // block)


def next_power_of_2(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def tokens_per_block(
    kv_lengths: int | Int[Array, "..."] | None, length: int, block: int
) -> Int[Array, " kb"]:
    """How many leading tokens of each block count.

    `kv_lengths`: None for all `length` tokens, a number for the leading ones, or the count of each
    block, which is cut to the tokens that exist.
    """
    starts = block * jnp.arange(count_blocks(length, block), dtype=jnp.int32)
    exist = jnp.clip(length - starts, 0, block)
    if kv_lengths is None:
        return exist
    kv_lengths = jnp.asarray(kv_lengths, jnp.int32)
    if kv_lengths.ndim == 0:
        kv_lengths = kv_lengths - starts
    return jnp.clip(kv_lengths, 0, exist)


def tokens_that_count(
    tokens: Int[Array, " kb"], length: int, block: int
) -> Bool[Array, " {length}"]:
    """Which of `length` tokens count, given how many of each block do."""
    which_block, place = jnp.divmod(jnp.arange(length, dtype=jnp.int32), block)
    return place < tokens[which_block]


def argsort(x: Array) -> Int[Array, "..."]:
    """`jnp.argsort` along the last axis, stable, with int32 indices whatever JAX's integers are."""
    places = lax.broadcasted_iota(jnp.int32, x.shape, x.ndim - 1)
    return lax.sort((x, places), num_keys=1)[1]


def leading(counts: Int[Array, "*rows"], size: int) -> Bool[Array, "*rows {size}"]:
    """Which of the `size` entries of each row are among its first `counts`."""
    places = lax.broadcasted_iota(jnp.int32, (*counts.shape, size), counts.ndim)
    return places < counts[..., None].astype(jnp.int32)
