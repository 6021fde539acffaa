"""Coloured point clouds as PLY."""

import os
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8

from vggt_jax.errors import printable
from vggt_jax.export.format import ExportOptions, FileFormat, Written
from vggt_jax.files import replacing
from vggt_jax.scene.reconstruction import Reconstruction

_MARK = b"comment https://github.com/mikedh/trimesh"  # What trimesh writes into every file.


def write_point_cloud(
    path: str | os.PathLike,
    points: Float[np.ndarray, "m 3"],
    colors: UInt8[np.ndarray, "m 3"],
    *,
    comment: str = "",
) -> None:
    """Writes a binary PLY file that MeshLab, CloudCompare, Blender and Open3D read.

    Args:
      path: the file; its folder is made if it is missing.
      points: [m 3], stored as float32 in the coordinates given (VGGT's world is the first camera: x
        right, y down, z forward).
      colors: [m 3] RGB.
      comment: a line for the head of the file, such as what made the points.

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
    if comment:
        line = printable(comment).encode("ascii", "backslashreplace")
        data = data.replace(_MARK + b"\n", _MARK + b"\ncomment " + line + b"\n", 1)
    with replacing(path) as file:
        file.write(data)


def _write(recon: Reconstruction, path: Path, options: ExportOptions) -> Written:
    points, colors = options.cloud(recon)
    write_point_cloud(path, points, colors, comment=str(recon.provenance))
    return Written(num_points=len(points))


PLY = FileFormat(
    name="ply",
    description="a file of points",
    options=("points",),
    write=_write,
    mark=_MARK,
)
