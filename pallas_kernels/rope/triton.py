"""Bias, layer normalisation and rotary embedding in one Pallas kernel, through Triton.

What it computes is little, so time goes to memory: every number is read once and written once. A
program holds some tokens with their heads as four tiles, one for each quarter of a head. Then the
members of a pair that turns are in the same place of two tiles, and no thread needs what another has.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.blocks import count_blocks
from pallas_kernels.triton_call import triton_call

_NUM_WARPS = 4
# Numbers that one program holds, in float32: 64 for each of its threads.
_TILE = 64 * 32 * _NUM_WARPS


def norm_rope(x, cos, sin, bias, scale, offset, eps, *, interpret=False):
    """As `xla.norm_rope`, for `n` and `h` that are powers of two.

    Offsets into `x` may exceed 32 bits: Pallas makes them 64 bits wide where the array has more than
    2^32 bytes. Blocks are counted in tokens, so that their numbers stay small.
    """
    *_, p, n, h = x.shape
    tokens = x.reshape(-1, n, h)
    heads = min(n, _TILE // h)
    block = (_TILE // (heads * h), heads, h)
    whole = lambda x: pl.BlockSpec(x.shape, lambda i, j: (0,) * x.ndim)
    tile = pl.BlockSpec(block, lambda i, j: (i, j, 0))
    (out,) = triton_call(
        functools.partial(_kernel, num_tokens=tokens.shape[0], eps=eps),
        grid=(count_blocks(tokens.shape[0], block[0]), n // heads),
        in_specs=[
            tile,
            whole(cos),
            whole(sin),
            pl.BlockSpec((heads, h), lambda i, j: (j, 0)),
            whole(scale),
            whole(offset),
        ],
        out_specs=[tile],
        out_shape=[jax.ShapeDtypeStruct(tokens.shape, x.dtype)],
        num_warps=_NUM_WARPS,
        num_stages=1,
        interpret=interpret,
        name="norm_rope",
    )(tokens, cos, sin, bias, scale, offset)
    return out.reshape(x.shape)


def _kernel(x_ref, cos_ref, sin_ref, bias_ref, scale_ref, offset_ref, out_ref, *, num_tokens, eps):
    size, _, h = x_ref.shape
    quarters = [pl.ds(i * h // 4, h // 4) for i in range(4)]
    token = pl.program_id(0) * size + lax.broadcasted_iota(jnp.int32, (size,), 0)
    exists = None if num_tokens % size == 0 else (token < num_tokens)[:, None, None]

    x = [
        plgpu.load(x_ref.at[:, :, quarter], mask=exists, other=None if exists is None else 0)
        for quarter in quarters
    ]  # 4 times [size, heads, h / 4]
    widen = lambda row: row.astype(jnp.float32)
    x = [widen(part) + widen(bias_ref[:, quarter]) for part, quarter in zip(x, quarters)]
    mean = _sum_rows(x) / h
    x = [part - mean for part in x]
    reciprocal = lax.rsqrt(_sum_rows([part * part for part in x]) / h + eps)
    x = [
        part * reciprocal * widen(scale_ref[quarter]) + widen(offset_ref[quarter])
        for part, quarter in zip(x, quarters)
    ]

    row = lax.rem(token, jnp.int32(cos_ref.shape[0]))[:, None]
    for i in (0, 2):  # pairs that turn with y, then those that turn with x
        pair = (i * h // 4 + lax.broadcasted_iota(jnp.int32, (h // 4,), 0))[None]
        cos, sin = (plgpu.load(ref.at[row, pair])[:, None] for ref in (cos_ref, sin_ref))
        first, second = x[i], x[i + 1]
        for quarter, turned in (
            (quarters[i], first * cos - second * sin),
            (quarters[i + 1], second * cos + first * sin),
        ):
            plgpu.store(out_ref.at[:, :, quarter], turned.astype(out_ref.dtype), mask=exists)


def _sum_rows(quarters):
    """Sums over heads that lie in four parts, [size, heads, 1]."""
    first, second, third, fourth = quarters
    return jnp.sum((first + second) + (third + fourth), axis=-1, keepdims=True)
