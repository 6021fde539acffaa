"""Which keys each block of queries leaves out, one bit each."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, UInt32

from pallas_kernels.blocks import count_blocks

KEYS_PER_WORD = 32


def pack_key_mask(hidden: Bool[Array, "*rows kv"]) -> UInt32[Array, "*rows words"]:
    """Bits for `block_sparse_attention(key_mask=...)`, 32 keys to a word, the first the lowest.

    Args:
        hidden: which keys are left out; by head and block of queries.
    """
    *rows, keys = hidden.shape
    words = count_blocks(keys, KEYS_PER_WORD)
    hidden = jnp.pad(hidden, [(0, 0)] * len(rows) + [(0, words * KEYS_PER_WORD - keys)])
    bits = hidden.reshape(*rows, words, KEYS_PER_WORD).astype(jnp.uint32)
    place = np.arange(KEYS_PER_WORD, dtype=np.uint32)
    return jnp.sum(bits << place, axis=-1, dtype=jnp.uint32)


def unpack_key_mask(mask: UInt32[Array, "*rows words"], keys: int) -> Bool[Array, "*rows kv"]:
    """Which keys are left out, of so many."""
    place = np.arange(KEYS_PER_WORD, dtype=np.uint32)
    bits = (mask[..., None] >> place) & np.uint32(1)
    return bits.reshape(*mask.shape[:-1], -1)[..., :keys].astype(bool)
