"""Kernels in programs that set JAX up in their own way; see tests/test_jax_settings.py.

Index arithmetic stays in 32 bits whatever JAX's default integers are, constants take the type of what
they meet, and shapes are broadcast in so many words.
"""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax_settings import strict_types

from pallas_kernels import (
    BlockMap,
    block_sparse_attention,
    linear,
    mosaic_gpu_call,
    norm_rope,
    select_blocks,
)

BLOCKS = {"block_q": 32, "block_k": 16}
T, KV, N, H = 67, 83, 2, 32


def attention(q, k, v, kv_lengths, mask, **options):
    """Selected and given blocks, one scene and two."""
    attend = functools.partial(block_sparse_attention, **options)
    selected = select(q, k, **options).block_map
    given = BlockMap.from_dense_mask(mask, **BLOCKS)
    full = BlockMap.full(N, T, KV, **BLOCKS)
    of_two = jax.vmap(lambda q, length: attend(q, k, v, given, kv_lengths=length))
    return [
        attend(q, k, v, selected, return_lse=True),
        attend(q, k, v, given, kv_lengths=kv_lengths),
        attend(q, k, v, given, kv_lengths=kv_lengths, key_bias=k[:, :, 0].T.astype(jnp.float32)),
        attend(q, k, v, full, kv_lengths=KV - 5),
        of_two(jnp.stack([q, 2 * q]), jnp.stack([kv_lengths, kv_lengths - 7])),
        [given.density(), given.keeps_same_blocks(full)],
    ]


def select(q, k, **options):
    return select_blocks(q, k, sparse_ratio=0.5, cdf_threshold=0.7, **BLOCKS, **options)


def selection(q, k, length, ratio, key, **options):
    choose = functools.partial(select_blocks, q, k, kv_lengths=length, **BLOCKS, **options)
    sinks = {"num_sink_blocks": 1, "capacity": 3, "pool_mode": "max"}
    return [
        choose(sparse_ratio=ratio, q_length=50),
        choose(sparse_ratio=[0.2, 0.7]),
        choose(cdf_threshold=0.9, **sinks),
        choose(sparse_ratio=ratio, random_key=key),
        jax.vmap(lambda q: select(q, k, **options))(jnp.stack([q, 2 * q])),
    ]


def gradients(q, k, v, mask, **options):
    block_map = BlockMap.from_dense_mask(mask, **BLOCKS)
    attend = lambda q, k, v, bias: block_sparse_attention(
        q, k, v, block_map, key_bias=bias, **options
    )
    return jax.vjp(attend, q, k, v, jnp.zeros((N, KV), jnp.float32))[1](q)


def rope(x, cos, sin, bias, scale, offset, **options):
    turn = lambda x, bias, scale, offset: norm_rope(
        x, cos, sin, bias=bias, scale=scale, offset=offset, eps=1e-5, **options
    )
    out, pull_back = jax.vjp(turn, x, bias, scale, offset)
    return out, pull_back(out)


def linears(x, kernel, bias, **options):
    layer = lambda x, kernel, bias: linear(x, kernel, bias, activation="gelu", **options)
    out, pull_back = jax.vjp(layer, x, kernel, bias)
    return out, pull_back(out), linear(x, kernel, **options)


def arrays(dtype, *, heads=N, head_dim=H, depth=24):
    """The arguments of each of the functions above."""
    rng = np.random.default_rng(0)
    draw = lambda *shape, dtype=dtype: jnp.asarray(rng.normal(size=shape), dtype)
    q, k, v = draw(T, N, head_dim), draw(KV, N, head_dim), draw(KV, N, head_dim)
    mask = jnp.asarray(rng.random((N, -(-T // 32), -(-KV // 16))) < 0.5)
    length, ratio = jnp.int32(70), jnp.float32(0.4)
    of_head = lambda *shape: draw(*shape, dtype=jnp.float32)
    x = draw(2, 5, heads, head_dim)
    tables = (of_head(5, head_dim), of_head(5, head_dim), of_head(heads, head_dim))
    return {
        attention: (q, k, v, length, mask),
        selection: (q, k, length, ratio, jax.random.key(0)),
        gradients: (q, k, v, mask),
        rope: (x, *tables, of_head(head_dim), of_head(head_dim)),
        linears: (draw(3, 5, depth), draw(depth, 2 * depth), of_head(2 * depth)),
    }


FUNCTIONS = [attention, selection, gradients, rope, linears]
PORTABLE = {"implementation": "xla"}


@pytest.mark.parametrize("function", FUNCTIONS)
def test_portable_path(function, wide_arrays):
    args = arrays(jnp.bfloat16)[function]
    with strict_types():
        jaxpr = jax.make_jaxpr(functools.partial(function, **PORTABLE))(*args)
    assert wide_arrays(jaxpr) == []


@pytest.mark.parametrize("function", [attention, selection, rope])
def test_triton(function, wide_arrays):
    args = arrays(jnp.bfloat16)[function]
    options = {"implementation": "triton", "interpret": True}
    with strict_types():
        jaxpr = jax.make_jaxpr(functools.partial(function, **options))(*args)
    assert wide_arrays(jaxpr) == []


def test_oracle(wide_arrays):
    q, k, v, length, mask = arrays(jnp.float32)[attention]
    attend = functools.partial(block_sparse_attention, implementation="reference")
    with strict_types():
        block_map = BlockMap.from_dense_mask(np.asarray(mask), **BLOCKS)
        call = lambda *qkv: attend(*qkv, block_map, kv_lengths=length)
        assert wide_arrays(jax.make_jaxpr(call)(q, k, v)) == []


def one_of_each(args, **options):
    q, k, v, length, _ = args["attention"]
    selected = select(q, k, **options)
    attended = block_sparse_attention(q, k, v, selected.block_map, kv_lengths=length, **options)
    turned, _ = rope(*args["rope"], **options)
    return selected, attended, turned, linear(*args["linears"], activation="gelu", **options)


def test_same_values():
    """Of plain XLA, bit by bit, and nothing is NaN on the way."""
    args = {function.__name__: args for function, args in arrays(jnp.float32).items()}
    expected = jax.jit(functools.partial(one_of_each, **PORTABLE))(args)
    with strict_types(), jax.debug_nans(True):
        found = jax.jit(functools.partial(one_of_each, **PORTABLE))(args)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)


def test_calls_move_numbers_explicitly():
    """Outside of `jax.jit`, with arrays on the device."""
    q, k, v, length, mask = arrays(jnp.float32)[attention]
    x, cos, sin, bias, scale, offset = arrays(jnp.float32)[rope]
    ratio = jnp.float32(0.5)
    with jax.transfer_guard("disallow"):
        found = select_blocks(
            q, k, sparse_ratio=ratio, cdf_threshold=0.7, kv_lengths=70, **BLOCKS, **PORTABLE
        )
        given = BlockMap.from_dense_mask(np.asarray(mask), **BLOCKS)
        for block_map, lengths in ((found.block_map, 70), (given, np.full(6, 9)), (given, length)):
            block_sparse_attention(q, k, v, block_map, kv_lengths=lengths, **PORTABLE)
        norm_rope(x, cos, sin, bias=bias, scale=scale, offset=offset, eps=1e-5, **PORTABLE)


def test_kernels_become_programs_for_a_gpu(pretend_h100):
    """Lowered for an H100 that is not there."""
    args = arrays(jnp.bfloat16, heads=16, head_dim=64, depth=512)
    kernels = ["triton"] + ["mosaic_gpu"] * mosaic_gpu_call.is_supported()

    def program(args):
        q, k, v, length, _ = args["attention"]
        blocks = {"block_q": 128, "block_k": 64}
        selected = select_blocks(q, k, sparse_ratio=0.5, cdf_threshold=0.7, **blocks).block_map
        found = [
            block_sparse_attention(q, k, v, selected, kv_lengths=length, implementation=name)
            for name in kernels
        ]
        found.append(rope(*args["rope"], implementation="triton"))
        if mosaic_gpu_call.is_supported():
            options = {"implementation": "mosaic_gpu", "activation": "gelu"}
            found.append(linear(*args["linears"], **options))
        return found

    args = {function.__name__: args for function, args in args.items()}
    shapes = jax.eval_shape(lambda: args)
    with pretend_h100(), strict_types():
        lowered = jax.jit(program).trace(shapes).lower(lowering_platforms=("cuda",))
    text = lowered.as_text()
    assert "triton" in text
    assert ("@mosaic_gpu" in text) == mosaic_gpu_call.is_supported()


SETTINGS = {
    "64_bit": lambda: jax.enable_x64(True),
    "strict_types": lambda: jax.numpy_dtype_promotion("strict"),
    "strict_ranks": lambda: jax.numpy_rank_promotion("raise"),
}


@pytest.mark.gpu
@pytest.mark.parametrize("setting", SETTINGS)
def test_same_values_on_a_gpu(setting):
    """What each kernel computes for itself where nothing is named."""
    args = arrays(jnp.bfloat16, heads=16, head_dim=64, depth=512)
    args = {function.__name__: args for function, args in args.items()}
    expected = jax.jit(one_of_each)(args)
    with SETTINGS[setting]():
        found = jax.jit(one_of_each)(args)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        assert x.dtype == y.dtype
        np.testing.assert_array_equal(x, y)
