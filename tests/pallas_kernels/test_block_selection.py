"""`select_blocks`: options, lengths and batches, against pooling and sorting in float64."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.selection import api
from pallas_kernels.selection.reference import select_by_sorting

T, KV, N, H = 331, 397, 3, 29
BLOCKS = {"block_q": 32, "block_k": 16}  # 11 and 25 blocks, the last ones of 11 and 13 tokens
QB, KB = 11, 25
# Of probabilities: scores reach a hundred, where float32 numbers are 8e-6 apart.
ROUNDING = 2e-5


@pytest.fixture(scope="module")
def q_and_k(draw):
    q, k = draw(0, (T, N, H), (KV, N, H))
    # Pooled vectors of noise are short: these are long enough to tell blocks apart.
    return 3 * q, 3 * k


@pytest.fixture(scope="module")
def expected_selection(tokens_in_blocks):
    """The mask [n qb kb], and the probability kept in each row: all in float64, all sorted."""

    def pooled(x, tokens, block, mode):
        x = np.asarray(x, np.float64)
        parts = [x[i * block :][:count] for i, count in enumerate(tokens)]
        reduce = np.mean if mode == "avg" else np.max
        return np.stack([reduce(part, 0) if len(part) else 0 * x[0] for part in parts], 1)

    def select(
        q, k, *, sparse_ratio=None, cdf_threshold=None, pool_mode="avg", num_sink_blocks=0,
        q_length=None, kv_lengths=None, scale=None, capacity=None, block_q, block_k,
    ):  # fmt: skip
        q_tokens = tokens_in_blocks(len(q), block_q, q_length)
        kv_tokens = tokens_in_blocks(len(k), block_k, kv_lengths)
        scale = q.shape[-1] ** -0.5 if scale is None else scale
        scores = scale * np.einsum(
            "nqh,nkh->nqk",
            pooled(q, q_tokens, block_q, pool_mode),
            pooled(k, kv_tokens, block_k, pool_mode),
        )
        mask = np.zeros(scores.shape, bool)
        covered = np.zeros(scores.shape[:2])
        mask[:, :, :num_sink_blocks] = kv_tokens[:num_sink_blocks] > 0
        room = None if capacity is None else capacity - mask[0, 0].sum()
        takes_part = np.flatnonzero(
            (kv_tokens > 0) & (np.arange(len(kv_tokens)) >= num_sink_blocks)
        )
        for n, row in np.ndindex(scores.shape[:2]):
            ratio, threshold = (
                None if x is None else np.broadcast_to(x, q.shape[1])[n]
                for x in (sparse_ratio, cdf_threshold)
            )
            some = scores[n, row, takes_part]
            num_kept = 1 if ratio is None else int(some.size * (1 - ratio))
            probability = None if threshold is None else threshold + 1e-5
            kept = select_by_sorting(some, num_kept, probability)
            if room is not None and kept.sum() > room:
                kept = select_by_sorting(some, room)
            mask[n, row, takes_part] = kept
            masses = np.exp(some - some.max())
            covered[n, row] = masses[kept].sum() / masses.sum()
        mask[:, q_tokens == 0] = False
        covered[:, q_tokens == 0] = 0.0
        return mask, covered

    return select


def mask_of(selection):
    return np.asarray(selection.block_map.to_dense_mask())


# Of one block in the middle nothing counts, of others a part.
PARTIAL = np.array([16, 16, 3, 16, 16, 0, 16, 1, 16, 0, 16, 16] + [16] * 11 + [7, 13])
RATIOS = np.array([0.9, 0.0, 0.61])
THRESHOLDS = np.array([0.4, 0.95, 0.0])

OPTIONS = {
    "ratio": {"sparse_ratio": 0.7},
    "ratios": {"sparse_ratio": RATIOS, "pool_mode": "max", "kv_lengths": PARTIAL},
    "threshold": {"cdf_threshold": 0.9},
    "thresholds": {"cdf_threshold": THRESHOLDS},
    "both": {"cdf_threshold": 0.6, "sparse_ratio": 0.8},
    "both-per-head": {"cdf_threshold": THRESHOLDS, "sparse_ratio": RATIOS},
    "all": {"cdf_threshold": 1.0},
    "one": {"sparse_ratio": 1.0, "cdf_threshold": 0.0},
    "scale": {"cdf_threshold": 0.6, "scale": 1.7},
    "sinks": {"cdf_threshold": 0.6, "sparse_ratio": 0.8, "num_sink_blocks": 2},
    "lengths": {"cdf_threshold": 0.6, "sparse_ratio": 0.8, "q_length": 229, "kv_lengths": 301},
    "partial": {"cdf_threshold": 0.6, "sparse_ratio": 0.8, "q_length": 229, "kv_lengths": PARTIAL},
    "capacity": {
        "cdf_threshold": THRESHOLDS,
        "num_sink_blocks": 3,
        "kv_lengths": PARTIAL,
        "capacity": 7,
    },
}


@pytest.mark.parametrize("name", OPTIONS)
def test_options(select, expected_selection, q_and_k, name):
    options = BLOCKS | OPTIONS[name]
    q, k = q_and_k
    mask, covered = expected_selection(q, k, **options)
    found = select(q, k, **options)
    np.testing.assert_array_equal(mask_of(found), mask)
    np.testing.assert_allclose(found.covered, covered, atol=ROUNDING)
    block_map = found.block_map
    assert (block_map.num_kv_blocks, block_map.block_q, block_map.block_k) == (KB, 32, 16)
    rows = -(-options.get("q_length", T) // 32)
    lengths = options.get("kv_lengths")
    blocks = KB if lengths is None else (PARTIAL > 0).sum() if np.ndim(lengths) else 19
    np.testing.assert_allclose(found.density, mask.sum((-1, -2)) / (rows * blocks), rtol=1e-6)
    if "capacity" in options:
        wanted, _ = expected_selection(q, k, **options | {"capacity": None})
        missing = np.maximum(wanted.sum(-1) - options["capacity"], 0)
        assert missing.any() and not missing.all()
        np.testing.assert_array_equal(found.missing, missing)
        assert block_map.capacity == options["capacity"]
    else:
        assert not np.asarray(found.missing).any()


def test_ratio_is_rounded_as_in_float64(select, draw):
    """50 * (1 - 0.9) is just below 5, and 5 in float32."""
    q, k = draw(1, (32, 4, H), (50 * 16, 4, H))
    found = select(q, k, sparse_ratio=np.array([0.9, 0.8, 0.75, 0.5]), **BLOCKS)
    assert found.block_map.capacity == 25
    np.testing.assert_array_equal(found.block_map.counts, [[4], [9], [12], [25]])


def test_traced_settings(select, expected_selection, q_and_k):
    """Numbers, arrays for the heads, and lengths that are known only when the program runs."""
    q, k = q_and_k
    run = jax.jit(functools.partial(select, **BLOCKS))
    # Ratios whose products with 25 blocks or fewer float32 rounds as float64 does.
    for ratio, threshold, lengths in [
        (np.array([0.5, 0.25, 0.875]), THRESHOLDS, (331, 397)),
        (np.array([0.0, 1.0, 0.75]), THRESHOLDS[::-1], (97, 211)),
    ]:
        settings = {
            "sparse_ratio": ratio,
            "cdf_threshold": threshold,
            "q_length": lengths[0],
            "kv_lengths": lengths[1],
        }
        mask, covered = expected_selection(q, k, **BLOCKS, **settings)
        found = run(q, k, **jax.tree.map(jnp.asarray, settings))
        assert found.block_map.capacity == KB
        np.testing.assert_array_equal(mask_of(found), mask)
        np.testing.assert_allclose(found.covered, covered, atol=ROUNDING)


@pytest.mark.parametrize("lengths", [(229, 301), (64, 16), (33, 17), (1, 1)])
def test_lengths_equal_a_cut(select, expected_selection, q_and_k, lengths):
    q, k = q_and_k
    options = {"cdf_threshold": 0.6, "sparse_ratio": 0.8, **BLOCKS}
    whole = select(q, k, q_length=lengths[0], kv_lengths=lengths[1], **options)
    expected, covered = expected_selection(q[: lengths[0]], k[: lengths[1]], **options)
    _, rows, blocks = expected.shape
    mask = mask_of(whole)
    np.testing.assert_array_equal(mask[:, :rows, :blocks], expected)
    assert not mask[:, rows:].any() and not mask[:, :, blocks:].any()
    np.testing.assert_allclose(whole.covered[:, :rows], covered, atol=ROUNDING)
    assert not np.asarray(whole.covered[:, rows:]).any()
    np.testing.assert_allclose(whole.density, expected.mean((-1, -2)), rtol=1e-6)


@pytest.mark.parametrize("name", ["ratios", "partial"])
def test_tokens_that_do_not_count_have_no_influence(select, q_and_k, tokens_in_blocks, name):
    options = BLOCKS | OPTIONS[name]
    q, k = q_and_k
    q_counts = np.arange(T) < options.get("q_length", T)
    k_counts = np.arange(KV) % 16 < tokens_in_blocks(KV, 16, PARTIAL)[np.arange(KV) // 16]
    clean = select(q, k, **options)
    for garbage in (np.nan, np.inf, -np.inf, 1e30):
        spoilt = select(
            jnp.where(q_counts[:, None, None], q, garbage),
            jnp.where(k_counts[:, None, None], k, garbage),
            **options,
        )
        for a, b in zip(jax.tree.leaves(clean), jax.tree.leaves(spoilt), strict=True):
            np.testing.assert_array_equal(a, b)


def test_numbers_that_are_not_finite_stay_in_their_blocks(select, q_and_k):
    """A NaN or infinity among tokens that count: every row keeps as many blocks as it should."""
    q, k = q_and_k
    for bad in (np.nan, np.inf, -np.inf):
        found = select(q, k.at[100].set(bad), sparse_ratio=0.7, **BLOCKS)
        np.testing.assert_array_equal(found.block_map.counts, 7)
        assert np.isfinite(found.covered).all()
        clean = mask_of(select(q, k, sparse_ratio=0.7, **BLOCKS))
        # But for the block of the bad token, what was most probable stays so.
        extra = mask_of(found) & ~clean
        extra[..., 100 // 16] = False
        assert extra.sum(-1).max() <= 1


def test_narrow_types_are_pooled_in_float32(select, expected_selection, q_and_k):
    q, k = (x.astype(jnp.bfloat16) for x in q_and_k)
    options = {"cdf_threshold": 0.6, "sparse_ratio": 0.8, **BLOCKS}
    wide = [x.astype(jnp.float32) for x in (q, k)]
    mask, covered = expected_selection(*wide, **options)
    found = select(q, k, **options)
    np.testing.assert_array_equal(mask_of(found), mask)
    np.testing.assert_allclose(found.covered, covered, atol=ROUNDING)


def test_vmap(select, expected_selection, q_and_k, draw):
    """A batch of scenes, each with its own lengths and thresholds."""
    q, k = q_and_k
    more_q, more_k = (3 * x for x in draw(2, (T, N, H), (KV, N, H)))
    batch = jnp.stack([q, more_q]), jnp.stack([k, more_k])
    thresholds, lengths = np.stack([THRESHOLDS, THRESHOLDS[::-1]]), np.array([397, 211])
    options = {"sparse_ratio": 0.8, **BLOCKS}

    @jax.vmap
    def together(q, k, threshold, length):
        return select(q, k, cdf_threshold=threshold, kv_lengths=length, **options)

    found = together(*batch, thresholds, lengths)
    for i in range(2):
        mask, covered = expected_selection(
            *(x[i] for x in batch), cdf_threshold=thresholds[i], kv_lengths=lengths[i], **options
        )
        np.testing.assert_array_equal(mask_of(found)[i], mask)
        np.testing.assert_allclose(found.covered[i], covered, atol=ROUNDING)
        pairs = QB * -(-lengths[i] // 16)
        np.testing.assert_allclose(found.density[i], mask.sum((-1, -2)) / pairs, rtol=1e-6)


@pytest.fixture
def limit_scores(monkeypatch):
    """Sets how many bytes of scores may exist, and forgets programs compiled for other limits."""

    def limit(num_bytes):
        monkeypatch.setattr(api, "MAX_SCORE_BYTES", num_bytes)
        api._select.clear_cache()

    yield limit
    monkeypatch.undo()
    api._select.clear_cache()


# 11 rows of 25 scores in float32 take 1100 bytes a head, of which there are four.
STRIPED = {"cdf_threshold": 0.6, "sparse_ratio": np.array([0.8, 0.9, 0.5, 0.1]), **BLOCKS}
STRIPED |= {"num_sink_blocks": 1, "q_length": 300, "capacity": 9}


@pytest.fixture(scope="module")
def q_and_k_of_four(draw):
    return draw(3, (T, 4, H), (KV, 4, H))


@pytest.fixture(scope="module")
def in_one_stripe(q_and_k_of_four):
    return api.select_blocks(*q_and_k_of_four, implementation="xla", **STRIPED)


@pytest.mark.parametrize("rows", [22, 4])
def test_stripes_change_nothing(select, q_and_k_of_four, in_one_stripe, limit_scores, rows):
    limit_scores(rows * 4 * KB)
    select = functools.partial(select, **STRIPED)
    program = jax.make_jaxpr(select)(*q_and_k_of_four)
    assert set(sizes_of_products(program)) == {rows * KB}
    striped = select(*q_and_k_of_four)
    assert in_one_stripe.block_map.keeps_same_blocks(striped.block_map)
    for name in ("density", "missing"):
        np.testing.assert_array_equal(getattr(striped, name), getattr(in_one_stripe, name))
    # Products of other shapes may add up in another order.
    np.testing.assert_allclose(striped.covered, in_one_stripe.covered, atol=1e-6)


def sizes_of_products(program):
    """How many numbers each matrix product of a program gives."""
    shapes = re.findall(r"f32\[([\d,]+)\] = dot_general", str(program))
    return [math.prod(map(int, shape.split(","))) for shape in shapes]


def test_memory_is_bounded(limit_scores, optimized):
    """Of 16 MiB of scores, a program with a limit of 256 KiB has few at a time."""
    n, t, h, block = 4, 16384, 8, 16
    x = jax.ShapeDtypeStruct((t, n, h), jnp.bfloat16)
    select = functools.partial(
        api.select_blocks,
        sparse_ratio=0.9,
        cdf_threshold=0.5,
        block_q=block,
        block_k=block,
        capacity=61,
        implementation="xla",
    )
    limit_scores(2**18)
    program = jax.jit(lambda q, k: select(q, k)).lower(x, x).compile()
    # Queries and keys once in float32, and for each score of a stripe a few numbers.
    limit = 2 * 4 * n * t * h + 12 * 2**18
    assert program.memory_analysis().temp_size_in_bytes <= limit < n * (t // block) ** 2 * 4
