"""The rule for one row of scores, against sorting in float64."""

import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels.blocks import next_power_of_2
from pallas_kernels.selection.reference import select_by_sorting

NUM_BLOCKS = 37
LARGEST = float(np.finfo(np.float32).max)


@pytest.fixture(scope="module")
def select_rows(select, dense_mask):
    """`select_blocks` for given scores [heads, rows, kb]: which blocks it keeps, and what is covered.

    Each row is a head of its own, with one query of (1, 0, ...) and keys of (score, 0, ...). All keys
    of a block are the same, so that their maximum is one of them.
    """

    def run(scores, num_kept, probability=None, *, tokens=None, sinks=0, capacity=None):
        heads, rows, num_blocks = scores.shape
        q = np.zeros((1, heads * rows, 16), np.float32)
        q[..., 0] = 1
        k = np.zeros((num_blocks, 16, heads * rows, 16), np.float32)
        k[..., 0] = scores.reshape(-1, num_blocks).T[:, None]
        num_valid = num_blocks if tokens is None else (tokens[sinks:] > 0).sum()
        # Such that rounding down gives `num_kept` of the blocks that take part.
        ratios = np.clip(1 - (num_kept + 0.5) / max(num_valid, 1), 0, 1)
        # The rule of the paper's code adds what it takes for rounding.
        thresholds = None if probability is None else np.repeat(probability - 1e-5, rows)
        found = select(
            jnp.asarray(q),
            jnp.asarray(k.reshape(-1, *k.shape[2:])),
            sparse_ratio=np.repeat(ratios, rows),
            cdf_threshold=thresholds,
            pool_mode="max",
            block_q=16,
            block_k=16,
            num_sink_blocks=sinks,
            kv_lengths=np.full(num_blocks, 16) if tokens is None else tokens,
            scale=1.0,
            capacity=capacity,
        )
        block_map = found.block_map
        lists, counts = np.asarray(block_map.indices)[:, 0], np.asarray(block_map.counts)[:, 0]
        for listed, count in zip(lists, counts, strict=True):
            assert (np.diff(listed[:count]) > 0).all()  # in order, none twice
            assert (listed[count:] == 0).all()  # equal selections are equal arrays
        kept = dense_mask(block_map).reshape(scores.shape)
        return kept, *(
            np.asarray(x).reshape(heads, rows) for x in (found.retained_mass, found.missing)
        )

    return run


def rows_of_scores():
    """Rows of all kinds, [r kb]."""
    rng = np.random.default_rng(0)
    normal = rng.normal(size=(5, NUM_BLOCKS))
    rows = [*normal, *(3 * normal), *(40 * normal), *(1e-4 * normal)]
    rows += [*rng.integers(0, 4, size=(4, NUM_BLOCKS)).astype(float)]  # many ties
    rows += [np.full(NUM_BLOCKS, value) for value in (0.0, -3.7, 1e30)]  # nothing but ties
    two = np.zeros(NUM_BLOCKS)
    two[[5, 30]] = 1e-6  # neighbours in float32, or nearly
    rows += [two, 1 + two, -1e4 * two]
    spike = np.full(NUM_BLOCKS, -1e4)
    spike[23] = 0.0
    rows += [spike, LARGEST * np.sign(normal[0]), LARGEST * (normal[1] / 5)]
    for values in ([np.nan], [np.inf], [-np.inf], [np.nan, np.inf, -np.inf]):
        row = normal[2].copy()
        row[rng.choice(NUM_BLOCKS, 3 * len(values), replace=False)] = np.repeat(values, 3)
        rows.append(row)
    rows += [np.full(NUM_BLOCKS, value) for value in (np.nan, np.inf, -np.inf)]
    return np.float32(rows)


def as_numbers(scores):
    """NaN as the lowest number, infinities as the largest."""
    return np.clip(np.where(np.isnan(scores), -LARGEST, scores), -LARGEST, LARGEST)


def share_of(kept, scores):
    """The softmax's probability of the kept blocks, in float64."""
    masses = np.exp(np.float64(scores) - scores.max(-1, keepdims=True))
    return (masses * kept).sum(-1) / masses.sum(-1)


# For each head: how many blocks to keep at least, and the probability to reach.
NUM_KEPT = np.array([1, 1, 1, 1, 3, 10, 18, 37, 1])
PROBABILITY = np.array([0.0, 0.2, 0.5, 0.97, 0.5, 0.9, 0.3, 0.0, 1.0]) + 1e-5


# Rows of kernels and of plain JAX follow one text, all of which the test of the capacity meets.
@pytest.mark.parametrize(
    "probability",
    [
        pytest.param(None, id="number", marks=pytest.mark.slow),
        pytest.param(PROBABILITY, id="both", marks=pytest.mark.quick("xla")),
    ],
)
def test_rule_equals_sorting(select_rows, probability):
    rows = rows_of_scores()
    scores = np.broadcast_to(rows, (len(NUM_KEPT), *rows.shape))
    kept, covered, missing = select_rows(scores, NUM_KEPT, probability)
    for head, num_kept in enumerate(NUM_KEPT):
        of_head = None if probability is None else probability[head]
        expected = select_by_sorting(as_numbers(rows), num_kept, of_head)
        np.testing.assert_array_equal(kept[head], expected, err_msg=f"{num_kept=} {of_head=}")
        share = share_of(expected, as_numbers(rows))
        np.testing.assert_allclose(covered[head], share, atol=2e-6)
    assert not missing.any()


def test_oracle_of_the_rule():
    """The oracle itself, on rows whose answer can be said."""
    scores = np.log([0.1, 0.4, 0.05, 0.3, 0.15])
    choose = lambda *args: np.flatnonzero(select_by_sorting(scores, *args)).tolist()
    assert choose(1) == [1] and choose(3) == [1, 3, 4] and choose(5) == [0, 1, 2, 3, 4]
    assert choose(1, 0.39) == [1]  # always one
    assert choose(1, 0.71) == [1, 3]
    assert choose(1, 0.849) == [1, 3]  # 0.85 would pass it
    assert choose(1, 0.851) == [1, 3, 4]
    assert choose(4, 0.71) == [0, 1, 3, 4] and choose(2, 0.96) == [0, 1, 3, 4]
    ties = select_by_sorting(np.zeros((2, 4)), 1, 0.6)
    np.testing.assert_array_equal(ties, [[True, True, False, False]] * 2)


@pytest.mark.slow
def test_ties_go_to_lower_indices(select_rows):
    scores = np.zeros((9, 1, NUM_BLOCKS))
    scores[..., [7, 20]] = 1.0
    kept, _, _ = select_rows(
        np.broadcast_to(scores, (9, len(rows_of_scores()), NUM_BLOCKS)), NUM_KEPT
    )
    for head, expected in {4: [0, 7, 20], 0: [7], 5: [*range(8), 20, 8]}.items():
        np.testing.assert_array_equal(np.flatnonzero(kept[head, 0]), sorted(expected))


def test_capacity_keeps_the_most_probable(select_rows):
    rows = rows_of_scores()
    tokens = np.full(NUM_BLOCKS, 64)
    tokens[[1, 11]] = 0
    valid = (tokens > 0) & (np.arange(NUM_BLOCKS) >= 3)
    scores = np.broadcast_to(rows, (len(NUM_KEPT), *rows.shape))
    kept, covered, missing = select_rows(
        scores, NUM_KEPT, PROBABILITY, tokens=tokens, sinks=3, capacity=13
    )
    assert kept[..., [0, 2]].all() and not kept[..., [1, 11]].any()
    assert kept.sum(-1).max() == 13
    numbers = as_numbers(rows)[:, valid]
    for head, (num_kept, probability) in enumerate(zip(NUM_KEPT, PROBABILITY, strict=True)):
        wanted = select_by_sorting(numbers, num_kept, probability).sum(-1)
        np.testing.assert_array_equal(missing[head], np.maximum(wanted - 11, 0))
        for row, count in enumerate(np.minimum(wanted, 11)):
            expected = select_by_sorting(numbers[row], count)
            np.testing.assert_array_equal(kept[head, row][valid], expected)
            share = share_of(expected, numbers[row])
            np.testing.assert_allclose(covered[head, row], share, atol=2e-6)


def test_row_without_blocks_keeps_nothing(select_rows):
    scores = np.broadcast_to(rows_of_scores(), (9, len(rows_of_scores()), NUM_BLOCKS))
    tokens = np.zeros(NUM_BLOCKS, int)
    run = lambda: select_rows(scores, NUM_KEPT, PROBABILITY, tokens=tokens, sinks=3, capacity=13)
    kept, covered, _ = run()
    assert not kept.any()
    np.testing.assert_array_equal(covered, 0.0)
    # Sinks alone: kept, while nothing is left for the rule.
    tokens[:2] = 64
    kept, covered, _ = run()
    np.testing.assert_array_equal(kept, np.broadcast_to(np.arange(NUM_BLOCKS) < 2, kept.shape))
    np.testing.assert_array_equal(covered, 0.0)


@pytest.mark.parametrize(("n", "power"), [(1, 1), (2, 2), (3, 4), (64, 64), (65, 128)])
def test_next_power_of_2(n, power):
    assert next_power_of_2(n) == power
