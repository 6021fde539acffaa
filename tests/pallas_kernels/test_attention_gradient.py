"""Gradients through each implementation, against the oracle's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import BlockMap, block_sparse_attention, select_blocks

T, KV, N, H = 67, 83, 2, 32
BLOCKS = {"block_q": 32, "block_k": 16}
PARTIAL = np.array([16, 7, 0, 16, 1, 3])


@pytest.fixture(scope="module")
def case(draw, draw_case):
    q, k, v, mask = draw_case(0, T, KV, N, H, **BLOCKS)
    mask[0, 1] = False  # nothing at all
    mask[1, 2] = np.arange(6) == 2  # a block without keys
    return q, k, v, BlockMap.from_dense_mask(mask, **BLOCKS), *draw(1, (T, N, H), (T, N))


def gradient_of(attend):
    """The gradients for q, k, v: one program for all weights and lengths."""

    def loss(q, k, v, block_map, out_weights, lse_weights, kv_lengths):
        out, lse = attend(q, k, v, block_map, kv_lengths=kv_lengths, return_lse=True)
        value = jnp.sum(out_weights * out.astype(jnp.float32))
        return value + jnp.sum(lse_weights * jnp.where(lse > -jnp.inf, lse, 0.0))

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))


@pytest.fixture(scope="module")
def gradients(attend):
    return gradient_of(attend)


@pytest.fixture(scope="module")
def exact_gradients(oracle):
    return gradient_of(oracle)


@pytest.mark.parametrize("kv_lengths", [np.full(6, 16), PARTIAL], ids=["whole", "partial"])
def test_gradient(gradients, exact_gradients, case, relative_error, kv_lengths):
    found, expected = gradients(*case, kv_lengths), exact_gradients(*case, kv_lengths)
    for value, exact in zip(found, expected, strict=True):
        assert np.isfinite(value).all() and np.linalg.norm(exact) > 1
        assert relative_error(value, exact) <= 1e-5
    np.testing.assert_array_equal(found[0][32:64, 0], 0)  # queries that see nothing
    counted = np.arange(KV) % 16 < kv_lengths[np.arange(KV) // 16]
    for value in found[1:]:
        np.testing.assert_array_equal(value[~counted], 0)
    if not counted.all():
        np.testing.assert_array_equal(found[0][64:, 1], 0)


def test_gradient_through_either_result(gradients, exact_gradients, case, relative_error):
    """Through the output alone, and the log-sum-exp alone."""
    *inputs, out_weights, lse_weights = case
    for weights in [(out_weights, 0 * lse_weights), (0 * out_weights, lse_weights)]:
        found, expected = (
            gradient(*inputs, *weights, PARTIAL) for gradient in (gradients, exact_gradients)
        )
        for value, exact in zip(found[:2], expected[:2], strict=True):
            assert relative_error(value, exact) <= 1e-5
    np.testing.assert_array_equal(found[2], 0)  # values do not enter the log-sum-exp


def test_gradient_in_bfloat16(gradients, exact_gradients, case, relative_error):
    narrow = [x.astype(jnp.bfloat16) for x in case[:3]]
    wide = [x.astype(jnp.float32) for x in narrow]
    found = gradients(*narrow, *case[3:], PARTIAL)
    expected = exact_gradients(*wide, *case[3:], PARTIAL)
    for value, exact in zip(found, expected, strict=True):
        assert value.dtype == jnp.bfloat16
        assert relative_error(value, exact) <= 2**-7  # a few roundings of 2**-9


@pytest.mark.parametrize(
    "kernels", [{"implementation": "xla"}, {"interpret": True}], ids=["xla", "triton"]
)
def test_gradient_through_a_selection(draw, relative_error, kernels):
    """The choice of blocks has no gradient, neither by the blocks nor by what they cover."""
    q, k, v, weights = draw(3, *[(64, 1, 32)] * 4)
    blocks = {"block_q": 32, "block_k": 16}

    def loss(q, k, v, block_map):
        if block_map is None:
            selection = select_blocks(q, k, sparse_ratio=0.5, **blocks, **kernels)
            block_map, covered = selection.block_map, jnp.sum(selection.covered)
        else:
            covered = 0.0
        out = block_sparse_attention(q, k, v, block_map, **kernels)
        return jnp.sum(weights * out) + covered

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    chosen = select_blocks(q, k, sparse_ratio=0.5, **blocks).block_map
    for found, expected in zip(gradient(q, k, v, None), gradient(q, k, v, chosen), strict=True):
        assert relative_error(found, expected) <= 1e-6
