"""Rotary position embedding in two dimensions: its tables."""

import numpy as np
from jaxtyping import Float, Int

_BASE_FREQUENCY = 100.0  # official file: vggt/models/aggregator.py, rope_freq


def rope_tables(
    positions: Int[np.ndarray, "p 2"], head_dim: int
) -> tuple[Float[np.ndarray, "p h"], Float[np.ndarray, "p h"]]:
    """Cosines and sines for tokens at `(y, x)` positions; position 0 is the identity.

    The first half of a head turns with y, the second with x. Angles are float32, as in the
    official dense VGGT (official file: vggt/layers/rope.py).
    """
    half = head_dim // 2
    exponents = np.arange(0, half, 2, dtype=np.float32) / np.float32(half)
    frequencies = np.float32(1) / np.float32(_BASE_FREQUENCY) ** exponents
    angles = positions.astype(np.float32)[:, :, None] * frequencies  # [p, 2, half / 2]
    angles = np.concatenate([angles, angles], axis=-1).reshape(len(positions), head_dim)
    return np.cos(angles), np.sin(angles)
