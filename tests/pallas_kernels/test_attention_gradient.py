"""Gradients through each implementation, against the oracle's."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import BlockMap, block_sparse_attention, select_blocks


@pytest.fixture(scope="module")
def case(draw, draw_case, small):
    t, n, h = small.t, small.n, small.h
    q, k, v, mask = draw_case(0, t, small.kv, n, h, **small.blocks, dtype=small.dtype)
    mask[0, 1] = False  # nothing at all
    mask[1, 2] = np.arange(6) == 2  # a block without keys
    return q, k, v, BlockMap.from_dense_mask(mask, **small.blocks), *draw(1, (t, n, h), (t, n))


@pytest.fixture(scope="module")
def partial(small):
    """How many tokens of each key block count."""
    return np.array([16, 7, 0, 16, 1, 3]) * (small.block_k // 16)


@pytest.fixture(scope="module")
def limit(small):
    """Of the relative error: in bfloat16, a few roundings of 2**-9."""
    return 1e-5 if small.dtype == jnp.float32 else 2**-7


def gradient_of(attend):
    """The gradients for q, k, v: one program for all weights and lengths."""

    def loss(q, k, v, block_map, out_weights, lse_weights, kv_lengths):
        options = {"kv_lengths": kv_lengths, "scale": 0.3, "return_lse": True}
        out, lse = attend(q, k, v, block_map, **options)
        value = jnp.sum(out_weights * out.astype(jnp.float32))
        return value + jnp.sum(lse_weights * jnp.where(lse > -jnp.inf, lse, 0.0))

    return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))


@pytest.fixture(scope="module")
def gradients(attend):
    return gradient_of(attend)


@pytest.fixture(scope="module")
def exact_gradients(oracle):
    """Those of the same numbers in float32."""
    gradients = gradient_of(oracle)
    return lambda q, k, v, *rest: gradients(*(x.astype(jnp.float32) for x in (q, k, v)), *rest)


@pytest.mark.parametrize("lengths", ["whole", "partial"])
def test_gradient(gradients, exact_gradients, case, small, partial, limit, relative_error, lengths):
    kv_lengths = partial if lengths == "partial" else small.all
    found, expected = gradients(*case, kv_lengths), exact_gradients(*case, kv_lengths)
    for value, exact in zip(found, expected, strict=True):
        assert value.dtype == small.dtype
        assert np.isfinite(value).all() and np.linalg.norm(exact) > 1
        assert relative_error(value, exact) <= limit
    block_q, block_k = small.block_q, small.block_k
    # Queries that see nothing.
    np.testing.assert_array_equal(found[0][block_q : 2 * block_q, 0], 0)
    counted = np.arange(small.kv) % block_k < kv_lengths[np.arange(small.kv) // block_k]
    for value in found[1:]:
        np.testing.assert_array_equal(value[~counted], 0)
    if lengths == "partial":
        np.testing.assert_array_equal(found[0][2 * block_q :, 1], 0)


def test_gradient_through_either_result(
    gradients, exact_gradients, case, partial, limit, relative_error
):
    """Through the output alone, and the log-sum-exp alone."""
    *inputs, out_weights, lse_weights = case
    for weights in [(out_weights, 0 * lse_weights), (0 * out_weights, lse_weights)]:
        found, expected = (
            gradient(*inputs, *weights, partial) for gradient in (gradients, exact_gradients)
        )
        for value, exact in zip(found[:2], expected[:2], strict=True):
            assert relative_error(value, exact) <= limit
    np.testing.assert_array_equal(found[2], 0)  # values do not enter the log-sum-exp


@pytest.mark.only("xla", "triton-interpreted", "triton")
@pytest.mark.quick("xla")
def test_gradient_in_bfloat16(gradients, exact_gradients, case, partial, relative_error):
    narrow = [x.astype(jnp.bfloat16) for x in case[:3]]
    found = gradients(*narrow, *case[3:], partial)
    expected = exact_gradients(*narrow, *case[3:], partial)
    for value, exact in zip(found, expected, strict=True):
        assert value.dtype == jnp.bfloat16
        assert relative_error(value, exact) <= 2**-7  # a few roundings of 2**-9


def test_a_selection_has_no_gradient(draw):
    """Neither by what the chosen blocks cover nor by the entropy; and to want it is no error."""
    q, k = draw(3, (64, 1, 32), (64, 1, 32))

    def value(q, k, ratio):
        options = {"block_q": 32, "block_k": 16, "implementation": "xla"}
        found = select_blocks(q, k, sparse_ratio=ratio, cdf_threshold=ratio, **options)
        return jnp.sum(found.retained_mass) + jnp.sum(found.entropy)

    for gradient in jax.jit(jax.grad(value, argnums=(0, 1, 2)))(q, k, 0.5):
        np.testing.assert_array_equal(gradient, 0)


@pytest.mark.slow
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
            block_map, covered = selection.block_map, jnp.sum(selection.retained_mass)
        else:
            covered = 0.0
        out = block_sparse_attention(q, k, v, block_map, **kernels)
        return jnp.sum(weights * out) + covered

    gradient = jax.jit(jax.grad(loss, argnums=(0, 1, 2)))
    chosen = select_blocks(q, k, sparse_ratio=0.5, **blocks).block_map
    for found, expected in zip(gradient(q, k, v, None), gradient(q, k, v, chosen), strict=True):
        assert relative_error(found, expected) <= 1e-6
