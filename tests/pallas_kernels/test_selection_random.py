"""The entropy of the pooled softmax, and the random baseline."""

import jax
import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import chisquare, entropy

from pallas_kernels import select_blocks
from pallas_kernels.selection import api
from pallas_kernels.selection.pooled_softmax import pooled_softmax

# The size of the other tests of selection.
T, KV, N, H = 331, 397, 4, 29
BLOCKS = {"block_q": 32, "block_k": 16}
QB, KB, SINKS = 11, 25, 3
OPTIONS = dict(sparse_ratio=0.7, num_sink_blocks=SINKS, implementation="xla", **BLOCKS)
NUM_KEPT = 6  # of the 22 blocks that are no sinks


@pytest.fixture(scope="module")
def q_and_k(draw):
    q, k = draw(0, (T, N, H), (KV, N, H))
    return 3 * q, 3 * k


@pytest.fixture(scope="module")
def draw_blocks(q_and_k):
    """The random baseline with the key of a seed: one program for all."""
    return lambda seed: select_blocks(*q_and_k, random_key=jax.random.key(seed), **OPTIONS)


@pytest.fixture(scope="module")
def probabilities(q_and_k):
    """Of the pooled softmax without its first blocks, in float64: [n qb kb-sinks]."""
    pooled = lambda x, block: np.stack(
        [np.asarray(x[i : i + block], np.float64).mean(0) for i in range(0, len(x), block)], 1
    )
    q, k = map(np.asarray, q_and_k)
    scores = np.einsum("nqh,nkh->nqk", pooled(q, 32), pooled(k, 16)) / np.sqrt(H)
    return softmax(scores[..., SINKS:], axis=-1)


def test_entropy_at_its_ends_and_of_odd_numbers():
    takes_part = np.array([True] * 5 + [False] * 2)
    scores = np.array(
        [
            [1.5, 1.5, 1.5, 1.5, 1.5, 9.0, np.nan],
            [0.0, 0.0, 300.0, 0.0, 0.0, 0.0, 0.0],
            [-3e38, 3e38, -3e38, -3e38, -3e38, 0.0, 0.0],
            [np.nan, -np.inf, 2.0, 2.0, -np.inf, 3.0, 3.0],
            [np.inf, np.inf, 0.0, 0.0, 0.0, np.inf, 0.0],
        ],
        np.float32,
    )
    pooled = jax.jit(pooled_softmax)
    masses, found = pooled(scores, takes_part)
    np.testing.assert_allclose(found, [np.log(5), 0, 0, np.log(2), np.log(2)], atol=1e-6)
    np.testing.assert_allclose(masses.sum(-1), 1, rtol=1e-6)
    assert not np.asarray(masses)[:, 5:].any()
    masses, found = pooled(scores, np.zeros(7, bool))
    assert not np.asarray(masses).any() and not np.asarray(found).any()


def test_random_blocks_are_as_many_and_retain_less(draw_blocks, dense_mask, probabilities):
    drawn = draw_blocks(1)
    np.testing.assert_array_equal(drawn.block_map.counts, np.full((N, QB), SINKS + NUM_KEPT))
    np.testing.assert_allclose(drawn.density, (SINKS + NUM_KEPT) / KB, rtol=1e-6)
    expected = entropy(probabilities, axis=-1)
    np.testing.assert_allclose(drawn.entropy, expected, atol=1e-5)
    assert 0.2 < expected.min() < expected.max() < np.log(KB)
    mask = dense_mask(drawn.block_map)
    assert mask[..., :SINKS].all()
    np.testing.assert_array_equal(mask.sum(-1), drawn.block_map.counts)
    covered = np.where(mask[..., SINKS:], probabilities, 0).sum(-1)
    np.testing.assert_allclose(drawn.retained_mass, covered, atol=2e-5)
    by_the_rule = np.sort(probabilities, axis=-1)[..., -NUM_KEPT:].sum(-1)
    assert np.mean(drawn.retained_mass) < np.mean(by_the_rule) - 0.1
    # Rows, heads and keys differ, and the same key draws the same.
    rows = mask.reshape(-1, mask.shape[-1])
    assert len(np.unique(rows, axis=0)) > 0.95 * len(rows)
    again, other = (dense_mask(draw_blocks(seed).block_map) for seed in (1, 2))
    np.testing.assert_array_equal(mask, again)
    assert np.any(mask != other)


def test_every_block_is_drawn_alike(draw_blocks, dense_mask):
    kept = sum(dense_mask(draw_blocks(seed).block_map).sum((0, 1)) for seed in range(3, 43))
    assert kept[SINKS:].sum() == 40 * N * QB * NUM_KEPT
    assert chisquare(kept[SINKS:]).pvalue > 1e-3


@pytest.mark.slow
def test_vmap_over_keys(q_and_k, draw_blocks, dense_mask):
    keys = jax.vmap(jax.random.key)(np.arange(3))
    draw = lambda key: select_blocks(*q_and_k, random_key=key, **OPTIONS).block_map
    together = dense_mask(jax.vmap(draw)(keys))
    for seed, mask in enumerate(together):
        np.testing.assert_array_equal(mask, dense_mask(draw_blocks(seed).block_map))


def test_stripes_and_padding_draw_the_same(q_and_k, draw_blocks, dense_mask, monkeypatch):
    """Three rows at a time; another block of sinks and two of padding; and rows without queries."""
    whole = draw_blocks(4)
    q, k = map(np.asarray, q_and_k)
    monkeypatch.setattr(api, "MAX_SCORE_BYTES", 3 * 4 * 28)
    padded = select_blocks(
        np.pad(q, ((0, 64), (0, 0), (0, 0))),
        np.concatenate([np.zeros((16, N, H), q.dtype), k, np.ones((35, N, H), q.dtype)]),
        random_key=jax.random.key(4),
        q_length=T,
        kv_lengths=np.array([0] + 24 * [16] + [13, 0, 0]),
        **OPTIONS | {"num_sink_blocks": SINKS + 1},
    )
    mask, expected = (dense_mask(x.block_map) for x in (padded, whole))
    np.testing.assert_array_equal(mask[:, :11, 1:26], expected)
    assert not mask[:, 11:].any() and not mask[..., 26:].any()
    np.testing.assert_allclose(padded.retained_mass[:, :11], whole.retained_mass, atol=1e-6)
    np.testing.assert_allclose(padded.entropy[:, :11], whole.entropy, atol=1e-6)
    assert not np.asarray(padded.entropy[:, 11:]).any()


def test_random_blocks_need_a_number(q_and_k):
    for rule in ({"cdf_threshold": 0.5}, {"cdf_threshold": 0.5, "sparse_ratio": 0.5}):
        with pytest.raises(ValueError, match="random blocks need a number of them"):
            select_blocks(*q_and_k, random_key=jax.random.key(0), **rule)


@pytest.mark.slow
def test_the_kernel_as_the_interpreter_runs_it(q_and_k, draw_blocks, dense_mask):
    options = OPTIONS | {"implementation": "triton", "interpret": True}
    found = select_blocks(*q_and_k, random_key=jax.random.key(9), **options)
    expected = draw_blocks(9)
    np.testing.assert_array_equal(dense_mask(found.block_map), dense_mask(expected.block_map))
    np.testing.assert_allclose(found.retained_mass, expected.retained_mass, atol=1e-5)
    np.testing.assert_allclose(found.entropy, expected.entropy, atol=1e-5)


@pytest.mark.gpu
def test_the_kernel_draws_and_weighs_as_plain_jax(draw):
    q, k = draw(5, (4099, N, 64), (8195, N, 64))
    for key in (None, jax.random.key(6)):
        options = dict(sparse_ratio=0.7, num_sink_blocks=2, random_key=key)
        found, expected = (
            select_blocks(3 * q, 3 * k, implementation=name, **options)
            for name in ("triton", "xla")
        )
        np.testing.assert_allclose(found.entropy, expected.entropy, atol=1e-5)
        np.testing.assert_allclose(found.retained_mass, expected.retained_mass, atol=1e-5)
        if key is not None:
            assert found.block_map.keeps_same_blocks(expected.block_map)
