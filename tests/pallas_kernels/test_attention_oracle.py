"""The oracle of block-sparse attention, against float64 and against dense attention."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import BlockMap


@pytest.mark.parametrize(
    ("t", "kv", "n", "h", "block_q", "block_k", "lengths"),
    [
        (37, 31, 3, 7, 5, 3, "partial"),
        (17, 67, 1, 64, 128, 256, "number"),
    ],
)
def test_value(
    oracle, draw_case, pairs_that_count, exact_attention, relative_error, t, kv, n, h, block_q,
    block_k, lengths,
):  # fmt: skip
    blocks = {"block_q": block_q, "block_k": block_k}
    q, k, v, mask = draw_case(0, t, kv, n, h, **blocks)
    mask[-1, -1] = True
    if n > 1:
        mask[0, 0] = False
    partial = np.random.default_rng(1).integers(0, block_k + 1, mask.shape[-1])
    partial[-1] = 1
    kv_lengths = {"number": kv // 2, "partial": partial}[lengths]
    pairs = pairs_that_count(mask, t, kv, **blocks, kv_lengths=kv_lengths)
    exact_out, exact_lse = exact_attention(q, k, v, pairs, 0.3)
    block_map = BlockMap.from_dense_mask(mask, **blocks)
    found = oracle(q, k, v, block_map, kv_lengths=kv_lengths, scale=0.3, return_lse=True)
    out, lse = map(np.asarray, found)
    assert relative_error(out, exact_out) <= 1e-6
    np.testing.assert_allclose(lse, exact_lse, rtol=1e-6, atol=1e-6)
    empty = ~pairs.any(-1).T
    np.testing.assert_array_equal(out[empty], 0)
    np.testing.assert_array_equal(lse[empty], -np.inf)


@pytest.mark.parametrize("dtype", [jnp.bfloat16, pytest.param(jnp.float16, marks=pytest.mark.slow)])
def test_narrow_types_are_computed_in_float32(oracle, draw, exact_attention, relative_error, dtype):
    q, k, v = draw(2, (67, 2, 32), (83, 2, 32), (83, 2, 32), dtype=dtype)
    block_map = BlockMap.full(2, 67, 83, block_q=32, block_k=16)
    out, lse = oracle(q, k, v, block_map, return_lse=True)
    exact_out, exact_lse = exact_attention(q, k, v, np.ones((2, 67, 83), bool))
    assert out.dtype == dtype and lse.dtype == jnp.float32
    # Nothing but the result is rounded, seldom to the other side.
    rounded = jnp.asarray(exact_out, dtype)
    assert relative_error(out, rounded) <= 0.05 * float(jnp.finfo(dtype).eps)
    np.testing.assert_allclose(lse, exact_lse, rtol=1e-6, atol=1e-6)


def test_gradient_is_that_of_dense_attention(oracle, draw, relative_error):
    """Where all is kept; the gradient of the log-sum-exp is seen through softmax's definition."""
    q, k, v, weights = draw(3, (67, 2, 32), (83, 2, 32), (83, 2, 32), (67, 2, 32))
    (lse_weights,) = draw(4, (67, 2))
    block_map = BlockMap.full(2, 67, 83, block_q=32, block_k=16)

    def dense(q, k, v):
        scores = jnp.einsum("tnh,snh->tns", q, k, precision="highest") * 32**-0.5
        masses = jnp.exp(scores)
        total = masses.sum(-1)
        out = jnp.einsum("tns,snh->tnh", masses / total[..., None], v, precision="highest")
        return out, jnp.log(total)

    def loss(attention):
        def value(*qkv):
            out, lse = attention(*qkv)
            return jnp.sum(weights * out) + jnp.sum(lse_weights * lse)

        return jax.jit(jax.grad(value, argnums=(0, 1, 2)))

    found = loss(lambda *qkv: oracle(*qkv, block_map, return_lse=True))(q, k, v)
    for value, expected in zip(found, loss(dense)(q, k, v), strict=True):
        assert relative_error(value, expected) <= 1e-5
