"""Which key blocks each query block attends to."""

import dataclasses
import functools
from typing import Self

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

from pallas_kernels.blocks import argsort, count_blocks, leading


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockMap:
    """For each head and query block, the list of key blocks that it attends to.

    Query block `i` holds the tokens `i * block_q` up to `(i + 1) * block_q`, the last one those
    that remain; key blocks likewise. A pytree: the arrays are its leaves, the sizes are static.
    Under `jax.vmap` the arrays gain leading axes.

    Attributes:
        indices: the kept key blocks of each row, packed at its start. Their order means nothing,
            none stands twice, and what lies behind the first `counts` entries is never read.
        counts: how many entries of each row are kept; 0 for a row that attends to nothing.
        num_kv_blocks: how many key blocks there are.
        block_q, block_k: tokens in a query block and in a key block.
    """

    indices: Int[Array, "*batch n qb capacity"]
    counts: Int[Array, "*batch n qb"]
    num_kv_blocks: int = dataclasses.field(metadata={"static": True})
    block_q: int = dataclasses.field(metadata={"static": True})
    block_k: int = dataclasses.field(metadata={"static": True})

    @classmethod
    def from_dense_mask(
        cls, mask: Bool[Array, "*batch n qb kb"], *, block_q: int, block_k: int
    ) -> Self:
        """The map that keeps what `mask` marks.

        The capacity is the largest count of any row, or all key blocks where `mask` is traced and
        the counts are not known.
        """
        kept = mask if isinstance(mask, Tracer) else np.asarray(mask)
        if kept.ndim < 3 or kept.dtype != bool:
            raise ValueError(f"mask must be bool [... n qb kb], not {kept.dtype} {kept.shape}")
        num_kv_blocks = kept.shape[-1]
        dtype = index_dtype(num_kv_blocks)
        # A stable sort brings the kept blocks to the front and leaves them in order.
        if isinstance(kept, np.ndarray):
            capacity = max(1, int(kept.sum(-1).max(initial=0)))
            order = np.argsort(~kept, axis=-1, stable=True)[..., :capacity]
            arrays = order.astype(dtype), kept.sum(-1, dtype=np.int32)
            # Explicitly, since `jax.transfer_guard` can forbid other ways.
            indices, counts = jax.device_put(arrays)
        else:
            indices = argsort(~kept).astype(dtype)
            counts = jnp.sum(kept, axis=-1, dtype=jnp.int32)
        return cls(
            indices=indices,
            counts=counts,
            num_kv_blocks=num_kv_blocks,
            block_q=block_q,
            block_k=block_k,
        )

    @classmethod
    def full(
        cls, num_heads: int, q_length: int, kv_length: int, *, block_q: int = 128, block_k: int = 64
    ) -> Self:
        """The map that keeps every block, for `q_length` queries and `kv_length` keys."""
        rows = (num_heads, count_blocks(q_length, block_q))
        num_kv_blocks = count_blocks(kv_length, block_k)
        indices = jnp.arange(num_kv_blocks, dtype=index_dtype(num_kv_blocks))
        return cls(
            indices=jnp.broadcast_to(indices, (*rows, num_kv_blocks)),
            counts=jnp.full(rows, num_kv_blocks, jnp.int32),
            num_kv_blocks=num_kv_blocks,
            block_q=block_q,
            block_k=block_k,
        )

    @property
    def num_heads(self) -> int:
        return self.indices.shape[-3]

    @property
    def num_q_blocks(self) -> int:
        return self.indices.shape[-2]

    @property
    def capacity(self) -> int:
        """How many key blocks a row has room for."""
        return self.indices.shape[-1]

    def to_dense_mask(self) -> Bool[Array, "*batch n qb kb"]:
        """True where a query block attends to a key block."""
        live = leading(self.counts, self.capacity)
        mask = functools.partial(_scatter_row, self.num_kv_blocks)
        for _ in self.counts.shape:
            mask = jax.vmap(mask)
        return mask(self.indices, live)

    def density(self) -> Float[Array, "*batch"]:
        """The share of all pairs of blocks that is kept, in [0, 1]."""
        return jnp.mean(self.counts.astype(jnp.float32) / self.num_kv_blocks, axis=(-1, -2))

    def keeps_same_blocks(self, other: Self) -> Bool[Array, ""]:
        """Whether both keep the same blocks, in whatever order they list them."""
        sizes = lambda m: (m.counts.shape, m.num_kv_blocks, m.block_q, m.block_k)
        if sizes(self) != sizes(other):
            return jnp.array(False)
        return jnp.array_equal(self.to_dense_mask(), other.to_dense_mask())


def index_dtype(num_kv_blocks: int) -> jnp.dtype:
    """The smallest type for indices of key blocks; lists are the bulk of a map's memory."""
    return jnp.dtype(jnp.int16 if num_kv_blocks <= 2**15 else jnp.int32)


def _scatter_row(num_kv_blocks, indices, live):
    return jnp.zeros(num_kv_blocks, bool).at[indices.astype(jnp.int32)].max(live)
