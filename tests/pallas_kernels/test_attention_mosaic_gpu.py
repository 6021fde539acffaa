"""What the Mosaic GPU kernel does in its own way: rounds, query tiles in flight, stages, and tiles done again."""

import dataclasses
import functools
import types

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import (
    BlockMap,
    MosaicGpuConfig,
    block_sparse_attention,
    devices,
    pack_key_mask,
)

pytestmark = pytest.mark.only("mosaic_gpu", "mosaic_gpu-interpreted")


@pytest.fixture(scope="module")
def rounds_of(kernel):
    """Lengths [t n] of as many tiles as make work slots go three rounds, the last not all of them."""

    def rounds_of(query_tiles):
        blocks = 2 if kernel.is_simulated else devices.multiprocessors()
        slots = blocks * query_tiles  # four or two in the simulator, hundreds on a GPU
        heads = 3 if slots > 2 else 1
        tiles = -(-(2 * slots + 1) // heads)
        assert 2 * slots < heads * tiles < 3 * slots
        return 128 * tiles - 29, heads

    return rounds_of


@dataclasses.dataclass(frozen=True)
class Case:
    config: MosaicGpuConfig
    h: int = 64
    block_q: int = 128
    block_k: int = 64
    dtype: jnp.dtype = jnp.bfloat16
    kv: int = 331
    partial: bool = False


CASES = {
    "whole": Case(MosaicGpuConfig(query_tiles=2, stages=4), kv=320),
    "two-stages": Case(MosaicGpuConfig(query_tiles=2, stages=2), partial=True),
    "one-query-tile-float16": Case(MosaicGpuConfig(query_tiles=1, stages=3), dtype=jnp.float16),
    "h128-two-tiles-a-block": Case(
        MosaicGpuConfig(query_tiles=1, stages=2), h=128, block_k=128, partial=True
    ),
    "two-tiles-a-query-block": Case(
        MosaicGpuConfig(query_tiles=2, stages=3), block_q=256, partial=True, dtype=jnp.float16
    ),
}


# The simulator meets each setting and type, here or below, but takes seconds for each.
SIMULATED = ["two-stages", "h128-two-tiles-a-block"]


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=[pytest.mark.simulated] * (x in SIMULATED)) for x in CASES]
)
def test_rounds(attend, rounds_of, draw, pairs_that_count, assert_right, name):
    """Work slots take several tiles, whose lists are as uneven as they can be."""
    case = CASES[name]
    t, n = rounds_of(case.config.query_tiles)
    blocks = {"block_q": case.block_q, "block_k": case.block_k}
    q, k, v = draw(0, (t, n, case.h), (case.kv, n, case.h), (case.kv, n, case.h), dtype=case.dtype)
    qb, kb = -(-t // case.block_q), -(-case.kv // case.block_k)
    # How many blocks each list has: none, one, an odd number, or all, which differ by head.
    counts = np.array([kb, 0, 1, min(3, kb - 1)])[(np.arange(n)[:, None] + np.arange(qb)) % 4]
    ranks = np.random.default_rng(1).random((n, qb, kb)).argsort(-1).argsort(-1)
    mask = ranks < counts[..., None]
    tokens = None
    if case.partial:
        tokens = np.random.default_rng(2).integers(1, case.block_k + 1, kb)
        tokens[0] = case.block_k
        tokens[-2] = 0
    pairs = pairs_that_count(mask, t, case.kv, **blocks, kv_lengths=tokens)
    found = attend(
        q,
        k,
        v,
        BlockMap.from_dense_mask(mask, **blocks),
        kv_lengths=tokens,
        config=case.config,
        return_lse=True,
    )
    empty = ~pairs.any(-1).T
    assert empty.any()
    np.testing.assert_array_equal(np.asarray(found[0])[empty], 0)
    np.testing.assert_array_equal(np.asarray(found[1])[empty], -np.inf)
    assert_right(found, q, k, v, pairs)


# Blocks of queries that are tiles of one consumer, and blocks of keys of which a tile takes several.
SMALL_BLOCKS = {
    "64x16-float16": Case(
        MosaicGpuConfig(tile_q=64, query_tiles=1, stages=3),
        block_q=64,
        block_k=16,
        dtype=jnp.float16,
    ),
    # Results lie where the queries were.
    "64x16-three-stages": Case(
        MosaicGpuConfig(tile_q=64, query_tiles=4, stages=3), block_q=64, block_k=16
    ),
    "128x32": Case(MosaicGpuConfig(), block_k=32),
    "64x64-float16": Case(MosaicGpuConfig(tile_q=64, query_tiles=4), block_q=64, dtype=jnp.float16),
    "64x128-h128": Case(MosaicGpuConfig(query_tiles=1), h=128, block_q=64, block_k=128),
}


@pytest.mark.parametrize(
    ("name", "partial"),
    [
        pytest.param("64x16-float16", True, marks=pytest.mark.simulated),
        *[(name, False) for name in SMALL_BLOCKS],
        *[(name, True) for name in list(SMALL_BLOCKS)[1:]],
    ],
)
def test_small_blocks(attend, draw, pairs_that_count, assert_right, name, partial):
    """Rests of lists of all lengths; some keys are left out by the mask, of a row or two all."""
    case = SMALL_BLOCKS[name]
    blocks = {"block_q": case.block_q, "block_k": case.block_k}
    counts = np.array([13, 6, 0, 3, 4, 1])
    qb, kb = (3, 13) if case.block_k == 16 else (6, 13)
    t, kv = qb * case.block_q - 7, kb * case.block_k
    q, k, v = draw(5, (t, 1, case.h), (kv, 1, case.h), (kv, 1, case.h), dtype=case.dtype)
    rng = np.random.default_rng(6)
    mask = rng.random((1, qb, kb)).argsort(-1).argsort(-1) < counts[:qb, None]
    hidden = rng.random((1, qb, kv)) < 0.4
    hidden[0, qb // 3] = True
    tokens = rng.integers(1, case.block_k + 1, kb) if partial else None
    if partial:
        # Most blocks count as a whole, one not at all, and what does not count may be anything.
        tokens[4:] = case.block_k
        tokens[1] = 0
        v = v.at[case.block_k : 2 * case.block_k].set(jnp.nan)
    pairs = pairs_that_count(mask, t, kv, **blocks, kv_lengths=tokens)
    pairs &= ~np.repeat(hidden, case.block_q, axis=1)[:, :t]
    found = attend(
        q,
        k,
        v,
        BlockMap.from_dense_mask(mask, **blocks),
        kv_lengths=tokens,
        key_mask=pack_key_mask(jnp.asarray(hidden)),
        config=case.config,
        return_lse=True,
    )
    assert_right(found, q, k, jnp.nan_to_num(v), pairs)
    np.testing.assert_array_equal(np.asarray(found[1])[~pairs.any(-1).T], -np.inf)


# By how much, in powers of two, a later key's weight exceeds the others'; and where that is too
# much for the weights of the first tile of keys to stay the measure.
GROWTHS = {jnp.bfloat16: ([0, 100, 150, 1000], 127), jnp.float16: ([0, 8, 35, 1000], 16)}


@pytest.mark.simulated
@pytest.mark.parametrize("dtype", GROWTHS, ids=["bfloat16", "float16"])
def test_tiles_whose_scores_grow_are_done_again(
    kernel, draw, exact_attention, relative_error, monkeypatch, dtype
):
    from pallas_kernels.attention import mosaic_gpu, online_softmax

    growths, limit = GROWTHS[dtype]
    # Work slots of one query tile a block have tiles of both kinds: two of them in the simulator, 132 on a
    # GPU.
    config = MosaicGpuConfig(query_tiles=1)
    n = 1 if kernel.is_simulated else 97
    t, kv, h, scale = 4 * 128, 131, 64, 0.25
    q, k, v = draw(3, (t, n, h), (kv, n, h), (kv, n, h))
    # Along the first axis, one key of the second tile and nothing else meets queries.
    growth = np.array(growths)[np.arange(t) // 128]
    q = q.at[..., 0].set(growth[:, None] * np.log(2) / scale)
    k = k.at[..., 0].set(0.0).at[70, :, 0].set(1.0)
    q, k, v = (x.astype(dtype) for x in (q, k, v))
    tokens = jnp.array([64, 64, 3])
    interpret = kernel.options.get("interpret", False)

    @jax.jit
    def run(q, k, v):
        flags = []

        def redo(q, k, v, lists, block_map, scale, failed, *results, **options):
            flags.append(failed)
            arguments = (q, k, v, lists, block_map, scale, failed)
            return online_softmax.redo(*arguments, *results, **options)

        monkeypatch.setattr(mosaic_gpu, "online_softmax", types.SimpleNamespace(redo=redo))
        block_map = BlockMap.full(n, t, kv)
        found = mosaic_gpu.attention(q, k, v, block_map, tokens, scale, config, interpret=interpret)
        return *found, *flags

    out, lse, failed = run(q, k, v)
    np.testing.assert_array_equal(failed.reshape(n, 4) > 0, [np.greater(growths, limit)] * n)
    exact_out, exact_lse = exact_attention(q, k, v, np.ones((n, t, kv), bool), scale)
    np.testing.assert_allclose(lse, exact_lse, rtol=1e-5, atol=1e-5)
    # One key leads by far in all tiles but one: its weight, and the result, are rounded.
    for tile in range(4):
        rows = slice(128 * tile, 128 * (tile + 1))
        assert relative_error(out[rows], exact_out[rows]) <= float(jnp.finfo(dtype).eps)


@pytest.mark.simulated
def test_first_scores_that_float32_cannot_hold(kernel, draw, oracle, relative_error):
    """Those of the first tile are -inf in float32; what counts comes after it, far below zero."""
    q, k, v = draw(4, (128, 1, 64), (128, 1, 64), (128, 1, 64))
    q = jnp.zeros_like(q).at[..., 0].set(1e30).at[..., 1].set(128.0)
    k = (0.01 * k).at[:, :, :2].set(0.0).at[:64, :, 0].set(-1e30).at[64:, :, 1].set(-128.0)
    q, k, v = (x.astype(jnp.bfloat16) for x in (q, k, v))
    block_map = BlockMap.full(1, 128, 128)
    attend = functools.partial(block_sparse_attention, **kernel.options)
    out, lse = attend(q, k, v, block_map, return_lse=True)
    expected, expected_lse = oracle(q, k[64:], v[64:], BlockMap.full(1, 128, 64), return_lse=True)
    np.testing.assert_allclose(lse, expected_lse, rtol=1e-5)
    assert relative_error(out, expected) <= 2 * float(jnp.finfo(jnp.bfloat16).eps)


@pytest.mark.simulated
@pytest.mark.only("mosaic_gpu-interpreted")
def test_simulator_reports_who_does_not_wait(kernel, draw, monkeypatch):
    """It does look for races: keys must not be overwritten before both consumers are done."""
    from pallas_kernels.attention import mosaic_gpu

    skipped = []

    class Backend(types.ModuleType):
        """The module of the backend, but for one function."""

        def __getattr__(self, name):
            return getattr(plgpu, name)

        def barrier_wait(self, ref):
            if ref.ref is scratch["k_free"]:
                skipped.append(ref)
            else:
                plgpu.barrier_wait(ref)

    plgpu, kernel_body, scratch = mosaic_gpu.plgpu, mosaic_gpu._kernel, {}

    def spied_kernel(*refs, **options):
        scratch.update(options)
        kernel_body(*refs, **options)

    monkeypatch.setattr(mosaic_gpu, "plgpu", Backend("plgpu"))
    monkeypatch.setattr(mosaic_gpu, "_kernel", spied_kernel)
    q, k, v = draw(4, *[(300, 1, 64)] * 3, dtype=jnp.bfloat16)
    block_map = BlockMap.full(1, 300, 300)
    # Who runs first decides which of both it finds.
    with pytest.raises(jax.errors.JaxRuntimeError, match="RACE DETECTED|Barrier completed phase"):
        jax.block_until_ready(
            mosaic_gpu.attention(
                q, k, v, block_map, None, 0.125, MosaicGpuConfig(stages=2), interpret=True
            )
        )
    assert skipped
