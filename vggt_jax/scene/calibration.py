"""What is known of a scene put into its reconstruction: intrinsics, and a length for the scale.

Pure functions of a scene in NumPy arrays without scene axis, as `infer` returns it.
"""

import dataclasses
import math
import os
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
from jax.typing import ArrayLike
from jaxtyping import Float64

from vggt_jax import geometry
from vggt_jax.errors import InputError
from vggt_jax.files import read_json
from vggt_jax.host import with_numpy
from vggt_jax.images.files import ByName
from vggt_jax.images.frames import Frames
from vggt_jax.scene.reconstruction import Reconstruction

Pixel = tuple[int | str, float, float]


def with_intrinsics(recon: Reconstruction, intrinsics: ArrayLike) -> Reconstruction:
    """Puts known intrinsics in place of the predicted ones.

    `points_from_depth` then takes its rays through the centres of pixels, where known intrinsics
    put them (`pixel_centre` 0.5). Depth, poses and `world_points` stay as they were predicted.

    Args:
        recon: a scene with transforms to its photographs.
        intrinsics: [3 3] for all photographs or [s 3 3], in the pixels of the photographs after
            EXIF rotation, in continuous coordinates (the image spans [0, width], as in COLMAP).

    Raises:
        InputError: another shape, or no intrinsics: focal lengths that are not positive, values
            that are not finite, or a last row other than (0, 0, 1).
    """
    known = checked_intrinsics(intrinsics, len(recon.images))
    if recon.transforms:
        pairs = zip(recon.transforms, known, strict=True)
        known = np.stack([transform.intrinsics_to_model(matrix) for transform, matrix in pairs])
    return dataclasses.replace(recon, intrinsics=known.astype(np.float32), pixel_centre=0.5)


def checked_intrinsics(intrinsics: ArrayLike, num_frames: int) -> Float64[np.ndarray, "s 3 3"]:
    """Known intrinsics as `with_intrinsics` takes them, one matrix per frame.

    Raises:
        InputError: see `with_intrinsics`.
    """
    known = np.asarray(intrinsics, np.float64)
    if known.shape not in ((3, 3), (num_frames, 3, 3)):
        raise InputError(
            f"intrinsics of shape {known.shape} must be [3 3], or [{num_frames} 3 3] for "
            f"{num_frames} frames"
        )
    focal = known[..., [0, 1], [0, 1]]
    if not np.isfinite(known).all() or not (focal > 0).all():
        raise InputError("intrinsics must be finite with positive focal lengths [0, 0] and [1, 1]")
    if (known[..., 2, :] != (0, 0, 1)).any() or (known[..., 1, 0] != 0).any():
        raise InputError("intrinsics must be [[fx, skew, cx], [0, fy, cy], [0, 0, 1]]")
    return np.broadcast_to(known, (num_frames, 3, 3))


def pinhole(
    focal: float | tuple[float, float], centre: tuple[float, float]
) -> Float64[np.ndarray, "3 3"]:
    """The matrix of focal lengths (x, y, or one for both) and the principal point (x, y)."""
    focal_x, focal_y = np.broadcast_to(np.asarray(focal, np.float64), (2,))
    return np.array([[focal_x, 0, centre[0]], [0, focal_y, centre[1]], [0, 0, 1]], np.float64)


def read_intrinsics(path: str | os.PathLike, names: Sequence[str]) -> Float64[np.ndarray, "s 3 3"]:
    """Known intrinsics of photographs from a file like the `cameras.json` that `infer` writes.

    Args:
        path: see `intrinsics_by_name`.
        names: of the frames, as `load_images` gives them.

    Raises:
        InputError: the file cannot be read, is of another form, lacks a frame, or has values for it
            that are no intrinsics, such as null.
    """
    by_name = intrinsics_by_name(path)
    known, there = list(by_name), ByName(by_name)
    indices = [there.index(name) for name in names]
    if None in indices:
        missing = names[indices.index(None)]
        raise InputError(f"{path}: has no intrinsics of {missing}, only of {len(by_name)} others")
    names = [known[i] for i in indices if i is not None]
    for name in names:
        try:
            checked_intrinsics(by_name[name], 1)
        except InputError as error:
            raise InputError(f"{path}: {name}: {error}") from error
    return np.stack([by_name[name] for name in names])


def intrinsics_by_name(
    path: str | os.PathLike, document: Mapping[str, Any] | None = None
) -> dict[str, Float64[np.ndarray, "3 3"]]:
    """Intrinsics of all photographs in a file like `cameras.json`, as `with_intrinsics` takes them.

    `pixel_centre` says where the rays of the file's cameras meet pixels: 0.5, as in any
    calibration, where it is missing. Intrinsics of another (VGGT's 0) name a principal point that
    is off by the difference in pixels of the model's frame, which is put right here: the rays stay
    as they were.

    Args:
        path: JSON with a list `frames`, each with its `name` and `intrinsics_original`, 3x3, and
            for a `pixel_centre` other than 0.5 with the `scale` of its `model_from_original`. Other
            fields are left aside.
        document: what the file holds, if it was read already.

    Raises:
        InputError: the file cannot be read or is of another form.
    """
    try:
        found: Any = document
        if found is None:
            found = read_json(path, "file that must be JSON like cameras.json")
        pixel_centre = float(found.get("pixel_centre", 0.5))
        by_name = {}
        for frame in found["frames"]:
            matrix = np.array(frame["intrinsics_original"], np.float64).reshape(3, 3)
            if pixel_centre != 0.5:
                scale = np.array(frame["model_from_original"]["scale"], np.float64).reshape(2)
                matrix[:2, 2] += (0.5 - pixel_centre) / scale
            by_name[str(frame["name"])] = matrix
    except InputError:
        raise
    except (ValueError, KeyError, TypeError, AttributeError, OverflowError) as error:
        raise InputError(
            f"{path}: must be JSON like cameras.json: a list `frames`, each with `name` and "
            "`intrinsics_original`, a 3x3 matrix of numbers, and with `model_from_original` where "
            "the file has a `pixel_centre`"
        ) from error
    return by_name


def scaled(recon: Reconstruction, factor: float) -> Reconstruction:
    """The scene in other units: depth, positions of cameras and points times a factor.

    Raises:
        InputError: the factor is not positive and finite, or takes lengths out of the range of
            float32.
    """
    if not 0 < factor < math.inf:
        raise InputError(f"{factor=} must be positive and finite")
    limits = np.finfo(np.float32)
    outside = InputError(
        f"{factor=} takes lengths out of the range of float32, {limits.tiny:.0e} to "
        f"{limits.max:.0e}; choose another unit"
    )
    if not float(limits.tiny) <= float(factor) <= float(limits.max):
        raise outside
    exact = np.float32(factor)

    def scale(array):
        with np.errstate(over="ignore"):
            result = exact * array
        if (np.isinf(result) & np.isfinite(array)).any():
            raise outside
        return result

    cameras = recon.camera_from_world
    if cameras is not None:
        cameras = np.concatenate([cameras[..., :3], scale(cameras[..., 3:])], axis=-1)
    return dataclasses.replace(
        recon,
        camera_from_world=cameras,
        depth=None if recon.depth is None else scale(recon.depth),
        world_points=None if recon.world_points is None else scale(recon.world_points),
        length_unit="given",
    )


def scale_to_distance(
    recon: Reconstruction,
    distance: float,
    *,
    cameras: tuple[int | str, int | str] | None = None,
    pixels: tuple[Pixel, Pixel] | None = None,
) -> Reconstruction:
    """The scene in the units of a known distance.

    Args:
        recon: a scene with cameras; for `pixels` also with depth or world points.
        distance: between the two, positive.
        cameras: two frames, by index or name.
        pixels: two points `(frame, x, y)`, in the pixels of the photographs; each is what the
            nearest pixel of the frame shows (`points_from_depth` where there is depth).

    Raises:
        InputError: not one of cameras and pixels is given, the model predicts nothing to measure
            between them, a frame or pixel does not exist or has no point, or the two are at the
            same place.
    """
    if (cameras is None) == (pixels is None):
        raise InputError("give either cameras or pixels whose distance is known")
    if not 0 < distance < math.inf:
        raise InputError(f"{distance=} must be positive and finite")
    if cameras is not None:
        if recon.camera_from_world is None:
            raise InputError("this model predicts no cameras; give pixels whose distance is known")
        where = with_numpy(geometry.camera_positions, recon.camera_from_world).astype(np.float64)
        ends = [where[frame_index(recon.names, len(where), frame)] for frame in cameras]
    else:
        cameras_found = recon.camera_from_world is not None and recon.intrinsics is not None
        if recon.depth is not None and cameras_found:
            points = recon.points_from_depth()
        elif recon.world_points is not None:
            points = recon.world_points
        else:
            raise InputError(
                "the distance of pixels needs depth with cameras, or world points, and this model "
                "predicts neither; give cameras whose distance is known, or scale by a depth"
            )
        assert pixels is not None
        ends = [points[nearest_pixel(recon, pixel)].astype(np.float64) for pixel in pixels]
    predicted = float(np.linalg.norm(ends[0] - ends[1]))
    if not predicted > 0:  # NaN, too: a masked pixel has no point.
        what = f"{cameras=}" if pixels is None else f"{pixels=}"
        raise InputError(f"{what}: their distance in the scene is {predicted}; choose others")
    return scaled(recon, distance / predicted)


def scale_to_depth(recon: Reconstruction, depth: float, *, pixel: Pixel) -> Reconstruction:
    """The scene in the units of a known depth.

    Args:
        recon: a scene with depth.
        depth: of the pixel, along the viewing axis (not along the ray), positive.
        pixel: `(frame, x, y)`, in the pixels of the photograph.

    Raises:
        InputError: the model predicts no depth, or the pixel does not exist or has none.
    """
    if recon.depth is None:
        raise InputError("this model predicts no depth; scale by a distance of cameras instead")
    if not 0 < depth < math.inf:
        raise InputError(f"{depth=} must be positive and finite")
    predicted = float(recon.depth[nearest_pixel(recon, pixel)])
    if not 0 < predicted < math.inf:
        raise InputError(f"{pixel=}: its depth in the scene is {predicted}; choose another")
    return scaled(recon, depth / predicted)


def frame_index(names: Sequence[str], num_frames: int, frame: int | str) -> int:
    """The index of a frame that is given by index or name.

    Raises:
        InputError: there is none.
    """
    if isinstance(frame, str):
        if (found := ByName(names).index(frame)) is not None:
            return found
        if not frame.isdecimal():
            known = f"{names[0]} to {names[-1]}" if names else "none has a name"
            raise InputError(f"no frame is called {frame!r} ({known}); give its name or its index")
        frame = int(frame)
    if not 0 <= frame < num_frames:
        raise InputError(f"frame {frame} does not exist; indices go from 0 to {num_frames - 1}")
    return frame


def nearest_pixel(frames: Frames | Reconstruction, pixel: Pixel) -> tuple[int, int, int]:
    """(frame, row, column) of a pixel of a photograph.

    Raises:
        InputError: the frame does not exist, or does not show the pixel.
    """
    frame, x, y = pixel
    frame = frame_index(frames.names, len(frames.images), frame)
    position = np.array([x, y], np.float64)
    if frames.transforms:
        position = frames.transforms[frame].pixels_to_model(position)
    height, width = frames.images.shape[1:3]
    if not ((position >= -0.5) & (position <= (width - 0.5, height - 0.5))).all():
        raise InputError(f"{pixel=} lies outside the part of the photograph that the frame shows")
    column, row = np.clip(np.floor(position + 0.5), 0, (width - 1, height - 1)).astype(int).tolist()
    return frame, row, column
