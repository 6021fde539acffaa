"""`block_sparse_attention`: its arguments, checked, and its backends."""

import functools
import warnings
from typing import Any, Literal, overload

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int, UInt32

from pallas_kernels import devices, mosaic_gpu_call
from pallas_kernels.arguments import (
    DTYPES,
    check_key_bias,
    check_key_mask,
    check_kv_lengths,
    checked_scale,
    on_device,
)
from pallas_kernels.attention.call import AttentionCall
from pallas_kernels.attention.config import MosaicGpuConfig, TritonConfig
from pallas_kernels.block_map import BlockMap
from pallas_kernels.blocks import count_blocks
from pallas_kernels.operation import Backend, Operation

OPERATION = Operation(
    name="block_sparse_attention",
    backends=[
        Backend(
            name="mosaic_gpu",
            module="pallas_kernels.attention.mosaic_gpu",
            device=mosaic_gpu_call.unsupported_because,
            config_type=MosaicGpuConfig,
        ),
        Backend(
            name="triton",
            module="pallas_kernels.attention.triton",
            device=devices.triton_unsupported_because,
            config_type=TritonConfig,
        ),
        Backend(name="xla", module="pallas_kernels.attention.xla"),
        Backend(name="reference", module="pallas_kernels.attention.reference"),
    ],
    gradient="recomputed",
)


@overload
def block_sparse_attention(
    q: Float[Array, "t n h"],
    k: Float[Array, "kv n h"],
    v: Float[Array, "kv n h"],
    block_map: BlockMap,
    *,
    kv_lengths: int | Int[Array, "..."] | None = None,
    key_bias: Float[Array, "n kv"] | None = None,
    key_mask: UInt32[Array, "n qb words"] | None = None,
    scale: float | None = None,
    implementation: str | None = None,
    config: MosaicGpuConfig | TritonConfig | None = None,
    return_lse: Literal[False] = False,
    interpret: bool = False,
) -> Float[Array, "t n h"]: ...
@overload
def block_sparse_attention(
    q: Float[Array, "t n h"],
    k: Float[Array, "kv n h"],
    v: Float[Array, "kv n h"],
    block_map: BlockMap,
    *,
    kv_lengths: int | Int[Array, "..."] | None = None,
    key_bias: Float[Array, "n kv"] | None = None,
    key_mask: UInt32[Array, "n qb words"] | None = None,
    scale: float | None = None,
    implementation: str | None = None,
    config: MosaicGpuConfig | TritonConfig | None = None,
    return_lse: Literal[True],
    interpret: bool = False,
) -> tuple[Float[Array, "t n h"], Float[Array, "t n"]]: ...
def block_sparse_attention(
    q: Float[Array, "t n h"],
    k: Float[Array, "kv n h"],
    v: Float[Array, "kv n h"],
    block_map: BlockMap,
    *,
    kv_lengths: int | Int[Array, "..."] | None = None,
    key_bias: Float[Array, "n kv"] | None = None,
    key_mask: UInt32[Array, "n qb words"] | None = None,
    scale: float | None = None,
    implementation: str | None = None,
    config: MosaicGpuConfig | TritonConfig | None = None,
    return_lse: bool = False,
    interpret: bool = False,
) -> Float[Array, "t n h"] | tuple[Float[Array, "t n h"], Float[Array, "t n"]]:
    """Attention in which each block of queries sees the blocks of keys that `block_map` keeps.

    The softmax over the kept keys is exact. Scores, weights and sums are float32, and so are
    products of float32 numbers; results have the type of `q`. Queries that see no key get zero. The
    same arguments give the same bits. `jax.vmap` gives a batch, and `jax.grad` works: it recomputes
    with the XLA implementation, which alone has forward-mode derivatives (`jax.jvp`).

    Args:
        q, k, v: queries, keys, values, all float32, bfloat16 or float16, and finite. Scores may be
            of any size; sums of values over all keys must be within float32.
        block_map: which blocks are kept; its sizes must be those of `q` and `k`.
        kv_lengths: how many leading keys count, or for each key block how many of its leading keys
            do; None for all. Keys and values that do not count have no influence, whatever they
            hold.
        key_bias: what is added to the scaled scores of each head and key, float32: finite, or -inf
            to leave a key out. The logarithm of a number makes a key count as often as that. It has
            a gradient. Where lengths can say the same as -inf, they are faster.
        key_mask: keys that a block of queries leaves out, a bit for each head, query block and key,
            as `pack_key_mask` makes it: within the blocks that `block_map` keeps.
        scale: of the scores, a positive number known when tracing; `1 / sqrt(h)` by default.
        implementation: "mosaic_gpu" (a Pallas kernel for Hopper GPUs, with JAX from 0.11 on:
            bfloat16 and float16, head dims 64 and 128, query blocks of 64 or more, key blocks of
            16 or more, of 64 or more with a `key_bias`), "triton" (a Pallas kernel for NVIDIA GPUs
            from Ampere on: head dims 32, 64 and 128), both for blocks of a power of two, up to
            65,536 in a list; "xla" (any device, memory bounded), "reference" (the oracle, all
            scores in memory), or None for the first of them that can do this here. A name means
            that one or an error.
        config: settings of a kernel, whose implementation they imply; None for the tuned ones.
        return_lse: also return the log-sum-exp of each query's scaled scores, biases included,
            float32; `-inf` where it sees no key. Results over disjoint sets of keys can be merged
            with it.
        interpret: run the kernel in Pallas's interpreter, on any device, slowly; Triton's if none
            is named. That of "mosaic_gpu" simulates its threads, and raises if they race; it asks
            for the environment variable NPROC where there are few cores.

    Raises:
        ValueError: arguments that no implementation could make sense of.
        NotImplementedError: the implementation named cannot do this here.
    """
    _check_arguments(q, k, v, block_map, kv_lengths)
    check_key_bias(key_bias, heads=q.shape[1], keys=k.shape[0])
    check_key_mask(key_mask, rows=block_map.counts.shape, keys=k.shape[0])
    call = AttentionCall(
        q=q,
        k=k,
        v=v,
        block_map=block_map,
        kv_lengths=on_device(kv_lengths, beside=q),
        key_bias=key_bias,
        key_mask=key_mask,
        scale=checked_scale(scale, q.shape[-1]),
    )
    chosen = OPERATION.choose(
        call, implementation=implementation, config=config, interpret=interpret
    )
    out, lse = _attend(call, chosen=chosen)
    return (out, lse) if return_lse else out


@functools.partial(jax.jit, static_argnames="chosen")
@jax.named_scope("block_sparse_attention")
def _attend(call, *, chosen):
    return chosen(call)


def attention_unsupported_because(
    *, head_dim: int, dtype: jax.typing.DTypeLike, block_q: int = 128, block_k: int = 64
) -> dict[str, str | None]:
    """Why the kernels of `block_sparse_attention` cannot be used on the default device.

    Returns:
        By name, in the order in which they are preferred: the reason, or None where the kernel can
        be used. "xla" always can, and is taken where no kernel is.
    """
    like: Any = jax.ShapeDtypeStruct
    q, k = like((block_q, 1, head_dim), dtype), like((block_k, 1, head_dim), dtype)
    row = {"indices": like((1, 1, 1), jnp.int16), "counts": like((1, 1), jnp.int32)}
    block_map = BlockMap(**row, num_kv_blocks=1, block_q=block_q, block_k=block_k)
    call = AttentionCall(
        q=q,
        k=k,
        v=k,
        block_map=block_map,
        kv_lengths=None,
        key_bias=None,
        key_mask=None,
        scale=1.0,
    )
    return OPERATION.unsupported_because(call)


def attention_obstacles(
    *, head_dim: int, dtype: jax.typing.DTypeLike, block_q: int = 128, block_k: int = 64
) -> dict[str, str | None]:
    """Deprecated name of `attention_unsupported_because`."""
    warnings.warn(
        "attention_obstacles is now called attention_unsupported_because",
        DeprecationWarning,
        stacklevel=2,
    )
    return attention_unsupported_because(
        head_dim=head_dim, dtype=dtype, block_q=block_q, block_k=block_k
    )


def _check_arguments(q, k, v, block_map, kv_lengths):
    if q.ndim != 3 or k.ndim != 3 or k.shape != v.shape or q.shape[1:] != k.shape[1:]:
        raise ValueError(
            f"q must be [t n h], k and v [kv n h] with the same heads, not {q.shape}, {k.shape} "
            f"and {v.shape}; use jax.vmap for a batch"
        )
    if not q.size * k.size:
        raise ValueError(f"no tokens to attend: q is {q.shape}, k is {k.shape}")
    if q.dtype not in DTYPES or k.dtype != q.dtype or v.dtype != q.dtype:
        raise ValueError(
            f"q, k and v must all be float32, bfloat16 or float16, not {q.dtype}, {k.dtype}, "
            f"{v.dtype}"
        )
    expected = (
        q.shape[1],
        count_blocks(q.shape[0], block_map.block_q),
        count_blocks(k.shape[0], block_map.block_k),
    )
    rows = block_map.counts.shape
    if (*rows, block_map.num_kv_blocks) != expected or block_map.indices.shape[:-1] != rows:
        raise ValueError(
            f"block_map is for {(*rows, block_map.num_kv_blocks)} heads, query blocks and key "
            f"blocks, but q {q.shape} and k {k.shape} have {expected} with {block_map.block_q=}, "
            f"{block_map.block_k=}"
        )
    if not block_map.capacity:
        raise ValueError("block_map has no room for blocks; give it a capacity of at least 1")
    check_kv_lengths(kv_lengths, block_map.num_kv_blocks)
