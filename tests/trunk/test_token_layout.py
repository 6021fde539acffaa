"""Where tokens lie."""

import numpy as np
import pytest

from vggt_jax.trunk.token_layout import TokenLayout


def test_patches_follow_the_special_tokens_row_by_row():
    layout = TokenLayout.for_images(28, 42, 14, 3)
    assert layout == TokenLayout(num_special=3, rows=2, columns=3)
    assert layout.tokens_per_frame == 9
    expected = [[0, 0]] * 3 + [[1, 1], [1, 2], [1, 3], [2, 1], [2, 2], [2, 3]]  # (y, x), from 1
    np.testing.assert_array_equal(layout.positions(), expected)


def test_released_size():
    layout = TokenLayout.for_images(518, 518, 14, 5)
    assert (layout.rows, layout.columns, layout.tokens_per_frame) == (37, 37, 1374)
    assert layout.positions().max() == 37


@pytest.mark.parametrize(("height", "width"), [(28, 40), (15, 42), (0, 42), (28, 0)])
def test_sides_that_are_no_multiples_are_named_with_the_way_out(height, width):
    with pytest.raises(
        ValueError,
        match=rf"sides must be multiples of 14, not {height}x{width} \(height x width\); "
        r"vggt_jax\.load_images resizes photographs",
    ):
        TokenLayout.for_images(height, width, 14, 5)
