"""The entropy of the pooled softmax, and blocks drawn by lot."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy.special import softmax
from scipy.stats import chisquare, entropy

from pallas_kernels import select_blocks
from pallas_kernels.selection import api
from pallas_kernels.selection.pooled_softmax import pooled_softmax

T, KV, N, H = 331, 397, 3, 29
BLOCKS = {"block_q": 32, "block_k": 16}  # 11 and 25 blocks
SINKS = 3


@pytest.fixture(scope="module")
def q_and_k(draw):
    q, k = draw(0, (T, N, H), (KV, N, H))
    return 3 * q, 3 * k


def probabilities(q, k, sinks):
    """Of the pooled softmax without its first blocks, in float64: [n qb kb-sinks]."""
    pooled = lambda x, block: np.stack(
        [np.asarray(x[i : i + block], np.float64).mean(0) for i in range(0, len(x), block)], 1
    )
    scores = np.einsum("nqh,nkh->nqk", pooled(q, 32), pooled(k, 16)) / np.sqrt(H)
    return softmax(scores[..., sinks:], axis=-1)


@pytest.mark.parametrize("sinks", [0, SINKS])
@pytest.mark.parametrize("rule", [{"sparse_ratio": 0.6}, {"cdf_threshold": 0.5}])
def test_entropy(q_and_k, rule, sinks):
    found = select_blocks(*q_and_k, **rule, **BLOCKS, num_sink_blocks=sinks)
    expected = entropy(probabilities(*q_and_k, sinks), axis=-1)
    np.testing.assert_allclose(found.entropy, expected, atol=1e-5)
    assert 0.2 < expected.min() < expected.max() < np.log(25)


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
    masses, found = jax.jit(pooled_softmax)(scores, takes_part)
    np.testing.assert_allclose(found, [np.log(5), 0, 0, np.log(2), np.log(2)], atol=1e-6)
    np.testing.assert_allclose(masses.sum(-1), 1, rtol=1e-6)
    assert not np.asarray(masses)[:, 5:].any()
    masses, found = pooled_softmax(scores, np.zeros(7, bool))
    assert not np.asarray(masses).any() and not np.asarray(found).any()


def test_blocks_by_lot_are_as_many_and_cover_less(q_and_k):
    options = dict(sparse_ratio=0.7, num_sink_blocks=SINKS, **BLOCKS)
    rule = select_blocks(*q_and_k, **options)
    lots = select_blocks(*q_and_k, random_key=jax.random.key(1), **options)
    np.testing.assert_array_equal(lots.block_map.counts, rule.block_map.counts)
    np.testing.assert_array_equal(lots.density, rule.density)
    np.testing.assert_array_equal(lots.entropy, rule.entropy)
    mask = np.asarray(lots.block_map.to_dense_mask())
    assert mask[..., :SINKS].all()
    np.testing.assert_array_equal(mask.sum(-1), lots.block_map.counts)
    covered = np.where(mask[..., SINKS:], probabilities(*q_and_k, SINKS), 0).sum(-1)
    np.testing.assert_allclose(lots.covered, covered, atol=2e-5)
    assert np.mean(lots.covered) < np.mean(rule.covered) - 0.1
    # Rows, heads and keys differ, and the same key draws the same.
    rows = mask.reshape(-1, mask.shape[-1])
    assert len(np.unique(rows, axis=0)) > 0.95 * len(rows)
    again, other = (
        select_blocks(*q_and_k, random_key=jax.random.key(key), **options).block_map
        for key in (1, 2)
    )
    assert lots.block_map.keeps_same_blocks(again)
    assert not lots.block_map.keeps_same_blocks(other)


def test_every_block_is_drawn_alike(q_and_k):
    q, k = q_and_k
    keys = jax.random.split(jax.random.key(3), 40)
    draw = lambda key: select_blocks(q, k, sparse_ratio=0.75, random_key=key, **BLOCKS).block_map
    kept = np.asarray(jax.vmap(draw)(keys).to_dense_mask()).sum((0, 1, 2))
    assert kept.sum() == 40 * N * 11 * 6  # int(25 * 0.25) of each row
    assert chisquare(kept).pvalue > 1e-3


def test_stripes_and_padding_draw_the_same(q_and_k, monkeypatch):
    q, k = q_and_k
    options = dict(sparse_ratio=0.7, random_key=jax.random.key(4), **BLOCKS)
    whole = select_blocks(q, k, num_sink_blocks=SINKS, **options)
    monkeypatch.setattr(api, "MAX_SCORE_BYTES", 3 * 4 * 25)  # three rows at a time
    jax.clear_caches()
    striped = select_blocks(q, k, num_sink_blocks=SINKS, **options)
    assert whole.block_map.keeps_same_blocks(striped.block_map)
    np.testing.assert_allclose(striped.covered, whole.covered, atol=1e-6)
    np.testing.assert_allclose(striped.entropy, whole.entropy, atol=1e-6)
    monkeypatch.undo()
    jax.clear_caches()
    # Another block of sinks and two of padding, of which nothing counts; and rows without queries.
    more = jnp.concatenate([jnp.zeros((16, N, H)), k, jnp.ones((35, N, H))])
    padded = select_blocks(
        jnp.pad(q, ((0, 64), (0, 0), (0, 0))),
        more,
        num_sink_blocks=SINKS + 1,
        q_length=T,
        kv_lengths=np.array([0] + 24 * [16] + [13, 0, 0]),
        **options,
    )
    mask, expected = (np.asarray(x.block_map.to_dense_mask()) for x in (padded, whole))
    np.testing.assert_array_equal(mask[:, :11, 1:26], expected)
    assert not mask[:, 11:].any() and not mask[..., 26:].any()
    np.testing.assert_allclose(padded.covered[:, :11], whole.covered, atol=1e-6)
    np.testing.assert_allclose(padded.entropy[:, :11], whole.entropy, atol=1e-6)
    assert not np.asarray(padded.entropy[:, 11:]).any()


def test_lots_need_a_number(q_and_k):
    for rule in ({"cdf_threshold": 0.5}, {"cdf_threshold": 0.5, "sparse_ratio": 0.5}):
        with pytest.raises(ValueError, match="random blocks need a number of them"):
            select_blocks(*q_and_k, random_key=jax.random.key(0), **rule)


@pytest.mark.parametrize("key", [None, 9])
def test_the_kernel_as_the_interpreter_runs_it(q_and_k, key):
    key = None if key is None else jax.random.key(key)
    options = dict(sparse_ratio=0.7, num_sink_blocks=SINKS, random_key=key, **BLOCKS)
    found = select_blocks(*q_and_k, implementation="triton", interpret=True, **options)
    expected = select_blocks(*q_and_k, implementation="xla", **options)
    assert found.block_map.keeps_same_blocks(expected.block_map)
    np.testing.assert_allclose(found.covered, expected.covered, atol=1e-5)
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
        np.testing.assert_allclose(found.covered, expected.covered, atol=1e-5)
        if key is not None:
            assert found.block_map.keeps_same_blocks(expected.block_map)
