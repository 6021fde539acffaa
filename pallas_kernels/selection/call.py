"""The arguments of a selection as backends take them, and its result."""

import dataclasses
import warnings

import jax
from jaxtyping import Array, Float, Int

from pallas_kernels.block_map import BlockMap
from pallas_kernels.blocks import count_blocks
from pallas_kernels.selection.pooling import PoolMode
from pallas_kernels.selection.rules import Rule


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockSelection:
    """What `select_blocks` found.

    Attributes:
        block_map: the kept blocks.
        retained_mass: for each row, the probability of the kept blocks in the pooled softmax, in
            [0, 1]; sinks take no part in that softmax. 0 for query blocks without tokens.
        entropy: for each row, that of the pooled softmax in nats, whatever is kept: 0 where one
            block has all of it, the logarithm of their number where all are alike. 0 for query
            blocks without tokens.
        density: for each head, the share of the pairs of blocks that is kept, of those that have
            tokens; sinks included.
        missing: for each row, how many blocks the rule asked for that the capacity has no room for.
    """

    block_map: BlockMap
    retained_mass: Float[Array, "*batch n qb"]
    entropy: Float[Array, "*batch n qb"]
    density: Float[Array, "*batch n"]
    missing: Int[Array, "*batch n qb"]

    @property
    def covered(self) -> Float[Array, "*batch n qb"]:
        """Deprecated name of `retained_mass`."""
        warnings.warn(
            "BlockSelection.covered is now called retained_mass", DeprecationWarning, stacklevel=2
        )
        return self.retained_mass


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class SelectionCall:
    """See `select_blocks`.

    Attributes:
        rule: prepared (`Rule.prepare`).
        capacity: room for blocks in a row.
        may_overflow: whether the rule can ask for more.
        score_block_q: queries that are pooled into one vector, a part of a block of them.
        max_score_bytes: scores that exist at any one time.
    """

    q: Float[Array, "t n h"]
    k: Float[Array, "kv n h"]
    rule: Rule
    q_length: int | Int[Array, ""] | None
    kv_lengths: int | Int[Array, "..."] | None
    scale: float | Float[Array, ""]
    pool_mode: PoolMode = dataclasses.field(metadata={"static": True})
    block_q: int = dataclasses.field(metadata={"static": True})
    block_k: int = dataclasses.field(metadata={"static": True})
    score_block_q: int = dataclasses.field(metadata={"static": True})
    num_sink_blocks: int = dataclasses.field(metadata={"static": True})
    capacity: int = dataclasses.field(metadata={"static": True})
    may_overflow: bool = dataclasses.field(metadata={"static": True})
    max_score_bytes: int = dataclasses.field(metadata={"static": True})

    @property
    def num_kv_blocks(self) -> int:
        return count_blocks(self.k.shape[0], self.block_k)
