"""A bias for each head and key, in every implementation of attention, against float64."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import BlockMap, block_sparse_attention


def exact(q, k, v, bias, pairs):
    """Output [t n h] and log-sum-exp [t n] in float64, given biases and which keys each query sees."""
    q, k, v, bias = (np.asarray(x).astype(np.float64) for x in (q, k, v, bias))
    scores = np.einsum("tnh,snh->nts", q, k) * q.shape[-1] ** -0.5 + bias[:, None]
    scores = np.where(pairs, scores, -np.inf)
    top = np.maximum(scores.max(-1, keepdims=True), -1e300)
    weights = np.exp(scores - top)
    total = weights.sum(-1, keepdims=True)
    with np.errstate(divide="ignore"):
        lse = (top + np.log(total))[..., 0].T
    return np.einsum("nts,snh->tnh", weights / np.where(total > 0, total, 1), v), lse


@pytest.fixture(scope="module")
def case(draw_case, small):
    """q, k, v, a map and biases: blocks with one bias for all keys, with many, and without a key."""
    q, k, v, mask = draw_case(
        0, small.t, small.kv, small.n, small.h, **small.blocks, dtype=small.dtype
    )
    mask[0, 1] = np.arange(small.kb) == 3  # whose keys are all left out
    mask[:, 0] = True
    rng = np.random.default_rng(1)
    bias = rng.normal(scale=2.0, size=(small.n, small.kv))
    bias[rng.random(bias.shape) < 0.2] = -np.inf
    block = np.arange(small.kv) // small.block_k
    bias[:, block == 1] = 3.25
    bias[1, block == 2] = -1.5
    bias[0, block == 3] = -np.inf
    block_map = BlockMap.from_dense_mask(mask, **small.blocks)
    return q, k, v, block_map, jnp.asarray(bias, jnp.float32), mask


# Of the last block not all tokens are there, and of the one before not all count.
@pytest.mark.simulated
@pytest.mark.parametrize("lengths", ["all", "some"])
def test_value(attend, case, small, pairs_that_count, relative_error, lengths):
    q, k, v, block_map, bias, mask = case
    kv_lengths = None
    if lengths == "some":
        kv_lengths = small.all - np.array([0, 0, 0, 0, 5, 0])
    found = attend(q, k, v, block_map, kv_lengths=kv_lengths, key_bias=bias, return_lse=True)
    pairs = pairs_that_count(mask, small.t, small.kv, **small.blocks, kv_lengths=kv_lengths)
    out, lse = exact(q, k, v, bias, pairs)
    # Of 16-bit types the weights and results are rounded.
    limit = 1e-5 if small.dtype == jnp.float32 else 2**-8
    assert relative_error(found[0], out) <= limit
    np.testing.assert_allclose(found[1], lse, rtol=1e-5, atol=1e-5)
    hidden = slice(small.block_q, 2 * small.block_q)
    np.testing.assert_array_equal(np.asarray(found[0])[hidden, 0], 0)
    assert np.isneginf(lse[hidden, 0]).all()


def test_oracle(oracle, draw, relative_error):
    q, k, v = draw(2, (7, 3, 5), (11, 3, 5), (11, 3, 5))
    bias = np.random.default_rng(3).normal(size=(3, 11)).astype(np.float32)
    bias[:, 4] = -np.inf
    bias[2] = -np.inf
    block_map = BlockMap.full(3, 7, 11, block_q=4, block_k=4)
    found = oracle(q, k, v, block_map, key_bias=bias, return_lse=True)
    out, lse = exact(q, k, v, bias, np.ones((3, 7, 11), bool))
    assert relative_error(found[0], out) <= 1e-6
    np.testing.assert_allclose(found[1], lse, rtol=1e-6, atol=1e-6)
    np.testing.assert_array_equal(found[0][:, 2], 0)


def test_logarithms_count_keys_more_than_once(draw, relative_error):
    """A key of bias log(3) is as good as three of them."""
    attend = functools.partial(block_sparse_attention, implementation="xla")
    blocks = {"block_q": 16, "block_k": 16}
    q, k, v = draw(4, (16, 2, 8), (5, 2, 8), (5, 2, 8))
    often = np.array([1, 3, 1, 2, 1])
    bias = jnp.broadcast_to(jnp.log(jnp.float32(often)), (2, 5))
    found = attend(q, k, v, BlockMap.full(2, 16, 5, **blocks), key_bias=bias, return_lse=True)
    repeated = (np.repeat(x, often, axis=0) for x in (k, v))
    expected = attend(q, *repeated, BlockMap.full(2, 16, 8, **blocks), return_lse=True)
    for value, other in zip(found, expected, strict=True):
        assert relative_error(value, other) <= 1e-6


@pytest.mark.only("xla", "triton-interpreted", "triton", "mosaic_gpu")
def test_gradient(attend, oracle, case, small, draw, relative_error):
    q, k, v, block_map, bias, _ = case
    weights, lse_weights = draw(5, (small.t, small.n, small.h), (small.t, small.n))

    def gradients(attend, *arrays):
        def loss(q, k, v, bias):
            out, lse = attend(q, k, v, block_map, key_bias=bias, return_lse=True)
            value = jnp.sum(weights * out.astype(jnp.float32))
            return value + jnp.sum(lse_weights * jnp.where(lse > -jnp.inf, lse, 0.0))

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2, 3)))(*arrays)

    found = gradients(attend, q, k, v, bias)
    # The gradient of the oracle is made of NaN where all keys are left out.
    finite = jnp.maximum(bias, -1e4)
    expected = gradients(oracle, *(x.astype(jnp.float32) for x in (q, k, v)), finite)
    limit = 1e-5 if small.dtype == jnp.float32 else 2**-6
    for value, exact in zip(found[1:], expected[1:], strict=True):
        keep = np.isfinite(bias).T if value.ndim == 3 else np.isfinite(bias)
        # What is left out has no gradient, and the queries that see nothing else give none to others.
        np.testing.assert_array_equal(np.asarray(value)[~keep], 0)
        assert relative_error(np.asarray(value)[keep], np.asarray(exact)[keep]) <= limit


def test_vmap(attend, case, small, relative_error):
    """A batch in which biases alone differ is what comes one by one."""
    if small.dtype != jnp.float32 and jax.default_backend() != "gpu":
        pytest.skip("the simulator takes long")
    q, k, v, block_map, bias, _ = case
    biases = jnp.stack([bias, 0.5 * bias])
    run = lambda bias: attend(q, k, v, block_map, key_bias=bias)
    for found, one in zip(jax.vmap(run)(biases), biases, strict=True):
        assert relative_error(found, run(one)) <= small.same


@pytest.mark.parametrize(
    ("bias", "message"),
    [
        (np.zeros((2, 31), np.float32), r"one number for each of 2 heads and 33 keys.*\(2, 31\)"),
        (np.zeros((33,), np.float32), r"key_bias must be \[n kv\]"),
        (np.zeros((2, 33), np.float16), "key_bias must be float32, not float16"),
    ],
)
def test_biases_that_are_refused(unchecked, bias, message):
    q = jnp.zeros((33, 2, 32))
    with pytest.raises(ValueError, match=message):
        block_sparse_attention(q, q, q, BlockMap.full(2, 33, 33), key_bias=bias)
