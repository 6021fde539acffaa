"""PyTorch checkpoints, `.pt`, `.pth`, `.ckpt` and `.bin`: tensors by name, and no code is run."""

import pickle
import re
import struct
import zipfile
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np
from safetensors import SafetensorError

from vggt_jax.checkpoints.errors import CheckpointError, first_line

# What torch.load raises for files that are truncated, damaged or something else.
_LOAD_ERRORS = (
    RuntimeError, EOFError, LookupError, ValueError, OSError, AttributeError, TypeError,
    AssertionError, ImportError, MemoryError, OverflowError, SafetensorError, struct.error,
    zipfile.BadZipFile,
)  # fmt: skip
# PyTorch compresses nothing, and VGGT-1B's pickle, which tells where tensors are, has 0.3 MB.
_MOST_COMPRESSED, _SMALL, _LARGEST_PICKLE = 4, 2**24, 2**26
_DEEPEST = 8  # Dictionaries within dictionaries.


def read_torch(path: Path) -> dict[str, np.ndarray]:
    """Reads the tensors of a PyTorch checkpoint, which may be wrapped in dictionaries.

    Args:
        path: the file.

    Returns:
        Arrays by their keys joined with dots, so that those of `{"model": {...}}` begin with
        "model."; memory-mapped where the format allows. What is no tensor is an array of type
        object.

    Raises:
        CheckpointError: the file is truncated, damaged, of another kind or would take more memory
            than any checkpoint of its size, or PyTorch is missing.
    """
    try:
        import torch  # pyright: ignore[reportMissingImports]  an extra
    except ModuleNotFoundError as error:
        raise CheckpointError(
            f"{path}: reading {path.suffix} files needs PyTorch: pip install 'vggt-jax[torch]', "
            "or give the .safetensors file"
        ) from error

    if not _is_pickle(path):
        raise CheckpointError(f"{path}: not a PyTorch checkpoint, or a damaged one; copy it again")
    try:
        # Only archives can be mapped; PyTorch wrote plain pickles before version 1.6.
        mapped = zipfile.is_zipfile(path)
        if mapped:
            _check_archive(path)
        document = torch.load(path, map_location="cpu", mmap=mapped, weights_only=True)
    except CheckpointError:
        raise
    except (pickle.UnpicklingError, *_LOAD_ERRORS) as error:
        if code := re.search(r"GLOBAL (\S+)", str(error)):
            raise CheckpointError(
                f"{path}: holds Python objects ({code[1]}), which may run code and are not loaded; "
                "save the tensors alone with torch.save(model.state_dict(), FILE)"
            ) from error
        raise CheckpointError(
            f"{path}: not a readable PyTorch checkpoint ({_reason(error)}); it is truncated or "
            "damaged, so copy or download it again"
        ) from error
    tensors = dict(_flattened(document, "", 0))
    if all(x.dtype == object and not x.ndim for x in tensors.values()):
        raise CheckpointError(
            f"{path}: holds a {type(document).__name__}, not tensors by name; save them with "
            "torch.save(model.state_dict(), FILE)"
        )
    return tensors


def _check_archive(path: Path) -> None:
    """Checks what an archive claims to hold, all of which PyTorch would believe."""
    with zipfile.ZipFile(path) as archive:
        infos = archive.infolist()
    size, total = path.stat().st_size, sum(info.file_size for info in infos)
    pickles = [info.file_size for info in infos if info.filename.endswith(".pkl")]
    if total > max(_SMALL, _MOST_COMPRESSED * size) or max(pickles, default=0) > _LARGEST_PICKLE:
        raise CheckpointError(
            f"{path}: claims to hold {max(total, *pickles, 0) / 2**30:,.1f} GiB in "
            f"{size / 2**20:.1f} MiB, which is no checkpoint of PyTorch's; copy it again"
        )


def _flattened(document: Any, prefix: str, depth: int) -> Iterator[tuple[str, np.ndarray]]:
    """Arrays by their keys joined with dots."""
    if not isinstance(document, Mapping):
        return
    for key, value in document.items():
        name = f"{prefix}{key}"
        if isinstance(value, Mapping) and depth < _DEEPEST:
            yield from _flattened(value, f"{name}.", depth + 1)
        else:
            yield name, _to_numpy(value)


def _is_pickle(path: Path) -> bool:
    """Returns whether a file begins like a pickle or like the zip archive of one."""
    try:
        with open(path, "rb") as file:
            start = file.read(2)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    return start == b"PK" or start[:1] == pickle.PROTO


def _to_numpy(x: Any) -> np.ndarray:
    """Returns a view of a PyTorch tensor; types that NumPy lacks come from ml_dtypes."""
    import torch  # pyright: ignore[reportMissingImports]  an extra

    if not isinstance(x, torch.Tensor):
        return np.asarray(None, dtype=object)
    x = x.detach()
    # An expanded tensor takes little in the file, and as much as its shape says when it is copied.
    fits = (
        x.layout == torch.strided and x.numel() * x.element_size() <= x.untyped_storage().nbytes()
    )
    if fits and x.dtype == torch.bfloat16:
        return x.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    try:
        if fits:
            return x.numpy()
    except (TypeError, RuntimeError):
        pass
    # Quantised, sparse, float8 and others, which fit no rule: their shape, in no memory.
    return np.broadcast_to(np.asarray(None, dtype=object), tuple(x.shape))


def _reason(error: BaseException) -> str:
    """Returns the line of an error's message that says most, without PyTorch's advice."""
    inner = re.search(r"WeightsUnpickler error: *(.+)", str(error))
    return inner[1] if inner else first_line(error)
