"""Coloured point clouds as PLY."""

import os

import numpy as np
from jaxtyping import Bool, Float, Float32, UInt8

from vggt_jax.errors import InputError
from vggt_jax.files import replacing
from vggt_jax.scene.confidence import percentile_thresholds


def select_points(
    world_points: Float[np.ndarray, "s height width 3"],
    confidence: Float[np.ndarray, "s height width"],
    images: UInt8[np.ndarray, "s height width 3"] | Float[np.ndarray, "s height width 3"],
    *,
    confidence_percentile: float = 25.0,
    mask: Bool[np.ndarray, "s height width"] | None = None,
    max_points: int | None = 2_000_000,
    seed: int = 0,
) -> tuple[Float32[np.ndarray, "m 3"], UInt8[np.ndarray, "m 3"]]:
    """The confident points of a scene with their colours.

    Points that are not finite, or whose confidence is not, are left out first; the percentile is
    taken over the rest, and points at or above it are kept, as in the official `demo_viser.py`,
    from which the default of 25 comes.

    Args:
      world_points: [s height width 3].
      confidence: [s height width], on any scale.
      images: [s height width 3], uint8, or float in [0, 1].
      confidence_percentile: from 0 (keep all) to 100 (keep the most confident alone).
      mask: [s height width], True where a pixel may be used; None allows all.
      max_points: at most so many, drawn without replacement from all that qualify; None for all.
      seed: of that draw; the same seed draws the same points.

    Returns:
      points [m 3] float32 and colors [m 3] uint8, in the order of frames and pixels. m can be 0.

    Raises:
      InputError: the percentile or max_points is out of its range.
      ValueError: shapes do not fit together.
    """
    if not 0 <= confidence_percentile <= 100:
        raise InputError(f"{confidence_percentile=} must lie between 0 and 100")
    if max_points is not None and max_points < 1:
        raise InputError(f"{max_points=} must be at least 1, or None for all points")
    if mask is None:
        mask = np.ones(confidence.shape, bool)
    if not (
        world_points.shape == images.shape == (*confidence.shape, 3)
        and mask.shape == confidence.shape
    ):
        raise ValueError(
            f"{world_points.shape=}, {images.shape=}, {confidence.shape=} and {mask.shape=} must "
            "be [s height width 3], the same, [s height width] and the same"
        )
    usable = mask & np.isfinite(confidence) & np.isfinite(world_points).all(axis=-1)
    if usable.any():
        usable &= confidence >= percentile_thresholds(confidence[usable], confidence_percentile)
    chosen = np.flatnonzero(usable)
    if max_points is not None and len(chosen) > max_points:
        generator = np.random.default_rng(seed)
        chosen = np.sort(generator.choice(chosen, max_points, replace=False, shuffle=False))
    points = world_points.reshape(-1, 3)[chosen].astype(np.float32)
    colors = images.reshape(-1, 3)[chosen]
    if colors.dtype != np.uint8:
        colors = np.round(colors * 255).astype(np.uint8)
    return points, colors


def write_point_cloud(
    path: str | os.PathLike,
    points: Float[np.ndarray, "m 3"],
    colors: UInt8[np.ndarray, "m 3"],
) -> None:
    """Writes a binary PLY file that MeshLab, CloudCompare, Blender and Open3D read.

    Args:
      path: the file; its folder is made if it is missing.
      points: [m 3], stored as float32 in the coordinates given (VGGT's world is the first camera: x
        right, y down, z forward).
      colors: [m 3] RGB.

    Raises:
      InputError: the file cannot be written.
      ValueError: shapes or dtypes do not fit, or a point is not finite.
    """
    import trimesh

    if points.ndim != 2 or points.shape[1] != 3 or colors.shape != points.shape:
        raise ValueError(f"{points.shape=} and {colors.shape=} must both be [m 3]")
    if colors.dtype != np.uint8:
        raise ValueError(f"{colors.dtype=} must be uint8")
    if not np.isfinite(points).all():
        raise ValueError("points must be finite; select_points leaves out the others")
    data = trimesh.PointCloud(points, colors=colors).export(file_type="ply")
    assert isinstance(data, bytes)
    with replacing(path) as file:
        file.write(data)
