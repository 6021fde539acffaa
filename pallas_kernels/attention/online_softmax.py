"""Block-sparse attention with the online softmax, in a Pallas kernel through Triton.

It is the backend "triton", and with `any_scores` what other kernels leave to it: scores that their
faster softmax cannot hold.

One program computes a tile of queries of one head. It walks the list of its query block, some keys
at a time, with the online softmax of FlashAttention: a running maximum, sum and output, corrected
when the maximum grows. docs/kernels.md explains the choices made here and what they gained.
"""

import functools
import math

import jax
import jax.numpy as jnp
import numpy as np
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.attention import overflow
from pallas_kernels.blocks import count_blocks
from pallas_kernels.key_mask import KEYS_PER_WORD
from pallas_kernels.triton_call import triton_call

_LOG2_E = math.log2(math.e)

# Scaled scores up to here may be formed and reduced by the maximum in one fused operation. Its
# product is exact while the maximum was rounded, so the largest weight is 2**(what rounding took
# off) instead of 1. All weights share that factor, and up to here it is below 2.
_MAX_FUSED = 2.0**24


def redo(
    q, k, v, lists, block_map, scale, failed, out, lse,
    *, key_bias=None, key_mask=None, config, interpret,
):  # fmt: skip
    """Computes those tiles again of which `failed` is positive, whatever their scores.

    Args:
        failed: of each tile of `config.tile_q` queries, heads after each other.
        out, lse: results so far [t n h] and [n t]; the others are kept.
    """
    launch = Launch(q, k, v, lists, block_map, scale, key_bias, key_mask, config, interpret)

    def attend(*refs):
        *inputs, failed_ref, _, _, out_ref, lse_ref = refs
        program = pl.program_id(0)

        @pl.when(failed_ref[0] > 0)
        def _():
            launch.attend(*inputs, out_ref, lse_ref, any_scores=True, program=program)

    # Nearly always none has failed, and this takes microseconds.
    first = len(launch.operands) + 1
    return launch(
        attend,
        failed,
        out,
        lse,
        in_specs=[FLAG, *launch.out_specs],
        input_output_aliases={first: 0, first + 1: 1},
        name="block_sparse_attention_of_large_scores",
    )


# One flag of each program.
FLAG = pl.BlockSpec((1,), lambda i: (i,))


class Launch:
    """What launches of the kernel for some arguments share: one program for a tile of queries."""

    def __init__(self, q, k, v, lists, block_map, scale, key_bias, key_mask, config, interpret):
        t, n, h = q.shape
        block_q, block_k = block_map.block_q, block_map.block_k
        tile_q = config.tile_q
        tiles = count_blocks(t, tile_q)
        self.num_programs = tiles * n
        # Kernels slice whole tiles of keys, also where there are fewer.
        missing = max(0, min(block_k, config.tile_k) - k.shape[0])
        k, v = (jnp.pad(x, ((0, missing), (0, 0), (0, 0))) for x in (k, v))
        # Program i computes a tile of head i // tiles, of this row of the map.
        row = lambda i: (i // tiles, (i % tiles) * tile_q // block_q)
        queries = pl.BlockSpec((tile_q, None, h), lambda i: (i % tiles, i // tiles, 0))
        keys = pl.BlockSpec((k.shape[0], None, h), lambda i: (0, i // tiles, 0))
        count = pl.BlockSpec((None, 1), row)
        capacity = lists.indices.shape[-1]
        self.operands = [q, k, v]
        self.in_specs = [queries, keys, keys]
        if key_bias is not None:  # In units of unscaled scores.
            self.operands.append(jnp.pad(key_bias / scale, ((0, 0), (0, missing))))
            self.in_specs.append(pl.BlockSpec((None, k.shape[0]), lambda i: (i // tiles, 0)))
        if key_mask is not None:
            # In whole blocks of keys, as signed numbers, which shift as well.
            words = count_blocks(max(k.shape[0], block_map.num_kv_blocks * block_k), KEYS_PER_WORD)
            key_mask = lax.bitcast_convert_type(key_mask, jnp.int32)
            key_mask = jnp.pad(key_mask, ((0, 0), (0, 0), (0, words - key_mask.shape[-1])))
            self.operands.append(key_mask)
            self.in_specs.append(pl.BlockSpec((None, None, words), lambda i: (*row(i), 0)))
        self.operands += lists.operands()
        self.in_specs += [
            pl.BlockSpec((None, None, capacity), lambda i: (*row(i), 0)),
            count,
        ]
        if lists.kv_tokens is not None:
            self.in_specs += [count, pl.BlockSpec(lists.kv_tokens.shape, lambda i: (0,))]
        self.out_specs = [queries, pl.BlockSpec((None, tile_q), lambda i: (i // tiles, i % tiles))]
        like = jax.ShapeDtypeStruct
        self.out_shape = [like(q.shape, q.dtype), like((n, t), jnp.float32)]
        self._attend = functools.partial(
            _attend_tile,
            num_queries=t,
            scale=scale,
            block_k=block_k,
            tile_k=config.tile_k,
            has_bias=key_bias is not None,
            has_mask=key_mask is not None,
            has_partial_blocks=lists.kv_tokens is not None,
            interpret=interpret,
        )
        self._call = functools.partial(
            triton_call,
            grid=(self.num_programs,),
            num_warps=config.num_warps,
            num_stages=config.num_stages,
            interpret=interpret,
        )

    def attend(self, *refs, any_scores, program=None):
        """The body of a kernel."""
        program = pl.program_id(0) if program is None else program
        self._attend(program, *refs, any_scores=any_scores)

    def __call__(self, kernel, *more, in_specs=(), out_specs=(), out_shape=(), **options):
        """Runs it on the shared operands, and `more` of them."""
        return self._call(
            kernel,
            in_specs=[*self.in_specs, *in_specs],
            out_specs=[*self.out_specs, *out_specs],
            out_shape=[*self.out_shape, *out_shape],
            **options,
        )(*self.operands, *more)


def _attend_tile(
    program, q_ref, k_ref, v_ref, *refs, num_queries, scale, block_k, tile_k,
    has_bias, has_mask, has_partial_blocks, any_scores, interpret,
):  # fmt: skip
    """Program number `program`. Unless it is to work for `any_scores`, a flag tells failure."""
    refs = list(refs)
    bias_ref = refs.pop(0) if has_bias else None
    mask_ref = refs.pop(0) if has_mask else None
    indices_ref, num_whole = refs.pop(0), refs.pop(0)[0]
    num_listed, tokens_ref = num_whole, None
    if has_partial_blocks:
        num_listed, tokens_ref = refs.pop(0)[0], refs.pop(0)
    out_ref, lse_ref, *failed_ref = refs
    tile_q, h = q_ref.shape
    dtype = q_ref.dtype

    # The list is walked in pieces: blocks, or parts of blocks larger than a tile. A step takes
    # several.
    piece = min(block_k, tile_k)
    pieces_per_block = block_k // piece
    pieces_per_step = tile_k // piece
    offset = lax.broadcasted_iota(jnp.int32, (piece,), 0)

    num_tiles = jnp.int32(pl.cdiv(num_queries, tile_q))
    first_query = lax.rem(program, num_tiles) * tile_q
    queries = first_query + lax.broadcasted_iota(jnp.int32, (tile_q,), 0)
    exists = queries < num_queries
    q = plgpu.load(q_ref.at[:, :], mask=jnp.broadcast_to(exists[:, None], (tile_q, h)), other=0.0)

    def locate(i):
        """Of the i-th piece: its block, and where it starts in there."""
        if pieces_per_block == 1:
            return indices_ref[i].astype(jnp.int32), 0
        block = indices_ref[lax.div(i, jnp.int32(pieces_per_block))].astype(jnp.int32)
        return block, lax.rem(i, jnp.int32(pieces_per_block)) * piece

    def first_of(i):
        block, start = locate(i)
        return block * block_k + start

    def product(a, b):
        precision = lax.Precision.HIGHEST if dtype == jnp.float32 else None
        return jnp.dot(a, b, preferred_element_type=jnp.float32, precision=precision)

    def score(q, keys, first, bias_factor):
        """Unscaled scores of some keys, by their indices, with their biases.

        `first`: the first of them, which the others follow, but for those that do not count.
        """
        scores = product(q, k_ref[keys, :].T)
        if bias_ref is not None:
            biases = bias_ref[keys][None]
            scores += biases if bias_factor is None else biases * bias_factor[:, None]
        if mask_ref is not None:
            place = first + offset
            words = mask_ref[lax.shift_right_logical(place, jnp.int32(5))]
            hidden = lax.shift_right_logical(words, place & 31) & 1
            scores = jnp.where(hidden[None] != 0, -jnp.inf, scores)
        return scores

    def walk(q, exponents, reference, correction_exponent, bias_factor=None):
        """Walks the list with the online softmax: the outputs, their weights' sums, the references.

        Weights are 2 to the power of `exponents(scores, references)`. A query's reference grows
        with the maximum of its scores: it is `reference(maximum)`. Biases times a query's
        `bias_factor`, or as they are, are of the size of its scores.
        """

        def accumulate(carry, scores, values, *, may_be_empty):
            out, total, ref = carry
            maximum = functools.reduce(jnp.maximum, [jnp.max(s, axis=1) for s in scores])
            new_ref = jnp.maximum(ref, reference(maximum))
            # Before its first key that counts, a query's reference is -inf, and its weights are
            # zero.
            finite_ref = jnp.where(new_ref == -jnp.inf, 0.0, new_ref) if may_be_empty else new_ref
            correction = _exp2(correction_exponent(ref, finite_ref), interpret)
            weights = [_exp2(exponents(s, finite_ref[:, None]), interpret) for s in scores]
            sums = functools.reduce(jnp.add, [jnp.sum(w, axis=1) for w in weights])
            out = out * correction[:, None]
            for w, v in zip(weights, values, strict=True):
                out += product(w.astype(dtype), v)
            return out, total * correction + sums, new_ref

        def whole_step(j, carry):
            firsts = [first_of(j * pieces_per_step + i) for i in range(pieces_per_step)]
            spans = [pl.ds(first, piece) for first in firsts]
            scores = [score(q, *keys, bias_factor) for keys in zip(spans, firsts, strict=True)]
            values = [v_ref[span, :] for span in spans]
            return accumulate(carry, scores, values, may_be_empty=keys_may_be_hidden)

        def odd_step(i, carry):
            """One piece: first what the steps left of the whole blocks, then the partial blocks."""
            if tokens_ref is None:
                span = pl.ds(first_of(i), piece)
                scores = score(q, span, first_of(i), bias_factor)
                may_be_empty = keys_may_be_hidden
                return accumulate(carry, [scores], [v_ref[span, :]], may_be_empty=may_be_empty)
            block, start = locate(i)
            tokens = tokens_ref[block]  # at least one
            # Keys that do not count are not read: the last one that does takes their place.
            first = block * block_k + start
            rows = block * block_k + jnp.minimum(start + offset, tokens - 1)
            scores = score(q, rows, first, bias_factor)
            scores = jnp.where((start + offset)[None] < tokens, scores, -jnp.inf)
            return accumulate(carry, [scores], [v_ref[rows, :]], may_be_empty=True)

        nothing = (
            jnp.zeros((tile_q, h), jnp.float32),
            jnp.zeros((tile_q,), jnp.float32),
            jnp.full((tile_q,), -jnp.inf, jnp.float32),
        )
        num_steps = lax.div(num_whole * pieces_per_block, jnp.int32(pieces_per_step))
        carry = lax.fori_loop(0, num_steps, whole_step, nothing)
        if pieces_per_step == 1 and not has_partial_blocks:
            return carry
        return lax.fori_loop(
            num_steps * pieces_per_step, num_listed * pieces_per_block, odd_step, carry
        )

    # Where all keys so far are left out by their biases, a tile fails, unless it is to work for any
    # scores.
    keys_may_be_hidden = has_mask or (has_bias and any_scores)
    factor = scale * _LOG2_E
    if any_scores:
        halvings = overflow.halvings(q)
        factor = overflow.restore(halvings, factor)
        out, total, ref = walk(
            overflow.halve(q, halvings),
            exponents=lambda scores, ref: (scores - ref) * factor[:, None],
            reference=lambda maximum: maximum,
            correction_exponent=lambda old, new: (old - new) * factor,
            bias_factor=overflow.halve_bias(halvings) if has_bias else None,
        )
        ref = ref * factor
    else:
        out, total, ref = walk(
            q,
            exponents=lambda scores, ref: _multiply_subtract(scores, factor, ref, interpret),
            reference=lambda maximum: maximum * factor,
            correction_exponent=lambda old, new: old - new,
        )
        good = (jnp.abs(ref) < _MAX_FUSED) & (jnp.max(jnp.abs(out), axis=1) < jnp.inf)
        if has_mask and not has_bias:  # which may hide all keys; biases are for `any_scores`
            good |= (ref == -jnp.inf) & (total == 0)
        bad = exists & (num_listed > 0) & ~good
        failed_ref[0][0] = jnp.max(bad.astype(jnp.int32))

    some = total > 0
    total = jnp.where(some, total, 1.0)
    out = jnp.where(some[:, None], out / total[:, None], 0.0).astype(dtype)
    lse = jnp.where(some, (ref + jnp.log2(total)) / _LOG2_E, -jnp.inf)
    plgpu.store(out_ref.at[:, :], out, mask=jnp.broadcast_to(exists[:, None], (tile_q, h)))
    plgpu.store(lse_ref.at[:], lse, mask=exists)


def _exp2(x, interpret):
    """2**x in one instruction. Triton's own takes four, to be right where results are subnormal."""
    if interpret:
        return jnp.exp2(x)
    return _inline("ex2.approx.ftz.f32 $0, $1;", x)


def _multiply_subtract(x, factor, y, interpret):
    """`x * factor - y` in one instruction, which the compiler does not find by itself."""
    y = jnp.broadcast_to(y, x.shape)
    if interpret:
        return x * factor - y
    bits = np.float32(factor).view(np.uint32)
    return _inline(f"fma.rn.ftz.f32 $0, $1, 0f{bits:08X}, $2;", x, -y)


def _inline(assembly, *operands):
    (out,) = plgpu.elementwise_inline_asm(
        assembly,
        args=operands,
        constraints=",".join(["=f"] + ["f"] * len(operands)),
        pack=1,
        result_shape_dtypes=[jax.ShapeDtypeStruct(operands[0].shape, operands[0].dtype)],
    )
    return out
