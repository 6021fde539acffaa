"""Where in the picture the pixels of a map lie, whatever its resolution."""

import numpy as np
from jaxtyping import Float


def view_plane(
    height: int, width: int, aspect_ratio: float
) -> tuple[Float[np.ndarray, " w"], Float[np.ndarray, " h"]]:
    """x of each column and y of each row, on a picture whose half diagonal is 1.

    Positions are those of the centres of pixels. Official files: vggt/heads/utils.py
    (create_uv_grid), pi3/models/layers/conv_head.py (normalized_view_plane_uv).

    Args:
        height, width: of the map.
        aspect_ratio: width over height of the picture.
    """
    diagonal = (aspect_ratio**2 + 1) ** 0.5
    return _centres(aspect_ratio / diagonal, width), _centres(1 / diagonal, height)


def _centres(span: float, num: int) -> np.ndarray:
    end = span * (num - 1) / num
    return np.linspace(-end, end, num, dtype=np.float32)
