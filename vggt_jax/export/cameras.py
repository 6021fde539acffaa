"""Cameras of a reconstruction, as formats for the photographs take them."""

import os
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import PurePosixPath
from typing import Literal

import numpy as np
from jaxtyping import Float64

from vggt_jax.errors import InputError
from vggt_jax.images.frames import FrameTransform
from vggt_jax.scene.reconstruction import Reconstruction

CameraModel = Literal["PINHOLE", "SIMPLE_PINHOLE"]
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
      masks: names of the masks of the photographs below the folder `masks` of an export; empty
        where there are none.
    """

    names: tuple[str, ...]
    camera_from_world: Float64[np.ndarray, "s 3 4"]
    intrinsics: Float64[np.ndarray, "s 3 3"]
    original_intrinsics: Float64[np.ndarray, "s 3 3"]
    original_sizes: tuple[tuple[int, int], ...]
    transforms: tuple[FrameTransform, ...]
    masks: tuple[str, ...] = ()

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


def checked_names(
    names: Sequence[str], num_frames: int, *, distinct: bool = False
) -> tuple[str, ...]:
    """Names of frames as relative paths with forward slashes; their numbers where they have none.

    Where a backslash divides no folders it is a character as any other.

    Raises:
      InputError: a name leaves the folder, or, where they must be distinct, is there twice.
    """
    names = tuple(names) or tuple(f"{i:04d}" for i in range(num_frames))
    names = tuple(name.replace(os.sep, "/") for name in names)
    for i, name in enumerate(names):
        path = PurePosixPath(name.replace("\\", "/"))  # For whoever reads it on Windows.
        if not name or "\0" in name or path.is_absolute() or ".." in path.parts:
            raise InputError(f"frame {i}: {name!r} is no name of a file inside a folder of images")
        if distinct and name in names[:i]:
            raise InputError(
                f"{name}: is there twice, and a file can be one image only; reconstruct again "
                "without the copy"
            )
    return names


def check_one_size(names: Sequence[str], sizes: Sequence[tuple[int, int]]) -> None:
    """Checks that photographs can share a camera; sizes are (height, width).

    Raises:
      InputError: their sizes differ.
    """
    for name, size in zip(names, sizes, strict=True):
        if size != sizes[0]:
            raise InputError(
                f"{name} is {size[1]}x{size[0]} and {names[0]} {sizes[0][1]}x{sizes[0][0]}: "
                "photographs of different sizes cannot share a camera; leave shared_camera out"
            )
