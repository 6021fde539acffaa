"""One row of a selection: which key blocks a query block keeps, given their scores and limits.

Written for one row in operations that Triton has too, so that one text serves both implementations.
Triton's arrays have powers of two for sizes, so a row comes as a tuple of arrays, one after
another.
"""

import functools
import operator

import jax.numpy as jnp
from jax import lax
from jaxtyping import Array, Bool, Float, Int

_LOWEST = float(jnp.finfo(jnp.float32).min)
_HIGHEST = float(jnp.finfo(jnp.float32).max)

FloatRow = tuple[Float[Array, " _"], ...]
BoolRow = tuple[Bool[Array, " _"], ...]
IntRow = tuple[Int[Array, " _"], ...]


def keep_blocks(
    scores: FloatRow,
    valid: BoolRow,
    num_kept: Int[Array, ""],
    probability: Float[Array, ""] | None,
) -> tuple[BoolRow, Float[Array, ""]]:
    """The most probable blocks: `num_kept`, or as many as reach `probability` without passing it.

    The larger of the two, and always one. Probability is the softmax of the scores over the valid
    blocks. Of blocks with equal scores, those with the lower index come first.

    Nothing is sorted. The kept blocks are those at or above some score, and fewer blocks stand
    above a higher score, so bisection finds it: every step counts and weighs what stands above the
    middle, and the search ends when one block is left between both ends, after some 15 steps.

    Args:
        scores: pooled scores. NaN counts as the lowest number, infinities as the largest.
        valid: which blocks take part.
        num_kept: at least 1.
        probability: in [0, 1], or None for no such rule.

    Returns:
        Which blocks are kept, and their probability.
    """
    scores = each(_finite_or_out, scores, valid)
    top = _max(scores)
    bottom = -_max(each(lambda s: jnp.where(s > -jnp.inf, -s, -jnp.inf), scores))
    masses = each(lambda s: jnp.where(s > -jnp.inf, jnp.exp(s - top), 0.0), scores)
    total = _sum(masses)

    def mass_where(mask):
        return _sum(each(lambda here, mass: jnp.where(here, mass, 0.0), mask, masses))

    def allowed(level):
        """Whether all blocks with this score or a higher one may be kept, and how many they are."""
        above = each(lambda s: s >= level, scores)
        count = count_in(above)
        fits = count <= num_kept
        if probability is not None:
            fits |= mass_where(above) <= probability * total
        return fits, count

    # All blocks from `high` up are kept, `low` is not reached, and each has so many blocks above
    # it.
    all_fit, num_valid = allowed(bottom)
    top_fits, num_top = allowed(top)
    high = jnp.where(all_fit, bottom, jnp.where(top_fits, top, jnp.inf))
    num_high = jnp.where(all_fit, num_valid, jnp.where(top_fits, num_top, jnp.int32(0)))
    low = jnp.where(top_fits, bottom, top)
    num_low = jnp.where(top_fits, num_valid, num_top)

    def middle(low, high):
        return 0.5 * low + 0.5 * high

    def unfinished(bounds):
        low, high, num_low, num_high = bounds
        mid = middle(low, high)
        return (num_low - num_high > 1) & (low < mid) & (mid < high) & (high < jnp.inf)

    def halve(bounds):
        low, high, num_low, num_high = bounds
        mid = middle(low, high)
        fits, count = allowed(mid)
        return (
            jnp.where(fits, low, mid),
            jnp.where(fits, mid, high),
            jnp.where(fits, num_low, count),
            jnp.where(fits, count, num_high),
        )

    _, high, _, count = lax.while_loop(unfinished, halve, (low, high, num_low, num_high))

    # What stands next below has one score. If several blocks share it, some of them may still fit.
    above = each(lambda s: s >= high, scores)
    tie = _max(each(lambda here, s: jnp.where(here, -jnp.inf, s), above, scores))
    tied = each(lambda s, v: v & (s == tie), scores, valid)
    num_tied = count_in(tied)
    mass_above = mass_where(above)
    tie_mass = jnp.exp(tie - top)
    room = num_kept - count
    if probability is not None:
        by_mass = (probability * total - mass_above) / jnp.maximum(tie_mass, 1e-37)
        by_mass = jnp.clip(jnp.where(tie_mass > 0, by_mass, 0.0), 0.0, num_tied.astype(jnp.float32))
        room = jnp.maximum(room, by_mass.astype(jnp.int32))
    room = jnp.clip(room, 0, jnp.maximum(num_tied - 1, 0))
    room = jnp.where(count + room == 0, jnp.minimum(num_tied, 1), room)
    first_tied = lax.cond(
        room > 0,
        lambda: each(
            lambda t, rank: (t & (rank <= room)).astype(jnp.int32), tied, running_count(tied)
        ),
        lambda: each(lambda t: jnp.zeros(t.shape, jnp.int32), tied),
    )
    kept = each(lambda v, here, first: v & (here | (first > 0)), valid, above, first_tied)
    mass = mass_above + jnp.where(room > 0, tie_mass * room.astype(jnp.float32), 0.0)
    return kept, jnp.where(total > 0, mass / jnp.maximum(total, 1e-37), 0.0)


def keep_row(
    scores: FloatRow,
    tokens: IntRow,
    num_kept: Int[Array, ""],
    probability: Float[Array, ""] | None,
    *,
    num_sink_blocks: int,
    capacity: int,
    may_overflow: bool,
) -> tuple[BoolRow, Float[Array, ""], Int[Array, ""]]:
    """`keep_blocks`, with the sinks added and the result cut to the capacity.

    Args:
        tokens: how many tokens of each key block count; blocks without any are never kept.
        num_sink_blocks: how many leading blocks are kept in any case.
        capacity: the most blocks that a row can hold.
        may_overflow: whether the rule can ask for more than that.

    Returns:
        Which blocks are kept; the probability kept among the blocks that are no sinks; and how many
        blocks the rule asked for in vain.
    """
    sinks = valid = each(lambda t: t > 0, tokens)
    if num_sink_blocks:
        is_sink = each(lambda block: block < num_sink_blocks, positions(scores))
        sinks = each(lambda v, sink: v & sink, valid, is_sink)
        valid = each(lambda v, sink: v & ~sink, valid, is_sink)
    kept, retained = keep_blocks(scores, valid, num_kept, probability)
    missing = jnp.int32(0)
    if may_overflow:
        room = jnp.int32(capacity) - (count_in(sinks) if num_sink_blocks else 0)
        missing = jnp.maximum(count_in(kept) - room, 0)
        as_int = lambda row: each(lambda part: part.astype(jnp.int32), row)

        def cut():
            fewer, retained = keep_blocks(scores, valid, room, None)
            return as_int(fewer), retained

        kept, retained = lax.cond(missing > 0, cut, lambda: (as_int(kept), retained))
        kept = each(lambda part: part > 0, kept)
    if num_sink_blocks:
        kept = each(operator.or_, kept, sinks)
    return kept, retained, missing


def each(function, *rows):
    """`function` of every part of the rows."""
    return tuple(function(*parts) for parts in zip(*rows, strict=True))


def positions(row) -> IntRow:
    """The index of every entry of a row."""
    starts = [sum(part.size for part in row[:i]) for i in range(len(row))]
    return tuple(
        start + lax.broadcasted_iota(jnp.int32, part.shape, 0)
        for start, part in zip(starts, row, strict=True)
    )


def count_in(row: BoolRow) -> Int[Array, ""]:
    return _sum(each(lambda part: part.astype(jnp.int32), row))


def running_count(row: BoolRow) -> IntRow:
    """Of every entry, how many up to and with it are true."""
    counts, before = [], jnp.int32(0)
    for part in row:
        count = jnp.cumsum(part.astype(jnp.int32), dtype=jnp.int32)
        counts.append(before + count)
        before = before + jnp.max(count)
    return tuple(counts)


def _finite_or_out(score, valid):
    score = jnp.where(score != score, _LOWEST, jnp.clip(score, _LOWEST, _HIGHEST))
    return jnp.where(valid, score, -jnp.inf)


def _sum(row):
    return functools.reduce(operator.add, [jnp.sum(part, dtype=part.dtype) for part in row])


def _max(row):
    return functools.reduce(jnp.maximum, [jnp.max(part) for part in row])
