"""`BlockMap`: masks to lists and back, sizes, types, and life as a pytree."""

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from pallas_kernels import BlockMap
from pallas_kernels.block_map import index_dtype


def random_mask(seed, *shape, density=0.4):
    return np.random.default_rng(seed).random(shape) < density


def build(mask, block_q=32, block_k=16):
    return BlockMap.from_dense_mask(mask, block_q=block_q, block_k=block_k)


@pytest.mark.parametrize(
    ("shape", "density"),
    [((3, 5, 7), 0.4), ((3, 5, 7), 0.0), ((2, 3, 5, 7), 0.4)],
)
def test_mask_survives(dense_mask, shape, density):
    mask = random_mask(0, *shape, density=density)
    block_map = build(mask)
    assert block_map.capacity == max(1, mask.sum(-1).max())
    assert (block_map.num_heads, block_map.num_q_blocks) == shape[-3:-1]
    assert (block_map.block_q, block_map.block_k, block_map.num_kv_blocks) == (32, 16, shape[-1])
    np.testing.assert_array_equal(block_map.counts, mask.sum(-1))
    np.testing.assert_array_equal(dense_mask(block_map), mask)


def test_mask_survives_under_jit(dense_mask):
    mask = random_mask(1, 3, 5, 7)
    block_map = jax.jit(build)(mask)
    assert block_map.capacity == 7  # counts are not known when tracing
    np.testing.assert_array_equal(dense_mask(block_map), mask)


def test_lists_hold_the_kept_blocks_and_nothing_twice():
    mask = random_mask(2, 3, 5, 7)
    block_map = build(mask)
    for row in np.ndindex(3, 5):
        kept = np.asarray(block_map.indices)[row][: np.asarray(block_map.counts)[row]]
        np.testing.assert_array_equal(np.sort(kept), np.flatnonzero(mask[row]))


def test_full_keeps_all(dense_mask):
    block_map = BlockMap.full(3, 257, 131, block_q=64, block_k=32)
    assert block_map.indices.shape == (3, 5, 5)  # 257 = 4 * 64 + 1, 131 = 4 * 32 + 3
    assert dense_mask(block_map).all()
    assert block_map.density() == 1
    standard = BlockMap.full(2, 128, 129)
    assert (standard.block_q, standard.block_k, standard.counts.shape) == (128, 64, (2, 1))
    assert standard.num_kv_blocks == 3


def test_density():
    mask = np.zeros((2, 3, 5, 7), bool)
    mask[0, 0, :2] = True  # 14 pairs of blocks
    mask[1, 2, 4, 6] = True
    np.testing.assert_allclose(build(mask[0]).density(), 14 / (3 * 5 * 7), rtol=1e-6)
    np.testing.assert_allclose(build(mask).density(), np.array([14, 1]) / (3 * 5 * 7), rtol=1e-6)


keeps_same_blocks = jax.jit(BlockMap.keeps_same_blocks)


def shuffled(block_map, seed, garbage=None):
    """The same lists in another order, with garbage where nothing is read."""
    indices, counts = np.array(block_map.indices), np.asarray(block_map.counts)
    rng = np.random.default_rng(seed)
    for row in np.ndindex(counts.shape):
        indices[row][: counts[row]] = rng.permutation(indices[row][: counts[row]])
        if garbage is not None:
            indices[row][counts[row] :] = garbage
    return BlockMap(
        indices=jnp.asarray(indices),
        counts=block_map.counts,
        num_kv_blocks=block_map.num_kv_blocks,
        block_q=block_map.block_q,
        block_k=block_map.block_k,
    )


@pytest.mark.parametrize("garbage", [0, 6, -1, 32767])
def test_same_blocks_in_another_order(dense_mask, garbage):
    block_map = build(random_mask(3, 3, 5, 7))
    other = shuffled(block_map, 0, garbage)
    assert (np.asarray(other.indices) != np.asarray(block_map.indices)).any()
    np.testing.assert_array_equal(dense_mask(other), dense_mask(block_map))
    assert keeps_same_blocks(block_map, other)


def test_different_maps_do_not_keep_the_same():
    mask = random_mask(4, 3, 5, 7)
    one_less = mask.copy()
    one_less[tuple(np.argwhere(mask)[-1])] = False
    block_map = build(mask)
    assert not keeps_same_blocks(block_map, build(one_less))
    assert not block_map.keeps_same_blocks(build(mask, block_k=32))
    assert not block_map.keeps_same_blocks(build(mask, block_q=64))
    assert not block_map.keeps_same_blocks(build(mask[:2]))
    wider = np.concatenate([mask, np.zeros((3, 5, 1), bool)], -1)
    assert not block_map.keeps_same_blocks(build(wider))
    # Room for more is no difference.
    assert keeps_same_blocks(block_map, jax.jit(build)(mask))


@pytest.mark.parametrize(("num_blocks", "dtype"), [(2**15, jnp.int16), (2**15 + 1, jnp.int32)])
def test_index_type_holds_the_last_block(dense_mask, num_blocks, dtype):
    assert index_dtype(num_blocks) == dtype
    mask = np.zeros((1, 1, num_blocks), bool)
    mask[0, 0, [0, 5, -1]] = True
    block_map = build(mask)
    assert block_map.indices.dtype == dtype
    np.testing.assert_array_equal(np.asarray(block_map.indices)[0, 0], [0, 5, num_blocks - 1])
    np.testing.assert_array_equal(dense_mask(block_map), mask)
    full = np.asarray(BlockMap.full(1, 1, num_blocks, block_k=1).indices)
    assert full.dtype == dtype and full[0, 0, -1] == num_blocks - 1


def test_pytree():
    block_map = build(random_mask(5, 3, 5, 7))
    leaves, structure = jax.tree.flatten(block_map)
    assert [leaf.shape for leaf in leaves] == [block_map.indices.shape, (3, 5)]
    rebuilt = jax.tree.unflatten(structure, leaves)
    assert keeps_same_blocks(rebuilt, block_map) and rebuilt.block_k == 16
    # Sizes are part of the structure: programs are compiled for them.
    assert structure != jax.tree.structure(build(random_mask(5, 3, 5, 7), block_k=32))


def test_vmap(dense_mask):
    masks = random_mask(6, 2, 3, 5, 7)
    batch = jax.jit(jax.vmap(build))(masks)
    assert batch.counts.shape == (2, 3, 5) and batch.num_heads == 3 and batch.num_q_blocks == 5
    np.testing.assert_array_equal(dense_mask(batch), masks)
    found, per_scene = jax.jit(jax.vmap(lambda x: (x.to_dense_mask(), x.density())))(batch)
    np.testing.assert_array_equal(found, masks)
    np.testing.assert_allclose(per_scene, masks.mean((-1, -2, -3)), rtol=1e-6)


@pytest.mark.parametrize(
    ("mask", "message"),
    [
        (np.ones((3, 5), bool), r"mask must be bool \[\.\.\. n qb kb\], not bool \(3, 5\)"),
        (np.ones((3, 5, 7)), r"mask must be bool .*, not float64 \(3, 5, 7\)"),
    ],
)
def test_wrong_masks(mask, message):
    with pytest.raises(ValueError, match=message):
        build(mask)
