"""`select_blocks`: from queries and keys to the blocks that matter."""

import dataclasses
import functools
from typing import Literal, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from pallas_kernels import devices
from pallas_kernels.arguments import (
    check_implementation,
    check_kv_lengths,
    checked_scale,
    on_device,
)
from pallas_kernels.block_map import BlockMap, index_dtype
from pallas_kernels.blocks import count_blocks, leading, tokens_per_block
from pallas_kernels.selection.pooled_softmax import pooled_softmax
from pallas_kernels.selection.pooling import PoolMode

Implementation = Literal["triton", "xla"]

# Scores that exist at any one time, in bytes.
MAX_SCORE_BYTES = 128 * 2**20
# Key blocks of a row of the Triton kernel. More would not fit into the registers of the largest
# program.
_MAX_BLOCKS_OF_TRITON = 2**16
# Added to a threshold by the paper's code, against rounding of cumulative sums
# (sparse_vggt/utils/sparse_wrapper.py, get_block_mask).
_THRESHOLD_EPS = 1e-5


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class BlockSelection:
    """What `select_blocks` found.

    Attributes:
        block_map: the kept blocks.
        covered: for each row, the probability of the kept blocks in the pooled softmax, in [0, 1];
            sinks take no part in that softmax. 0 for query blocks without tokens.
        entropy: for each row, that of the pooled softmax in nats, whatever is kept: 0 where one
            block has all of it, the logarithm of their number where all are alike. 0 for query
            blocks without tokens.
        density: for each head, the share of the pairs of blocks that is kept, of those that have
            tokens; sinks included.
        missing: for each row, how many blocks the rule asked for that the capacity has no room for.
    """

    block_map: BlockMap
    covered: Float[Array, "*batch n qb"]
    entropy: Float[Array, "*batch n qb"]
    density: Float[Array, "*batch n"]
    missing: Int[Array, "*batch n qb"]


def select_blocks(
    q: Float[Array, "t n h"],
    k: Float[Array, "kv n h"],
    *,
    sparse_ratio: float | Float[Array, "..."] | None = None,
    cdf_threshold: float | Float[Array, "..."] | None = None,
    pool_mode: PoolMode = "avg",
    block_q: int = 128,
    block_k: int = 64,
    num_sink_blocks: int = 0,
    q_length: int | np.integer | Int[Array, ""] | None = None,
    kv_lengths: int | Int[Array, "..."] | None = None,
    scale: float | None = None,
    capacity: int | None = None,
    random_key: Array | None = None,
    implementation: Implementation | None = None,
    interpret: bool = False,
) -> BlockSelection:
    """Predicts from pooled queries and keys which key blocks each query block attends to.

    The rule of "Faster VGGT with Block-Sparse Global Attention" (arXiv 2509.07120): queries and
    keys are pooled by blocks, and `softmax(scale * pooled_q @ pooled_k.T)` over the key blocks says
    how much each matters. Of `kb` key blocks, a row keeps the most probable

    - `int(kb * (1 - sparse_ratio))`, if that is given;
    - as many as have a cumulative probability of at most `cdf_threshold + 1e-5`, if that is given;
    - the larger number, if both are given; and always at least one.

    All of it is done in float32 at full precision. Beyond the pooled vectors and the result, no
    more than 128 MiB of scores exist at a time. `jax.vmap` gives a batch, each with scores of its
    own. The choice has no gradient.

    Args:
        q, k: queries and keys as attention sees them, after normalisation and rotation.
        sparse_ratio, cdf_threshold: in [0, 1]; one number, or one for each head. Numbers that are
            known when tracing are rounded as the paper's code rounds them, in float64; a traced
            `sparse_ratio` is rounded in float32.
        pool_mode: "avg" or "max", over the tokens that count.
        block_q, block_k: tokens in a block.
        num_sink_blocks: so many leading key blocks are kept by every query block, beyond what the
            rule keeps, and take no part in it.
        q_length: how many leading queries count; None for all. Blocks without any keep nothing.
        kv_lengths: how many leading keys count, or for each key block how many of its leading keys
            do; None for all. Key blocks without any are never kept.
        scale: of the scores, a positive number known when tracing; `1 / sqrt(h)` by default.
        capacity: the most room for blocks in a row, sinks included. By default, and at most, there
            is room for whatever the rule can ask. With less, a row keeps the most probable blocks
            that find room, and `BlockSelection.missing` counts the others.
        random_key: of `jax.random`; each row keeps as many blocks as `sparse_ratio` says, but drawn
            by lot and not the most probable: what any rule is to be measured against. The draw
            depends on the key, the head, the row and the block alone, so that a batch under
            `jax.vmap` shares it unless the keys differ. `covered` and `entropy` still are of the
            pooled softmax.
        implementation: "triton" (NVIDIA GPUs), "xla" (any device), or None to choose by device. A
            name means that one or an error.
        interpret: run the Triton kernel in Pallas's interpreter, on any device, slowly.

    Raises:
        ValueError: arguments that no implementation could make sense of.
        NotImplementedError: the implementation named cannot do this here.
    """
    sparse_ratio, cdf_threshold = (
        x if isinstance(x, Tracer) else jax.device_get(x) for x in (sparse_ratio, cdf_threshold)
    )
    _check_arguments(q, k, sparse_ratio, cdf_threshold, pool_mode, block_q, block_k)
    if random_key is not None and (sparse_ratio is None or cdf_threshold is not None):
        raise ValueError("random blocks need a number of them: give sparse_ratio, no cdf_threshold")
    # A choice of blocks has no gradient. Numbers that are known stay so.
    stop = lambda x: lax.stop_gradient(x) if isinstance(x, Tracer) else x
    q, k = stop(q), stop(k)
    sparse_ratio, cdf_threshold = stop(sparse_ratio), stop(cdf_threshold)
    n = q.shape[1]
    num_kv_blocks = count_blocks(k.shape[0], block_k)
    if not 0 <= num_sink_blocks < num_kv_blocks:
        raise ValueError(f"{num_sink_blocks=} must leave some of the {num_kv_blocks} key blocks")
    check_kv_lengths(kv_lengths, num_kv_blocks)
    if q_length is not None and jnp.shape(q_length):
        raise ValueError(f"q_length must be one number, not of shape {jnp.shape(q_length)}")
    scale = checked_scale(scale, q.shape[-1])
    if capacity is not None and capacity <= num_sink_blocks:
        raise ValueError(f"{capacity=} must be above {num_sink_blocks=}")
    num_kept = _kept_by_ratio(sparse_ratio, num_kv_blocks - num_sink_blocks, n)
    wanted = num_kv_blocks
    if cdf_threshold is None and isinstance(num_kept, np.ndarray):
        wanted = num_sink_blocks + max(1, int(num_kept.max()))
    threshold = None
    if cdf_threshold is not None:
        xp = jnp if isinstance(cdf_threshold, Tracer) else np
        threshold = xp.broadcast_to(xp.asarray(cdf_threshold, np.float32), n)
    numbers = (num_kept, threshold, q_length, kv_lengths, np.float32(scale))
    return _select(
        q,
        k,
        *on_device(numbers, beside=q),
        random_key,
        pool_mode=pool_mode,
        block_q=block_q,
        block_k=block_k,
        num_sink_blocks=num_sink_blocks,
        capacity=wanted if capacity is None else min(capacity, wanted),
        may_overflow=capacity is not None and capacity < wanted,
        max_score_bytes=MAX_SCORE_BYTES,
        implementation=_choose_implementation(implementation, num_kv_blocks, interpret),
        interpret=interpret,
    )


@functools.partial(
    jax.jit,
    static_argnames=(
        "pool_mode", "block_q", "block_k", "num_sink_blocks", "capacity", "may_overflow",
        "max_score_bytes", "implementation", "interpret",
    ),
)  # fmt: skip
@jax.named_scope("select_blocks")
def _select(
    q, k, num_kept, cdf_threshold, q_length, kv_lengths, scale, random_key, *, pool_mode,
    block_q, block_k, num_sink_blocks, capacity, may_overflow, max_score_bytes, implementation,
    interpret,
):  # fmt: skip
    q_tokens = tokens_per_block(q_length, q.shape[0], block_q)
    kv_tokens = tokens_per_block(kv_lengths, k.shape[0], block_k)
    num_blocks = jnp.sum(kv_tokens[num_sink_blocks:] > 0, dtype=jnp.int32)
    num_kept = jnp.maximum(jnp.asarray(num_kept)[:, num_blocks], 1)
    probability = None if cdf_threshold is None else cdf_threshold + _THRESHOLD_EPS

    if implementation == "triton":
        from pallas_kernels.selection import triton

        pool = functools.partial(triton.pool, interpret=interpret)
        select_rows = functools.partial(triton.select_rows, interpret=interpret)
    else:
        from pallas_kernels.selection.pooling import pool
        from pallas_kernels.selection.xla import select_rows

    pooled_q = pool(q, q_tokens, block_q, pool_mode) * scale
    pooled_k = pool(k, kv_tokens, block_k, pool_mode)
    num_heads, num_rows = pooled_q.shape[:2]
    shape = (num_heads, num_rows)
    results = (
        jnp.zeros((*shape, capacity), index_dtype(kv_tokens.size)),
        jnp.zeros(shape, jnp.int32),
        jnp.zeros(shape, jnp.float32),
        jnp.zeros(shape, jnp.int32),
    )
    takes_part = (kv_tokens > 0) & (np.arange(kv_tokens.size) >= num_sink_blocks)
    heads, rows = _stripe(num_heads, num_rows, max_score_bytes // (4 * kv_tokens.size))
    stripes = count_blocks(num_rows, rows)

    def select_stripe(i, carry):
        results, entropy = carry
        i = jnp.asarray(i, jnp.int32)
        # The last stripe of a head starts early enough to be whole; what it repeats comes out the
        # same.
        head, row = heads * (i // stripes), jnp.minimum(rows * (i % stripes), num_rows - rows)
        of_heads = lambda x: lax.dynamic_slice_in_dim(x, head, heads)
        queries = lax.dynamic_slice_in_dim(of_heads(pooled_q), row, rows, axis=1)
        scores = jnp.einsum(
            "nqh,nkh->nqk", queries, of_heads(pooled_k), precision=lax.Precision.HIGHEST
        )
        ranked = scores
        if random_key is not None:
            ranked = _lots(random_key, (head, row), scores.shape, num_sink_blocks)
        results = select_rows(
            results,
            (head, row),
            ranked,
            kv_tokens,
            of_heads(num_kept),
            None if probability is None else of_heads(probability),
            num_sink_blocks=num_sink_blocks,
            capacity=capacity,
            may_overflow=may_overflow,
        )
        masses, here = pooled_softmax(scores, takes_part)
        write = lambda x, part: lax.dynamic_update_slice(x, part, (head, row))
        if random_key is not None:
            # The rule weighed the lots.
            indices, counts, covered, missing = results
            place = (head, row, np.int32(0))
            indices = lax.dynamic_slice(indices, place, (heads, rows, capacity))
            count = lax.dynamic_slice(counts, (head, row), (heads, rows))
            is_kept = leading(count, capacity)
            kept = jnp.take_along_axis(masses, indices.astype(jnp.int32), axis=-1)
            kept = jnp.sum(jnp.where(is_kept, kept, 0.0), axis=-1)
            results = (results[0], counts, write(covered, kept), missing)
        return results, write(entropy, here)

    (indices, counts, covered, missing), entropy = lax.fori_loop(
        0, num_heads // heads * stripes, select_stripe, (results, jnp.zeros(shape, jnp.float32))
    )

    live = q_tokens > 0
    counts = jnp.where(live, counts, 0)
    num_q, num_kv = (jnp.sum(x, dtype=jnp.float32) for x in (live, kv_tokens > 0))
    pairs = jnp.maximum(num_q * num_kv, 1)
    return BlockSelection(
        block_map=BlockMap(
            indices=indices,
            counts=counts,
            num_kv_blocks=kv_tokens.size,
            block_q=block_q,
            block_k=block_k,
        ),
        covered=jnp.where(live, covered, 0.0),
        entropy=jnp.where(live, entropy, 0.0),
        density=jnp.sum(counts.astype(jnp.float32), axis=-1) / pairs,
        missing=jnp.where(live, missing, 0),
    )


def _lots(key, place, shape, num_sink_blocks):
    """A random number for each pair of blocks: the same however rows are cut into stripes."""
    heads, rows, num_blocks = shape

    def of_row(head, row):
        of_row = jax.random.fold_in(jax.random.fold_in(key, head), row)
        # Counted behind the sinks, so that more of them draw no other blocks.
        return jax.random.uniform(of_row, (num_blocks - num_sink_blocks,), jnp.float32)

    of_rows = jax.vmap(jax.vmap(of_row, (None, 0)), (0, None))
    sizes = (heads, rows)
    places = (start + jnp.arange(n, dtype=jnp.int32) for start, n in zip(place, sizes, strict=True))
    lots = of_rows(*places)
    return jnp.pad(lots, ((0, 0), (0, 0), (num_sink_blocks, 0)))


def _stripe(num_heads, num_rows, max_rows):
    """How many heads, and rows of each, to score at a time: whole heads, or some rows of one."""
    max_rows = max(1, max_rows)
    if max_rows < num_rows:
        return 1, max_rows
    heads = max(
        i for i in range(1, num_heads + 1) if num_heads % i == 0 and i * num_rows <= max_rows
    )
    return heads, num_rows


def _kept_by_ratio(sparse_ratio, num_blocks, num_heads):
    """How many blocks each head keeps of 0, 1, ... `num_blocks`: [n num_blocks+1]."""
    if sparse_ratio is None:
        return np.zeros((num_heads, num_blocks + 1), np.int32)
    # The paper's code rounds in float64, where 10 * (1 - 0.9) is just below 1.
    xp, dtype = (jnp, jnp.float32) if isinstance(sparse_ratio, Tracer) else (np, np.float64)
    ratios = xp.broadcast_to(xp.asarray(sparse_ratio, dtype), num_heads)
    return (xp.arange(num_blocks + 1, dtype=dtype)[None] * (1 - ratios[:, None])).astype(np.int32)


def _check_arguments(q, k, sparse_ratio, cdf_threshold, pool_mode, block_q, block_k):
    if q.ndim != 3 or k.ndim != 3 or q.shape[1:] != k.shape[1:] or not q.shape[0] * k.shape[0]:
        raise ValueError(
            f"q must be [t n h] and k [kv n h] with the same heads, not {q.shape} and {k.shape}; "
            f"use jax.vmap for a batch"
        )
    for name, block in (("block_q", block_q), ("block_k", block_k)):
        if block < 1:
            raise ValueError(f"{name}={block} must be at least 1")
    if pool_mode not in get_args(PoolMode):
        raise ValueError(f"{pool_mode=} is unknown; use 'avg' or 'max'")
    if sparse_ratio is None and cdf_threshold is None:
        raise ValueError("nothing says how many blocks to keep; give sparse_ratio or cdf_threshold")
    for name, value in (("sparse_ratio", sparse_ratio), ("cdf_threshold", cdf_threshold)):
        if value is None:
            continue
        if not isinstance(value, Tracer):
            value = np.asarray(value, np.float64)
        if jnp.shape(value) not in ((), (q.shape[1],)):
            raise ValueError(
                f"{name} must be one number or one for each of the {q.shape[1]} heads, "
                f"not of shape {jnp.shape(value)}"
            )
        if not isinstance(value, Tracer) and not np.all((0 <= value) & (value <= 1)):
            raise ValueError(f"{name}={value} must be in [0, 1]")


def _choose_implementation(implementation, num_kv_blocks, interpret):
    check_implementation(implementation, get_args(Implementation))
    if interpret and implementation == "xla":
        raise ValueError(f"{implementation=} is no kernel; leave out {interpret=}")
    fits = num_kv_blocks <= _MAX_BLOCKS_OF_TRITON
    if implementation is None and not interpret:
        return "triton" if devices.is_ampere_or_later() and fits else "xla"
    if implementation == "xla":
        return "xla"
    if not fits:
        raise NotImplementedError(
            f"{num_kv_blocks=} is above the {_MAX_BLOCKS_OF_TRITON} of triton; "
            f"use implementation='xla'"
        )
    if not interpret and not devices.is_ampere_or_later():
        raise NotImplementedError(
            f"triton needs an NVIDIA GPU from Ampere on, not {jax.default_backend()=}; "
            f"use implementation='xla' or None"
        )
    return "triton"
