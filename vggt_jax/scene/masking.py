"""A scene without the pixels that shall not be used."""

import dataclasses

import numpy as np
from jaxtyping import Bool

from vggt_jax.scene.reconstruction import Reconstruction


def with_mask(recon: Reconstruction, mask: Bool[np.ndarray, "s height width"]) -> Reconstruction:
    """Takes points and confidence away from pixels that shall not be used.

    Args:
        recon: a scene in NumPy arrays, without scene axis.
        mask: True where a pixel may be used.

    Returns:
        The scene with `mask` (and what `recon` had masked already), confidence 0 where it is False,
        and NaN there for `world_points` and `points_from_depth`. Depth stays.

    Raises:
        ValueError: the mask has another shape than the frames.
    """
    if mask.shape != recon.images.shape[:-1] or mask.dtype != bool:
        raise ValueError(f"{mask.shape=} and {mask.dtype=} must be {recon.images.shape[:-1]}, bool")
    if recon.mask is not None:
        mask = mask & recon.mask

    def cut(array, fill):
        if array is None:
            return None
        mask_of_array = mask if array.ndim == mask.ndim else mask[..., None]
        return np.where(mask_of_array, array, np.asarray(fill, array.dtype))

    return dataclasses.replace(
        recon,
        mask=mask,
        depth_confidence=cut(recon.depth_confidence, 0),
        world_points=cut(recon.world_points, np.nan),
        world_points_confidence=cut(recon.world_points_confidence, 0),
    )
