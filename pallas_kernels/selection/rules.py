"""Rules of selection as values: which key blocks a block of queries keeps, given pooled scores.

A rule ranks the blocks of a row and says how many of the highest it keeps. Another one is another
subclass of `Rule`; it needs no word elsewhere.
"""

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Bool, Float, Int

# One number, or one for each head.
OfHeads = float | Float[Array | np.ndarray, "..."]

# Added to a threshold by the paper's code, against rounding of cumulative sums
# (sparse_vggt/utils/sparse_wrapper.py, get_block_mask).
_THRESHOLD_EPS = 1e-5


class Stripe(NamedTuple):
    """Rows of scores that a rule is asked about: some heads, and some rows of each.

    Attributes:
        scores: scaled products of pooled queries and keys, float32.
        takes_part: which key blocks the rule chooses from: those with tokens that are no sinks.
        num_blocks: how many these are.
        num_sink_blocks: how many leading key blocks are sinks.
        first_head, first_row: of `scores`, among all.
    """

    scores: Float[Array, "n r kb"]
    takes_part: Bool[Array, " kb"]
    num_blocks: Int[Array, ""]
    num_sink_blocks: int
    first_head: Int[Array, ""]
    first_row: Int[Array, ""]

    def of_heads(self, x: Array | np.ndarray) -> Array:
        """The entries for the heads of `scores`, of an array for all heads."""
        return lax.dynamic_slice_in_dim(jnp.asarray(x), self.first_head, self.scores.shape[0])


class Limits(NamedTuple):
    """What a rule keeps of a stripe: the highest in rank, the larger number of two, at least one.

    Attributes:
        num_kept: how many blocks, for each head or for each row.
        probability: as many as have a cumulative probability up to this, in the softmax of what
            they are ranked by; for each head, or None.
        ranked: what blocks are ranked by, the highest first, of equal ones the one with the lower
            index; None for the scores.
    """

    num_kept: Int[Array, " n"] | Int[Array, "n r"]
    probability: Float[Array, " n"] | None = None
    ranked: Float[Array, "n r kb"] | None = None


class Rule:
    """How many blocks each row keeps, and by which ranking. Subclasses are pytrees.

    Numbers are leaves, for which nothing is compiled anew; what is static shapes the program.
    """

    def prepare(self, num_blocks: int, num_heads: int) -> "tuple[Rule, int]":
        """The rule as the program takes it, with arrays for leaves, and the most blocks of a row.

        Called before anything is compiled, with the number of key blocks that are no sinks. By
        default the rule as it is, and all blocks.

        Raises:
            ValueError: numbers that do not fit.
        """
        del num_heads
        return self, num_blocks

    def limits(self, stripe: Stripe) -> Limits:
        """What is kept of some rows. It must not depend on how rows are cut into stripes.

        Asked of the rule that `prepare` gives.
        """
        raise NotImplementedError(f"{type(self).__name__} has no `limits`; give it that method")


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Ratio(Rule):
    """Of `kb` key blocks the `int(kb * (1 - sparse_ratio))` most probable.

    A ratio that is known when tracing is rounded as the paper's code rounds it, in float64; a
    traced one in float32.

    Attributes:
        sparse_ratio: the share of the blocks to leave out, in [0, 1]; one number, or one for each
            head.
    """

    sparse_ratio: OfHeads

    def prepare(self, num_blocks: int, num_heads: int) -> "tuple[ByHead, int]":
        ratio = _checked("sparse_ratio", self.sparse_ratio, num_heads)
        # The paper's code rounds in float64, where 10 * (1 - 0.9) is just below 1.
        xp, dtype = (jnp, jnp.float32) if isinstance(ratio, Tracer) else (np, np.float64)
        ratios = xp.broadcast_to(xp.asarray(ratio, dtype), num_heads)
        counts = xp.arange(num_blocks + 1, dtype=dtype)[None] * (1 - ratios[:, None])
        counts = counts.astype(np.int32)
        most = num_blocks if isinstance(counts, Tracer) else int(counts.max())
        return ByHead(counts, None), most


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class Mass(Rule):
    """The most probable blocks, as many as have a cumulative probability of a threshold at most.

    Attributes:
        cdf_threshold: in [0, 1], to which 1e-5 is added; one number, or one for each head.
    """

    cdf_threshold: OfHeads

    def prepare(self, num_blocks: int, num_heads: int) -> "tuple[ByHead, int]":
        threshold = _checked("cdf_threshold", self.cdf_threshold, num_heads)
        xp = jnp if isinstance(threshold, Tracer) else np
        thresholds = xp.broadcast_to(xp.asarray(threshold, np.float32), num_heads)
        return ByHead(np.zeros((num_heads, num_blocks + 1), np.int32), thresholds), num_blocks


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RatioOrMass(Rule):
    """Whichever of the two keeps more blocks of a row."""

    ratio: Ratio
    mass: Mass

    def prepare(self, num_blocks: int, num_heads: int) -> "tuple[ByHead, int]":
        by_ratio, _ = self.ratio.prepare(num_blocks, num_heads)
        by_mass, most = self.mass.prepare(num_blocks, num_heads)
        return ByHead(by_ratio.num_kept, by_mass.threshold), most


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RandomBaseline(Rule):
    """As many blocks as `Ratio` keeps, drawn at random: what any rule is to be measured against.

    The draw depends on the key, the head, the row and the block alone, so that a batch under
    `jax.vmap` shares it unless the keys differ.

    Attributes:
        sparse_ratio: as in `Ratio`.
        key: of `jax.random`.
    """

    sparse_ratio: OfHeads
    key: Array

    def prepare(self, num_blocks: int, num_heads: int) -> "tuple[RandomByHead, int]":
        by_ratio, most = Ratio(self.sparse_ratio).prepare(num_blocks, num_heads)
        return RandomByHead(by_ratio.num_kept, None, self.key), most


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class ByHead(Rule):
    """A number of blocks and a probability for each head: what `Ratio` and `Mass` become.

    Attributes:
        num_kept: of 0, 1, ... blocks that take part.
        threshold: of the cumulative probability, or None.
    """

    num_kept: Int[Array | np.ndarray, "n kb+1"]
    threshold: Float[Array | np.ndarray, " n"] | None

    def limits(self, stripe: Stripe) -> Limits:
        num_kept = stripe.of_heads(jnp.asarray(self.num_kept)[:, stripe.num_blocks])
        if self.threshold is None:
            return Limits(num_kept)
        return Limits(num_kept, stripe.of_heads(self.threshold + _THRESHOLD_EPS))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class RandomByHead(ByHead):
    """`ByHead` with random numbers for the ranking."""

    key: Array

    def limits(self, stripe: Stripe) -> Limits:
        return super().limits(stripe)._replace(ranked=_random_numbers(self.key, stripe))


def _random_numbers(key, stripe: Stripe) -> Float[Array, "n r kb"]:
    """A random number for each pair of blocks: the same however rows are cut into stripes."""
    heads, rows, num_blocks = stripe.scores.shape
    num_sink_blocks = stripe.num_sink_blocks

    def of_row(head, row):
        of_row = jax.random.fold_in(jax.random.fold_in(key, head), row)
        # Counted behind the sinks, so that more of them draw no other blocks.
        return jax.random.uniform(of_row, (num_blocks - num_sink_blocks,), jnp.float32)

    of_rows = jax.vmap(jax.vmap(of_row, (None, 0)), (0, None))
    count_from = lambda start, size: start + jnp.arange(size, dtype=jnp.int32)
    numbers = of_rows(count_from(stripe.first_head, heads), count_from(stripe.first_row, rows))
    return jnp.pad(numbers, ((0, 0), (0, 0), (num_sink_blocks, 0)))


def _checked(name: str, value: Any, num_heads: int) -> Any:
    """A number in [0, 1], or one for each head: as it is if traced, else in float64."""
    if not isinstance(value, Tracer):
        value = np.asarray(jax.device_get(value), np.float64)
    if jnp.shape(value) not in ((), (num_heads,)):
        raise ValueError(
            f"{name} must be one number or one for each of the {num_heads} heads, "
            f"not of shape {jnp.shape(value)}"
        )
    if not isinstance(value, Tracer) and not np.all((0 <= value) & (value <= 1)):
        raise ValueError(f"{name}={value} must be in [0, 1]")
    return value
