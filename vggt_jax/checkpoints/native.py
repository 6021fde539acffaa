"""Our checkpoint on disk, its one home: a folder with an Orbax checkpoint, or a single file.

A folder holds `config.json` (format, version, model, configuration, checksum), `arrays/` (an Orbax
checkpoint, a flat mapping from parameter name to array) and, after a conversion, `report.json`. A
`.safetensors` file holds the same documents in its metadata. `least_agreement` of the document is
how far results of these parameters must agree with themselves; it is missing where nobody
calibrated them, so that parameters that are trained further and saved again have none.
"""

import hashlib
import json
import math
import os
import shutil
from collections.abc import Collection, Mapping
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np

from vggt_jax.checkpoints import eight_bits
from vggt_jax.checkpoints.errors import CheckpointError, first_line
from vggt_jax.checkpoints.orbax_arrays import read_arrays, write_arrays
from vggt_jax.checkpoints.safetensors_file import (
    begins_like_safetensors,
    read_safetensors,
    write_safetensors,
)
from vggt_jax.errors import InputError
from vggt_jax.files import checked_path, read_json, replacing
from vggt_jax.files.claims import settle
from vggt_jax.files.documents import parse_json
from vggt_jax.files.folders import place_for_folder

FORMAT = "vggt-jax"
"""What `config.json` names as its format."""
VERSION = 2
"""Version of the format, raised when older code cannot read it any more. Checkpoints without
kernels of eight bits are still written in version 1, which has all but those."""

Params = dict[str, np.ndarray]
Document = dict[str, Any]

_CONFIG, _REPORT, _ARRAYS = "config.json", "report.json", "arrays"
_EMPTY, _FILES = "empty_parameters", "files"  # fields of config.json for reading a folder
_FIELDS = {"version": int, "model": str, "config": dict, "checksum": str}
_TYPES = {"float16": np.float16, "float32": np.float32, "float64": np.float64}
_TYPES |= {"bfloat16": ml_dtypes.bfloat16}


def checksum(params: Mapping[str, np.ndarray]) -> str:
    """Returns the SHA-256 over the parameters in the order of their names.

    It covers name, type, shape and bytes (C order, little endian) of each.
    """
    digest = hashlib.sha256()
    for name in sorted(params):
        array = np.ascontiguousarray(params[name])
        digest.update(f"{name} {array.dtype.name} {list(params[name].shape)}\n".encode())
        digest.update(array.reshape(-1).view(np.uint8).data)
    return f"sha256:{digest.hexdigest()}"


def is_native(path: str | os.PathLike) -> bool:
    """Returns whether a path names itself one of our checkpoints, complete or damaged."""
    try:
        path = checked_path(path, "checkpoint", error=CheckpointError)
        if path.is_dir():
            return _read_json(path / _CONFIG).get("format") == FORMAT
        return begins_like_safetensors(path) and FORMAT in read_safetensors(path)[1]
    except CheckpointError:
        return False


def read(path: str | os.PathLike, *, verify: bool = False) -> tuple[Params, Document]:
    """Reads one of our checkpoints.

    Args:
        path: the folder or `.safetensors` file.
        verify: whether to recompute the checksum, which reads every byte once more.

    Returns:
        Parameters by name (of a file memory-mapped and read-only; bfloat16 where eight bits are
        stored), and the document with `format`, `version`, `model`, `config` and `checksum`.

    Raises:
        CheckpointError: the checkpoint is missing, incomplete, damaged, of a newer version, or
            `verify` finds other values than were written.
    """
    path = checked_path(path, "checkpoint", error=CheckpointError)
    if not path.exists() or (path.is_dir() and not (path / _CONFIG).exists()):
        settle(Path(os.path.realpath(path)))  # A process that was killed may have been writing it.
    if not path.exists():
        raise CheckpointError(f"{path}: no such checkpoint")
    if path.is_dir():
        params, document = _read_folder(path)
    else:
        params, metadata = read_safetensors(path)
        if FORMAT not in metadata:
            raise CheckpointError(
                f"{path}: not a checkpoint of {FORMAT}; convert it with convert/from_torch.py"
            )
        document = _checked(_as_object(_parse(metadata[FORMAT], path)), path)
    try:
        params = eight_bits.restored(params)
    except CheckpointError as error:
        raise CheckpointError(f"{path}: damaged: {error}") from error
    if verify and (found := checksum(params)) != document["checksum"]:
        raise CheckpointError(
            f"{path}: damaged: its checksum is {found}, not {document['checksum']} as written; "
            "copy or convert it again"
        )
    return params, document


def check_destination(destination: str | os.PathLike, *, overwrite: bool = False) -> None:
    """Checks that a checkpoint can be written there, before the work that leads to it.

    Raises:
        CheckpointError: the destination exists (and is no checkpoint of ours or `overwrite` is
            false), or its folder cannot be written.
    """
    destination = checked_path(destination, "destination", error=CheckpointError)
    settle(Path(os.path.realpath(destination)))
    empty_folder = destination.is_dir() and not any(destination.iterdir())
    if os.path.lexists(destination) and not empty_folder:
        if not is_native(destination):
            raise CheckpointError(
                f"{destination}: exists and is not a checkpoint of {FORMAT}; choose another path"
            )
        if not overwrite:
            raise CheckpointError(
                f"{destination}: exists; choose another path, or replace it with --overwrite"
            )
    folder = _existing_folder(destination)
    if not folder.is_dir() or not os.access(folder, os.W_OK | os.X_OK):
        raise CheckpointError(
            f"{destination}: cannot be written, {folder} is not a writable folder; choose another "
            "path"
        )


def _existing_folder(path: Path) -> Path:
    """Returns the nearest thing that exists above a path."""
    return next(folder for folder in path.absolute().parents if folder.exists())


def write(
    destination: str | os.PathLike,
    params: Mapping[str, np.ndarray],
    config_document: Mapping[str, Any],
    *,
    report: Mapping[str, Any] | None = None,
    overwrite: bool = False,
    int8: Collection[str] = (),
) -> None:
    """Writes one of our checkpoints, whole or not at all.

    It is written beside its destination and renamed at the end, so a failure leaves what was there.

    Args:
        destination: a folder to make, or a path that ends in `.safetensors`.
        params: parameters by name.
        config_document: `model` and `config`; also `checksum`, where it is known already.
        report: JSON-ready report to keep with the checkpoint.
        overwrite: whether to replace a checkpoint of ours that exists.
        int8: names of kernels to store in eight bits, which are read as bfloat16. The checksum is
            then that of what is read.

    Raises:
        CheckpointError: the destination cannot be written, or exists; or there is no kernel of a
            name in `int8`.
    """
    destination = Path(destination)
    check_destination(destination, overwrite=overwrite)
    params = eight_bits.compressed(params, int8)
    params = {name: np.ascontiguousarray(x).reshape(np.shape(x)) for name, x in params.items()}
    document = {"format": FORMAT, "version": VERSION if int8 else 1, **config_document}
    if int8 or "checksum" not in document:
        document["checksum"] = checksum(eight_bits.restored(params))
    documents = {_CONFIG: _checked(document, destination)}
    if report is not None:
        documents[_REPORT] = dict(report)
    needed = sum(x.nbytes for x in params.values())
    free = shutil.disk_usage(_existing_folder(destination)).free
    if free < needed:
        raise CheckpointError(
            f"{destination}: needs {needed / 1e9:.2f} GB, {free / 1e9:.2f} GB are free; make room "
            "or choose another path"
        )
    try:
        if destination.suffix == ".safetensors":
            with replacing(destination) as file:
                _write_file(file, params, documents)
        else:
            with place_for_folder(destination) as place:
                _write_folder(place.new, params, documents)
                # Again: another process may have written there meanwhile.
                check_destination(destination, overwrite=overwrite)
                place.put(_listed(destination))
    except (OSError, ValueError) as error:  # ValueError comes from TensorStore
        if isinstance(error, CheckpointError):
            raise
        problem = first_line(error)
        if not isinstance(error, InputError) or str(destination) not in problem:
            problem = f"{destination}: cannot be written ({problem})"
        raise CheckpointError(problem) from error


def annotate(path: str | os.PathLike, **fields: Any) -> None:
    """Changes fields of the document of one of our checkpoints, and leaves its arrays as they are.

    Args:
        path: the folder or `.safetensors` file.
        fields: their new values, as JSON; None removes one.

    Raises:
        CheckpointError: it is no checkpoint of ours, or cannot be written.
    """
    path = checked_path(path, "checkpoint", error=CheckpointError)
    if not is_native(path):
        raise CheckpointError(f"{path}: not a checkpoint of {FORMAT}")
    changed = lambda document: {
        name: value for name, value in (document | fields).items() if value is not None
    }
    try:
        if path.is_dir():
            text = json.dumps(changed(_read_json(path / _CONFIG)), indent=1) + "\n"
            with replacing(path / _CONFIG) as file:
                file.write(text.encode())
        else:
            params, metadata = read_safetensors(path)
            document = changed(_as_object(_parse(metadata[FORMAT], path)))
            with replacing(path) as file:
                write_safetensors(file, params, metadata | {FORMAT: json.dumps(document)})
    except (OSError, InputError) as error:
        if isinstance(error, CheckpointError):
            raise
        raise CheckpointError(f"{path}: cannot be written ({first_line(error)})") from error


def _write_file(file: BinaryIO, params: Params, documents: Mapping[str, Document]) -> None:
    metadata = {FORMAT: json.dumps(documents[_CONFIG])}
    if _REPORT in documents:
        metadata["report"] = json.dumps(documents[_REPORT])
    write_safetensors(file, params, metadata)


def _write_folder(path: Path, params: Params, documents: Mapping[str, Document]) -> None:
    write_arrays(path / _ARRAYS, {name: x for name, x in params.items() if x.size})
    files = sorted(file for file in path.rglob("*") if file.is_file())
    folder_fields = {
        # Orbax takes no arrays without elements; a model without register tokens has one.
        _EMPTY: {name: [x.dtype.name, x.shape] for name, x in params.items() if not x.size},
        _FILES: {file.relative_to(path).as_posix(): file.stat().st_size for file in files},
    }
    for name, document in documents.items():
        fields = document | folder_fields if name == _CONFIG else document
        (path / name).write_text(json.dumps(fields, indent=1) + "\n", encoding="utf-8")


def _listed(folder: Path) -> set[str]:
    """The files that a checkpoint in a folder lists as its own, by their paths in it; none if it
    holds no checkpoint."""
    if not is_native(folder):
        return set()
    listed = _read_json(folder / _CONFIG).get(_FILES)
    return {_CONFIG, _REPORT, *(listed if isinstance(listed, dict) else ())}


def _read_folder(path: Path) -> tuple[Params, Document]:
    document = _checked(_read_json(path / _CONFIG), path)
    for name, size in _files(document.pop(_FILES, {}), path).items():
        found = (path / name).stat().st_size if (path / name).is_file() else 0
        if found != size:
            raise CheckpointError(
                f"{path}: incomplete, {name} has {found} of {size} bytes; copy or convert it again"
            )
    empty = _empty_parameters(document.pop(_EMPTY, {}), path)
    params = read_arrays(path / _ARRAYS)
    if twice := sorted(params.keys() & empty.keys()):
        raise CheckpointError(
            f"{path}: {_CONFIG} calls {twice[0]} empty, which has values; convert it again"
        )
    return params | empty, document


def _files(listed: Any, path: Path) -> dict[str, int]:
    """The sizes of the files of a folder, as its configuration lists them."""
    is_right = isinstance(listed, dict) and all(
        isinstance(size, int) and _is_name(name) for name, size in listed.items()
    )
    if not is_right:
        raise CheckpointError(
            f"{path}: {_FILES} in {_CONFIG} must be sizes by name; convert it again"
        )
    return listed


def _is_name(name: str) -> bool:
    """Whether a path stays in the folder that it is relative to, and a system takes it."""
    parts = PurePosixPath(name).parts
    short = len(name) < 4000 and all(len(os.fsencode(part)) < 256 for part in parts)
    return short and "\0" not in name and name[:1] != "/" and ".." not in parts


def _empty_parameters(listed: Any, path: Path) -> Params:
    """The parameters without elements, as the configuration of a folder lists them."""
    params = {}
    for name, entry in listed.items() if isinstance(listed, dict) else [("", listed)]:
        match entry:
            case [str(dtype), [*shape]] if dtype in _TYPES and _is_empty(shape):
                params[name] = np.empty(shape, _TYPES[dtype])
            case _:
                raise CheckpointError(
                    f"{path}: {_EMPTY} in {_CONFIG} must be types and shapes of arrays without "
                    f"elements, by name, not {str(entry)[:60]!r}; convert it again"
                )
    return params


def _is_empty(shape: list[Any]) -> bool:
    are_lengths = all(type(length) is int and 0 <= length < 2**31 for length in shape)
    return are_lengths and len(shape) <= 8 and math.prod(shape) == 0


def _read_json(path: Path) -> Document:
    return _as_object(read_json(path, error=CheckpointError))


def _parse(text: str | bytes, path: Path) -> Any:
    return parse_json(text, f"{path}: damaged", error=CheckpointError)


def _as_object(document: Any) -> Document:
    return document if isinstance(document, dict) else {}


def _checked(document: Document, path: Path) -> Document:
    if document.get("format") != FORMAT:
        found = str(document.get("format"))[:60]
        raise CheckpointError(f"{path}: format={found!r}, expected {FORMAT!r}")
    for field, kind in _FIELDS.items():
        if not isinstance(document.get(field), kind):
            raise CheckpointError(
                f"{path}: {field}={str(document.get(field))[:60]} must be {kind.__name__}"
            )
    if document["version"] > VERSION:
        raise CheckpointError(
            f"{path}: written in version {document['version']} of the format, this is version "
            f"{VERSION}; update {FORMAT}"
        )
    return document
