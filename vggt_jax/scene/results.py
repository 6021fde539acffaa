"""The file that keeps a scene, `predictions.npz`: what it holds, writing it and reading it again.

Users read it with NumPy, so its names and shapes are as public as those of functions. By name it
holds

- the arrays of `Reconstruction` that are not None, under the names of their fields;
- of its `attention_stats`, one array a field, `attention_density` and so on;
- `names`, `confidence_kind`, `pixel_centre`, `length_unit` ("arbitrary" where a file of an
  earlier version lacks it) and `best_points` (if anybody said so), see `Reconstruction`;
- of `transforms`, one row a frame: `original_sizes` (height, width), `model_from_original` (scale x
  and y, offset x and y, see `FrameTransform`) and `content` (half-open ranges of rows and columns);
- for convenience, though it follows from the others, `valid` (bool, False on padding) and
  `tracks_in_photographs` (`tracks` in pixels of the photographs);
- `provenance`: JSON (UTF-8, as bytes) of what made the scene, see `Provenance`; missing in files of
  an earlier version, and where it is not known;
- of a batch, `made_from`: JSON (UTF-8, as bytes) of what was read, by which resuming tells whether
  the result still holds;
- `schema_version`, an integer. Version 1 lacks it. New arrays do not raise it, since readers leave
  alone what they do not know; what an older reader would misunderstand does.
"""

import dataclasses
import json
import os
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, BinaryIO, cast

import jax
import numpy as np

from vggt_jax.errors import InputError
from vggt_jax.files import RESULTS, checked_path
from vggt_jax.files.claims import settle
from vggt_jax.files.documents import parse_json
from vggt_jax.images.frames import Frames, FrameTransform
from vggt_jax.layers.scene_attention import AttentionStats
from vggt_jax.scene.npz import InPieces, Predictions, write_predictions
from vggt_jax.scene.provenance import Provenance
from vggt_jax.scene.reconstruction import LengthUnit, PointSource, Reconstruction
from vggt_jax.scene.table import TABLE, check_shapes, check_values

SCHEMA_VERSION = 2
_ARRAYS = tuple(
    field.name
    for field in dataclasses.fields(Reconstruction)
    if not field.metadata.get("static") and field.name != "attention_stats"
)
_STATS = tuple(field.name for field in dataclasses.fields(AttentionStats))
_MAPPED_FROM, _LARGE = 2**20, 2**31  # Bytes.
_TRANSFORMS = ("original_sizes", "model_from_original", "content")


def results_file(path: str | os.PathLike) -> Path:
    """The file of results in a folder, which need not exist; a path that ends in .npz is the file.

    Args:
        path: the folder of results, or its file.
    """
    path = Path(path)
    return path if path.suffix == ".npz" and not path.is_dir() else path / RESULTS


def write_reconstruction(
    path: str | os.PathLike, recon: Reconstruction, *, made_from: Mapping[str, Any] | None = None
) -> None:
    """Writes a scene so that `load_reconstruction` gives it back, whole or not at all.

    Args:
        path: the folder of results, or the file in it that ends in .npz; made if it is missing.
        recon: without scene axis, as `infer` returns it. Arrays of JAX are taken from their device.
        made_from: what to write down of its origin, as JSON.

    Raises:
        InputError: there are several scenes, or the file cannot be written.
        ValueError: an array has a dtype that the file cannot hold, such as bfloat16.
    """
    if recon.images.ndim != 4:
        raise InputError("several scenes cannot be written together; give one, without scene axis")
    write_arrays(path, jax.device_get(recon), made_from=made_from)


def write_arrays(
    path: str | os.PathLike,
    recon: Reconstruction,
    *,
    made_from: Mapping[str, Any] | None = None,
    of_frames: Callable[[str, np.ndarray], np.ndarray | InPieces] = lambda name, array: array,
) -> None:
    """`write_reconstruction` of a scene on the host.

    Args:
        of_frames: what is written in place of an array with a leading axis of frames, by its name.
    """
    per_frame = {name: getattr(recon, name) for name in _ARRAYS if getattr(recon, name) is not None}
    per_frame["valid"] = np.ones(recon.images.shape[:3], bool)
    if recon.transforms:
        frames = len(recon.images)
        part = Frames(
            images=np.asarray(recon.images),
            names=recon.names[:frames],
            transforms=recon.transforms[:frames],
        )
        per_frame["valid"] = part.valid_mask()
        if recon.tracks is not None:
            per_frame["tracks_in_photographs"] = recon.tracks_in_photographs()
    arrays: dict[str, np.ndarray | InPieces] = {
        name: of_frames(name, array) for name, array in per_frame.items()
    }
    if recon.attention_stats is not None:
        stats = vars(recon.attention_stats)
        arrays |= {f"attention_{name}": value for name, value in stats.items()}
    arrays |= {
        "names": np.array(recon.names, str),
        "confidence_kind": np.array(recon.confidence_kind),
        "pixel_centre": np.array(recon.pixel_centre),
        "length_unit": np.array(recon.length_unit),
        **_transform_arrays(recon.transforms),
        "schema_version": np.array(SCHEMA_VERSION),
    }
    if recon.best_points is not None:
        arrays["best_points"] = np.array(recon.best_points)
    for name, document in (("provenance", recon.provenance.to_dict()), ("made_from", made_from)):
        if document or (name == "made_from" and document is not None):
            arrays[name] = np.frombuffer(json.dumps(document).encode(), np.uint8)
    write_predictions(results_file(checked_path(path, "folder of results")), arrays)


def load_reconstruction(path: str | os.PathLike, *, memory_map: bool = False) -> Reconstruction:
    """Reads a scene that `vggt-jax infer` or `reconstruct_scenes` wrote.

    Everything is in `predictions.npz`; the other files beside it are not looked at. Only the arrays
    of `scene/table.py` are read, after their names, shapes and types have been checked.

    Args:
        path: the folder of results, or its `predictions.npz`.
        memory_map: whether arrays stay in the file, which is read where they are used: for scenes
            that do not fit into memory. Changes of their values stay in memory. They are not
            checked against their checksums.

    Returns:
        The reconstruction as `infer` returned it: NumPy arrays without scene axis, with names and
        transforms.

    Raises:
        InputError: there are no results in this place, they are damaged, an earlier version of the
            project wrote them and left out what is needed, or a later one of another schema did.
    """
    path = checked_path(path, "folder of results")
    file = path / RESULTS if path.is_dir() else path
    with _open(file, path) as predictions:
        _check_version(predictions)
        members = predictions.members([name for name in TABLE if name != "made_from"])
        check_shapes({name: (x.shape, x.dtype) for name, x in members.items()}, str(file))
        arrays = {
            name: predictions.mapped(name)
            if memory_map and member.num_bytes > _MAPPED_FROM
            else predictions.read(name)
            for name, member in members.items()
        }
    check_values(arrays, str(file))
    stats: dict[str, Any] = {name: arrays.get(f"attention_{name}") for name in _STATS}
    if (
        stats["error"] is None and stats["density"] is not None
    ):  # as in files before it was measured
        stats["error"] = np.full_like(stats["density"], np.nan)
    fields: dict[str, Any] = {name: arrays.get(name) for name in _ARRAYS}
    return Reconstruction(
        **fields,
        attention_stats=None if stats["density"] is None else AttentionStats(**stats),
        confidence_kind=str(arrays["confidence_kind"]),
        pixel_centre=float(arrays["pixel_centre"]),
        length_unit=cast(LengthUnit, str(arrays.get("length_unit", "arbitrary"))),
        best_points=cast(PointSource, str(arrays["best_points"]))
        if "best_points" in arrays
        else None,
        names=tuple(map(str, arrays["names"])),
        transforms=_transforms(arrays),
        provenance=_provenance(arrays.get("provenance"), str(file)),
    )


def _provenance(text: np.ndarray | None, file: str) -> Provenance:
    if text is None:
        return Provenance()
    found = parse_json(text.tobytes(), file, error=InputError)
    return Provenance.from_dict(found) if isinstance(found, dict) else Provenance()


def is_large(path: str | os.PathLike) -> bool:
    """Whether results are so large that `load_reconstruction` should map them: over 2 GiB.

    Args:
        path: the folder of results, or its file.
    """
    file = results_file(path)
    return file.is_file() and file.stat().st_size > _LARGE


def made_from(path: str | os.PathLike) -> dict[str, Any] | None:
    """What `write_reconstruction` was told that a scene was made from; None where it was told
    nothing.

    The rest of the file is looked at, and not read.

    Args:
        path: the file.

    Raises:
        InputError: there is no file, it is damaged or unfinished, or no reconstruction.
    """
    file = Path(path)
    with _open(file, file) as predictions:
        _check_version(predictions)
        members = predictions.members(TABLE)
        check_shapes({name: (x.shape, x.dtype) for name, x in members.items()}, str(file))
        return _made_from(predictions, str(file))


def made_from_opened(file: BinaryIO, shown: str) -> dict[str, Any] | None:
    """`made_from` of a file that lies elsewhere, of which as little as possible is read.

    Args:
        file: opened, and can be sought in.
        shown: its name for messages.

    Raises:
        InputError: as `made_from`.
    """
    with Predictions(Path(shown), opened=file) as predictions:
        _check_version(predictions)
        if not predictions.members(["images"]):
            raise InputError(f"{shown}: holds no images, and is no reconstruction")
        return _made_from(predictions, shown)


def _made_from(predictions: Predictions, shown: str) -> dict[str, Any] | None:
    if not predictions.members(["made_from"]):
        return None
    found = parse_json(predictions.read("made_from").tobytes(), shown, error=InputError)
    return found if isinstance(found, dict) else {}


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


def _open(file: Path, given: Path) -> Predictions:
    if not file.is_file():
        # A process that was killed may have been putting it in place.
        settle(Path(os.path.realpath(given)))
    if not file.is_file():
        if file.is_dir():
            raise InputError(f"{file}: is a folder, and should be the file of results; remove it")
        what = f"no {RESULTS} in this folder" if given.is_dir() else "no such file or folder"
        raise InputError(f"{given}: {what}; give the folder that `vggt-jax infer` wrote")
    return Predictions(file)


def _check_version(predictions: Predictions) -> None:
    """Checks the version before anything else, of which a later one may have another idea."""
    name, file = "schema_version", predictions.path
    member = predictions.members([name]).get(name)
    if member is None:
        return
    if member.num_bytes > 1000:
        raise InputError(f"{file}: {name} {member.shape} is no version; run infer again")
    found = predictions.read(name)
    if found.ndim or found.dtype.kind not in "iu" or found < 1:
        raise InputError(f"{file}: {name} {found} is no version; run infer again")
    if found > SCHEMA_VERSION:
        raise InputError(
            f"{file}: has version {found} of the schema, and this vggt-jax reads versions up to "
            f"{SCHEMA_VERSION}; upgrade it: pip install --upgrade vggt-jax"
        )
