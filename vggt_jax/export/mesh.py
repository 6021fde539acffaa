"""A triangle mesh, fused from depth by Open3D."""

import importlib
import tempfile
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Bool, Float32

from vggt_jax.errors import InputError, printable
from vggt_jax.export.cameras import scene_cameras
from vggt_jax.export.format import ExportOptions, FileFormat, Written
from vggt_jax.export.points import confident_pixels
from vggt_jax.files import replacing
from vggt_jax.scene.confidence import confidence_of, percentile_thresholds
from vggt_jax.scene.reconstruction import Reconstruction

_BLOCKS = 1000  # Of 16 voxels a side, to begin with; there will be as many as it takes.
_VOXELS = 400  # Along the scene, where nobody says how large one is.
_TRUNCATION = 4.0  # Voxels on both sides of a surface.
_MARK = b"comment Created by Open3D"


def fused_mesh(
    recon: Reconstruction, usable: Bool[np.ndarray, "s height width"], voxel_size: float | None
) -> Any:
    """An Open3D triangle mesh of the surfaces that depth shows: a truncated signed distance, the
    mean over all frames, in voxels (Curless and Levoy, 1996).

    Args:
      recon: a scene with depth and cameras.
      usable: pixels whose depth counts.
      voxel_size: in the scene's unit; None is a 400th of the scene.

    Raises:
      InputError: Open3D is not installed, or nothing is left.
    """
    o3d = import_open3d()
    cameras = scene_cameras(recon)
    depth = np.where(usable, np.asarray(recon.depth, np.float32), 0).astype(np.float32)
    images = np.asarray(recon.images)
    if images.dtype != np.uint8:
        images = np.round(np.clip(images, 0, 1) * 255).astype(np.uint8)
    if voxel_size is None:
        points = np.asarray(recon.points_from_depth())[usable]
        low, high = np.percentile(points[:: max(1, len(points) // 100_000)], (2, 98), axis=0)
        voxel_size = float(np.linalg.norm(high - low)) / _VOXELS or 1.0
    float32, tensor = o3d.core.float32, o3d.core.Tensor
    grid = o3d.t.geometry.VoxelBlockGrid(
        attr_names=("tsdf", "weight", "color"),
        attr_dtypes=(float32, float32, float32),
        attr_channels=(1, 1, 3),
        voxel_size=voxel_size,
        block_resolution=16,
        block_count=_BLOCKS,
    )
    farthest = float(depth.max()) + voxel_size
    for i in range(len(depth)):
        matrix = cameras.intrinsics[i].copy()
        matrix[:2, 2] -= 0.5  # Open3D has the centre of the first pixel at 0.
        pose = np.concatenate([cameras.camera_from_world[i], [[0, 0, 0, 1]]])
        camera = (tensor(matrix), tensor(pose), 1.0, farthest, _TRUNCATION)
        of_depth = o3d.t.geometry.Image(np.ascontiguousarray(depth[i]))
        of_color = o3d.t.geometry.Image(np.ascontiguousarray(images[i], np.float32) / 255)
        blocks = grid.compute_unique_block_coordinates(of_depth, *camera)
        grid.integrate(blocks, of_depth, of_color, camera[0], *camera)
    mesh = grid.extract_triangle_mesh(weight_threshold=0.5).to_legacy()
    if not len(mesh.triangles):
        raise InputError("depth shows no surface; choose another voxel_size or more confidence")
    mesh.compute_vertex_normals()
    return mesh


def _usable(recon: Reconstruction, options: ExportOptions) -> Bool[np.ndarray, "s height width"]:
    usable, percentile = confident_pixels(
        recon,
        "depth",
        confidence_percentile=options.confidence_percentile,
        min_confidence=options.min_confidence,
    )
    confidence: Float32[np.ndarray, "s height width"] = confidence_of(recon, "depth")
    return usable & (confidence >= percentile_thresholds(confidence[usable], percentile))


def _write(recon: Reconstruction, path: Path, options: ExportOptions) -> Written:
    if recon.depth is None or recon.camera_from_world is None:
        raise InputError("a mesh is fused from depth and cameras, which this scene lacks")
    o3d = import_open3d()
    mesh = fused_mesh(recon, _usable(recon, options), options.voxel_size)
    with tempfile.TemporaryDirectory(prefix="vggt-jax-") as folder:
        made = Path(folder) / "mesh.ply"
        o3d.io.write_triangle_mesh(str(made), mesh)
        data = made.read_bytes()
    if recon.provenance:
        line = printable(str(recon.provenance)).encode("ascii", "backslashreplace")
        data = data.replace(_MARK + b"\n", _MARK + b"\ncomment " + line + b"\n", 1)
    with replacing(path) as file:
        file.write(data)
    return Written(num_points=len(mesh.vertices), notes=(f"{len(mesh.triangles):,} triangles",))


def import_open3d() -> Any:
    """The package open3d.

    Raises:
      InputError: it is not installed, or cannot be loaded here.
    """
    try:
        return importlib.import_module("open3d")
    except ModuleNotFoundError as error:
        if error.name != "open3d":
            raise
        raise InputError(
            "a mesh needs Open3D; install it with: pip install 'vggt-jax[mesh]'"
        ) from error
    except (ImportError, OSError) as error:  # A library of the system is missing.
        raise InputError(f"Open3D is installed and cannot be loaded: {error}") from error


MESH = FileFormat(
    name="mesh",
    description="a triangle mesh (.ply), fused from depth",
    options=("voxel_size",),
    check=lambda options: import_open3d() and None,
    write=_write,
    mark=_MARK,
)
