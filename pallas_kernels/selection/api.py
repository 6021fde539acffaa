"""`select_blocks`: its arguments, checked, and its backends."""

import functools
from typing import Any, get_args

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.core import Tracer
from jaxtyping import Array, Float, Int

from pallas_kernels import devices
from pallas_kernels.arguments import check_kv_lengths, checked_scale, on_device
from pallas_kernels.blocks import count_blocks
from pallas_kernels.operation import Backend, Operation
from pallas_kernels.selection.call import BlockSelection, SelectionCall
from pallas_kernels.selection.pooling import PoolMode
from pallas_kernels.selection.rules import Mass, RandomBaseline, Ratio, RatioOrMass, Rule

# Scores that exist at any one time, in bytes.
MAX_SCORE_BYTES = 128 * 2**20

OPERATION = Operation(
    name="select_blocks",
    backends=[
        Backend(
            name="triton",
            module="pallas_kernels.selection.triton",
            device=devices.triton_unsupported_because,
        ),
        Backend(name="xla", module="pallas_kernels.selection.xla"),
    ],
    gradient=None,
)


def select_blocks(
    q: Float[Array, "t n h"],
    k: Float[Array, "kv n h"],
    *,
    rule: Rule | None = None,
    sparse_ratio: float | Float[Array, "..."] | None = None,
    cdf_threshold: float | Float[Array, "..."] | None = None,
    pool_mode: PoolMode = "avg",
    block_q: int = 128,
    block_k: int = 64,
    score_block_q: int | None = None,
    num_sink_blocks: int = 0,
    q_length: int | np.integer | Int[Array, ""] | None = None,
    kv_lengths: int | Int[Array, "..."] | None = None,
    scale: float | None = None,
    capacity: int | None = None,
    random_key: Array | None = None,
    implementation: str | None = None,
    interpret: bool = False,
) -> BlockSelection:
    """Predicts from pooled queries and keys which key blocks each query block attends to.

    As in "Faster VGGT with Block-Sparse Global Attention" (arXiv 2509.07120), queries and keys are
    pooled by blocks, and `softmax(scale * pooled_q @ pooled_k.T)` over the key blocks says how much
    each matters. What is kept is for a rule to say; it always is one block at least:

    - `Ratio(sparse_ratio)`: of `kb` key blocks the `int(kb * (1 - sparse_ratio))` most probable;
    - `Mass(cdf_threshold)`: as many as have a cumulative probability of at most
      `cdf_threshold + 1e-5`;
    - `RatioOrMass`: the larger number of the two;
    - `RandomBaseline`: as many as `Ratio` keeps, drawn at random.

    All of it is done in float32 at full precision. Beyond the pooled vectors and the result, no
    more than 128 MiB of scores exist at a time. `jax.vmap` gives a batch, each with scores of its
    own. The choice has no gradient.

    Args:
        q, k: queries and keys as attention sees them, after normalisation and rotation.
        rule: which blocks a row keeps; see `Rule` for making another one.
        sparse_ratio, cdf_threshold, random_key: instead of `rule`, the same for short:
            `Ratio(sparse_ratio)`, `Mass(cdf_threshold)`, with both `RatioOrMass`, and with a key
            `RandomBaseline(sparse_ratio, random_key)`.
        pool_mode: "avg" or "max", over the tokens that count.
        block_q, block_k: tokens in a block.
        score_block_q: pool so many queries, a part of `block_q`, to one vector; the probabilities
            of a block are the mean over its parts. None for whole blocks, as the paper does.
        num_sink_blocks: so many leading key blocks are kept by every query block, beyond what the
            rule keeps, and take no part in it.
        q_length: how many leading queries count; None for all. Blocks without any keep nothing.
        kv_lengths: how many leading keys count, or for each key block how many of its leading keys
            do; None for all. Key blocks without any are never kept.
        scale: of the scores, a positive number known when tracing; `1 / sqrt(h)` by default.
        capacity: the most room for blocks in a row, sinks included. By default, and at most, there
            is room for whatever the rule can ask. With less, a row keeps the most probable blocks
            that find room, and `BlockSelection.missing` counts the others.
        implementation: "triton" (NVIDIA GPUs), "xla" (any device), or None to choose by device. A
            name means that one or an error.
        interpret: run the Triton kernel in Pallas's interpreter, on any device, slowly.

    Raises:
        ValueError: arguments that no implementation could make sense of.
        NotImplementedError: the implementation named cannot do this here.
    """
    _check_arguments(q, k, pool_mode, block_q, block_k)
    if score_block_q is not None and (score_block_q < 1 or block_q % score_block_q):
        raise ValueError(f"{score_block_q=} must divide {block_q=}")
    # A choice of blocks has no gradient. Numbers that are known stay so.
    stop = lambda x: lax.stop_gradient(x) if isinstance(x, Tracer) else x
    q, k = stop(q), stop(k)
    asked: Rule = jax.tree.map(stop, _rule(rule, sparse_ratio, cdf_threshold, random_key))
    num_kv_blocks = count_blocks(k.shape[0], block_k)
    if not 0 <= num_sink_blocks < num_kv_blocks:
        raise ValueError(f"{num_sink_blocks=} must leave some of the {num_kv_blocks} key blocks")
    check_kv_lengths(kv_lengths, num_kv_blocks)
    if q_length is not None and jnp.shape(q_length):
        raise ValueError(f"q_length must be one number, not of shape {jnp.shape(q_length)}")
    scale = checked_scale(scale, q.shape[-1])
    if capacity is not None and capacity <= num_sink_blocks:
        raise ValueError(f"{capacity=} must be above {num_sink_blocks=}")
    prepared, most = asked.prepare(num_kv_blocks - num_sink_blocks, q.shape[1])
    wanted = num_sink_blocks + max(1, most)
    numbers: Any = {
        "rule": prepared,
        "q_length": q_length,
        "kv_lengths": kv_lengths,
        "scale": np.float32(scale),
    }
    call = SelectionCall(
        q=q,
        k=k,
        **on_device(numbers, beside=q),
        pool_mode=pool_mode,
        block_q=block_q,
        block_k=block_k,
        score_block_q=block_q if score_block_q is None else score_block_q,
        num_sink_blocks=num_sink_blocks,
        capacity=wanted if capacity is None else min(capacity, wanted),
        may_overflow=capacity is not None and capacity < wanted,
        max_score_bytes=MAX_SCORE_BYTES,
    )
    chosen = OPERATION.choose(call, implementation=implementation, interpret=interpret)
    return _select(call, chosen=chosen)


@functools.partial(jax.jit, static_argnames="chosen")
@jax.named_scope("select_blocks")
def _select(call, *, chosen):
    return chosen(call)


def _rule(rule, sparse_ratio, cdf_threshold, random_key) -> Rule:
    """The rule that is given, or that numbers stand for."""
    if rule is not None:
        if not isinstance(rule, Rule):
            raise ValueError(f"{rule=} is no rule; give Ratio(...), Mass(...) or another Rule")
        if any(x is not None for x in (sparse_ratio, cdf_threshold, random_key)):
            raise ValueError("give a rule, or numbers that stand for one, not both")
        return rule
    if random_key is not None:
        if sparse_ratio is None or cdf_threshold is not None:
            raise ValueError(
                "random blocks need a number of them: give sparse_ratio, no cdf_threshold"
            )
        return RandomBaseline(sparse_ratio, random_key)
    if sparse_ratio is not None and cdf_threshold is not None:
        return RatioOrMass(Ratio(sparse_ratio), Mass(cdf_threshold))
    if sparse_ratio is not None:
        return Ratio(sparse_ratio)
    if cdf_threshold is not None:
        return Mass(cdf_threshold)
    raise ValueError(
        "nothing says how many blocks to keep; give sparse_ratio or cdf_threshold, or a rule"
    )


def _check_arguments(q, k, pool_mode, block_q, block_k):
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
