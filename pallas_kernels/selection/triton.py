"""Selection in Pallas kernels: pooling, and the rule for one row of scores in registers."""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.blocks import count_blocks, next_power_of_2
from pallas_kernels.selection import stripes
from pallas_kernels.selection.call import BlockSelection, SelectionCall
from pallas_kernels.selection.row import count_in, keep_row, positions, running_count
from pallas_kernels.triton_call import triton_call

# Numbers of a token that one program pools: enough to read whole cache lines.
_POOLED_CHANNELS = 128
# Key blocks of a row: more would not fit into the registers of the largest program.
_MAX_BLOCKS = 2**16


def unsupported_because(call: SelectionCall) -> str | None:
    if call.num_kv_blocks > _MAX_BLOCKS:
        return f"num_kv_blocks={call.num_kv_blocks} is above {_MAX_BLOCKS}"
    return None


def run(call: SelectionCall, *, interpret: bool) -> BlockSelection:
    interpreted = lambda function: functools.partial(function, interpret=interpret)
    return stripes.select(call, pool=interpreted(pool), select_rows=interpreted(select_rows))


def select_rows(
    results, place, scores, tokens, num_kept, probability, *, interpret=False, **options
):
    """As `xla.select_rows`; the kernel writes to the places itself."""
    n, rows, num_blocks = scores.shape
    per_row, per_head = (pl.BlockSpec((1,), lambda i, n=n: (i // n,)) for n in (1, rows))
    whole = lambda x: pl.BlockSpec(x.shape, lambda i: (0,) * x.ndim)
    place = jnp.stack([jnp.asarray(x, jnp.int32) for x in place])
    operands = [place, scores, tokens, num_kept.reshape(-1)]
    in_specs = [
        whole(place),
        pl.BlockSpec((None, None, num_blocks), lambda i: (i // rows, i % rows, 0)),
        whole(tokens),
        per_row if num_kept.ndim == 2 else per_head,
    ]
    if probability is not None:
        operands.append(probability)
        in_specs.append(per_head)
    select = triton_call(
        functools.partial(
            _kernel, num_rows=rows, has_probability=probability is not None, **options
        ),
        grid=(n * rows,),
        in_specs=in_specs + [whole(x) for x in results],
        out_specs=[whole(x) for x in results],
        out_shape=[jax.ShapeDtypeStruct(x.shape, x.dtype) for x in results],
        input_output_aliases={len(operands) + i: i for i in range(len(results))},
        # 32 to 64 scores a thread.
        num_warps=min(16, max(1, next_power_of_2(num_blocks) // 2048)),
        num_stages=1,
        interpret=interpret,
        name="select_blocks",
    )
    return tuple(select(*operands, *results))


def _kernel(
    place_ref, scores_ref, tokens_ref, num_kept_ref, *refs, num_rows, has_probability, **options
):
    probability = refs[0][0] if has_probability else None
    indices_ref, counts_ref, retained_ref, missing_ref = refs[-4:]
    (num_blocks,) = scores_ref.shape
    capacity = indices_ref.shape[-1]

    load = lambda ref, blocks: plgpu.load(ref.at[blocks], mask=blocks < num_blocks, other=0)
    spans = _spans(num_blocks)
    scores = tuple(load(scores_ref, blocks) for blocks in spans)
    tokens = tuple(load(tokens_ref, blocks) for blocks in spans)
    kept, retained, missing = keep_row(scores, tokens, num_kept_ref[0], probability, **options)

    program = pl.program_id(0)
    head, row = place_ref[0] + program // num_rows, place_ref[1] + program % num_rows
    count = count_in(kept)
    ranks = running_count(kept)
    for here, rank, block in zip(kept, ranks, positions(kept), strict=True):
        slot = jnp.where(here, rank - 1, capacity)
        plgpu.store(indices_ref.at[head, row, slot], block.astype(indices_ref.dtype), mask=here)
    counts_ref[head, row] = count
    retained_ref[head, row] = retained
    missing_ref[head, row] = missing


def _spans(length):
    """The numbers up to `length`, and a few more, in arrays whose sizes are powers of two.

    The fewer more, the less work is wasted on them.
    """
    spans, start = [], 0
    while start < length:
        left = length - start
        size = next_power_of_2(left)
        if left < 0.9 * size and size > 256:
            size //= 2
        spans.append(start + lax.broadcasted_iota(jnp.int32, (size,), 0))
        start += size
    return spans


def pool(x, tokens, block, mode, *, interpret=False):
    """As `pooling.pool`; one program reduces some channels of one block."""
    t, n, h = x.shape
    num_blocks, channels = tokens.size, n * h
    width = min(_POOLED_CHANNELS, next_power_of_2(channels))
    columns = count_blocks(channels, width)
    (pooled,) = triton_call(
        functools.partial(_pool_kernel, block=block, width=width, mode=mode),
        grid=(num_blocks * columns,),
        in_specs=[
            pl.BlockSpec((t, channels), lambda i: (0, 0)),
            pl.BlockSpec((1,), lambda i: (i // columns,)),
        ],
        out_specs=[pl.BlockSpec((num_blocks, channels), lambda i: (0, 0))],
        out_shape=[jax.ShapeDtypeStruct((num_blocks, channels), jnp.float32)],
        num_warps=4,
        num_stages=1,
        interpret=interpret,
        name="pool_blocks",
    )(x.reshape(t, channels), tokens)
    return pooled.reshape(num_blocks, n, h).swapaxes(0, 1)


def _pool_kernel(x_ref, tokens_ref, pooled_ref, *, block, width, mode):
    channels = x_ref.shape[1]
    columns = count_blocks(channels, width)
    program = pl.program_id(0)
    which_block = lax.div(program, jnp.int32(columns))
    channel = lax.rem(program, jnp.int32(columns)) * width + lax.broadcasted_iota(
        jnp.int32, (width,), 0
    )
    place = lax.broadcasted_iota(jnp.int32, (next_power_of_2(block),), 0)
    num_tokens = tokens_ref[0]
    x = plgpu.load(
        x_ref.at[(which_block * block + place)[:, None], channel[None]],
        mask=(place < num_tokens)[:, None] & (channel < channels)[None],
        other=0.0 if mode == "avg" else -jnp.inf,
    ).astype(jnp.float32)
    if mode == "avg":
        pooled = jnp.sum(x, axis=0) / jnp.maximum(num_tokens, 1).astype(jnp.float32)
    else:
        pooled = jnp.where(num_tokens > 0, jnp.max(x, axis=0), 0.0)
    plgpu.store(pooled_ref.at[which_block, channel], pooled, mask=channel < channels)
