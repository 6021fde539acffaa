"""Keys that a block of queries leaves out, in every implementation that can, against float64."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import BlockMap, block_sparse_attention, pack_key_mask
from pallas_kernels.key_mask import unpack_key_mask


@pytest.mark.parametrize("keys", [1, 31, 32, 83])
def test_bits(keys):
    hidden = np.random.default_rng(0).random((2, 3, keys)) < 0.5
    packed = pack_key_mask(jnp.asarray(hidden))
    assert packed.shape == (2, 3, -(-keys // 32)) and packed.dtype == jnp.uint32
    assert packed[0, 0, 0] & 1 == hidden[0, 0, 0]
    np.testing.assert_array_equal(unpack_key_mask(packed, keys), hidden)


@pytest.fixture(scope="module")
def case(draw_case, small):
    """q, k, v, a map and what is left out: of one row whole blocks, of one everything."""
    q, k, v, mask = draw_case(
        3, small.t, small.kv, small.n, small.h, **small.blocks, dtype=small.dtype
    )
    mask[:, 0] = True
    hidden = np.random.default_rng(4).random((small.n, small.qb, small.kv)) < 0.4
    hidden[0, 0, : 2 * small.block_k] = True
    hidden[1, 2] = True
    return q, k, v, mask, hidden


@pytest.mark.parametrize("lengths", ["all", "some"])
def test_value(attend, case, small, pairs_that_count, assert_right, lengths):
    q, k, v, mask, hidden = case
    kv_lengths = None
    if lengths == "some":
        kv_lengths = small.all - np.array([0, 0, 0, 0, 5, 0])
    block_map = BlockMap.from_dense_mask(mask, **small.blocks)
    found = attend(
        q,
        k,
        v,
        block_map,
        kv_lengths=kv_lengths,
        key_mask=pack_key_mask(jnp.asarray(hidden)),
        return_lse=True,
    )
    pairs = pairs_that_count(mask, small.t, small.kv, **small.blocks, kv_lengths=kv_lengths)
    pairs &= ~np.repeat(hidden, small.block_q, axis=1)[:, : small.t]
    assert_right(found, q, k, v, pairs)
    assert not np.asarray(found[0])[2 * small.block_q :, 1].any()


def test_oracle(oracle, draw, exact_attention, relative_error):
    q, k, v = draw(2, (7, 3, 5), (11, 3, 5), (11, 3, 5))
    hidden = np.random.default_rng(3).random((3, 2, 11)) < 0.5
    block_map = BlockMap.full(3, 7, 11, block_q=4, block_k=4)
    found = oracle(q, k, v, block_map, key_mask=pack_key_mask(jnp.asarray(hidden)))
    expected, _ = exact_attention(q, k, v, ~np.repeat(hidden, 4, axis=1)[:, :7])
    assert relative_error(found, expected) <= 1e-6


def test_gradient(oracle, draw, relative_error):
    """That of XLA, by which kernels have theirs; what is hidden has none."""
    q, k, v = draw(2, (7, 3, 5), (11, 3, 5), (11, 3, 5))
    hidden = np.random.default_rng(3).random((3, 2, 11)) < 0.5
    hidden[:, :, 4] = True
    more = {"key_mask": pack_key_mask(jnp.asarray(hidden))}
    block_map = BlockMap.full(3, 7, 11, block_q=4, block_k=4)

    def gradients(implementation):
        def loss(*arrays):
            out = block_sparse_attention(*arrays, block_map, implementation=implementation, **more)
            return jnp.sum(jnp.sin(out))

        return jax.jit(jax.grad(loss, argnums=(0, 1, 2)))(q, k, v)

    found, expected = gradients("xla"), gradients("reference")
    for value, exact in zip(found, expected, strict=True):
        assert relative_error(value, exact) <= 1e-5
    assert not np.asarray(found[1])[4].any()


@pytest.mark.parametrize(
    ("shape", "dtype"), [((2, 1, 1), np.uint32), ((2, 1, 2), np.int32), ((1, 2), np.uint32)]
)
def test_masks_that_are_refused(unchecked, shape, dtype):
    q = jnp.zeros((33, 2, 32))
    with pytest.raises(ValueError, match=r"key_mask must be uint32 \(2, 1, 2\)"):
        block_sparse_attention(q, q, q, BlockMap.full(2, 33, 33), key_mask=np.zeros(shape, dtype))
