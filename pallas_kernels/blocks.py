"""Arithmetic on blocks of tokens, shared by selection and attention."""

import jax.numpy as jnp
from jaxtyping import Array, Bool, Int


def count_blocks(length: int, block: int) -> int:
    return -(-length // block)


def next_power_of_2(n: int) -> int:
    return 1 << max(0, n - 1).bit_length()


def check_kv_lengths(kv_lengths, num_kv_blocks: int):
    """Raises ValueError unless there is one whole number, or one for each block of keys."""
    if kv_lengths is not None and jnp.shape(kv_lengths) not in ((), (num_kv_blocks,)):
        raise ValueError(
            f"kv_lengths must be one number or one for each of {num_kv_blocks} key blocks, "
            f"not of shape {jnp.shape(kv_lengths)}"
        )
    if kv_lengths is not None and not jnp.issubdtype(jnp.result_type(kv_lengths), jnp.integer):
        raise ValueError(f"kv_lengths must be whole numbers, not {jnp.result_type(kv_lengths)}")


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
    which_block, place = jnp.divmod(jnp.arange(length), block)
    return place < tokens[which_block]
