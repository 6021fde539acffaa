"""The file that keeps a scene, `predictions.npz`: what it holds, writing it and reading it again.

Users read it with NumPy, so its names and shapes are as public as those of functions. By name it
holds

- the arrays of `Reconstruction` that are not None, under the names of their fields;
- of its `attention_stats`, one array a field, `attention_density` and so on;
- `names`, `confidence_kind`, `pixel_centre` and `length_unit` ("arbitrary" where a file of an
  earlier version lacks it), see `Reconstruction`;
- of `transforms`, one row a frame: `original_sizes` (height, width), `model_from_original` (scale x
  and y, offset x and y, see `FrameTransform`) and `content` (half-open ranges of rows and columns);
- for convenience, though it follows from the others, `valid` (bool, False on padding) and
  `tracks_in_photographs` (`tracks` in pixels of the photographs);
- `schema_version`, an integer. Version 1 lacks it. New arrays do not raise it, since readers leave
  alone what they do not know; what an older reader would misunderstand does.
"""

import dataclasses
import os
import zipfile
import zlib
from pathlib import Path
from typing import Any, cast, get_args

import jax
import numpy as np

from vggt_jax.errors import InputError
from vggt_jax.files import RESULTS
from vggt_jax.images.frames import Frames, FrameTransform
from vggt_jax.layers.scene_attention import AttentionStats
from vggt_jax.scene.npz import write_predictions
from vggt_jax.scene.reconstruction import LengthUnit, Reconstruction

SCHEMA_VERSION = 2
_ARRAYS = tuple(
    field.name
    for field in dataclasses.fields(Reconstruction)
    if not field.metadata.get("static") and field.name != "attention_stats"
)
_STATS = tuple(field.name for field in dataclasses.fields(AttentionStats))
_NEEDED = ("images", "names", "confidence_kind", "pixel_centre", "original_sizes")
_TRANSFORMS = ("original_sizes", "model_from_original", "content")
_CONFIDENCE_KINDS = ("one_plus_exp", "sigmoid")


def results_file(path: str | os.PathLike) -> Path:
    """The file of results in a folder, which need not exist; a path that ends in .npz is the file.

    Args:
        path: the folder of results, or its file.
    """
    path = Path(path)
    return path if path.suffix == ".npz" and not path.is_dir() else path / RESULTS


def write_reconstruction(path: str | os.PathLike, recon: Reconstruction) -> None:
    """Writes a scene so that `load_reconstruction` gives it back, whole or not at all.

    Args:
        path: the folder of results, or the file in it that ends in .npz; made if it is missing.
        recon: without scene axis, as `infer` returns it. Arrays of JAX are taken from their device.

    Raises:
        InputError: there are several scenes, or the file cannot be written.
        ValueError: an array has a dtype that the file cannot hold, such as bfloat16.
    """
    if recon.images.ndim != 4:
        raise InputError("several scenes cannot be written together; give one, without scene axis")
    recon = jax.device_get(recon)
    arrays = {name: getattr(recon, name) for name in _ARRAYS if getattr(recon, name) is not None}
    if recon.attention_stats is not None:
        stats = vars(recon.attention_stats)
        arrays |= {f"attention_{name}": value for name, value in stats.items()}
    valid = np.ones(recon.images.shape[:3], bool)
    if recon.transforms:
        frames = Frames(
            images=np.asarray(recon.images), names=recon.names, transforms=recon.transforms
        )
        valid = frames.valid_mask()
        if recon.tracks is not None:
            arrays["tracks_in_photographs"] = recon.tracks_in_photographs()
    arrays |= {
        "names": np.array(recon.names, str),
        "valid": valid,
        "confidence_kind": np.array(recon.confidence_kind),
        "pixel_centre": np.array(recon.pixel_centre),
        "length_unit": np.array(recon.length_unit),
        **_transform_arrays(recon.transforms),
        "schema_version": np.array(SCHEMA_VERSION),
    }
    write_predictions(results_file(path), arrays)


def load_reconstruction(path: str | os.PathLike) -> Reconstruction:
    """Reads a scene that `vggt-jax infer` or `reconstruct_scenes` wrote.

    Everything is in `predictions.npz`; the other files beside it are not looked at.

    Args:
        path: the folder of results, or its `predictions.npz`.

    Returns:
        The reconstruction as `infer` returned it: NumPy arrays without scene axis, with names and
        transforms.

    Raises:
        InputError: there are no results in this place, they are damaged, an earlier version of the
            project wrote them and left out what is needed, or a later one of another schema did.
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
    # A scene of arrays may have no names, and one that nobody resized no transforms.
    num_transforms = len(arrays["original_sizes"]) and num_frames
    num_names = len(arrays["names"]) and num_frames
    for name, rows in {"names": num_names, **dict.fromkeys(_TRANSFORMS, num_transforms)}.items():
        if name not in arrays or len(arrays[name]) != rows:
            raise InputError(f"{file}: {name} is not that of {num_frames} frames; run infer again")
    confidence_kind = str(arrays["confidence_kind"])
    if confidence_kind not in _CONFIDENCE_KINDS:
        raise InputError(
            f"{file}: {confidence_kind=} must be one of {', '.join(_CONFIDENCE_KINDS)}; "
            "run infer again"
        )
    length_unit = str(arrays.get("length_unit", "arbitrary"))
    if length_unit not in get_args(LengthUnit):
        raise InputError(
            f"{file}: {length_unit=} must be one of {', '.join(get_args(LengthUnit))}; "
            "run infer again"
        )
    stats: dict[str, Any] = {name: arrays.get(f"attention_{name}") for name in _STATS}
    if (
        stats["error"] is None and stats["density"] is not None
    ):  # as in files before it was measured
        stats["error"] = np.full_like(stats["density"], np.nan)
    fields: dict[str, Any] = {name: arrays.get(name) for name in _ARRAYS}
    return Reconstruction(
        **fields,
        attention_stats=None if stats["density"] is None else AttentionStats(**stats),
        confidence_kind=confidence_kind,
        pixel_centre=float(arrays["pixel_centre"]),
        length_unit=cast(LengthUnit, length_unit),
        names=tuple(map(str, arrays["names"])),
        transforms=_transforms(arrays),
    )


def _transform_arrays(transforms: tuple[FrameTransform, ...]) -> dict[str, np.ndarray]:
    """The transforms by name, one row per frame; see the beginning of this file."""
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
    columns = (arrays[name].tolist() for name in _TRANSFORMS)
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
            # Before anything else is read, of which a later version may have another idea.
            if "schema_version" in arrays:
                _check_version(file, arrays["schema_version"])
            return {name: arrays[name] for name in arrays}
    except InputError:
        raise
    except (OSError, ValueError, EOFError, zipfile.BadZipFile, zlib.error) as error:
        raise InputError(
            f"{file}: cannot be read or is damaged ({error}); run infer again"
        ) from error


def _check_version(file: Path, found: np.ndarray) -> None:
    if found.ndim or found.dtype.kind not in "iu" or found < 1:
        raise InputError(f"{file}: schema_version {found} is no version; run infer again")
    if found > SCHEMA_VERSION:
        raise InputError(
            f"{file}: has version {found} of the schema, and this vggt-jax reads versions up to "
            f"{SCHEMA_VERSION}; upgrade it: pip install --upgrade vggt-jax"
        )
