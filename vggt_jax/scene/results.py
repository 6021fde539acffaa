"""Reading back what was written of a scene."""

import dataclasses
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any

import numpy as np

from vggt_jax.errors import InputError
from vggt_jax.files import RESULTS
from vggt_jax.images.frames import FrameTransform
from vggt_jax.layers.scene_attention import AttentionStats
from vggt_jax.scene.reconstruction import Reconstruction

_ARRAYS = (
    "images camera_from_world intrinsics depth depth_confidence depth_edges mask world_points "
    "world_points_confidence tracks track_visibility track_confidence"
).split()
_STATS = tuple(field.name for field in dataclasses.fields(AttentionStats))
_NEEDED = ("images", "names", "confidence_kind", "pixel_centre", "original_sizes")
_CONFIDENCE_KINDS = ("one_plus_exp", "sigmoid")


def load_reconstruction(path: str | os.PathLike) -> Reconstruction:
    """Reads a scene that `vggt-jax infer` or `reconstruct_scenes` wrote.

    Everything is in `predictions.npz`; the other files beside it are not looked at.

    Args:
        path: the folder of results, or its `predictions.npz`.

    Returns:
        The reconstruction as `infer` returned it: NumPy arrays without scene axis, with names and
        transforms.

    Raises:
        InputError: there are no results in this place, they are damaged, or an earlier version of
            the project wrote them and left out what is needed.
    """
    path = Path(path)
    file = path / RESULTS if path.is_dir() else path
    arrays = _read(file, path)
    if missing := [name for name in _NEEDED if name not in arrays]:
        raise InputError(
            f"{file}: lacks {', '.join(missing)}, so that `vggt-jax infer` did not write it, or an "
            "earlier version of it did; run it again"
        )
    num_frames = len(arrays["images"])
    for name in ("names", "original_sizes", "model_from_original", "content"):
        if name not in arrays or len(arrays[name]) != num_frames:
            raise InputError(f"{file}: {name} is not that of {num_frames} frames; run infer again")
    confidence_kind = str(arrays["confidence_kind"])
    if confidence_kind not in _CONFIDENCE_KINDS:
        raise InputError(
            f"{file}: {confidence_kind=} must be one of {', '.join(_CONFIDENCE_KINDS)}; "
            "run infer again"
        )
    stats: dict[str, Any] = {name: arrays.get(f"attention_{name}") for name in _STATS}
    fields: dict[str, Any] = {name: arrays.get(name) for name in _ARRAYS}
    return Reconstruction(
        **fields,
        attention_stats=None if stats["density"] is None else AttentionStats(**stats),
        confidence_kind=confidence_kind,
        pixel_centre=float(arrays["pixel_centre"]),
        names=tuple(map(str, arrays["names"])),
        transforms=_transforms(arrays),
    )


def transform_arrays(transforms: tuple[FrameTransform, ...]) -> dict[str, np.ndarray]:
    """What `load_reconstruction` needs of the transforms, by name, one row per frame.

    Returns:
        `original_sizes` (height, width), `model_from_original` (scale x and y, offset x and y; see
        `FrameTransform`) and `content` (half-open ranges of rows and of columns).
    """
    rows = [
        (
            t.original_size,
            (t.scale_x, t.scale_y, t.offset_x, t.offset_y),
            (*t.content_rows, *t.content_columns),
        )
        for t in transforms
    ]
    sizes, scales, content = zip(*rows, strict=True) if rows else ((), (), ())
    return {
        "original_sizes": np.array(sizes, np.int64).reshape(-1, 2),
        "model_from_original": np.array(scales, np.float64).reshape(-1, 4),
        "content": np.array(content, np.int64).reshape(-1, 4),
    }


def _transforms(arrays: dict[str, np.ndarray]) -> tuple[FrameTransform, ...]:
    transforms = []
    columns = (
        arrays[name].tolist() for name in ("original_sizes", "model_from_original", "content")
    )
    for original_size, model_from_original, content in zip(*columns, strict=True):
        scale_x, scale_y, offset_x, offset_y = model_from_original
        transform = FrameTransform(
            original_size=tuple(original_size),
            model_size=arrays["images"].shape[1:3],
            scale_x=scale_x,
            scale_y=scale_y,
            offset_x=offset_x,
            offset_y=offset_y,
            content_rows=tuple(content[:2]),
            content_columns=tuple(content[2:]),
        )
        transforms.append(transform)
    return tuple(transforms)


def _read(file: Path, given: Path) -> dict[str, np.ndarray]:
    if not file.is_file():
        what = f"no {RESULTS} in this folder" if given.is_dir() else "no such file or folder"
        raise InputError(f"{given}: {what}; give the folder that `vggt-jax infer` wrote")
    if not zipfile.is_zipfile(file):
        raise InputError(f"{file}: is no .npz file, or damaged; give a folder of results")
    try:
        with np.load(file, allow_pickle=False) as arrays:
            return {name: arrays[name] for name in arrays}
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"{file}: cannot be read or is damaged ({error}); run infer again"
        ) from error
