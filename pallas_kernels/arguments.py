"""What several functions of the package ask of their arguments, in the same words."""

import jax
import jax.numpy as jnp
from jax.core import Tracer

from pallas_kernels.blocks import count_blocks
from pallas_kernels.key_mask import KEYS_PER_WORD

DTYPES = (jnp.float32, jnp.bfloat16, jnp.float16)


def check_kv_lengths(kv_lengths, num_kv_blocks: int):
    """Raises ValueError unless there is one whole number, or one for each block of keys."""
    if kv_lengths is not None and jnp.shape(kv_lengths) not in ((), (num_kv_blocks,)):
        raise ValueError(
            f"kv_lengths must be one number or one for each of {num_kv_blocks} key blocks, "
            f"not of shape {jnp.shape(kv_lengths)}"
        )
    if kv_lengths is not None and not jnp.issubdtype(jnp.result_type(kv_lengths), jnp.integer):
        raise ValueError(f"kv_lengths must be whole numbers, not {jnp.result_type(kv_lengths)}")


def on_device(numbers, *, beside: jax.Array):
    """Numbers of a call as arrays, moved explicitly: `jax.transfer_guard` can forbid other ways.

    Where `beside` is traced they stay what they are, and become constants of its program.
    """
    return numbers if isinstance(beside, Tracer) else jax.device_put(numbers)


def check_key_bias(key_bias, *, heads: int, keys: int):
    """Raises ValueError unless it is float32 and has a number for each head and key."""
    if key_bias is None:
        return
    if jnp.shape(key_bias) != (heads, keys):
        raise ValueError(
            f"key_bias must be [n kv], one number for each of {heads} heads and {keys} keys, not "
            f"of shape {jnp.shape(key_bias)}"
        )
    if jnp.result_type(key_bias) != jnp.float32:
        raise ValueError(f"key_bias must be float32, not {jnp.result_type(key_bias)}")


def check_key_mask(key_mask, *, rows: tuple[int, ...], keys: int):
    """Raises ValueError unless it has a bit for each head, block of queries and key."""
    if key_mask is None:
        return
    expected = (*rows, count_blocks(keys, KEYS_PER_WORD))
    if jnp.shape(key_mask) != expected or jnp.result_type(key_mask) != jnp.uint32:
        raise ValueError(
            f"key_mask must be uint32 {expected} for {rows} heads and query blocks and {keys} "
            f"keys, as pack_key_mask makes it, not {jnp.result_type(key_mask)} "
            f"{jnp.shape(key_mask)}"
        )


def checked_scale(scale: float | None, head_dim: int) -> float:
    """The scale of the scores, `1 / sqrt(head_dim)` by default; ValueError unless positive."""
    scale = float(head_dim**-0.5 if scale is None else scale)
    if not 0 < scale < float("inf"):
        raise ValueError(f"{scale=} must be a positive number")
    return scale
