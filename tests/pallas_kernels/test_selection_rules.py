"""Rules as values: those of the package, and others made outside of it."""

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import (
    Limits,
    Mass,
    RandomBaseline,
    Ratio,
    RatioOrMass,
    Rule,
    select_blocks,
)
from pallas_kernels.selection.pooled_softmax import pooled_softmax

# The size of the other tests of selection.
T, KV, N, H = 331, 397, 4, 29
BLOCKS = {"block_q": 32, "block_k": 16}
QB, KB = 11, 25


@pytest.fixture(scope="module")
def q_and_k(draw):
    q, k = draw(0, (T, N, H), (KV, N, H))
    return 3 * q, 3 * k


RATIOS = np.array([0.9, 0.0, 0.61, 0.56])
KEY = jax.random.key(3)
SHORT = [
    (Ratio(0.7), {"sparse_ratio": 0.7}),
    (Ratio(RATIOS), {"sparse_ratio": RATIOS}),
    (Mass(0.6), {"cdf_threshold": 0.6}),
    (RatioOrMass(Ratio(RATIOS), Mass(0.6)), {"sparse_ratio": RATIOS, "cdf_threshold": 0.6}),
    (RandomBaseline(0.7, KEY), {"sparse_ratio": 0.7, "random_key": KEY}),
]


@pytest.mark.parametrize(("rule", "numbers"), SHORT, ids=[type(rule).__name__ for rule, _ in SHORT])
def test_numbers_are_short_for_rules(q_and_k, rule, numbers):
    select = functools.partial(select_blocks, *q_and_k, **BLOCKS)
    found, expected = select(rule=rule), select(**numbers)
    for x, y in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_array_equal(x, y)
    # As an argument of a program, whose numbers are known when it runs.
    traced = jax.eval_shape(lambda rule: select(rule=rule), rule)
    assert traced.block_map.capacity == KB


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class AboveMean(Rule):
    """Every block that is more probable than so many times the mean."""

    times: float

    def limits(self, stripe):
        probability, _ = pooled_softmax(stripe.scores, stripe.takes_part)
        mean = 1 / jnp.maximum(stripe.num_blocks, 1).astype(jnp.float32)
        return Limits(jnp.sum(probability > self.times * mean, axis=-1, dtype=jnp.int32))


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True)
class EveryOther(Rule):
    """Every other block, counted from the first that is no sink."""

    def prepare(self, num_blocks, num_heads):
        return self, -(-num_blocks // 2)

    def limits(self, stripe):
        n, _, kb = stripe.scores.shape
        is_odd = (jnp.arange(kb, dtype=jnp.int32) - stripe.num_sink_blocks) % 2
        ranked = jnp.broadcast_to(-is_odd.astype(jnp.float32), stripe.scores.shape)
        count = jnp.sum(stripe.takes_part & (is_odd == 0), dtype=jnp.int32)
        return Limits(jnp.full(n, count), ranked=ranked)


def probabilities(q, k, sinks):
    pooled = lambda x, block: np.stack(
        [np.asarray(x[i : i + block], np.float64).mean(0) for i in range(0, len(x), block)], 1
    )
    scores = np.einsum("nqh,nkh->nqk", pooled(q, 32), pooled(k, 16)) / np.sqrt(H)
    weights = np.exp(scores[..., sinks:] - scores[..., sinks:].max(-1, keepdims=True))
    return weights / weights.sum(-1, keepdims=True)


def test_a_rule_that_counts_by_row(select, dense_mask, q_and_k):
    """A class, and nothing else, is another rule, on every backend."""
    found = select(*q_and_k, rule=AboveMean(1.5), num_sink_blocks=2, **BLOCKS)
    probability = probabilities(*map(np.asarray, q_and_k), 2)
    expected = probability > 1.5 / (KB - 2)
    assert len(np.unique(expected.sum(-1))) > 3
    # Always one.
    is_top = probability == probability.max(-1, keepdims=True)
    expected |= is_top & ~expected.any(-1, keepdims=True)
    mask = dense_mask(found.block_map)
    np.testing.assert_array_equal(mask[..., 2:], expected)
    assert mask[..., :2].all()
    np.testing.assert_allclose(found.retained_mass, (expected * probability).sum(-1), atol=2e-5)


def test_a_rule_that_ranks_by_place(select, dense_mask, q_and_k):
    found = select(*q_and_k, rule=EveryOther(), num_sink_blocks=3, **BLOCKS)
    assert found.block_map.capacity == 3 + 11
    kept = (np.arange(KB) < 3) | (np.arange(KB) % 2 == 1)
    np.testing.assert_array_equal(dense_mask(found.block_map), np.broadcast_to(kept, (N, QB, KB)))
    mass = probabilities(*map(np.asarray, q_and_k), 3)[..., ::2].sum(-1)
    np.testing.assert_allclose(found.retained_mass, mass, atol=2e-5)


def test_capacity_cuts_any_rule(q_and_k, dense_mask):
    select = functools.partial(select_blocks, *q_and_k, rule=AboveMean(1.0), **BLOCKS)
    whole, cut = select(), select(capacity=4)
    counts = np.asarray(whole.block_map.counts)
    np.testing.assert_array_equal(cut.missing, np.maximum(counts - 4, 0))
    np.testing.assert_array_equal(cut.block_map.counts, np.minimum(counts, 4))
    assert (dense_mask(whole.block_map) >= dense_mask(cut.block_map)).all()


def test_another_number_of_a_rule_compiles_nothing(q_and_k):
    from pallas_kernels.selection import api

    select = lambda times: select_blocks(*q_and_k, rule=AboveMean(times), **BLOCKS)
    select(1.0)
    before = api._select._cache_size()
    assert np.sum(select(2.0).block_map.counts) < np.sum(select(0.5).block_map.counts)
    assert api._select._cache_size() == before


def test_a_backend_may_refuse_a_rule(q_and_k):
    import types

    from pallas_kernels.operation import Backend
    from pallas_kernels.selection import xla
    from pallas_kernels.selection.api import OPERATION
    from pallas_kernels.selection.rules import ByHead

    def unsupported_because(call):
        name = type(call.rule).__name__
        return None if isinstance(call.rule, ByHead) else f"{name} is not supported"

    functions = types.SimpleNamespace(run=xla.run, unsupported_because=unsupported_because)
    backend = Backend(name="by_head", module=functions)
    OPERATION.backends.insert(0, backend)
    try:
        select = functools.partial(select_blocks, *q_and_k, implementation="by_head", **BLOCKS)
        select(rule=Ratio(0.5))
        message = "^by_head: AboveMean is not supported; use implementation='xla' or None$"
        with pytest.raises(NotImplementedError, match=message):
            select(rule=AboveMean(1.0))
    finally:
        OPERATION.backends.remove(backend)


@dataclasses.dataclass(frozen=True)
class Nothing(Rule):
    """A rule that lacks what makes it one."""


@pytest.mark.parametrize(
    ("options", "error", "message"),
    [
        ({"rule": 0.5}, ValueError, "rule=0.5 is no rule; give Ratio"),
        ({"rule": Ratio(0.5), "sparse_ratio": 0.5}, ValueError, "not both"),
        ({"rule": Ratio(1.5)}, ValueError, r"sparse_ratio=1.5 must be in \[0, 1\]"),
        ({"rule": Mass([0.5] * 3)}, ValueError, "cdf_threshold must be one number or one for each"),
        ({"rule": RandomBaseline(-1, KEY)}, ValueError, "sparse_ratio=-1.0 must be in"),
    ],
)
def test_what_is_no_rule(q_and_k, options, error, message):
    with pytest.raises(error, match=message):
        select_blocks(*q_and_k, **options, **BLOCKS)


def test_a_rule_needs_limits(q_and_k):
    jax.tree_util.register_dataclass(Nothing, data_fields=[], meta_fields=[])
    with pytest.raises(NotImplementedError, match="Nothing has no `limits`"):
        select_blocks(*q_and_k, rule=Nothing(), **BLOCKS)


def test_old_name_of_the_retained_mass(q_and_k):
    found = select_blocks(*q_and_k, rule=Ratio(0.7), **BLOCKS)
    with pytest.warns(DeprecationWarning, match="now called retained_mass"):
        np.testing.assert_array_equal(found.covered, found.retained_mass)
