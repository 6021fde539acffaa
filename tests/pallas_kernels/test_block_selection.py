"""`select_blocks`: options, lengths and batches, against pooling and sorting in float64."""

import functools
import math
import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.stats import entropy

from pallas_kernels.selection import api
from pallas_kernels.selection.reference import select_by_sorting

# One size for all tests, here and of other properties of selection, so that few programs serve them.
T, KV, N, H = 331, 397, 4, 29
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
    """The mask [n qb kb], and of each row the probability kept and the entropy: in float64, by sorting."""

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
        covered, spread = np.zeros(scores.shape[:2]), np.zeros(scores.shape[:2])
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
            spread[n, row] = entropy(masses)
        for of_rows in (mask, covered, spread):
            of_rows[:, q_tokens == 0] = 0
        return mask, covered, spread

    return select


# Of one block in the middle nothing counts, of others a part.
PARTIAL = np.array([16, 16, 3, 16, 16, 0, 16, 1, 16, 0, 16, 16] + [16] * 11 + [7, 13])
# 25 * (1 - 0.56) is just below 11, and 11 in float32: numbers are rounded as in float64.
RATIOS = np.array([0.9, 0.0, 0.61, 0.56])
THRESHOLDS = np.array([0.4, 0.95, 0.0, 0.7])

BOTH = {"cdf_threshold": 0.6, "sparse_ratio": 0.8}
# Lengths that leave everything, so that one program serves these and partial ones.
WHOLE = {"q_length": T, "kv_lengths": np.full(KB, 16)}
OPTIONS = {
    "ratios": {"sparse_ratio": RATIOS},
    "threshold": WHOLE | {"cdf_threshold": 0.9},
    "thresholds": WHOLE | {"cdf_threshold": THRESHOLDS},
    "both": WHOLE | BOTH,
    "both-per-head": WHOLE | {"cdf_threshold": THRESHOLDS, "sparse_ratio": RATIOS},
    "all": WHOLE | {"cdf_threshold": 1.0},
    "one": WHOLE | {"sparse_ratio": 1.0, "cdf_threshold": 0.0},
    "scale": WHOLE | {"cdf_threshold": 0.6, "scale": 1.7},
    "partial": BOTH | {"q_length": 229, "kv_lengths": PARTIAL},
    "capacity": {
        "cdf_threshold": THRESHOLDS,
        "sparse_ratio": RATIOS,
        "pool_mode": "max",
        "num_sink_blocks": 3,
        "q_length": 229,
        "kv_lengths": PARTIAL,
        "capacity": 7,
    },
    "sinks": BOTH | {"num_sink_blocks": 2},
}


@pytest.mark.parametrize(
    "name", [pytest.param(x, marks=[pytest.mark.slow] * (x == "sinks")) for x in OPTIONS]
)
def test_options(select, expected_selection, dense_mask, q_and_k, name):
    options = BLOCKS | OPTIONS[name]
    q, k = q_and_k
    mask, covered, spread = expected_selection(q, k, **options)
    found = select(q, k, **options)
    np.testing.assert_array_equal(dense_mask(found.block_map), mask)
    np.testing.assert_allclose(found.retained_mass, covered, atol=ROUNDING)
    np.testing.assert_allclose(found.entropy, spread, atol=1e-5)
    block_map = found.block_map
    assert (block_map.num_kv_blocks, block_map.block_q, block_map.block_k) == (KB, 32, 16)
    rows = -(-options.get("q_length", T) // 32)
    blocks = (options.get("kv_lengths", WHOLE["kv_lengths"]) > 0).sum()
    np.testing.assert_allclose(found.density, mask.sum((-1, -2)) / (rows * blocks), rtol=1e-6)
    if "capacity" in options:
        wanted, _, _ = expected_selection(q, k, **options | {"capacity": None})
        missing = np.maximum(wanted.sum(-1) - options["capacity"], 0)
        assert missing.any() and not missing.all()
        np.testing.assert_array_equal(found.missing, missing)
        assert block_map.capacity == options["capacity"]
    else:
        assert not np.asarray(found.missing).any()


def test_a_threshold_is_reached_but_for_rounding(select, q_and_k):
    """Equal blocks have a share of 0.04 each. 1e-5 is added to thresholds, as in the paper's code."""
    q, k = q_and_k
    thresholds = np.array([0.2 - 5e-6, 0.2 - 2e-5, 0.4 - 5e-6, 0.4 - 2e-5])
    found = select(0 * q, k, cdf_threshold=thresholds, **WHOLE, **BLOCKS)
    expected = np.broadcast_to([[5], [4], [10], [9]], (N, QB))
    np.testing.assert_array_equal(found.block_map.counts, expected)


def test_room_for_what_the_ratio_can_ask(q_and_k):
    """50 * (1 - 0.9) is just below 5, and 5 in float32."""
    k = jax.ShapeDtypeStruct((50 * 16, 4, H), jnp.float32)
    run = functools.partial(api.select_blocks, num_sink_blocks=1, **BLOCKS)
    for ratio, capacity in [(0.9, 1 + 4), (np.array([0.9, 0.8, 0.75, 0.5]), 1 + 24), (1.0, 2)]:
        found = jax.eval_shape(functools.partial(run, sparse_ratio=ratio), q_and_k[0], k)
        assert found.block_map.capacity == capacity


@pytest.mark.quick("xla")
def test_traced_settings(select, expected_selection, dense_mask, q_and_k):
    """Numbers, arrays for the heads, and lengths that are known only when the program runs."""
    q, k = q_and_k
    run = jax.jit(functools.partial(select, **BLOCKS))
    # Ratios whose products with 25 blocks or fewer float32 rounds as float64 does.
    for ratio, threshold, lengths in [
        (np.array([0.5, 0.25, 0.875, 0.0]), THRESHOLDS, (331, 397)),
        (np.array([0.0, 1.0, 0.75, 0.5]), THRESHOLDS[::-1], (97, 211)),
    ]:
        settings = {
            "sparse_ratio": ratio,
            "cdf_threshold": threshold,
            "q_length": lengths[0],
            "kv_lengths": lengths[1],
        }
        mask, covered, _ = expected_selection(q, k, **BLOCKS, **settings)
        found = run(q, k, **jax.tree.map(jnp.asarray, settings))
        assert found.block_map.capacity == KB
        np.testing.assert_array_equal(dense_mask(found.block_map), mask)
        np.testing.assert_allclose(found.retained_mass, covered, atol=ROUNDING)


@pytest.fixture(scope="module")
def narrow(q_and_k):
    """Queries and keys in bfloat16: they are pooled in float32."""
    return [jnp.asarray(np.asarray(x), jnp.bfloat16) for x in q_and_k]


@pytest.mark.parametrize("lengths", [(331, 397), (229, 301), (64, 16), (33, 17), (1, 1)])
def test_lengths_equal_a_cut(select, expected_selection, dense_mask, narrow, lengths):
    q, k = narrow
    options = BOTH | BLOCKS
    whole = select(q, k, q_length=lengths[0], kv_lengths=lengths[1], **options)
    cut = (np.asarray(x[:length], np.float32) for x, length in zip(narrow, lengths, strict=True))
    expected, covered, _ = expected_selection(*cut, **options)
    _, rows, blocks = expected.shape
    mask = dense_mask(whole.block_map)
    np.testing.assert_array_equal(mask[:, :rows, :blocks], expected)
    assert not mask[:, rows:].any() and not mask[:, :, blocks:].any()
    np.testing.assert_allclose(whole.retained_mass[:, :rows], covered, atol=ROUNDING)
    assert not np.asarray(whole.retained_mass[:, rows:]).any()
    np.testing.assert_allclose(whole.density, expected.mean((-1, -2)), rtol=1e-6)


@pytest.mark.parametrize("name", ["partial", "capacity"])  # by their average, by their maximum
def test_tokens_that_do_not_count_have_no_influence(select, q_and_k, tokens_in_blocks, name):
    options = BLOCKS | OPTIONS[name]
    q, k = q_and_k
    q_counts = np.arange(T) < options["q_length"]
    k_counts = np.arange(KV) % 16 < tokens_in_blocks(KV, 16, PARTIAL)[np.arange(KV) // 16]
    clean = select(q, k, **options)
    for garbage in (np.nan, np.inf, -np.inf, 1e30):
        spoilt = select(
            np.where(q_counts[:, None, None], q, np.float32(garbage)),
            np.where(k_counts[:, None, None], k, np.float32(garbage)),
            **options,
        )
        for a, b in zip(jax.tree.leaves(clean), jax.tree.leaves(spoilt), strict=True):
            np.testing.assert_array_equal(a, b)


def test_numbers_that_are_not_finite_stay_in_their_blocks(select, dense_mask, q_and_k):
    """A NaN or infinity among tokens that count: every row keeps as many blocks as it should."""
    q, k = q_and_k
    select = functools.partial(select, q, sparse_ratio=RATIOS, **BLOCKS)
    clean = dense_mask(select(k).block_map)
    for bad in (np.nan, np.inf, -np.inf):
        spoilt = np.array(k)
        spoilt[100] = bad
        found = select(jnp.asarray(spoilt))
        np.testing.assert_array_equal(found.block_map.counts, [[2], [25], [9], [10]] * np.ones(QB))
        assert np.isfinite(found.retained_mass).all()
        # But for the block of the bad token, what was most probable stays so.
        extra = dense_mask(found.block_map) & ~clean
        extra[..., 100 // 16] = False
        assert extra.sum(-1).max() <= 1


@pytest.mark.quick("triton-interpreted")
def test_vmap(select, expected_selection, dense_mask, q_and_k, draw):
    """A batch of scenes, each with its own lengths and thresholds."""
    more = (3 * np.asarray(x) for x in draw(2, (T, N, H), (KV, N, H)))
    batch = [np.stack(pair) for pair in zip(q_and_k, more, strict=True)]
    thresholds, lengths = np.stack([THRESHOLDS, THRESHOLDS[::-1]]), np.array([397, 211])
    options = {"sparse_ratio": 0.8, **BLOCKS}

    @jax.vmap
    def together(q, k, threshold, length):
        return select(q, k, cdf_threshold=threshold, kv_lengths=length, **options)

    found = together(*batch, thresholds, lengths)
    masks = dense_mask(found.block_map)
    for i in range(2):
        mask, covered, _ = expected_selection(
            *(x[i] for x in batch), cdf_threshold=thresholds[i], kv_lengths=lengths[i], **options
        )
        np.testing.assert_array_equal(masks[i], mask)
        np.testing.assert_allclose(found.retained_mass[i], covered, atol=ROUNDING)
        pairs = QB * -(-lengths[i] // 16)
        np.testing.assert_allclose(found.density[i], mask.sum((-1, -2)) / pairs, rtol=1e-6)


# 11 rows of 25 scores in float32 take 1100 bytes a head, of which there are four.
STRIPED = BLOCKS | OPTIONS["capacity"]


@pytest.fixture(scope="module")
def in_one_stripe(q_and_k):
    return api.select_blocks(*q_and_k, implementation="xla", **STRIPED)


@pytest.mark.parametrize(
    "rows",
    [
        pytest.param(22, marks=pytest.mark.slow),
        pytest.param(4, marks=pytest.mark.quick("triton-interpreted")),
    ],
)
def test_stripes_change_nothing(select, dense_mask, q_and_k, in_one_stripe, monkeypatch, rows):
    """Two heads at a time, and some rows of one."""
    monkeypatch.setattr(api, "MAX_SCORE_BYTES", rows * 4 * KB)
    select = functools.partial(select, **STRIPED)
    program = jax.make_jaxpr(select)(*q_and_k)
    assert set(sizes_of_products(program)) == {rows * KB}
    striped = select(*q_and_k)
    masks = [dense_mask(x.block_map) for x in (striped, in_one_stripe)]
    np.testing.assert_array_equal(*masks)
    for name in ("density", "missing"):
        np.testing.assert_array_equal(getattr(striped, name), getattr(in_one_stripe, name))
    # Products of other shapes may add up in another order.
    for name in ("retained_mass", "entropy"):
        expected = getattr(in_one_stripe, name)
        np.testing.assert_allclose(getattr(striped, name), expected, atol=1e-6)


def sizes_of_products(program):
    """How many numbers each matrix product of a program gives."""
    shapes = re.findall(r"f32\[([\d,]+)\] = dot_general", str(program))
    return [math.prod(map(int, shape.split(","))) for shape in shapes]


@pytest.mark.slow
def test_memory_is_bounded(monkeypatch, optimized):
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
    monkeypatch.setattr(api, "MAX_SCORE_BYTES", 2**18)
    program = jax.jit(lambda q, k: select(q, k)).lower(x, x).compile()
    # Queries and keys once in float32, and for each score of a stripe a few numbers.
    limit = 2 * 4 * n * t * h + 12 * 2**18
    assert program.memory_analysis().temp_size_in_bytes <= limit < n * (t // block) ** 2 * 4
