"""What files tell of photographs as `Priors` of the frames that a model sees."""

import os
from collections.abc import Collection
from pathlib import Path, PurePosixPath
from typing import Any

import numpy as np

from vggt_jax.errors import InputError
from vggt_jax.images.frames import Frames, FrameTransform
from vggt_jax.pipeline.prior_formats import FORMS, Known, read_known
from vggt_jax.scene.priors import PriorKind, Priors

# Sides may differ by this much, in pixels, from those that a scaled camera would have.
_SIZE_TOLERANCE = 1.5


def read_priors(
    path: str | os.PathLike, frames: Frames, *, use: Collection[PriorKind] = ()
) -> Priors:
    """What a file or folder tells of frames, in the pixels of these.

    Photographs are found by their names, as they are or without folders. Those that the file does
    not name are unknown.

    Args:
        path: a folder of results or its `cameras.json`, a COLMAP model or a folder above it, a
            `transforms.json` of nerfstudio or its folder, or an `.npz` file with `intrinsics` (in
            pixels of the photographs), `camera_from_world` or `poses` (world_from_camera), and
            `depth`, in the order of the photographs.
        frames: with names and transforms, as `load_images` gives them.
        use: what to take; all that there is by default. Of cameras that distort, "intrinsics" takes
            the rays.

    Raises:
        InputError: the file cannot be read or is none of these, names no photograph, or tells
            nothing that is asked for; an image size does not fit.
    """
    path = Path(path)
    if not path.exists():
        raise InputError(f"{path}: no such file or folder; give {FORMS}")
    scene = read_known(path)
    by_frame = _of_frames(scene.photographs, frames, path)
    if not frames.transforms:
        transforms = [FrameTransform.identity(frames.images.shape[1:3])] * len(frames.images)
    else:
        transforms = list(frames.transforms)
    wanted = lambda kind: not use or kind in use
    fields: dict[str, Any] = {}
    pairs = list(zip(by_frame, transforms, strict=True))

    def put(kind: PriorKind, field: str, values: list[np.ndarray | None]):
        if given := [x for x in values if x is not None]:
            unknown = np.full(given[0].shape, np.nan, np.float32)
            fields[field] = np.stack([unknown if x is None else x for x in values])
            fields[f"{kind}_known"] = np.array([x is not None for x in values])

    if wanted("intrinsics") or wanted("rays"):
        put("intrinsics", "intrinsics", [_intrinsics(known, t, path) for known, t in pairs])
        put("rays", "rays", [_rays(known, t, path) for known, t in pairs])
    if wanted("poses"):
        put("poses", "camera_from_world", [known.camera_from_world for known in by_frame])
    if wanted("depth"):
        put("depth", "depth", [_depth(known, t) for known, t in pairs])
    if not fields:
        raise InputError(f"{path}: tells no {' or '.join(use) or 'cameras and no depth'}")
    return Priors(**fields, metric=scene.metric)


def _of_frames(photographs, frames: Frames, path: Path) -> list[Known]:
    """What is known of each frame."""
    if isinstance(photographs, list):
        if len(photographs) != len(frames.images):
            raise InputError(
                f"{path}: has arrays of {len(photographs)} photographs, and there are "
                f"{len(frames.images)}"
            )
        return photographs
    without_folders: dict[str, list[Known]] = {}
    for name, known in photographs.items():
        without_folders.setdefault(PurePosixPath(name).name, []).append(known)
    found: list[Known] = []
    num_found = 0
    for name in frames.names:
        known = photographs.get(name)
        if known is None:
            same = without_folders.get(PurePosixPath(name).name, [])
            if len(same) > 1:
                raise InputError(
                    f"{path}: has {len(same)} photographs of the name {PurePosixPath(name).name} "
                    "in different folders, and which of them is meant cannot be told"
                )
            known = same[0] if same else None
        num_found += known is not None
        found.append(known or Known())
    if not num_found:
        examples = lambda names: ", ".join(list(names)[:3]) or "none"
        raise InputError(
            f"{path}: knows none of the photographs ({examples(frames.names)}), but "
            f"{examples(photographs)}; names must agree"
        )
    return found


def _in_photograph(known: Known, transform: FrameTransform, path: Path) -> np.ndarray:
    """(x, y): by what the photograph is larger than the image that a camera is of."""
    if known.size is None:
        return np.ones(2)
    height, width = transform.original_size
    scale = np.array([width / known.size[1], height / known.size[0]])
    if abs(scale[0] / scale[1] - 1) * max(known.size) > _SIZE_TOLERANCE:
        raise InputError(
            f"{path}: a camera is of images of {known.size[1]}x{known.size[0]}, and the photograph "
            f"has {width}x{height}, which is another shape"
        )
    return scale


def _intrinsics(known: Known, transform: FrameTransform, path: Path) -> np.ndarray | None:
    """Intrinsics in the pixels of the frame."""
    if known.intrinsics is None or known.rays is not None:
        return None
    scale = np.append(_in_photograph(known, transform, path), 1)
    return transform.intrinsics_to_model(scale[:, None] * known.intrinsics)


def _rays(known: Known, transform: FrameTransform, path: Path) -> np.ndarray | None:
    """Rays of all pixels of the frame, of a camera that distorts."""
    if known.rays is None:
        return None
    height, width = transform.model_size
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1)
    places = transform.pixels_to_original(grid) + 0.5
    xy = known.rays(places.reshape(-1, 2) / _in_photograph(known, transform, path))
    return np.concatenate([xy, np.ones((len(xy), 1))], axis=1).reshape(height, width, 3)


def _depth(known: Known, transform: FrameTransform) -> np.ndarray | None:
    """Depth of the pixels of the frame: that of the nearest pixel of the map, 0 beyond it.

    As in the official loader of Pi3X (pi3/utils/basic.py, through OpenCV), the corner of a pixel
    finds the nearest, not its centre, where the map is of the whole photograph.
    """
    if known.depth is None:
        return None
    depth = np.asarray(known.depth())
    if depth.ndim != 2:
        raise InputError(f"a map of depth has the shape {depth.shape}; it must be [height width]")
    height, width = transform.model_size
    grid = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1)
    if known.depth_transform is None:
        in_map = np.array(depth.shape[::-1]) / np.array(transform.original_size[::-1])
        scale = np.array([transform.scale_x, transform.scale_y]) / in_map
        # A quotient of quotients, since OpenCV rounds so: whole numbers come out just below.
        places = (grid - np.array([transform.offset_x, transform.offset_y])) * (1 / scale)
        places = np.floor(places).astype(int)
        first, last = (0, 0), (depth.shape[1] - 1, depth.shape[0] - 1)
    else:
        there = known.depth_transform
        places = np.rint(there.pixels_to_model(transform.pixels_to_original(grid))).astype(int)
        first = (there.content_columns[0], there.content_rows[0])
        last = (there.content_columns[1] - 1, there.content_rows[1] - 1)
    inside = ((places >= first) & (places <= last)).all(-1)
    x, y = np.moveaxis(np.clip(places, first, last), -1, 0)
    values = depth[y, x].astype(np.float32)
    return np.where(inside & np.isfinite(values) & (values > 0), values, 0)
