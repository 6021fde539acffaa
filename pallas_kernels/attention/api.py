"""`block_sparse_attention`: what was asked for, checked and handed to the implementation for it."""

import functools
from typing import Literal, NamedTuple, get_args, overload

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float, Int

from pallas_kernels import devices, mosaic_gpu_call
from pallas_kernels.arguments import (
    DTYPES,
    check_implementation,
    check_interpret,
    check_key_bias,
    check_kv_lengths,
    checked_scale,
    on_device,
)
from pallas_kernels.attention.config import (
    MAX_CAPACITY,
    MosaicGpuConfig,
    TritonConfig,
    choose_mosaic_gpu_config,
    choose_triton_config,
)
from pallas_kernels.block_map import BlockMap
from pallas_kernels.blocks import count_blocks, tokens_per_block

Implementation = Literal["mosaic_gpu", "triton", "xla", "reference"]

_CONFIGS: dict[Implementation, type[MosaicGpuConfig] | type[TritonConfig]] = {
    "mosaic_gpu": MosaicGpuConfig,
    "triton": TritonConfig,
}
_CHOOSE_CONFIG = {"mosaic_gpu": choose_mosaic_gpu_config, "triton": choose_triton_config}
# Kernels in the order in which they are preferred.
_KERNELS = tuple(_CONFIGS)


@overload
def block_sparse_attention(
    q: Float[Array, "t n h"],
    k: Float[Array, "kv n h"],
    v: Float[Array, "kv n h"],
    block_map: BlockMap,
    *,
    kv_lengths: int | Int[Array, "..."] | None = None,
    key_bias: Float[Array, "n kv"] | None = None,
    scale: float | None = None,
    implementation: Implementation | None = None,
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
    scale: float | None = None,
    implementation: Implementation | None = None,
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
    scale: float | None = None,
    implementation: Implementation | None = None,
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
        scale: of the scores, a positive number known when tracing; `1 / sqrt(h)` by default.
        implementation: "mosaic_gpu" (a Pallas kernel for Hopper GPUs, with JAX from 0.11 on:
            bfloat16 and float16, head dims 64 and 128, query blocks of 128 or more, key blocks of
            64 or more), "triton" (a Pallas kernel for NVIDIA GPUs from Ampere on: head dims 32, 64
            and 128), both for blocks of a power of two, up to 65,536 in a list; "xla" (any device,
            memory bounded), "reference" (the oracle, all scores in memory), or None for the first
            of them that can do this here. A name means that one or an error.
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
    if implementation is None and isinstance(config, tuple(_CONFIGS.values())):
        implementation = next(name for name, kind in _CONFIGS.items() if isinstance(config, kind))
    if implementation is None and interpret:
        implementation = "triton"
    _check_arguments(q, k, v, block_map, kv_lengths, implementation, config, interpret)
    check_key_bias(key_bias, heads=q.shape[1], keys=k.shape[0])
    scale = checked_scale(scale, q.shape[-1])
    implementation = _choose_implementation(implementation, q, block_map, interpret)
    if config is None and implementation in _KERNELS:
        config = _CHOOSE_CONFIG[implementation](
            q.dtype, q.shape[-1], block_map.block_q, block_map.block_k
        )
    out, lse = _attend(
        q,
        k,
        v,
        block_map,
        on_device(kv_lengths, beside=q),
        key_bias,
        scale=scale,
        implementation=implementation,
        config=config,
        interpret=interpret,
    )
    return (out, lse) if return_lse else out


def attention_obstacles(
    *, head_dim: int, dtype: jax.typing.DTypeLike, block_q: int = 128, block_k: int = 64
) -> dict[str, str | None]:
    """Why the kernels of `block_sparse_attention` cannot be used on the default device.

    Returns:
        By name, in the order in which they are preferred: the reason, or None where the kernel can
        be used. "xla" always can, and is taken where no kernel is.
    """
    q = jax.ShapeDtypeStruct((block_q, 1, head_dim), dtype)
    blocks = _Blocks(block_q=block_q, block_k=block_k)
    return {name: _OBSTACLES[name](q, blocks, False) for name in _KERNELS}


class _Blocks(NamedTuple):
    """What obstacles depend on in a `BlockMap`."""

    block_q: int
    block_k: int
    capacity: int = 1


@functools.partial(jax.jit, static_argnames=("scale", "implementation", "config", "interpret"))
@jax.named_scope("block_sparse_attention")
def _attend(q, k, v, block_map, kv_lengths, key_bias, *, scale, implementation, config, interpret):
    kv_tokens = tokens_per_block(kv_lengths, k.shape[0], block_map.block_k)
    if implementation == "reference":
        from pallas_kernels.attention import reference

        out, lse = reference.attention(q, k, v, block_map, kv_tokens, scale, key_bias=key_bias)
        return out.astype(q.dtype), lse
    if implementation == "xla":
        from pallas_kernels.attention import xla

        return xla.attention(q, k, v, block_map, kv_tokens, scale, key_bias=key_bias)

    all_whole = kv_lengths is None and k.shape[0] % block_map.block_k == 0
    arrays = (q, k, v, block_map, kv_tokens, key_bias)
    return _run_kernel(scale, config, interpret, all_whole, *arrays)


@functools.partial(jax.custom_vjp, nondiff_argnums=(0, 1, 2, 3))
def _run_kernel(scale, config, interpret, all_whole, q, k, v, block_map, kv_tokens, key_bias):
    """The kernel whose config this is."""
    kv_tokens = None if all_whole else kv_tokens
    arrays = (q, k, v, block_map, kv_tokens)
    if isinstance(config, MosaicGpuConfig):
        from pallas_kernels.attention import mosaic_gpu

        return mosaic_gpu.attention(*arrays, scale, config, key_bias=key_bias, interpret=interpret)
    from pallas_kernels.attention import triton

    return triton.attention(*arrays, scale, config, key_bias=key_bias, interpret=interpret)


def _forward(*args):
    return _run_kernel(*args), args[4:]


def _backward(scale, config, interpret, all_whole, saved, cotangents):
    from pallas_kernels.attention import xla

    q, k, v, block_map, kv_tokens, key_bias = saved

    def attention(q, k, v, key_bias):
        return xla.attention(q, k, v, block_map, kv_tokens, scale, key_bias=key_bias)

    _, pull_back = jax.vjp(attention, q, k, v, key_bias)
    *of_qkv, of_bias = pull_back(cotangents)
    return *of_qkv, None, None, of_bias


_run_kernel.defvjp(_forward, _backward)


def _check_arguments(q, k, v, block_map, kv_lengths, implementation, config, interpret):
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
    check_implementation(implementation, get_args(Implementation))
    kernels = " or ".join(map(repr, _KERNELS))
    if config is not None and implementation not in _KERNELS:
        raise ValueError(
            f"{implementation=} has no settings; leave out {config=}, or use {kernels}"
        )
    if config is not None and not isinstance(config, _CONFIGS[implementation]):
        raise ValueError(
            f"{implementation=} takes a {_CONFIGS[implementation].__name__}, not {config=}"
        )
    check_interpret(interpret, implementation, tuple(_KERNELS))
    if isinstance(config, TritonConfig) and block_map.block_q % config.tile_q:
        raise ValueError(f"{config.tile_q=} does not divide {block_map.block_q=}")
    if isinstance(config, MosaicGpuConfig):
        config.check(q.shape[-1])


def _choose_implementation(implementation, q, block_map, interpret) -> Implementation:
    """The implementation that runs this. A name is that one or an error."""
    if implementation in ("xla", "reference"):
        return implementation
    for name in _KERNELS if implementation is None else [implementation]:
        obstacle = _OBSTACLES[name](q, block_map, interpret)
        if obstacle is None:
            return name
        if implementation is not None:
            raise NotImplementedError(f"{name}: {obstacle}; use implementation='xla' or None")
    return "xla"


def _obstacle_to_mosaic_gpu(q, block_map, interpret):
    """Why the kernel cannot do this here; None if it can."""
    if obstacle := mosaic_gpu_call.obstacle(interpret=interpret):
        return obstacle
    if q.dtype == jnp.float32:
        return "float32 is not supported (bfloat16, float16)"
    if q.shape[-1] not in (64, 128):
        return f"head_dim={q.shape[-1]} is not supported (64, 128)"
    return _obstacle_of_blocks(block_map, smallest_q=128, smallest_k=64)


def _obstacle_to_triton(q, block_map, interpret):
    """Why the kernel cannot do this here; None if it can."""
    if not interpret and not devices.is_ampere_or_later():
        return f"{jax.default_backend()=} is no NVIDIA GPU from Ampere on"
    if q.shape[-1] not in (32, 64, 128):
        return f"head_dim={q.shape[-1]} is not supported (32, 64, 128)"
    return _obstacle_of_blocks(block_map, smallest_q=16, smallest_k=16)


_OBSTACLES = {"mosaic_gpu": _obstacle_to_mosaic_gpu, "triton": _obstacle_to_triton}


def _obstacle_of_blocks(block_map, *, smallest_q, smallest_k):
    block_q, block_k = block_map.block_q, block_map.block_k
    if (
        block_q < smallest_q
        or block_k < smallest_k
        or (block_q & (block_q - 1)) | (block_k & (block_k - 1))
    ):
        return (
            f"{block_map.block_q=} and {block_map.block_k=} must be powers of two, from "
            f"{smallest_q} and {smallest_k} on"
        )
    if block_map.capacity > MAX_CAPACITY:
        return f"{block_map.capacity=} is above {MAX_CAPACITY}"
    return None
