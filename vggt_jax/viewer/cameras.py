"""Cameras as a viewer draws them, and from where it looks at a scene first."""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from vggt_jax import geometry
from vggt_jax.host import with_numpy
from vggt_jax.scene.orientation import level_forward, up_direction
from vggt_jax.scene.reconstruction import Reconstruction

FIELD_OF_VIEW = math.radians(50)
"""Of the first view, in radians, from top to bottom."""
_GREY = 200  # Of what a widened picture has no pixels for.


@dataclass(frozen=True, kw_only=True, eq=False)
class ViewerCamera:
    """A pyramid that is symmetric about its axis, and the picture on its base.

    Attributes:
      frame: which frame of the reconstruction it belongs to.
      name: of the frame.
      position: in the world.
      rotation: world_from_camera; x right, y down, z forward.
      field_of_view: vertical, in radians, of the picture.
      aspect: width by height of the picture, as rays see it and not as pixels do.
      picture: RGB, small.
    """

    frame: int
    name: str
    position: Float[np.ndarray, "3"]
    rotation: Float[np.ndarray, "3 3"]
    field_of_view: float
    aspect: float
    picture: UInt8[np.ndarray, "height width 3"]

    @property
    def quaternion(self) -> Float[np.ndarray, "4"]:
        """World_from_camera as a unit quaternion (w, x, y, z)."""
        return np.roll(with_numpy(geometry.quaternion_from_matrix, self.rotation), 1)


def viewer_cameras(recon: Reconstruction, *, picture_side: int = 160) -> tuple[ViewerCamera, ...]:
    """The cameras that can be drawn.

    Padding is cut off. Where the principal point is not in the middle of the photograph, its
    picture is widened with grey until it is, so that what it shows lies in front of the points that
    it shows.

    Args:
      recon: one scene, without scene axis.
      picture_side: the longer side of each picture in pixels.

    Returns:
      One per frame, without those whose pose or intrinsics are not finite, or whose principal
      point lies more than a frame's size outside of it.
    """
    if recon.camera_from_world is None or recon.intrinsics is None:
        return ()
    images, intrinsics = np.asarray(recon.images), np.asarray(recon.intrinsics, np.float64)
    world_from_camera = with_numpy(geometry.invert_rigid, recon.camera_from_world)
    height, width = images.shape[1:3]
    cameras = []
    for i, (image, pose, matrix) in enumerate(
        zip(images, world_from_camera, intrinsics, strict=True)
    ):
        focal_x, focal_y, centre_x, centre_y = matrix[[0, 1, 0, 1], [0, 1, 2, 2]]
        if not (np.isfinite(pose).all() and np.isfinite(matrix).all()):
            continue
        if not (focal_x > 0 and focal_y > 0):
            continue
        if not (-width < centre_x < 2 * width and -height < centre_y < 2 * height):
            continue
        rows, columns = (0, height), (0, width)
        if recon.transforms:
            rows, columns = recon.transforms[i].content_rows, recon.transforms[i].content_columns
        picture, half_height, half_width = _centred(image, rows, columns, (centre_x, centre_y))
        cameras.append(
            ViewerCamera(
                frame=i,
                name=recon.names[i] if recon.names else str(i),
                position=pose[:, 3],
                rotation=with_numpy(geometry.nearest_rotation, pose[:, :3]),
                field_of_view=2 * math.atan(half_height / focal_y),
                aspect=float((half_width / focal_x) / (half_height / focal_y)),
                picture=_small(picture, picture_side),
            )
        )
    return tuple(cameras)


@dataclass(frozen=True, kw_only=True, eq=False)
class Overview:
    """A place to look at the whole scene from.

    Attributes:
      position, look_at, up: in the world.
      size: of the scene: the diagonal of a box around nearly all points and cameras.
    """

    position: Float[np.ndarray, "3"]
    look_at: Float[np.ndarray, "3"]
    up: Float[np.ndarray, "3"]
    size: float


def overview(points: Float[np.ndarray, "m 3"], cameras: tuple[ViewerCamera, ...]) -> Overview:
    """Where to look from first: from behind the cameras and above them, as far as it takes for all
    of the scene to be seen.

    Args:
      points: of the scene; outliers beyond the 2nd and the 98th percentile of each axis do not
        count.
      cameras: as `viewer_cameras` gives them.
    """
    rotations = (
        np.stack([camera.rotation for camera in cameras]) if cameras else np.zeros((0, 3, 3))
    )
    positions = np.array([camera.position for camera in cameras]).reshape(-1, 3)
    up = up_direction(rotations)
    # A sample is enough for percentiles.
    sample = points[:: max(1, len(points) // 100_000)]
    corners = [positions] + ([np.percentile(sample, (2, 98), axis=0)] if len(sample) else [])
    corners = np.concatenate(corners)
    if not len(corners):
        corners = np.array([[-1.0, -1.0, -1.0], [1.0, 1.0, 1.0]])
    low, high = corners.min(axis=0), corners.max(axis=0)
    size = float(np.linalg.norm(high - low)) or 1.0
    centre = np.median(sample, axis=0) if len(sample) else (low + high) / 2
    forward = level_forward(rotations, up)
    towards = 0.7 * forward - 0.28 * up
    towards /= np.linalg.norm(towards)
    side = np.cross(towards, up)
    axes = np.stack([side, np.cross(towards, side), towards])
    box = np.stack(np.meshgrid(*zip(low, high, strict=True)), axis=-1).reshape(-1, 3)
    across, along = np.abs((box - centre) @ axes[:2].T).max(axis=1), (box - centre) @ towards
    needed = float(np.max(across / np.tan(FIELD_OF_VIEW / 2) - along))
    position = centre - max(needed, 0.75 * size) * towards
    return Overview(position=position, look_at=centre, up=up, size=size)


def _centred(
    image: np.ndarray,
    rows: tuple[int, int],
    columns: tuple[int, int],
    centre: tuple[float, float],
) -> tuple[np.ndarray, float, float]:
    """A part of an image with this point in its middle, and half its height and width in pixels."""
    if image.dtype != np.uint8:
        image = np.round(np.clip(image, 0, 1) * 255).astype(np.uint8)
    sides = []
    for (first, last), middle in zip((rows, columns), centre[::-1], strict=True):
        half = max(last - middle, middle - first)
        # Up to half a pixel: the picture would not change.
        is_centred = abs(first + last - 2 * middle) < 1
        sides.append((first, last) if is_centred else (round(middle - half), round(middle + half)))
    (top, bottom), (left, right) = sides
    widened = np.full((bottom - top, right - left, 3), _GREY, np.uint8)
    widened[rows[0] - top : rows[1] - top, columns[0] - left : columns[1] - left] = image[
        slice(*rows), slice(*columns)
    ]
    return widened, (bottom - top) / 2, (right - left) / 2


def _small(picture: np.ndarray, side: int) -> np.ndarray:
    height, width = picture.shape[:2]
    factor = min(1.0, side / max(height, width))
    size = (max(1, round(width * factor)), max(1, round(height * factor)))
    return np.asarray(Image.fromarray(picture).resize(size, Image.Resampling.LANCZOS))
