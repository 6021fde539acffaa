"""What every format is made of: cameras of the photographs, and the points that are good enough."""

from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath

import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8

from vggt_jax.errors import InputError
from vggt_jax.export.ply import select_points
from vggt_jax.images.frames import FrameTransform
from vggt_jax.scene.confidence import (
    PointSource,
    chosen_source,
    confidence_limits,
    confidence_of,
    points_of,
    usable_pixels,
)
from vggt_jax.scene.reconstruction import Reconstruction

_LARGEST_DEVIATION = 1e-3  # Of a rotation from an orthogonal matrix: float32 stays far below.


@dataclass(frozen=True, kw_only=True, eq=False)
class Cameras:
    """Cameras of a reconstruction, float64, for its frames and for the original photographs.

    All intrinsics are for continuous coordinates, in which an image spans [0, width] and the centre
    of its first pixel is at 0.5, and describe the rays that the reconstruction's points lie on: see
    `scene_cameras`.

    Attributes:
      names: one per frame, relative paths with forward slashes.
      camera_from_world: [s 3 4], OpenCV.
      intrinsics: [s 3 3] for the model's frames.
      original_intrinsics: [s 3 3] for the photographs.
      original_sizes: (height, width) of the photographs.
      transforms: between the two.
    """

    names: tuple[str, ...]
    camera_from_world: Float64[np.ndarray, "s 3 4"]
    intrinsics: Float64[np.ndarray, "s 3 3"]
    original_intrinsics: Float64[np.ndarray, "s 3 3"]
    original_sizes: tuple[tuple[int, int], ...]
    transforms: tuple[FrameTransform, ...]

    def world_from_camera(self) -> Float64[np.ndarray, "s 4 4"]:
        """Poses as 4x4 matrices, OpenCV."""
        rotation = np.swapaxes(self.camera_from_world[:, :, :3], 1, 2)
        centre = -(rotation @ self.camera_from_world[:, :, 3:])[..., 0]
        poses = np.tile(np.eye(4), (len(rotation), 1, 1))
        poses[:, :3, :3], poses[:, :3, 3] = rotation, centre
        return poses


def scene_cameras(recon: Reconstruction) -> Cameras:
    """The cameras of a reconstruction, checked.

    Where the ray of a pixel does not pass its centre (`Reconstruction.pixel_centre`: VGGT's passes
    the corner, by half a pixel), the principal point is moved by the difference. The rays stay, and
    so do the points on them, and every point is projected onto the centre of the pixel that it came
    from.

    Raises:
      InputError: there are several scenes, no cameras, a camera that is not finite, is skewed or no
        rotation, or a name that leaves the folder.
    """
    if recon.images.ndim != 4:
        raise InputError("several scenes cannot be exported together; give one, without scene axis")
    if recon.camera_from_world is None or recon.intrinsics is None:
        raise InputError("this reconstruction has no cameras; use a model with a camera head")
    names = checked_names(recon.names, len(recon.images))
    transforms = scene_transforms(recon)
    poses = np.asarray(recon.camera_from_world, np.float64)
    intrinsics = np.array(recon.intrinsics, np.float64)
    intrinsics[:, :2, 2] += 0.5 - recon.pixel_centre
    for name, pose, matrix in zip(names, poses, intrinsics, strict=True):
        if not (
            np.isfinite(pose).all()
            and np.isfinite(matrix).all()
            and matrix[0, 0] > 0 < matrix[1, 1]
        ):
            raise InputError(
                f"{name}: the camera is not finite, so that no format can hold it; leave this "
                "photograph out and reconstruct again"
            )
        if abs(matrix[0, 1]) > 1e-6 * matrix[0, 0]:
            raise InputError(
                f"{name}: intrinsics with a skew ({matrix[0, 1]:g}) have no place here"
            )
        rotation = pose[:, :3]
        deviation = np.abs(rotation @ rotation.T - np.eye(3)).max()
        if deviation > _LARGEST_DEVIATION or np.linalg.det(rotation) < 0:
            raise InputError(f"{name}: camera_from_world does not begin with a rotation")
    original = [t.intrinsics_to_original(m) for t, m in zip(transforms, intrinsics, strict=True)]
    return Cameras(
        names=names,
        camera_from_world=poses,
        intrinsics=intrinsics,
        original_intrinsics=np.stack(original),
        original_sizes=tuple(transform.original_size for transform in transforms),
        transforms=transforms,
    )


def scene_transforms(recon: Reconstruction) -> tuple[FrameTransform, ...]:
    """The transforms of a reconstruction; frames that nobody resized are their own originals."""
    height, width = recon.images.shape[1:3]
    identity = FrameTransform.identity((height, width))
    return recon.transforms or (identity,) * len(recon.images)


def confident_pixels(
    recon: Reconstruction,
    source: PointSource,
    *,
    confidence_percentile: float | None = None,
    min_confidence: float | None = None,
) -> tuple[Bool[np.ndarray, "s height width"], float]:
    """The rule of `scene/confidence.py` for exports, which leave out the edges that a model marks.

    Args:
      recon: the scene.
      source: of the points.
      confidence_percentile, min_confidence: see `confidence.confidence_limits`.

    Returns:
      Pixels that pass all but the percentile, and the percentile.

    Raises:
      InputError: a number is out of its range, or nothing is left.
    """
    percentile, smallest = confidence_limits(
        recon.confidence_kind,
        confidence_percentile=confidence_percentile,
        min_confidence=min_confidence,
    )
    usable = usable_pixels(recon, source, min_confidence=smallest, depth_edges=recon.depth_edges)
    if not usable.any():
        raise InputError(
            f"no pixel has a confidence above {smallest:g}"
            f"{'' if recon.depth_edges is None else ' away from the edges of depth'}; lower "
            f"min_confidence (the largest confidence is {np.max(confidence_of(recon, source)):g})"
        )
    return usable, percentile


def scene_points(
    recon: Reconstruction,
    *,
    points: PointSource | None = None,
    confidence_percentile: float | None = None,
    min_confidence: float | None = None,
    max_points: int | None = 2_000_000,
) -> tuple[Float32[np.ndarray, "m 3"], UInt8[np.ndarray, "m 3"]]:
    """The point cloud of a scene with its colours.

    Args:
      recon: the scene.
      points: from depth and cameras, or from the model's point head. None is what is better: depth
        for VGGT, the head for π³, or the one that there is.
      confidence_percentile, min_confidence: see `confidence.confidence_limits`.
      max_points: at most so many, the same ones each time; None for all.

    Returns:
      points [m 3] in world coordinates (OpenCV) and colors [m 3].

    Raises:
      InputError: an argument is out of its range, or the model has no such points.
    """
    source = chosen_source(recon, points)
    mask, percentile = confident_pixels(
        recon,
        source,
        confidence_percentile=confidence_percentile,
        min_confidence=min_confidence,
    )
    return select_points(
        points_of(recon, source),
        confidence_of(recon, source),
        np.asarray(recon.images),
        confidence_percentile=percentile,
        mask=mask,
        max_points=max_points,
    )


def checked_names(
    names: Sequence[str], num_frames: int, *, distinct: bool = False
) -> tuple[str, ...]:
    """Names of frames as relative paths with forward slashes; their numbers where they have none.

    Raises:
      InputError: a name leaves the folder, or, where they must be distinct, is there twice.
    """
    names = tuple(names) or tuple(f"{i:04d}" for i in range(num_frames))
    names = tuple(name.replace("\\", "/") for name in names)
    for i, name in enumerate(names):
        path = PurePosixPath(name)
        if not name or path.is_absolute() or ".." in path.parts:
            raise InputError(f"frame {i}: {name!r} is no name of a file inside a folder of images")
        if distinct and name in names[:i]:
            raise InputError(
                f"{name}: is there twice, and a file can be one image only; reconstruct again "
                "without the copy"
            )
    return names
