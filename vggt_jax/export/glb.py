"""Coloured points and cameras as binary glTF."""

import functools
import os
from pathlib import Path
from typing import Any

import numpy as np
from jaxtyping import Float, UInt8

from vggt_jax.errors import InputError
from vggt_jax.export.cameras import Cameras, scene_cameras
from vggt_jax.export.format import ExportOptions, FileFormat, Written
from vggt_jax.files import file_stems, replacing
from vggt_jax.scene.orientation import level_forward, up_direction
from vggt_jax.scene.provenance import Provenance
from vggt_jax.scene.reconstruction import Reconstruction

# glTF's axes (y up, z towards the viewer) from OpenCV's (y down, z away), for world and cameras
# alike.
GLTF_FROM_OPENCV = np.diag([1.0, -1.0, -1.0, 1.0])
# The length of a camera as a share of the distance from the cameras' middle to the median point:
# large enough to see, small enough to see past.
_CAMERA_SIZE = 0.05
_FLOAT = 5126  # glTF 2.0
_COLORMAP = "turbo"  # From the first camera (blue) to the last (red).


def write_glb(
    path: str | os.PathLike,
    points: Float[np.ndarray, "m 3"],
    colors: UInt8[np.ndarray, "m 3"],
    cameras: Cameras | None,
    *,
    camera_size: float | None = None,
    gltf_from_world: Float[np.ndarray, "4 4"] = GLTF_FROM_OPENCV,
    provenance: Provenance = Provenance(),  # noqa: B008
) -> None:
    """Writes a binary glTF file that Blender, Windows' 3D Viewer and three.js read.

    glTF's world has y up, so the world is turned: half around x, `x_gltf = (x, -y, -z)`, or as
    `gltf_from_world` says, which is noted in the file's `extras`. Points are
    a geometry `points`, whose colours are linear, as glTF has them, in floats, so that dark
    ones stay apart; every camera is a node `camera_NAME` with a pyramid, whose tip is the centre of
    projection and whose base is the image. The node's matrix is world_from_camera in the axes of
    glTF's cameras: x right, y up, looking along -z.

    Args:
      path: the file; its folder is made if it is missing.
      points, colors: world coordinates (OpenCV), and RGB.
      cameras: to draw, or None for points alone.
      camera_size: from tip to base, in the scene's unit. None is a twentieth of the distance from
        the middle of the cameras to the median point.
      gltf_from_world: a rotation, see `upright`.
      provenance: what made the scene, for the file's `extras`.

    Raises:
      InputError: the file cannot be written, there are neither points nor cameras, or a size is not
        positive.
    """
    import trimesh

    if camera_size is not None and not 0 < camera_size < np.inf:
        raise InputError(f"{camera_size=} must be positive")
    if not len(points) and cameras is None:
        raise InputError(f"{path}: there are no points to write")
    scene = trimesh.Scene()
    if len(points):
        turned = (points @ gltf_from_world[:3, :3].T).astype(np.float32)
        scene.add_geometry(
            trimesh.PointCloud(turned, colors=colors), node_name="points", geom_name="points"
        )
    if cameras is not None:
        poses = cameras.world_from_camera()
        if camera_size is None:
            camera_size = _suitable_size(points, poses[:, :3, 3])
        for i, stem in enumerate(file_stems(cameras.names)):
            name = f"camera_{stem}"
            pyramid = _pyramid(cameras, i, camera_size)
            pose = gltf_from_world @ poses[i] @ GLTF_FROM_OPENCV
            scene.add_geometry(pyramid, node_name=name, geom_name=name, transform=pose)
    extras: dict[str, Any] = {"gltf_from_world": np.round(gltf_from_world, 9).tolist()}
    if provenance:
        extras["provenance"] = provenance.to_dict()
    set_colors = functools.partial(_set_colors, colors=colors, extras=extras)
    data = scene.export(file_type="glb", buffer_postprocessor=set_colors)
    assert isinstance(data, bytes)
    with replacing(path) as file:
        file.write(data)


def upright(camera_from_world: Any) -> Float[np.ndarray, "4 4"]:
    """glTF's axes from the world's, such that a scene stands upright and cameras look along -z on
    average, as the viewer shows it.

    Args:
      camera_from_world: OpenCV; None, or poses that are not finite, say nothing.
    """
    poses = np.zeros((0, 3, 4)) if camera_from_world is None else np.asarray(camera_from_world)
    poses = poses[np.isfinite(poses).all(axis=(1, 2))]
    if not len(poses):
        return GLTF_FROM_OPENCV
    rotations = np.swapaxes(poses[:, :, :3], 1, 2).astype(np.float64)
    up = up_direction(rotations)
    ahead = level_forward(rotations, up)
    turn = np.eye(4)
    turn[:3, :3] = np.stack([np.cross(ahead, up), up, -ahead])
    return turn


def _linear(colors: Float[np.ndarray, "*shape"]) -> Float[np.ndarray, "*shape"]:
    """Linear colours of sRGB, both in [0, 1]; IEC 61966-2-1."""
    return np.where(colors <= 0.04045, colors / 12.92, ((colors + 0.055) / 1.055) ** 2.4)


def _set_colors(
    buffers: dict[Any, bytes],
    tree: dict[str, Any],
    colors: UInt8[np.ndarray, "m 3"],
    extras: dict[str, Any],
) -> None:
    """Gives the points linear colours in floats, where trimesh writes the 8 bits that it is given,
    and the file its `extras`."""
    tree["extras"] = extras
    table = _linear(np.arange(256) / 255).astype("<f4")
    for mesh in tree["meshes"]:
        if mesh["name"] != "points":
            continue
        # Both are ordered by the places that they will have in the file.
        place = mesh["primitives"][0]["attributes"]["COLOR_0"]
        accessor = list(tree["accessors"].values())[place]
        for name in ("min", "max", "normalized"):
            accessor.pop(name, None)
        accessor |= {"componentType": _FLOAT, "type": "VEC3"}
        buffers[list(buffers)[accessor["bufferView"]]] = table[colors].tobytes()


def _suitable_size(points: np.ndarray, centres: np.ndarray) -> float:
    middle = centres.mean(axis=0)
    extent = np.linalg.norm(centres - middle, axis=1).max()
    if len(points):
        # The sample keeps the median of millions of points cheap.
        sample = points[:: max(1, len(points) // 100_000)].astype(np.float64)
        extent = max(extent, float(np.median(np.linalg.norm(sample - middle, axis=1))))
    return _CAMERA_SIZE * extent or 1.0


def _pyramid(cameras: Cameras, i: int, size: float):
    import trimesh
    from matplotlib import colormaps

    height, width = cameras.original_sizes[i]
    matrix = cameras.original_intrinsics[i]
    corners = np.array([[0, 0], [width, 0], [width, height], [0, height]], np.float64)
    rays = np.ones((5, 3))
    rays[1:, :2] = (corners - matrix[:2, 2]) / matrix[[0, 1], [0, 1]]
    rays[0] = 0
    # Both sides of the four walls, as most programs show front faces only. The base stays open, to
    # look through the camera.
    walls = np.array([[0, 1, 2], [0, 2, 3], [0, 3, 4], [0, 4, 1]])
    faces = np.concatenate([walls, walls[:, ::-1]])
    share = i / max(len(cameras.names) - 1, 1)
    color = np.append(_linear(np.array(colormaps[_COLORMAP](share)[:3])), 1.0)
    color = np.round(color * 255).astype(np.uint8)
    return trimesh.Trimesh(
        rays * size * np.diag(GLTF_FROM_OPENCV)[:3],
        faces,
        face_colors=np.tile(color, (len(faces), 1)),
        process=False,
    )


def _write(recon: Reconstruction, path: Path, options: ExportOptions) -> Written:
    points, colors = options.cloud(recon)
    cameras = scene_cameras(recon) if options.cameras else None
    write_glb(
        path,
        points,
        colors,
        cameras,
        camera_size=options.camera_size,
        gltf_from_world=upright(recon.camera_from_world),
        provenance=recon.provenance,
    )
    return Written(num_frames=0 if cameras is None else len(cameras.names), num_points=len(points))


GLB = FileFormat(
    name="glb",
    description="a file of points and cameras",
    options=("points", "cameras", "camera_size"),
    write=_write,
    mark=b'"generator":"https://github.com/mikedh/trimesh"',
)
