"""Orders of a frame's patches that make neighbours in the picture neighbours in the sequence.

A block of 64 tokens in raster order is a strip, a row or two of patches; along a curve, or tile by
tile, it is a compact region, whose patches have more in common.
"""

import functools
from typing import Literal

import numpy as np
from jaxtyping import Int

TokenOrder = Literal["raster", "hilbert", "tiles"]

# Sides of a tile: its 64 patches are a block of keys.
_TILE = 8


@functools.lru_cache
def patch_order(order: TokenOrder, rows: int, columns: int) -> Int[np.ndarray, " patches"]:
    """Which patch of a frame, counted row by row, comes first, second, and so on."""
    if order == "raster":
        return np.arange(rows * columns)
    y, x = np.divmod(np.arange(rows * columns), columns)
    if order == "tiles":
        # Row by row of tiles, tile by tile, then row by row within a tile.
        return np.lexsort((x, y, x // _TILE, y // _TILE))
    if order == "hilbert":
        sides = ((0, columns), (rows, 0))
        path = _hilbert((0, 0), *(sides if columns >= rows else sides[::-1]))
        return np.array([y * columns + x for y, x in path])
    raise ValueError(f"{order=} is unknown; use 'raster', 'hilbert' or 'tiles'")


def _hilbert(corner, along, across):
    """A Hilbert-like curve through a rectangle of any size, as `(y, x)`.

    The rectangle lies at `corner` and is spanned by two vectors parallel to the axes. The curve
    starts at the corner and ends at the far end of `along`. Rectangles are halved until they are
    lines, so that the path never jumps (but for one diagonal step where a side is odd).
    """
    along, across, corner = (np.asarray(vector) for vector in (along, across, corner))
    length, width = (int(np.abs(vector).sum()) for vector in (along, across))
    step_along, step_across = np.sign(along), np.sign(across)
    if width == 1:
        return [tuple(corner + i * step_along) for i in range(length)]
    if length == 1:
        return [tuple(corner + i * step_across) for i in range(width)]

    half_along, half_across = along // 2, across // 2
    if 2 * length > 3 * width:  # Long: two rectangles one after the other.
        first = _even(half_along, length, step_along)
        return _hilbert(corner, first, across) + _hilbert(corner + first, along - first, across)
    # Otherwise up one half of it, along the other, and down again.
    up = _even(half_across, width, step_across)
    return (
        _hilbert(corner, up, half_along)
        + _hilbert(corner + up, along, across - up)
        + _hilbert(corner + along - step_along + up - step_across, -up, half_along - along)
    )


def _even(half, size, step):
    """Half of a side, made even where there is a choice: even sides join without a diagonal."""
    return half + step if np.abs(half).sum() % 2 and size > 2 else half
