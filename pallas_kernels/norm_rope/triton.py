"""Bias, layer normalisation and rotary embedding in one Pallas kernel, through Triton.

What it computes is little, so time goes to memory: every number is read once and written once. A
program holds some tokens with their heads as four tiles, one for each quarter of a head. Then the
members of a pair that turns are in the same place of two tiles, and no thread needs what another
has.
"""

import functools

import jax
import jax.numpy as jnp
from jax import lax
from jax.experimental import pallas as pl
from jax.experimental.pallas import triton as plgpu

from pallas_kernels.blocks import count_blocks
from pallas_kernels.norm_rope.call import NormRopeCall
from pallas_kernels.triton_call import triton_call

_NUM_WARPS = 4
# Numbers that one program holds, in float32: 64 for each of its threads.
_TILE = 64 * 32 * _NUM_WARPS


def unsupported_because(call: NormRopeCall) -> str | None:
    if call.x.dtype == jnp.float32:
        return "float32 is not supported (bfloat16, float16)"
    n, h = call.x.shape[-2:]
    if h not in (32, 64, 128):
        return f"head_dim={h} is not supported (32, 64, 128)"
    if n & (n - 1):
        return f"num_heads={n} is no power of two"
    return None


def run(call: NormRopeCall, *, interpret: bool):
    rotation, parameters = (call.cos, call.sin), (call.bias, call.scale, call.offset)
    return norm_rope(call.x, *rotation, *parameters, call.eps, interpret=interpret)


def norm_rope(x, cos, sin, bias, scale, offset, eps, *, interpret=False):
    """As `xla.norm_rope`, for `n` and `h` that are powers of two.

    Offsets into `x` may exceed 32 bits: Pallas makes them 64 bits wide where the array has more
    than 2^32 bytes. Blocks are counted in frames and tokens, so that their numbers stay small.
    """
    *_, p, n, h = x.shape
    frames = x.reshape(-1, p, n, h)
    heads = min(n, _TILE // h)
    block = (None, _TILE // (heads * h), heads, h)
    whole = lambda x: pl.BlockSpec(x.shape, lambda f, i, j: (0,) * x.ndim)
    tile = pl.BlockSpec(block, lambda f, i, j: (f, i, j, 0))
    (out,) = triton_call(
        functools.partial(_kernel, num_tokens=p, eps=eps),
        grid=(len(frames), count_blocks(p, block[1]), n // heads),
        in_specs=[
            tile,
            whole(cos),
            whole(sin),
            pl.BlockSpec((heads, h), lambda f, i, j: (j, 0)),
            whole(scale),
            whole(offset),
        ],
        out_specs=[tile],
        out_shape=[jax.ShapeDtypeStruct(frames.shape, x.dtype)],
        # The result may lie where `x` lay: each thread has read before it writes there.
        input_output_aliases={0: 0},
        num_warps=_NUM_WARPS,
        num_stages=1,
        interpret=interpret,
        name="norm_rope",
    )(frames, cos, sin, bias, scale, offset)
    return out.reshape(x.shape)


def _kernel(x_ref, cos_ref, sin_ref, bias_ref, scale_ref, offset_ref, out_ref, *, num_tokens, eps):
    size, _, h = x_ref.shape
    quarters = [pl.ds(i * h // 4, h // 4) for i in range(4)]
    token = pl.program_id(1) * size + lax.broadcasted_iota(jnp.int32, (size, 1, 1), 0)
    exists = None if num_tokens % size == 0 else token < num_tokens
    load = functools.partial(plgpu.load, mask=exists, other=None if exists is None else 0)
    x = [load(x_ref.at[:, :, quarter]).astype(jnp.float32) for quarter in quarters]

    # Read as if they were as large as `x`, from the cache: then each thread reads what it needs,
    # and nothing goes from thread to thread through shared memory.
    head, place = (lax.broadcasted_iota(jnp.int32, x[0].shape, axis) for axis in (1, 2))
    spread = lambda ref, row, i: load(ref.at[row, place + i * h // 4]).astype(jnp.float32)
    cos, sin = ([spread(ref, token, i) for i in (0, 2)] for ref in (cos_ref, sin_ref))
    x = [part + spread(bias_ref, head, i) for i, part in enumerate(x)]

    mean = _sum_rows(x) / h
    x = [part - mean for part in x]
    reciprocal = lax.rsqrt(_sum_rows([part * part for part in x]) / h + eps)
    scale, offset = (
        [ref[quarter].astype(jnp.float32)[None, None] for quarter in quarters]
        for ref in (scale_ref, offset_ref)
    )
    a, b, c, d = (x[i] * reciprocal * scale[i] + offset[i] for i in range(4))

    turned = (
        a * cos[0] - b * sin[0],
        b * cos[0] + a * sin[0],
        c * cos[1] - d * sin[1],
        d * cos[1] + c * sin[1],
    )
    for quarter, part in zip(quarters, turned, strict=True):
        plgpu.store(out_ref.at[:, :, quarter], part.astype(out_ref.dtype), mask=exists)


def _sum_rows(quarters):
    """Sums over heads that lie in four parts, [size, heads, 1]."""
    first, second, third, fourth = quarters
    return jnp.sum((first + second) + (third + fourth), axis=-1, keepdims=True)
