"""A `.safetensors` file as memory-mapped NumPy arrays, bfloat16 included, and back.

The library checks files. Their arrays are read and written here, because it copies them, and older
versions of it copy all of them at once and cannot read bfloat16 into NumPy.
"""

import json
import os
import struct
from collections.abc import Mapping
from pathlib import Path
from typing import Any, BinaryIO

import ml_dtypes
import numpy as np
from safetensors import SafetensorError, safe_open

from vggt_jax.checkpoints.errors import CheckpointError

# https://github.com/huggingface/safetensors, safetensors/src/tensor.rs, enum Dtype
_DTYPES = {
    "BOOL": np.bool_,
    "U8": np.uint8,
    "I8": np.int8,
    "U16": np.uint16,
    "I16": np.int16,
    "U32": np.uint32,
    "I32": np.int32,
    "U64": np.uint64,
    "I64": np.int64,
    "F16": np.float16,
    "F32": np.float32,
    "F64": np.float64,
    "C64": np.complex64,
    "BF16": ml_dtypes.bfloat16,
    "F8_E4M3": ml_dtypes.float8_e4m3fn,
    "F8_E5M2": ml_dtypes.float8_e5m2,
    "F8_E8M0": ml_dtypes.float8_e8m0fnu,
}
_NAMES = {np.dtype(dtype): name for name, dtype in _DTYPES.items()}


def begins_like_safetensors(path: Path) -> bool:
    """Whether a regular file begins as one does, whatever its name: the length of a header in JSON,
    and the header."""
    try:
        if not path.is_file():
            return False
        with open(path, "rb") as file:
            start = file.read(9)
        return start[8:] == b"{" and int.from_bytes(start[:8], "little") <= path.stat().st_size - 8
    except OSError:
        return False


def read_safetensors(path: str | os.PathLike) -> tuple[dict[str, np.ndarray], dict[str, str]]:
    """Opens a `.safetensors` file.

    Args:
        path: the file.

    Returns:
        Arrays by name, read-only and memory-mapped, so nothing is read before it is used; and the
        metadata of the file.

    Raises:
        CheckpointError: the file is missing, truncated or of another kind.
    """
    path = Path(path)
    if path.exists() and not path.is_file():
        raise CheckpointError(f"{path}: is no file; give a .safetensors file")
    try:
        with safe_open(path, framework="np"):
            pass  # the header is sound and covers the file
        header, start = _read_header(path)
        data = np.asarray(np.memmap(path, np.uint8, mode="r"))
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error})") from error
    except SafetensorError as error:
        raise CheckpointError(
            f"{path}: not a complete .safetensors file ({error}); it is truncated or of another "
            "kind, so copy or download it again"
        ) from error
    metadata = header.pop("__metadata__", {})
    arrays = {}
    for name, entry in header.items():
        if entry["dtype"] not in _DTYPES:
            raise CheckpointError(
                f"{path}: {name} is of type {entry['dtype']}, which is not supported "
                f"({', '.join(_DTYPES)}); convert it first"
            )
        begin, end = entry["data_offsets"]
        raw = data[start + begin : start + end]
        arrays[name] = raw.view(_DTYPES[entry["dtype"]]).reshape(entry["shape"])
    return arrays, metadata


def write_safetensors(
    file: BinaryIO, arrays: Mapping[str, np.ndarray], metadata: Mapping[str, str]
) -> None:
    """Writes C-contiguous arrays to an open `.safetensors` file, one at a time.

    Raises:
        OSError: it cannot be written.
    """
    header: dict[str, Any] = {"__metadata__": dict(metadata)}
    # The widest types come first, so that every array is aligned.
    arrays = dict(sorted(arrays.items(), key=lambda item: (-item[1].itemsize, item[0])))
    end = 0
    for name, x in arrays.items():
        begin, end = end, end + x.nbytes
        header[name] = {
            "dtype": _NAMES[x.dtype],
            "shape": list(x.shape),
            "data_offsets": [begin, end],
        }
    text = json.dumps(header).encode()
    text += b" " * (-len(text) % 8)
    file.write(struct.pack("<Q", len(text)) + text)
    for x in arrays.values():
        file.write(x.reshape(-1).view(np.uint8).data)


def _read_header(path: Path) -> tuple[dict, int]:
    """Returns the header, and where the data begin: 8 bytes of length, then JSON, then data."""
    with open(path, "rb") as file:
        (length,) = struct.unpack("<Q", file.read(8))
        return json.loads(file.read(length)), 8 + length
