"""Block-sparse attention for Hopper GPUs, in a Pallas kernel on the Mosaic GPU backend.

One block of threads lives on each multiprocessor until all is done. It works on several tiles of
128 or 64 queries at a time, the *query tiles in flight*. For each of them:

- Two warp groups or one, the *consumers*, compute 64 queries each: scores of 64 keys, weights, and
  their sum over values, with the tensor cores (`wgmma`, asynchronous) and accumulators in
  registers.
- One warp, the *producer*, walks the list of key blocks and fetches queries, keys and values into
  shared memory (TMA, asynchronous), as far ahead as there is room. A tile of 64 keys is a block,
  part of one, or put together of *pieces*, smaller blocks.

Who waits for whom, by barriers in shared memory: consumers wait for `*_full` (a tile has come), and
the producer for `*_free` (its consumers are done with what was there). Query tiles know nothing
of each other: while one waits, or does what leaves the tensor cores idle, the others use them.

In a consumer, scores of the next tile and values of this one are asked for together, and weights
are computed while the tensor cores work:

    scores 0 | weights 0 | scores 1, values 0 | weights 1  | scores 2, values 1 | ...
                           `---- tensor cores ----^ only for the scores; values run on

There is no running maximum. Weights are `2**(score - reference)` with the maximum of the *first*
tile as reference. Later weights may grow to 2**126 where they are bfloat16, and to 2**16 where they
are float16, and are as precise as ever. Where they grow beyond, the log-sum-exp becomes NaN, and
the tile is computed again by the kernel that follows any scores (`online_softmax.redo`).
docs/kernels.md tells what this gains.
"""

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import mosaic_gpu as plgpu

from pallas_kernels import devices
from pallas_kernels.attention import online_softmax
from pallas_kernels.attention.call import AttentionCall, blocks_unsupported_because
from pallas_kernels.attention.config import (
    MAX_CAPACITY,
    MosaicGpuConfig,
    choose_mosaic_gpu_config,
    choose_triton_config,
)
from pallas_kernels.attention.key_lists import list_keys
from pallas_kernels.blocks import count_blocks
from pallas_kernels.key_mask import KEYS_PER_WORD
from pallas_kernels.mosaic_gpu_call import align, mosaic_gpu_call, smem_tiles

_LOG2_E = math.log2(math.e)

# Queries of a consumer, the rows of one wgmma instruction; keys of a tile.
_ROWS = 64
TILE_K = 64

# By how many places each work slot moves on from round to round, so that none has the
# longest list every time: the best of those tried on random lists with a tenfold spread of lengths.
# With 264 slots and 16 heads the busiest has 24 % more to do than the average for 108 tiles a head,
# 6 % for 536 and 1 % for 2144.
_TURN = 29

# Columns of scores whose sums a thread keeps apart until the end.
_SUMS = 8

# Registers of each thread of the producers; those of pieces of tiles need a few more.
_PRODUCER_REGISTERS, _PRODUCER_REGISTERS_FOR_PIECES = 24, 32

# Registers that a multiprocessor has for each thread of a warp group if there is only one, the most
# that a thread can ask for, and the step of both (PTX, setmaxnreg).
_ALL_REGISTERS, _MOST_REGISTERS, _REGISTERS_STEP = 512, 240, 8

# Up to here a scaled score and its reference may be subtracted in one fused operation: see
# online_softmax.py.
_MAX_REFERENCE = 2.0**24


def unsupported_because(call: AttentionCall) -> str | None:
    if call.q.dtype == jnp.float32:
        return "float32 is not supported (bfloat16, float16)"
    if call.q.shape[-1] not in (64, 128):
        return f"head_dim={call.q.shape[-1]} is not supported (64, 128)"
    if call.key_bias is not None and call.block_map.block_k < TILE_K:
        return f"key_bias is not supported for {call.block_map.block_k=} ({TILE_K} and more)"
    return blocks_unsupported_because(
        call.block_map, smallest_q=64, smallest_k=16, max_capacity=MAX_CAPACITY
    )


def configure(call: AttentionCall) -> MosaicGpuConfig:
    return choose_mosaic_gpu_config(call.q.dtype, call.q.shape[-1], call.block_map.block_q)


def run(call: AttentionCall, *, config: MosaicGpuConfig, interpret: bool):
    more = {"key_bias": call.key_bias, "key_mask": call.key_mask, "interpret": interpret}
    return attention(*call.for_kernels, config, **more)


def attention(
    q,
    k,
    v,
    block_map,
    kv_tokens,
    scale,
    config: MosaicGpuConfig,
    *,
    key_bias=None,
    key_mask=None,
    interpret=False,
):
    """The output [t n h] in q's type and the log-sum-exp [t n].

    `kv_tokens`: how many tokens of each key block count, or None where all blocks are whole.
    """
    t, n, h = q.shape
    config = dataclasses.replace(config, tile_q=min(config.tile_q, block_map.block_q))
    lists = list_keys(block_map, kv_tokens, key_bias, interpret=interpret)
    # An array is at least as large as a tile that is copied, and 8 rows divide it.
    # What a tile has beyond the end of its array is read as zero, and not written.
    padded_q, padded_k, padded_v = (
        jnp.pad(x, ((0, max(tile, align(len(x))) - len(x)), (0, 0), (0, 0)))
        for x, tile in ((q, config.tile_q), (k, TILE_K), (v, TILE_K))
    )
    tiles = count_blocks(t, config.tile_q)
    run = _over_scenes(
        functools.partial(
            _run,
            num_tiles=tiles,
            factor=scale * _LOG2_E,
            block_q=block_map.block_q,
            block_k=block_map.block_k,
            has_bias=key_bias is not None,
            has_mask=key_mask is not None,
            config=config,
            interpret=interpret,
        )
    )
    order = _work_order(lists, block_map.block_q // config.tile_q, tiles)
    operands = [padded_q, padded_k, padded_v, order]
    operands += lists.operands()
    if key_bias is not None:
        # In whole tiles, and as exponents of 2.
        missing = count_blocks(len(k), TILE_K) * TILE_K - len(k)
        operands.append(jnp.pad(_LOG2_E * key_bias, ((0, 0), (0, missing))))
    if key_mask is not None:
        operands.append(_whole_words(key_mask, block_map))
    out, lse = run(*(x[None] for x in operands))
    out, lse = out[0], lse[0]
    failed = jnp.isnan(lse).reshape(n * tiles, config.tile_q).any(axis=1).astype(jnp.int32)
    out, lse = online_softmax.redo(
        q,
        k,
        v,
        lists,
        block_map,
        scale,
        failed,
        out[:t],
        lse[:, :t],
        key_bias=key_bias,
        key_mask=key_mask,
        config=dataclasses.replace(
            choose_triton_config(q.dtype, h, block_map.block_q, block_map.block_k),
            tile_q=config.tile_q,
        ),
        interpret=interpret,
    )
    return out, lse.T


def _whole_words(key_mask, block_map):
    """The bits of `key_mask` as signed numbers, with words for all keys of whole blocks."""
    keys = max(block_map.num_kv_blocks * block_map.block_k, TILE_K)
    missing = count_blocks(keys, KEYS_PER_WORD) - key_mask.shape[-1]
    return jnp.pad(lax.bitcast_convert_type(key_mask, jnp.int32), ((0, 0), (0, 0), (0, missing)))


def _over_scenes(run):
    """`run` with the leading axis of all arrays, that of scenes, made longer by `jax.vmap`.

    So one launch shares out the work of all scenes. Pallas would add an axis to the grid, and slots
    would start and end with every scene.
    """
    folded = jax.custom_batching.custom_vmap(run)

    @folded.def_vmap
    def fold(size, are_batched, *operands):
        operands = (
            x if is_batched else jnp.broadcast_to(x, (size, *x.shape))
            for x, is_batched in zip(operands, are_batched, strict=True)
        )
        outs = folded(*(x.reshape(-1, *x.shape[2:]) for x in operands))
        return [x.reshape(size, -1, *x.shape[1:]) for x in outs], [True] * len(outs)

    return folded


def _run(q, k, v, order, *rest, num_tiles, block_k, has_bias, config, interpret, **options):
    """The kernel on scenes: q, k, v [s t n h], tiles in order of work, lists, biases, masks."""
    scenes, _, n, h = q.shape
    num_blocks = 2 if interpret else devices.multiprocessors()
    pieces = max(1, TILE_K // block_k)
    kernel = functools.partial(
        _kernel,
        num_tiles=num_tiles,
        num_work_slots=num_blocks * config.query_tiles,
        block_k=block_k,
        has_bias=has_bias,
        config=config,
        **options,
    )
    return mosaic_gpu_call(
        lambda *refs, **scratch: kernel(*refs, **scratch),
        num_blocks=num_blocks,
        num_warpgroups=config.num_consumers + 1,
        scratch=_scratch(q.dtype, h, has_bias, pieces, config, interpret),
        out_type=[
            jax.ShapeDtypeStruct(q.shape, q.dtype),
            jax.ShapeDtypeStruct((scenes, n, num_tiles * config.tile_q), jnp.float32),
        ],
        interpret=interpret,
        name="block_sparse_attention",
    )(q, k, v, order, *rest)


def _scratch(dtype, h, has_bias, pieces, config, interpret):
    """Shared memory and barriers of a block; tiles of keys come in so many pieces."""

    tiles = lambda number, rows, columns=h: smem_tiles(number, rows, columns, dtype)
    consumers = config.num_consumers
    slots = config.query_tiles * config.stages
    by_consumers = functools.partial(plgpu.Barrier, num_arrivals=config.consumers_per_tile)
    # The simulator multiplies what is in shared memory only.
    some = {"weights_smem": tiles(consumers, _ROWS, TILE_K)} if interpret else {}
    if not config.results_replace_queries(h):
        some["out_smem"] = tiles(consumers, _ROWS)
    if has_bias:
        some["bias_smem"] = plgpu.SMEM((slots, TILE_K), jnp.float32)
    return {
        **some,
        "q_smem": tiles(consumers, _ROWS),
        "k_smem": tiles(slots, TILE_K),
        "v_smem": tiles(slots, TILE_K),
        "q_full": by_consumers(num_barriers=config.query_tiles),
        "k_full": plgpu.Barrier(num_arrivals=pieces + has_bias, num_barriers=slots),
        "v_full": plgpu.Barrier(num_arrivals=pieces, num_barriers=slots),
        "q_free": by_consumers(num_barriers=config.query_tiles),
        "k_free": by_consumers(num_barriers=slots),
        "v_free": by_consumers(num_barriers=slots),
        "cleaned": by_consumers(num_barriers=config.query_tiles),
    }


def _work_order(lists, tiles_per_row, tiles):
    """In which order the work slots take the tiles of queries of a scene, as `head * tiles + tile`.

    Heads come after each other, so that their keys stay in the L2 cache. In a head, lists get
    shorter, and in the next one longer: slots that had the longest of each round in the one have
    the shortest in the other.
    """
    n, num_rows = lists.num_listed.shape
    if num_rows == 1:
        return jnp.arange(n * tiles, dtype=jnp.int32)
    rows = jnp.arange(tiles, dtype=jnp.int32) // tiles_per_row
    heads = jnp.arange(n, dtype=jnp.int32)[:, None]
    lengths = lists.num_listed[:, rows]
    order = jnp.argsort(jnp.where(heads % 2 == 0, -lengths, lengths), axis=1)
    return (order.astype(jnp.int32) + tiles * heads).reshape(-1)


def registers(num_consumers: int, pieces: int) -> tuple[int, int] | None:
    """Registers of each thread of consumers, and of producers, after these have handed over theirs.

    A warp group that asks for more than others have left waits forever. None where one consumer has
    as many as it can have from the start.
    """
    down = lambda number: number // _REGISTERS_STEP * _REGISTERS_STEP
    # All warp groups start with the same, the consumers and that of the producers.
    start = down(_ALL_REGISTERS // (num_consumers + 1))
    of_producers = _PRODUCER_REGISTERS if pieces == 1 else _PRODUCER_REGISTERS_FOR_PIECES
    rest = (num_consumers + 1) * start - of_producers
    of_consumers = min(down(rest // num_consumers), _MOST_REGISTERS)
    return (of_consumers, of_producers) if of_consumers > start else None


def _low_bits(number):
    """A word with so many bits set, the lowest ones; none for negative numbers."""
    some = lax.shift_left(jnp.int32(1), jnp.clip(number, 0, 31)) - 1
    return jnp.where(number >= 32, -1, some)


def _words_of_piece(j, piece):
    """Which words of a tile have bits of its j-th piece, and from which key of it on."""
    first_key = j * piece
    return [(key // 32, key - first_key) for key in range(first_key, first_key + piece, 32)]


def _kernel(
    q_ref, k_ref, v_ref, order_ref, indices_ref, num_whole_ref, *refs,
    num_tiles, num_work_slots, factor, block_q, block_k, has_bias, has_mask, config,
    q_smem, k_smem, v_smem, q_full, k_full, v_full, q_free, k_free, v_free, cleaned,
    out_smem=None, weights_smem=None, bias_smem=None,
):  # fmt: skip
    """A block of threads. Its query tiles in flight, and all others', are the work slots."""
    *partial_refs, out_ref, lse_ref = refs
    mask_ref = partial_refs.pop() if has_mask else None
    bias_ref = partial_refs.pop() if has_bias else None
    num_listed_ref, tokens_ref = partial_refs or (num_whole_ref, None)
    has_partial_blocks = tokens_ref is not None
    has_rest = has_partial_blocks or block_k < TILE_K
    num_q_slots, stages, consumers = config.query_tiles, config.stages, config.consumers_per_tile
    _, _, h = q_smem.shape
    dtype = q_smem.dtype
    # Tiles of a block of keys, or blocks of a tile, its pieces.
    parts, pieces = max(1, block_k // TILE_K), max(1, TILE_K // block_k)
    piece = TILE_K // pieces
    scenes, items_of_scene = order_ref.shape
    num_items = scenes * items_of_scene
    block = lax.axis_index("block")
    warpgroup = lax.axis_index("warpgroup")
    int32 = jnp.int32

    def slot_of(q_slot, i):
        """Where the i-th tile of keys of a query tile in flight is in shared memory."""
        return q_slot * stages + lax.rem(i, int32(stages))

    def listed(at, count, i):
        """The i-th block of the list `at` (scene, head, row), of `count` blocks, or its last one; a
        list without an entry has one, too.
        """
        block = indices_ref[(*at, jnp.clip(i, 0, jnp.maximum(count - 1, 0)))]
        return jnp.where(count > 0, block.astype(int32), 0)

    def pieces_of(at, count, i):
        """Where the pieces of the i-th tile of keys of a list are: how many pieces come before."""
        if parts > 1:
            block = listed(at, count, lax.div(i, int32(parts)))
            return (block * parts + lax.rem(i, int32(parts)),)
        return tuple(listed(at, count, i * pieces + j) for j in range(pieces))

    def steps_of(count, *, whole):
        """Into how many tiles of keys so many blocks go; or how many `whole` ones they fill. The
        first always counts as one.
        """
        steps = lax.div(count + (0 if whole else pieces - 1), int32(pieces)) * parts
        return jnp.maximum(steps, 1)

    def counted(at, count, i):
        """Which keys of the i-th tile of a list count, as the bits of two words."""
        words = [int32(0), int32(0)]
        for j, place in enumerate(pieces_of(at, count, i)):
            tokens = int32(piece)
            if tokens_ref is not None:
                tokens = tokens_ref[at[0], lax.div(place, int32(parts))]
                tokens = tokens - lax.rem(place, int32(parts)) * TILE_K
            tokens = jnp.where(lax.div(i * pieces, int32(parts)) + j < count, tokens, 0)
            for word, first in _words_of_piece(j, piece):
                words[word] |= lax.shift_left(_low_bits(tokens - first), int32(j * piece % 32))
        return words

    def hidden(at, count, i):
        """Which keys of the i-th tile of a list are left out by the mask, as bits of two words."""
        words = [int32(0), int32(0)]
        if mask_ref is None:
            return words
        for j, place in enumerate(pieces_of(at, count, i)):
            for word, first in _words_of_piece(j, piece):
                key = place * piece + first
                bits = mask_ref[(*at, lax.div(key, int32(32)))]
                bits = lax.shift_right_logical(bits, lax.rem(key, int32(32)))
                if piece < 32:
                    bits &= int32((1 << piece) - 1)
                words[word] |= lax.shift_left(bits, int32(j * piece % 32))
        return words

    without = lambda words, hidden: [a & ~b for a, b in zip(words, hidden, strict=True)]

    def for_each_item(work_slot, work):
        """`work(round, scene, head, tile, row, done)` for the query tiles of a work slot. Given how
        many tiles of keys it has taken before, it returns how many it has taken then; so does this,
        in the end.
        """
        rounds, rest = divmod(num_items, num_work_slots)
        place = lambda r: lax.rem(work_slot + r * _TURN, int32(num_work_slots))

        def item(r, done):
            i = r * num_work_slots + place(r)
            scene = lax.div(i, int32(items_of_scene))
            work_item = order_ref[scene, i - scene * items_of_scene]
            head = lax.div(work_item, int32(num_tiles))
            tile = lax.rem(work_item, int32(num_tiles))
            row = lax.div(tile, int32(block_q // config.tile_q))
            return work(r, scene, head, tile, row, done)

        last = (place(int32(rounds)) < rest).astype(int32)
        return lax.fori_loop(0, rounds + last, item, int32(0))

    def produce(q_slot):
        def fetch_tile(r, scene, head, tile, row, done):
            at = scene, head, row
            count = num_listed_ref[at]
            steps = steps_of(count, whole=False)
            # Which tile is next is read while this one is fetched.
            first = pieces_of(at, count, int32(0))

            @pl.when(r > 0)
            def _():
                plgpu.barrier_wait(q_free.at[q_slot])

            for consumer in range(consumers):
                rows = pl.ds(tile * config.tile_q + consumer * _ROWS, _ROWS)
                plgpu.copy_gmem_to_smem(
                    q_ref.at[scene, rows, head],
                    q_smem.at[q_slot * consumers + consumer],
                    q_full.at[q_slot],
                )

            def step(i, places):
                following = pieces_of(at, count, jnp.minimum(i + 1, steps - 1))
                slot = slot_of(q_slot, done + i)
                for ref, smem, full, free in (
                    (k_ref, k_smem, k_full, k_free),
                    (v_ref, v_smem, v_full, v_free),
                ):

                    @pl.when(done + i >= stages)
                    def _(free=free):
                        plgpu.barrier_wait(free.at[slot])

                    for j, place in enumerate(places):
                        plgpu.copy_gmem_to_smem(
                            ref.at[scene, pl.ds(place * piece, piece), head],
                            smem.at[slot, pl.ds(j * piece, piece)],
                            full.at[slot],
                        )
                    if bias_ref is not None and bias_smem is not None and ref is k_ref:
                        (place,) = places
                        plgpu.copy_gmem_to_smem(
                            bias_ref.at[scene, head, pl.ds(place * TILE_K, TILE_K)],
                            bias_smem.at[slot],
                            full.at[slot],
                        )
                return following

            lax.fori_loop(0, steps, step, first)
            return done + steps

        taken = for_each_item(block * num_q_slots + q_slot, fetch_tile)

        # Shared memory is given back only when nobody uses it any more.
        @pl.when(taken > 0)
        def _():
            plgpu.barrier_wait(q_free.at[q_slot])

        for i in range(stages):

            @pl.when(taken > i)
            def _(i=i):
                plgpu.barrier_wait(k_free.at[slot_of(q_slot, int32(i))])
                plgpu.barrier_wait(v_free.at[slot_of(q_slot, int32(i))])

    def consume(q_slot, consumer):
        me = q_slot * consumers + consumer
        queries = q_smem.at[me]
        across = lambda x, shape: lax.broadcast_in_dim(x, shape, [0])
        accumulator = lambda shape: plgpu.WGMMAAccumulatorRef(shape, jnp.float32)

        def iota(shape, dimension):
            return plgpu.broadcasted_iota(int32, shape, dimension, layout=plgpu.Layout.WGMMA)

        def score(scores, slot):
            plgpu.wgmma(scores, queries, k_smem.at[slot].transpose((1, 0)))

        def biases_in(slot, *, shared):
            """Biases of the keys in a slot, as exponents of 2, or the one of all; or None."""
            if bias_smem is None:
                return None
            if shared:
                bias = bias_smem[slot, 0]
            else:
                layout = plgpu.Layout.WGMMA.reduce(0)
                bias = plgpu.load(bias_smem.at[slot], layout=layout, optimized=False)
            if weights_smem is not None:
                # The simulator wants a fence between what threads read and what TMA then
                # overwrites. On a GPU the barrier that says so is enough: numbers are in registers
                # when it is arrived at.
                plgpu.commit_smem()
            return bias

        def score_alone(slot):
            """Scores of the keys in a slot, waited for, and their biases."""
            plgpu.barrier_wait(k_full.at[slot])

            def run(scores):
                score(scores, slot)
                return scores[...]

            scores = pl.run_scoped(run, accumulator((_ROWS, TILE_K)))
            biases = biases_in(slot, shared=False)
            plgpu.barrier_arrive(k_free.at[slot])
            if biases is not None:
                biases = lax.broadcast_in_dim(biases, scores.shape, [1])
            return scores, biases

        def weigh(scores, reference, sums, biases=None):
            """Weights in `dtype`, and `sums` with them added."""
            subtract = across(reference, scores.shape)
            subtract = subtract if biases is None else subtract - biases
            weights = jnp.exp2(scores * factor - subtract)
            for column in range(0, TILE_K, _SUMS):
                sums = sums + weights[:, column : column + _SUMS]
            return weights.astype(dtype), sums

        def multiply_values(out, weights, slot):
            if weights_smem is not None:
                weights_smem.at[me][...] = weights
                plgpu.commit_smem()
                weights = weights_smem.at[me]
            plgpu.wgmma(out, weights, v_smem.at[slot])

        def bits_at(words, shape, dimension):
            """For each column or row of a tile, whether its bit is set in two words."""
            place = iota(shape, dimension)
            word = jnp.where(place < 32, words[0], words[1])
            # Compilers see that the second shift is of constants.
            shifted = lax.shift_right_logical(word, place & 7)
            return (shifted & lax.shift_left(jnp.ones_like(place), place & 24)) != 0

        def leave_out(scores, words):
            """The scores of the keys whose bits are set in two words, and -inf for the others."""
            return jnp.where(bits_at(words, scores.shape, 1), scores, -jnp.inf)

        def clean_values(slot, words):
            """Values that do not count become zero: NaN times a weight of zero would be NaN."""

            @pl.when(consumer == 0)
            def _():
                # JAX 0.10, which does not run this, asks for an index.
                values = plgpu.load(  # pyright: ignore[reportCallIssue]
                    v_smem.at[slot], layout=plgpu.Layout.WGMMA
                )
                keep = bits_at(words, values.shape, 0)
                v_smem.at[slot][...] = jnp.where(keep, values, jnp.zeros_like(values))
                plgpu.commit_smem()

            plgpu.barrier_arrive(cleaned.at[q_slot])
            plgpu.barrier_wait(cleaned.at[q_slot])

        def attend_tile(r, scene, head, tile, row, done):
            at = scene, head, row
            count = num_listed_ref[at]
            steps = steps_of(count, whole=False)
            whole_steps = steps_of(num_whole_ref[at], whole=True)
            slot = lambda i: slot_of(q_slot, done + i)

            plgpu.barrier_wait(q_full.at[q_slot])
            first_counted = counted(at, count, int32(0))
            first_hidden = hidden(at, count, int32(0))
            scores, biases = score_alone(slot(int32(0)))
            scores = leave_out(scores, without(first_counted, first_hidden))
            biased = scores if biases is None else scores + biases * (1 / factor)
            highest = biased.max(axis=1) * factor
            reference = jnp.where(highest == -jnp.inf, 0.0, highest)
            no_sums = plgpu.layout_cast(jnp.zeros((_ROWS, _SUMS), jnp.float32), plgpu.Layout.WGMMA)
            weights, sums = weigh(scores, reference, no_sums, biases)

            def free_queries_if(condition):
                if out_smem is None:
                    return
                if not has_rest:
                    plgpu.barrier_arrive(q_free.at[q_slot])
                    return

                @pl.when(condition)
                def _():
                    plgpu.barrier_arrive(q_free.at[q_slot])

            def accumulate(out):
                """Adds weighted values to `out`; returns it and the sums of weights."""

                def whole_step(i, carry):
                    weights, sums, *unseen = carry
                    now, before = slot(i), slot(i - 1)
                    plgpu.barrier_wait(k_full.at[now])
                    bias = biases_in(now, shared=True)

                    def run(scores):
                        score(scores, now)
                        plgpu.barrier_wait(v_full.at[before])
                        multiply_values(out, weights, before)
                        # Who is left out of the next tile is read while tensor cores work.
                        following = ()
                        if has_mask:
                            following = hidden(at, count, jnp.minimum(i + 1, steps - 1))
                        # The scores are waited for; the product with values goes on.
                        return plgpu.wgmma_accumulator_load(scores, wait_n=1), following

                    scores, following = pl.run_scoped(run, accumulator((_ROWS, TILE_K)))
                    # Compilers know nothing of what runs in the background. These barriers keep
                    # uses of the scores behind the wait, and the old weights' registers from new
                    # weights until the product that reads them is done.
                    scores = lax.optimization_barrier(scores)
                    plgpu.barrier_arrive(k_free.at[now])
                    if has_mask:
                        scores = leave_out(scores, [~word for word in unseen])
                    shifted = reference if bias is None else reference - bias
                    new_weights, sums = weigh(scores, shifted, sums)
                    new_weights, sums = lax.optimization_barrier((new_weights, sums))
                    plgpu.wgmma_wait(0)
                    new_weights, _ = lax.optimization_barrier((new_weights, weights))
                    plgpu.barrier_arrive(v_free.at[before])
                    return new_weights, sums, *following

                def take_values(slot, weights):
                    multiply_values(out, weights, slot)
                    plgpu.wgmma_wait(0)
                    plgpu.barrier_arrive(v_free.at[slot])

                def partial_step(i, sums):
                    words = counted(at, count, i)
                    scores, biases = score_alone(slot(i))
                    scores = leave_out(scores, without(words, hidden(at, count, i)))
                    weights, sums = weigh(scores, reference, sums, biases)
                    plgpu.barrier_wait(v_full.at[slot(i)])
                    if has_partial_blocks:
                        clean_values(slot(i), words)
                    take_values(slot(i), weights)
                    return sums

                second = hidden(at, count, jnp.minimum(1, steps - 1)) if has_mask else ()
                carry = (weights, sums, *second)
                last_weights, last_sums = lax.fori_loop(1, whole_steps, whole_step, carry)[:2]
                # The next queries can come while the last values are still multiplied.
                free_queries_if(whole_steps >= steps)
                last = slot(whole_steps - 1)
                plgpu.barrier_wait(v_full.at[last])
                if has_partial_blocks:

                    @pl.when((whole_steps == 1) & ((first_counted[0] & first_counted[1]) != -1))
                    def _():
                        clean_values(last, first_counted)

                take_values(last, last_weights)
                if has_rest:
                    last_sums = lax.fori_loop(whole_steps, steps, partial_step, last_sums)
                    free_queries_if(whole_steps < steps)
                return out[...], last_sums

            out, sums = pl.run_scoped(accumulate, accumulator((_ROWS, h)))

            total = sums.sum(axis=1)
            some = total > 0
            largest = jnp.abs(out).max(axis=1)
            # -inf is as it should be only where no key counts. A sum up to 2**126 has an inverse.
            allowed = jnp.where(count > 0, jnp.float32(_MAX_REFERENCE), jnp.inf)
            allowed = plgpu.layout_cast(
                lax.broadcast_in_dim(allowed, (_ROWS,), []), plgpu.Layout.WGMMA.reduce(1)
            )
            good = (jnp.abs(highest) <= allowed) & (total < 2.0**126) & (largest < jnp.inf)
            lse = jnp.where(
                some, (reference + jnp.log2(jnp.where(some, total, 1.0))) / _LOG2_E, -jnp.inf
            )
            inverse = jnp.where(some, 1.0 / jnp.where(some, total, 1.0), 0.0)
            rows = pl.ds(tile * config.tile_q + consumer * _ROWS, _ROWS)
            lse_ref[scene, head, rows] = jnp.where(good, lse, jnp.nan)
            results = queries
            if out_smem is not None:
                results = out_smem.at[me]
                # The results of the tile before may still be on their way out.
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)
            results[...] = (out * across(inverse, out.shape)).astype(dtype)
            plgpu.commit_smem()
            plgpu.copy_smem_to_gmem(results, out_ref.at[scene, rows, head])
            if out_smem is None:
                plgpu.wait_smem_to_gmem(0, wait_read_only=True)
                plgpu.barrier_arrive(q_free.at[q_slot])
            return done + steps

        for_each_item(block * num_q_slots + q_slot, attend_tile)
        plgpu.wait_smem_to_gmem(0)

    exchanged = registers(config.num_consumers, pieces)

    @pl.when(warpgroup < config.num_consumers)
    def _():
        if exchanged:
            plgpu.set_max_registers(exchanged[0], action="increase")
        consume(lax.div(warpgroup, int32(consumers)), lax.rem(warpgroup, int32(consumers)))

    @pl.when(warpgroup == config.num_consumers)
    def _():
        if exchanged:
            plgpu.set_max_registers(exchanged[1], action="decrease")

        @functools.partial(pl.kernel, mesh=plgpu.WarpMesh(axis_name="warp"))
        def each_warp():
            warp = lax.axis_index("warp")

            @pl.when(warp < num_q_slots)
            def _():
                produce(warp)

        # To pyright, what `pl.kernel` returns may still wait for its function.
        each_warp()  # pyright: ignore[reportCallIssue]
