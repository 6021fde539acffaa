"""Data sets of nerfstudio: `transforms.json` and a point cloud to begin with."""

import json
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from vggt_jax.export.cameras import Cameras
from vggt_jax.export.depth_maps import write_depth_maps
from vggt_jax.export.format import DEPTHS, ExportOptions, FolderFormat, Written
from vggt_jax.export.masks import FOLDER as MASKS
from vggt_jax.export.ply import write_point_cloud
from vggt_jax.files import replacing
from vggt_jax.scene.provenance import Provenance
from vggt_jax.scene.reconstruction import Reconstruction

# The axes of nerfstudio's cameras (OpenGL: y up, looking along -z) from OpenCV's.
OPENCV_FROM_OPENGL = np.diag([1.0, -1.0, -1.0, 1.0])
_POINTS = "points.ply"
_TRANSFORMS = "transforms.json"


def write_nerfstudio(
    folder: Path,
    cameras: Cameras,
    points: Float[np.ndarray, "m 3"],
    colors: UInt8[np.ndarray, "m 3"],
    *,
    depth_maps: Sequence[str] = (),
    provenance: Provenance = Provenance(),  # noqa: B008
) -> None:
    """Writes `transforms.json` and, where there are points, `points.ply`.

    `transform_matrix` is world_from_camera with the camera's axes as OpenGL has them (x right, y
    up, looking along -z). The world stays the reconstruction's for cameras and points alike:
    `applied_transform` is the identity, since versions of nerfstudio differ in whether points
    follow it; they find what is up by themselves. Where `cameras` has masks, every frame names its
    own, as nerfstudio asks for: white is used. Intrinsics are per frame, for the photographs,
    with pixel centres at 0.5.

    Source: https://docs.nerf.studio/quickstart/data_conventions.html

    Args:
      folder: existing; by itself not atomic, see `files.output_folder`.
      cameras: of the scene.
      points, colors: in world coordinates (OpenCV), and RGB.
      depth_maps: paths of those of the frames in the folder, if there are any.
      provenance: what made the scene, for a field that nerfstudio does not read.

    Raises:
      InputError: a file cannot be written.
    """
    transforms: dict[str, Any] = {
        "camera_model": "OPENCV",  # With distortions, which are zero where nothing says otherwise.
        "applied_transform": np.eye(4)[:3].tolist(),
        "frames": [
            _frame(cameras, i) | ({"depth_file_path": depth_maps[i]} if depth_maps else {})
            for i in range(len(cameras.names))
        ],
    }
    if provenance:
        transforms["provenance"] = provenance.to_dict()
    if len(points):
        write_point_cloud(folder / _POINTS, points, colors, comment=str(provenance))
        transforms["ply_file_path"] = _POINTS
    with replacing(folder / _TRANSFORMS) as file:
        file.write(json.dumps(transforms, indent=2, allow_nan=False).encode() + b"\n")


def _frame(cameras: Cameras, i: int) -> dict[str, Any]:
    (height, width), matrix = cameras.original_sizes[i], cameras.original_intrinsics[i]
    return {
        "file_path": f"images/{cameras.names[i]}",
        **({"mask_path": f"{MASKS}/{cameras.masks[i]}"} if cameras.masks else {}),
        "w": width,
        "h": height,
        "fl_x": float(matrix[0, 0]),
        "fl_y": float(matrix[1, 1]),
        "cx": float(matrix[0, 2]),
        "cy": float(matrix[1, 2]),
        "transform_matrix": (cameras.world_from_camera()[i] @ OPENCV_FROM_OPENGL).tolist(),
    }


def _write(
    recon: Reconstruction, folder: Path, cameras: Cameras, options: ExportOptions
) -> Written:
    points, colors = options.cloud(recon)
    depth_maps: Sequence[str] = ()
    if options.depth_maps:
        depth_maps = write_depth_maps(
            folder,
            recon,
            cameras,
            factors=options.data_factor,
            confidence_percentile=options.confidence_percentile,
            min_confidence=options.min_confidence,
        )
    write_nerfstudio(
        folder, cameras, points, colors, depth_maps=depth_maps, provenance=recon.provenance
    )
    return Written(num_frames=len(cameras.names), num_points=len(points))


NERFSTUDIO = FolderFormat(
    name="nerfstudio",
    description="a folder with transforms.json, points.ply and images",
    entries=(_POINTS, _TRANSFORMS, DEPTHS),
    options=("images", "points", "data_factor", "depth_maps"),
    flat_names=True,
    write=_write,
)
