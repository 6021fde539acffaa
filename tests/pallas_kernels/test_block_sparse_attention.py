"""`block_sparse_attention`: one suite for all implementations, against float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import BlockMap, TritonConfig, block_sparse_attention
from pallas_kernels.attention import xla

# t, kv, n, h, block_q, block_k, kv_lengths
CASES = {
    "h32": (300, 512, 3, 32, 128, 64, None),  # whole blocks
    "h64": (131, 331, 2, 64, 64, 128, 257),
    "h128": (97, 211, 3, 128, 32, 16, "partial"),
    "large-blocks": (257, 611, 2, 64, 128, 256, "partial"),
    "odd": (97, 131, 2, 29, 24, 10, "partial"),  # for plain JAX alone
}
# Each case in one type; on a GPU, where the kernel is another program, the others too.
MATRIX = [("h32", jnp.bfloat16)]
SLOW_MATRIX = [("h64", jnp.float16), ("h128", jnp.float32), ("large-blocks", jnp.bfloat16)]
GPU_MATRIX = [
    ("h32", jnp.float32),
    ("h64", jnp.float32),
    ("h64", jnp.bfloat16),
    ("h128", jnp.bfloat16),
]

# The same, of what the Mosaic GPU kernel takes.
HOPPER_CASES = {
    "hopper-whole": (523, 512, 3, 64, 128, 64, None),
    "hopper-length": (389, 331, 2, 64, 128, 64, 257),
    "hopper-h128": (389, 331, 2, 128, 128, 128, "partial"),
    "hopper-large-blocks": (611, 1300, 2, 64, 256, 256, "partial"),
}
HOPPER_MATRIX = [(case, dtype) for case in HOPPER_CASES for dtype in (jnp.bfloat16, jnp.float16)]

other_kernels = pytest.mark.only("xla", "triton-interpreted", "triton")
quick_in_xla = pytest.mark.quick("xla")
mosaic_gpu_only = pytest.mark.only("mosaic_gpu", "mosaic_gpu-interpreted")


def mark(pairs, *marks):
    return [
        pytest.param(*pair, id=f"{pair[0]}-{jnp.dtype(pair[1]).name}", marks=marks)
        for pair in pairs
    ]


@pytest.mark.parametrize(
    ("case", "dtype"),
    [
        *mark(MATRIX, other_kernels),
        *mark(SLOW_MATRIX[:1], other_kernels, quick_in_xla),
        *mark(SLOW_MATRIX[1:], other_kernels, pytest.mark.slow),
        *mark(GPU_MATRIX, pytest.mark.only("triton")),
        *mark([("odd", jnp.float32)], pytest.mark.only("xla")),
        *mark(HOPPER_MATRIX, mosaic_gpu_only),
    ],
)
def test_value(attend, draw_case, pairs_that_count, assert_right, case, dtype):
    t, kv, n, h, block_q, block_k, kv_lengths = (CASES | HOPPER_CASES)[case]
    blocks = {"block_q": block_q, "block_k": block_k}
    q, k, v, mask = draw_case(0, t, kv, n, h, **blocks, dtype=dtype)
    mask[0, 0] = False  # queries that see nothing
    if kv_lengths == "partial":
        kv_lengths = np.random.default_rng(1).integers(-3, block_k + 20, mask.shape[-1])
        kv_lengths[1] = 0
    pairs = pairs_that_count(mask, t, kv, **blocks, kv_lengths=kv_lengths)
    assert 0 < pairs.mean() < 1
    block_map = BlockMap.from_dense_mask(mask, **blocks)
    found = attend(q, k, v, block_map, kv_lengths=kv_lengths, return_lse=True)
    out, lse = map(np.asarray, found)
    assert out.dtype == dtype and lse.dtype == jnp.float32
    empty = ~pairs.any(-1).T
    assert empty.any()
    np.testing.assert_array_equal(out[empty], 0)
    np.testing.assert_array_equal(lse[empty], -np.inf)
    assert_right((out, lse), q, k, v, pairs)


# One size for all tests of values that follow, so that one program of an implementation serves
# them.


@pytest.fixture(scope="module")
def draw_inputs(draw_case, sizes):
    """q, k, v and a mask, given a seed."""

    def draw_inputs(seed):
        return draw_case(
            seed, sizes.t, sizes.kv, sizes.n, sizes.h, **sizes.blocks, dtype=sizes.dtype
        )

    return draw_inputs


@pytest.fixture(scope="module")
def inputs(draw_inputs):
    q, k, v, mask = draw_inputs(2)
    mask[1, 2] = False
    return q, k, v, mask


@pytest.fixture(scope="module")
def run(attend, roomy_map, sizes):
    """Output and log-sum-exp for a mask of blocks and counts of tokens."""

    def run(q, k, v, mask, tokens=None):
        if not isinstance(mask, BlockMap):
            mask = roomy_map(mask, **sizes.blocks)
        tokens = sizes.all if tokens is None else tokens
        return attend(q, k, v, mask, kv_lengths=jnp.asarray(tokens, jnp.int32), return_lse=True)

    return run


@pytest.fixture(scope="module")
def pairs_of(pairs_that_count, sizes):
    """Which keys each query sees, given a mask of blocks and counts of tokens."""

    def pairs_of(mask, tokens=None, kv=sizes.kv):
        return pairs_that_count(mask, sizes.t, kv, **sizes.blocks, kv_lengths=tokens)

    return pairs_of


def test_lengths(run, inputs, sizes, pairs_of, assert_right):
    q, k, v, mask = inputs
    rng = np.random.default_rng(3)
    kb, block_k = sizes.kb, sizes.block_k
    rising = np.arange(kb) * (block_k // 16)
    drawn = rng.integers(0, block_k + 1, kb)
    for tokens in (sizes.all, rising, drawn, np.full(kb, 100), np.full(kb, -1)):
        found = run(q, k, v, mask, tokens)
        if (tokens < 0).all():
            np.testing.assert_array_equal(found[0], 0)
            np.testing.assert_array_equal(found[1], -np.inf)
        else:
            assert_right(found, q, k, v, pairs_of(mask, tokens))


@quick_in_xla
def test_length_and_scale(attend, inputs, sizes, roomy_map, pairs_of, assert_right):
    """A number of keys that is known only when the program runs: one program for all of them."""
    q, k, v, mask = inputs
    block_map, block_k, scale = roomy_map(mask, **sizes.blocks), sizes.block_k, 1.3
    attend = functools.partial(attend, q, k, v, block_map, scale=scale)
    for length in (sizes.kv, 2 * block_k + 3, block_k + 1, block_k, 1, 0, -5):
        found = attend(kv_lengths=length, return_lse=True)
        if length > 0:
            pairs = pairs_of(mask[..., : -(-length // block_k)], kv=length)
            assert_right(found, q, k[:length], v[:length], pairs, scale)
        else:
            np.testing.assert_array_equal(found[0], 0)
            np.testing.assert_array_equal(found[1], -np.inf)
    out = attend(kv_lengths=sizes.kv)  # alone, without the log-sum-exp
    assert out.shape == q.shape
    np.testing.assert_array_equal(out[2 * sizes.block_q : 3 * sizes.block_q, 1], 0)


def test_all_blocks_kept_is_dense(
    run, inputs, sizes, plain_attention, assert_right, relative_error
):
    q, k, v, _ = inputs
    everything = np.ones((sizes.n, sizes.t, sizes.kv), bool)
    full = BlockMap.full(sizes.n, sizes.t, sizes.kv, **sizes.blocks)
    found = run(q, k, v, full)
    assert_right(found, q, k, v, everything)
    limit = max(1e-5, sizes.same)
    assert relative_error(found[0], plain_attention(q, k, v, everything)) <= limit


def test_blocks_without_keys_are_as_good_as_none(run, inputs, sizes):
    """A row may list blocks of which no token counts, and nothing else."""
    q, k, v, mask = inputs
    mask = mask.copy()
    mask[0, 1] = np.arange(sizes.kb) < 3
    tokens = np.where(np.arange(sizes.kb) < 3, 0, sizes.block_k)
    found = [np.asarray(x, np.float32) for x in run(q, k, v, mask, tokens)]
    second_block = slice(sizes.block_q, 2 * sizes.block_q)
    np.testing.assert_array_equal(found[0][second_block, 0], 0)
    np.testing.assert_array_equal(found[1][second_block, 0], -np.inf)
    without = run(q, k, v, mask & (tokens > 0), tokens)
    for a, b in zip(found, without, strict=True):
        np.testing.assert_allclose(a, np.asarray(b, np.float32), rtol=1e-6, atol=1e-6)


@pytest.mark.parametrize("lengths", ["whole", "partial"])
def test_order_and_what_stands_behind_do_not_matter(
    run, inputs, sizes, roomy_map, assert_close, lengths
):
    q, k, v, mask = inputs
    block_map = roomy_map(mask, **sizes.blocks)
    indices, counts = np.array(block_map.indices), np.asarray(block_map.counts)
    rng = np.random.default_rng(4)
    for row in np.ndindex(counts.shape):
        indices[row][: counts[row]] = rng.permutation(indices[row][: counts[row]])
        indices[row][counts[row] :] = 32767
    other = BlockMap(
        indices=jnp.asarray(indices),
        counts=block_map.counts,
        num_kv_blocks=sizes.kb,
        **sizes.blocks,
    )
    tokens = np.arange(sizes.kb) * (sizes.block_k // 16) if lengths == "partial" else sizes.all
    found, expected = run(q, k, v, other, tokens), run(q, k, v, block_map, tokens)
    assert_close(found, expected, limit=sizes.same)


def test_halves_merge(run, inputs, sizes, assert_close):
    """Results over disjoint sets of keys, weighted by their log-sum-exps, are that over both."""
    q, k, v, mask = inputs
    first = mask & (np.random.default_rng(5).random(mask.shape) < 0.5)
    first[0, 2] = False  # of some rows, one part has nothing
    outs, lses = zip(*(run(q, k, v, part) for part in (first, mask & ~first)), strict=True)
    lse = np.logaddexp(*np.asarray(lses))
    weights = np.exp(np.asarray(lses) - np.where(np.isfinite(lse), lse, 0.0))
    out = (weights[..., None] * np.asarray(outs, np.float32)).sum(0)
    assert_close(run(q, k, v, mask), (out, lse), limit=max(1e-5, sizes.same))


def test_same_bits_twice(run, inputs):
    q, k, v, mask = inputs
    first = run(q, k, v, mask)
    for _ in range(3):
        for a, b in zip(first, run(q, k, v, mask), strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.parametrize("garbage", [np.nan, np.inf, -3e38])
def test_keys_that_do_not_count_have_no_influence(run, oracle, inputs, sizes, roomy_map, garbage):
    q, k, v, mask = inputs
    kv, block_k = sizes.kv, sizes.block_k
    tokens = np.random.default_rng(6).integers(0, block_k + 1, sizes.kb)
    counted = np.arange(kv) % block_k < tokens[np.arange(kv) // block_k]
    spoilt = [np.where(counted[:, None, None], x, np.asarray(garbage, x.dtype)) for x in (k, v)]
    block_map = roomy_map(mask, **sizes.blocks)
    reference = functools.partial(oracle, kv_lengths=tokens, return_lse=True)
    pairs = [(run(q, k, v, mask, tokens), run(q, *spoilt, mask, tokens))]
    pairs += [(reference(q, k, v, block_map), reference(q, *spoilt, block_map))]
    for clean, dirty in pairs:
        for a, b in zip(clean, dirty, strict=True):
            np.testing.assert_array_equal(a, b)


@pytest.mark.simulated
def test_few_tokens(attend, draw, sizes, assert_right):
    """Less than a block of both, and no word about how many."""
    t, kv = 1, 5
    q, k, v = draw(7, (t, 1, sizes.h), (kv, 1, sizes.h), (kv, 1, sizes.h), dtype=sizes.dtype)
    block_map = BlockMap.full(1, t, kv, block_q=sizes.smallest_q, block_k=64)
    found = attend(q, k, v, block_map, return_lse=True)
    assert_right(found, q, k, v, np.ones((1, t, kv), bool))


@pytest.fixture(scope="module")
def scenes(draw_inputs, roomy_map, sizes):
    """q, k, v, masks and maps of two scenes."""
    *arrays, masks = zip(*(draw_inputs(seed) for seed in range(2)), strict=True)
    masks = np.stack(masks)
    maps = jax.tree.map(
        lambda *x: np.stack(x), *(roomy_map(mask, **sizes.blocks) for mask in masks)
    )
    return *(np.stack(x) for x in arrays), masks, maps


def test_vmap_over_two_axes(run, scenes, sizes, assert_close):
    """Scenes along the one; along the other queries differ, which share keys, map and lengths."""
    q, k, v, masks, maps = scenes
    tokens = np.random.default_rng(8).integers(0, sizes.block_k + 1, (2, sizes.kb))
    queries = np.stack([q, -q, 2 * q], axis=3)  # [scene t n 3 h]
    inner = jax.vmap(lambda *args: run(*args), in_axes=(2, None, None, None, None), out_axes=-1)
    together = jax.vmap(inner)(queries, k, v, maps, tokens)
    together = [np.asarray(x) for x in together]
    for scene, i in np.ndindex(2, 3):
        alone = run(queries[scene][..., i, :], k[scene], v[scene], masks[scene], tokens[scene])
        assert_close([x[scene][..., i] for x in together], alone, limit=sizes.same)


@pytest.mark.quick
def test_heads_by_vmap(attend, run, inputs, sizes, roomy_map, assert_close):
    q, k, v, mask = inputs
    block_map = roomy_map(mask, **sizes.blocks)

    def one_head(q, k, v, block_map):
        block_map = jax.tree.map(lambda x: x[None], block_map)
        out, lse = attend(q[:, None], k[:, None], v[:, None], block_map, return_lse=True)
        return out[:, 0], lse[:, 0]

    by_vmap = jax.vmap(one_head, in_axes=(1, 1, 1, 0), out_axes=1)(q, k, v, block_map)
    assert_close(by_vmap, run(q, k, v, mask), limit=sizes.same)


def assert_right_or_infinite(lse, exact):
    """As good as float32 sums are; infinite where the value is too large for float32."""
    finite = np.abs(exact) < np.finfo(np.float32).max
    assert not np.isnan(lse).any()
    np.testing.assert_allclose(lse[finite], exact[finite], rtol=1e-5)
    assert (np.asarray(lse)[~finite] == np.sign(exact[~finite]) * np.inf).all()


@pytest.fixture(scope="session")
def few_blocks(sizes):
    """Blocks of 96 queries and 160 keys."""
    return {"block_q": max(32, sizes.smallest_q), "block_k": max(32, sizes.smallest_k)}


def large(dtype, *sizes, marks=()):
    name = jnp.dtype(dtype).name
    return [pytest.param(dtype, size, id=f"{name}-{size}", marks=marks) for size in sizes]


LARGE = [
    *large(jnp.bfloat16, 1e3, 1e6, 1e12, 1e18, 1e30),
    *large(jnp.bfloat16, 3e38, marks=pytest.mark.simulated),
    *large(jnp.float32, 1e3, 1e18, 3e38, marks=other_kernels),
    *large(jnp.float16, 1e2, 6e4, marks=quick_in_xla),
]


# A scale that makes scores larger still.
LARGE_SCALE = 20.0


@pytest.mark.parametrize(("dtype", "size"), LARGE)
def test_scores_of_any_size(attend, draw, few_blocks, exact_attention, relative_error, dtype, size):
    q, k, v = draw(9, (96, 2, 64), (160, 2, 64), (160, 2, 64))
    q, k = (np.clip(np.asarray(x) / 3, -1, 1) * size for x in (q, k))
    q, k, v = (jnp.asarray(np.asarray(x), dtype) for x in (q, k, v))
    block_map = BlockMap.full(2, 96, 160, **few_blocks)
    out, lse = attend(q, k, v, block_map, scale=LARGE_SCALE, return_lse=True)
    everything = np.ones((2, 96, 160), bool)
    exact_out, exact_lse = exact_attention(q, k, v, everything, LARGE_SCALE)
    # The largest score of a query leads by far: its value is the output, but for a rounded weight.
    assert relative_error(out, exact_out) <= float(jnp.finfo(dtype).eps)
    assert_right_or_infinite(np.asarray(lse), exact_lse)


@pytest.mark.parametrize("size", [1.0, 1e9, 1e19, 3e38])
def test_equal_scores_share_at_any_size(attend, draw, few_blocks, relative_error, size):
    """Of five keys with the same highest score, each gets a fifth, however high that is."""
    (v,) = draw(10, (160, 2, 64))
    q, k = np.zeros((96, 2, 64)), np.zeros((160, 2, 64))
    q[..., 5] = size
    best = [3, 40, 41, 77, 159]
    k[..., 5] = -size
    k[best, :, 5] = size
    q, k, v = (jnp.asarray(x, jnp.bfloat16) for x in (q, k, v))
    block_map = BlockMap.full(2, 96, 160, **few_blocks)
    # The others get e**-40 in the smallest case.
    out, _ = attend(q, k, v, block_map, scale=LARGE_SCALE, return_lse=True)
    expected = np.broadcast_to(np.asarray(v, np.float64)[best].mean(0), out.shape)
    # Weights and results are rounded to bfloat16.
    assert relative_error(out, expected) <= 2**-8


GATHERED = TritonConfig(tile_q=32, tile_k=64, num_warps=2, num_stages=2)
PARTS = TritonConfig(tile_q=16, tile_k=16, num_warps=1, num_stages=1)


@pytest.mark.parametrize(
    ("block_q", "block_k", "config", "kv_lengths"),
    [
        # Several blocks a step, with some left over; and tiles smaller than blocks of queries.
        pytest.param(64, 16, GATHERED, None, id="gathered-whole", marks=pytest.mark.slow),
        pytest.param(64, 16, GATHERED, 150, id="gathered-partial"),
        # Parts of blocks: some end in the middle of a part, some before one begins.
        pytest.param(32, 64, PARTS, (20, 64, 0, 37, 16), id="parts-partial"),
    ],
)
def test_tiles_change_nothing(
    attend_in_tiles, draw_case, pairs_that_count, exact_attention, assert_close, block_q, block_k,
    config, kv_lengths,
):  # fmt: skip
    blocks = {"block_q": block_q, "block_k": block_k}
    q, k, v, mask = draw_case(11, 131, 320, 2, 32, **blocks)
    if isinstance(kv_lengths, tuple):
        kv_lengths = np.array(kv_lengths)
    pairs = pairs_that_count(mask, 131, 320, **blocks, kv_lengths=kv_lengths)
    counted = pairs_that_count(np.ones_like(mask), 131, 320, **blocks, kv_lengths=kv_lengths)[0, 0]
    spoilt = [np.where(counted[:, None, None], x, np.float32(np.nan)) for x in (k, v)]
    block_map = BlockMap.from_dense_mask(mask, **blocks)
    options = {"config": config, "kv_lengths": kv_lengths, "return_lse": True}
    found = attend_in_tiles(q, *spoilt, block_map, **options)
    assert_close(found, exact_attention(q, k, v, pairs))


def test_stripes_of_xla_change_nothing(draw_case, pairs_that_count, exact_attention, assert_close):
    """Some rows and keys at a time give what all of them would at once."""
    t, kv, n, h = 131, 211, 3, 32
    blocks = {"block_q": 32, "block_k": 16}
    q, k, v, mask = draw_case(2, t, kv, n, h, **blocks)
    mask[1, 2] = False
    block_map = BlockMap.from_dense_mask(mask, **blocks)
    tokens = jnp.asarray(np.minimum(16, kv - np.arange(0, kv, 16)))
    run = functools.partial(
        xla.attention,
        keys_per_step=48,  # three blocks of up to 14
        max_gathered_bytes=2 * 4 * n * 48 * h,  # two rows of 5
    )
    found = jax.jit(lambda *qkv: run(*qkv, block_map, tokens, 0.3))(q, k, v)
    expected = exact_attention(q, k, v, pairs_that_count(mask, t, kv, **blocks), 0.3)
    assert_close(found, expected, limit=2e-6)


@pytest.mark.slow
def test_memory_of_xla_is_bounded(optimized):
    """Of a quarter GiB of scores, few exist at a time: forwards, and backwards."""
    x = jax.ShapeDtypeStruct((8192, 1, 32), jnp.float32)
    block_map = jax.eval_shape(lambda: BlockMap.full(1, 8192, 8192))
    attend = lambda *args: jnp.sum(block_sparse_attention(*args, implementation="xla"))
    for function in (attend, jax.grad(attend)):
        program = jax.jit(function).lower(x, x, x, block_map).compile()
        # Some of what 512 keys of a step need: 16 MiB of scores, as many of weights.
        assert program.memory_analysis().temp_size_in_bytes <= 100 * 2**20
