"""Orders of patches: permutations that keep neighbours together."""

import numpy as np
import pytest

from vggt_jax.layers.token_order import patch_order

SIZES = [(1, 1), (1, 7), (7, 1), (2, 2), (5, 8), (8, 5), (16, 16), (37, 37), (37, 28), (13, 41)]


@pytest.mark.parametrize("order", ["raster", "hilbert", "tiles"])
@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_every_patch_has_one_place(order, rows, columns):
    np.testing.assert_array_equal(np.sort(patch_order(order, rows, columns)), range(rows * columns))


@pytest.mark.parametrize(("rows", "columns"), SIZES)
def test_hilbert_never_jumps(rows, columns):
    y, x = np.divmod(patch_order("hilbert", rows, columns), columns)
    steps = np.abs(np.diff(y)) + np.abs(np.diff(x))
    # One diagonal step where a side is odd.
    assert np.all(steps <= 2) and np.sum(steps == 2) <= 1
    if rows % 2 == columns % 2 == 0:
        assert np.all(steps == 1)


def test_hilbert_is_the_order_of_the_papers_code():
    # gilbert2d(5, 4) of sparse_vggt/utils/hilbert.py, as y * 5 + x.
    expected = [0, 1, 6, 5, 10, 15, 16, 11, 12, 17, 18, 19, 14, 13, 9, 8, 7, 2, 3, 4]
    assert sorted(expected) == list(range(20))
    np.testing.assert_array_equal(patch_order("hilbert", 4, 5), expected)


def test_blocks_are_compact_regions():
    def extent(order):
        y, x = np.divmod(patch_order(order, 40, 40).reshape(-1, 64), 40)
        return np.mean([np.ptp(rows) + np.ptp(columns) for rows, columns in zip(y, x, strict=True)])

    assert extent("tiles") == 14
    assert extent("hilbert") < 18 < 38 < extent("raster")


def test_tiles_follow_row_by_row():
    first = patch_order("tiles", 9, 10)[:64].reshape(8, 8)
    np.testing.assert_array_equal(first, 10 * np.arange(8)[:, None] + np.arange(8))
    assert patch_order("tiles", 9, 10)[64] == 8


def test_unknown_orders_are_refused():
    with pytest.raises(ValueError, match="order='spiral' is unknown; use 'raster', 'hilbert'"):
        patch_order("spiral", 2, 2)
