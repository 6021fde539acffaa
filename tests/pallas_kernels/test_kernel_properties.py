"""What holds for all inputs, tried on drawn ones."""

import functools

import hypothesis
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from pallas_kernels import BlockMap

few = hypothesis.settings(max_examples=12, deadline=None, derandomize=True, database=None)

# One size, so that one program of each implementation serves all examples: what it calls small.
T, KV, N, H = 67, 83, 2, 32
QB, KB = 3, 6

seeds = st.integers(0, 2**32 - 1)
shares = st.floats(0, 1, width=32)
masks = st.lists(st.booleans(), min_size=N * QB * KB, max_size=N * QB * KB).map(
    lambda bits: np.reshape(bits, (N, QB, KB))
)
lengths = st.lists(st.integers(0, 16), min_size=KB, max_size=KB).map(np.array)
# Of selection; the size of its other tests.
SELECTION = {"t": 331, "kv": 397, "n": 4, "h": 29}
BLOCKS = {"block_q": 32, "block_k": 16}
lengths_of_all = st.lists(st.integers(0, 16), min_size=25, max_size=25).map(np.array)
sizes = st.sampled_from([1e-3, 1.0, 30.0])


def qkv(seed, size=1.0, *, t, kv, n=N, h, dtype=jnp.float32):
    rng = np.random.default_rng(seed)
    q, k, v = (rng.normal(size=(s, n, h)) for s in (t, kv, kv))
    return jnp.asarray(size * q, dtype), jnp.asarray(k, dtype), jnp.asarray(v, dtype)


@pytest.fixture(scope="session")
def draw_qkv(small):
    """q, k and v given a seed and a size."""
    assert (small.n, small.qb, small.kb) == (N, QB, KB)
    inputs = {"t": small.t, "kv": small.kv, "h": small.h, "dtype": small.dtype}
    return functools.partial(qkv, **inputs)


@pytest.fixture(scope="session")
def run(attend, roomy_map, small):
    def run(q, k, v, mask, tokens):
        block_map = mask if isinstance(mask, BlockMap) else roomy_map(mask, **small.blocks)
        tokens = jnp.asarray(tokens, jnp.int32)
        return attend(q, k, v, block_map, kv_lengths=tokens, return_lse=True)

    return run


def assert_same(found, expected, limit):
    """Within a limit times the largest output, in float32.

    Of a 16-bit type, weights and results are rounded by half an eps at most, which makes one eps,
    or two where both are rounded.
    """
    (out, lse), (exact_out, exact_lse) = found, expected
    out_limit = limit
    if out.dtype != jnp.float32:
        rounded = 1 if exact_out.dtype == np.float64 else 2
        out_limit = rounded * float(jnp.finfo(out.dtype).eps)
    out, exact_out = (np.asarray(x, np.float64) for x in (out, exact_out))
    np.testing.assert_allclose(out, exact_out, rtol=0, atol=out_limit * np.abs(exact_out).max())
    np.testing.assert_allclose(lse, exact_lse, rtol=limit, atol=limit)


@few
@hypothesis.given(seeds, sizes)
def test_all_kept_is_dense(run, draw_qkv, exact_attention, small, seed, size):
    q, k, v = draw_qkv(seed, size)
    found = run(q, k, v, np.ones((N, QB, KB), bool), small.all)
    pairs = np.ones((N, small.t, small.kv), bool)
    assert_same(found, exact_attention(q, k, v, pairs), 3e-5)


@few
@hypothesis.given(seeds, masks, lengths)
def test_tails_are_exact(
    run, draw_qkv, pairs_that_count, exact_attention, small, seed, mask, tokens
):
    q, k, v = draw_qkv(seed)
    tokens = tokens * (small.block_k // 16)
    pairs_of = functools.partial(
        pairs_that_count, t=small.t, kv=small.kv, **small.blocks, kv_lengths=tokens
    )
    pairs = pairs_of(mask)
    counted = pairs_of(np.ones_like(mask))[0, 0]
    k, v = (np.where(counted[:, None, None], x, np.asarray(np.nan, x.dtype)) for x in (k, v))
    found = run(q, k, v, mask, tokens)
    assert_same(found, exact_attention(q, k, v, pairs), 3e-5)


@few
@hypothesis.given(seeds, masks, lengths)
def test_order_does_not_matter(run, draw_qkv, roomy_map, small, seed, mask, tokens):
    q, k, v = draw_qkv(seed)
    tokens = tokens * (small.block_k // 16)
    block_map = roomy_map(mask, **small.blocks)
    indices, counts = np.array(block_map.indices), np.asarray(block_map.counts)
    rng = np.random.default_rng(seed)
    for row in np.ndindex(counts.shape):
        indices[row][: counts[row]] = rng.permutation(indices[row][: counts[row]])
    other = BlockMap(
        indices=jnp.asarray(indices), counts=block_map.counts, num_kv_blocks=KB, **small.blocks
    )
    assert other.keeps_same_blocks(block_map)
    assert_same(run(q, k, v, other, tokens), run(q, k, v, block_map, tokens), 1e-5)


def kept(select, dense_mask, q, k, ratio, threshold, tokens, **options):
    """The selection and its mask."""
    found = select(
        q,
        k,
        sparse_ratio=float(ratio),
        cdf_threshold=float(threshold),
        kv_lengths=tokens,
        **{"q_length": 331} | options,
        **BLOCKS,
    )
    return found, dense_mask(found.block_map)


@few
@hypothesis.given(seeds, sizes, shares, shares, shares, shares, lengths_of_all)
def test_asking_for_more_drops_nothing(select, dense_mask, seed, size, r0, r1, c0, c1, tokens):
    """Raising the threshold or lowering the ratio."""
    q, k, _ = qkv(seed, 10 * size, **SELECTION)
    _, less = kept(select, dense_mask, q, k, max(r0, r1), min(c0, c1), tokens)
    for ratio, threshold in [(min(r0, r1), min(c0, c1)), (max(r0, r1), max(c0, c1))]:
        _, more = kept(select, dense_mask, q, k, ratio, threshold, tokens)
        assert (more >= less).all()
    exists = tokens_that_exist(tokens)
    assert not less[..., ~exists].any()
    # Always one, if there is any.
    assert (less.sum(-1) >= min(1, exists.sum())).all()


def tokens_that_exist(tokens):
    """Which key blocks have tokens."""
    return np.minimum(tokens, 397 - 16 * np.arange(25)) > 0


@few
@hypothesis.given(seeds, sizes, shares, shares, lengths_of_all)
def test_sinks_are_kept(select, dense_mask, seed, size, ratio, threshold, tokens):
    q, k, _ = qkv(seed, 10 * size, **SELECTION)
    # With the options of another test of selection, and thereby its program.
    options = {"num_sink_blocks": 3, "pool_mode": "max", "capacity": 7}
    _, mask = kept(select, dense_mask, q, k, ratio, threshold, tokens, **options)
    exists = tokens_that_exist(tokens)
    assert mask[..., :3][..., exists[:3]].all() and not mask[..., ~exists].any()
    # And one more, if there is any.
    others = mask[..., 3:].sum(-1)
    assert (others >= min(1, exists[3:].sum())).all()
    assert (others <= 7 - exists[:3].sum()).all()


@few
@hypothesis.given(seeds, st.integers(1, 331), st.integers(1, 397), shares)
def test_covered_is_what_was_asked(select, dense_mask, seed, q_length, kv_length, threshold):
    """The kept probability is within the threshold, unless one block alone passes it."""
    q, k, _ = qkv(seed, 20.0, **SELECTION)
    tokens = np.clip(kv_length - 16 * np.arange(25), 0, 16)
    found, mask = kept(select, dense_mask, q, k, 1.0, threshold, tokens, q_length=q_length)
    covered, counts = np.asarray(found.retained_mass), mask.sum(-1)
    rows = -(-q_length // 32)
    assert (covered[:, rows:] == 0).all() and (counts[:, rows:] == 0).all()
    assert ((covered <= threshold + 2e-5) | (counts <= 1)).all()
    assert (covered[:, :rows] > 0).all() and (covered <= 1 + 1e-6).all()
