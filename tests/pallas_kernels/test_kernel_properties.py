"""What holds for all inputs, tried on drawn ones."""

import functools

import hypothesis
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from hypothesis import strategies as st

from pallas_kernels import BlockMap, select_blocks

few = hypothesis.settings(max_examples=12, deadline=None, derandomize=True, database=None)

# One size, so that one program of each implementation serves all examples. Of attention, it is what
# the implementation calls small; blocks of both are as many.
T, KV, N, H = 67, 83, 2, 32
BLOCKS = {"block_q": 32, "block_k": 16}
QB, KB = 3, 6

seeds = st.integers(0, 2**32 - 1)
shares = st.floats(0, 1, width=32)
masks = st.lists(st.booleans(), min_size=N * QB * KB, max_size=N * QB * KB).map(
    lambda bits: np.reshape(bits, (N, QB, KB))
)
lengths = st.lists(st.integers(0, 16), min_size=KB, max_size=KB).map(np.array)
sizes = st.sampled_from([1e-3, 1.0, 30.0])


def qkv(seed, size=1.0, *, t=T, kv=KV, dtype=jnp.float32, h=H):
    rng = np.random.default_rng(seed)
    q, k, v = (rng.normal(size=(s, N, h)) for s in (t, kv, kv))
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
    k, v = (jnp.where(counted[:, None, None], x, jnp.asarray(jnp.nan, x.dtype)) for x in (k, v))
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


@pytest.fixture(scope="session")
def kept(select):
    """The mask of blocks for traced settings: one program for all."""

    @functools.partial(jax.jit, static_argnames="num_sink_blocks")
    def kept(q, k, ratio, threshold, tokens, *, num_sink_blocks=0):
        found = select(
            q,
            k,
            sparse_ratio=ratio,
            cdf_threshold=threshold,
            kv_lengths=tokens,
            num_sink_blocks=num_sink_blocks,
            **BLOCKS,
        )
        return found.block_map.to_dense_mask()

    def run(q, k, ratio, threshold, tokens, **options):
        return np.asarray(kept(q, k, jnp.float32(ratio), jnp.float32(threshold), tokens, **options))

    return run


@few
@hypothesis.given(seeds, sizes, shares, shares, shares, shares, lengths)
def test_asking_for_more_drops_nothing(kept, seed, size, r0, r1, c0, c1, tokens):
    """Raising the threshold or lowering the ratio."""
    q, k, _ = qkv(seed, 10 * size)
    less = kept(q, k, max(r0, r1), min(c0, c1), tokens)
    for ratio, threshold in [(min(r0, r1), min(c0, c1)), (max(r0, r1), max(c0, c1))]:
        more = kept(q, k, ratio, threshold, tokens)
        assert (more >= less).all()
    exists = tokens_that_exist(tokens)
    assert not less[..., ~exists].any()
    # Always one, if there is any.
    assert (less.sum(-1) >= min(1, exists.sum())).all()


def tokens_that_exist(tokens):
    """Which key blocks have tokens."""
    return np.minimum(tokens, KV - 16 * np.arange(KB)) > 0


@few
@hypothesis.given(seeds, sizes, shares, shares, lengths)
def test_sinks_are_kept(kept, seed, size, ratio, threshold, tokens):
    q, k, _ = qkv(seed, 10 * size)
    mask = kept(q, k, ratio, threshold, tokens, num_sink_blocks=2)
    exists = tokens_that_exist(tokens)
    assert mask[..., :2][..., exists[:2]].all() and not mask[..., ~exists].any()
    # And one more, if there is any.
    assert (mask[..., 2:].sum(-1) >= min(1, exists[2:].sum())).all()


@few
@hypothesis.given(seeds, st.integers(1, T), st.integers(1, KV), shares)
def test_covered_is_what_was_asked(seed, q_length, kv_length, threshold):
    """The kept probability is within the threshold, unless one block alone passes it."""
    q, k, _ = qkv(seed, 20.0)
    found = select_blocks(
        q,
        k,
        cdf_threshold=threshold,
        q_length=q_length,
        kv_lengths=kv_length,
        implementation="xla",
        **BLOCKS,
    )
    covered, counts = np.asarray(found.covered), np.asarray(found.block_map.counts)
    rows = -(-q_length // 32)
    assert (covered[:, rows:] == 0).all() and (counts[:, rows:] == 0).all()
    assert ((covered <= threshold + 2e-5) | (counts <= 1)).all()
    assert (covered[:, :rows] > 0).all() and (covered <= 1 + 1e-6).all()
