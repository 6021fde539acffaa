"""What files tell of photographs as `Priors` of the frames that a model sees."""

import os
from collections.abc import Collection, Iterable
from pathlib import Path, PurePosixPath, PureWindowsPath
from typing import Any

import numpy as np

from vggt_jax.errors import InputError
from vggt_jax.files import checked_path
from vggt_jax.images.files import composed
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
    path = checked_path(path, "file of what is known")
    if not os.path.exists(path):
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
    priors = Priors(**fields, metric=scene.metric)
    try:
        priors.checked(len(frames.images), frames.images.shape[1:3])
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    return priors


def _of_frames(photographs, frames: Frames, path: Path) -> list[Known]:
    """What is known of each frame."""
    if isinstance(photographs, list):
        if len(photographs) != len(frames.images):
            raise InputError(
                f"{path}: has arrays of {len(photographs)} photographs, and there are "
                f"{len(frames.images)}"
            )
        return photographs
    there = _ByEndOfPath(photographs)
    try:
        names = [there.find(name) for name in frames.names]
    except InputError as error:
        raise InputError(f"{path}: {error}") from error
    found = [Known() if name is None else photographs[name] for name in names]
    if not any(name is not None for name in names):
        examples = lambda names: ", ".join(list(names)[:3]) or "none"
        raise InputError(
            f"{path}: knows none of the photographs ({examples(frames.names)}), but "
            f"{examples(photographs)}; names must agree"
        )
    return found


class _ByEndOfPath:
    """Photographs by the names that a file gives them: with other folders before them than frames
    have, with accents in another form, from Windows, or without an ending."""

    def __init__(self, names: Iterable[str]):
        self._by_last: dict[str, list[tuple[str, list[str]]]] = {}
        for name in names:
            parts = self._parts(name)
            self._by_last.setdefault(parts[-1], []).append((name, parts))

    def find(self, name: str) -> str | None:
        """The name of a frame's photograph in the file; None where there is none.

        Raises:
            InputError: it could be several.
        """
        parts = self._parts(name)
        found = self._by_last.get(parts[-1])
        if found is None:
            parts = [*parts[:-1], PurePosixPath(parts[-1]).stem]
            found = self._by_last.get(parts[-1], [])
        if len(found) > 1:  # Those that agree the farthest.
            shared = [_common(parts[::-1], there[::-1]) for _, there in found]
            found = [x for x, number in zip(found, shared, strict=True) if number == max(shared)]
        if len(found) > 1:
            raise InputError(
                f"has {len(found)} photographs of the name {parts[-1]} in different folders, and "
                "which of them is meant cannot be told"
            )
        return found[0][0] if found else None

    @staticmethod
    def _parts(name: str) -> list[str]:
        path = PurePosixPath(name) if "/" in name else PureWindowsPath(name)
        return [composed(part) for part in path.parts] or [name]


def _common(first: list[str], second: list[str]) -> int:
    """How many parts are the same at the beginning."""
    same = [x == y for x, y in zip(first, second, strict=False)]
    return [*same, False].index(False)


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
