"""Official checkpoints: where they are, and their tensors as memory-mapped NumPy arrays."""

import os
import pickle
import re
import zipfile
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import ml_dtypes
import numpy as np

from vggt_jax.checkpoints.errors import CheckpointError, first_line
from vggt_jax.checkpoints.safetensors_file import read_safetensors

_FILES = ("model.safetensors", "model.pt")  # in order of preference; those on huggingface.co
_PICKLES = (".pt", ".pth")
_WRAPPERS = ("model", "state_dict")
_PREFIX = "module."

# What torch.load raises for files that are truncated, damaged or something else.
_LOAD_ERRORS = (RuntimeError, EOFError, LookupError, ValueError, OSError)


def find_checkpoint(source: str | os.PathLike) -> tuple[Path, str]:
    """Finds the file of a checkpoint, downloading it where the source is a hub name.

    Args:
        source: a `.safetensors`, `.pt` or `.pth` file, a folder with model.safetensors or model.pt,
            or a name on huggingface.co such as `facebook/VGGT-1B`.

    Returns:
        The file, and its name for people.

    Raises:
        CheckpointError: there is no such file, folder or name, or it cannot be downloaded.
    """
    path = Path(source)
    if path.is_dir():
        files = [path / name for name in _FILES if (path / name).is_file()]
        if not files:
            raise CheckpointError(
                f"{path}: the folder holds neither {' nor '.join(_FILES)}; name the file itself"
            )
        path = files[0]
    is_file_name = path.exists() or path.suffix in (".safetensors", *_PICKLES)
    if not is_file_name and re.fullmatch(r"[\w.-]+/[\w.-]+", os.fspath(source)):
        return _download(os.fspath(source))
    if not path.exists():
        raise CheckpointError(
            f"{path}: no such file; give a .safetensors, .pt or .pth file, a folder that holds "
            "one, or a name on huggingface.co such as facebook/VGGT-1B"
        )
    return path, str(path)


def read_tensors(path: Path) -> dict[str, np.ndarray]:
    """Reads the tensors of an official checkpoint, with wrappers and prefixes undone.

    `{"model": ...}` and `{"state_dict": ...}` around the tensors and `module.` before all keys are
    what training leaves behind.

    Args:
        path: a `.safetensors`, `.pt` or `.pth` file.

    Returns:
        Arrays by official key, memory-mapped where the format allows. Entries of a `.pt` file that
        are no tensors are arrays of type object.

    Raises:
        CheckpointError: the file is truncated, damaged or of another kind, or PyTorch is missing.
    """
    if path.suffix == ".safetensors":
        tensors, _ = read_safetensors(path)
    elif path.suffix in _PICKLES:
        tensors = _read_pickle(path)
    else:
        raise CheckpointError(f"{path}: must be a .safetensors, .pt or .pth file")
    while tensors and all(key.startswith(_PREFIX) for key in tensors):
        tensors = {key.removeprefix(_PREFIX): x for key, x in tensors.items()}
    return tensors


def _download(name: str) -> tuple[Path, str]:
    from huggingface_hub import errors, hf_hub_download

    offline, cause, problem = False, None, ""
    for file in _FILES:
        try:
            path = hf_hub_download(name, file, local_files_only=offline)
            return Path(path), f"{name}/{file}"
        except errors.LocalEntryNotFoundError as error:
            cause, offline = error, True  # the cache may hold the other file
            problem = "huggingface.co cannot be reached and the file is not in the local cache"
        except errors.EntryNotFoundError as error:
            cause, problem = error, f"the repository holds neither {' nor '.join(_FILES)}"
        except errors.GatedRepoError as error:
            cause = error
            problem = "access is restricted: ask for it on its page, then run `hf auth login`"
            break
        except (errors.RepositoryNotFoundError, errors.HFValidationError) as error:
            cause = error
            problem = "no such file or folder here, and no such repository on huggingface.co"
            break
        # Of requests or httpx, by the version of the package.
        except (errors.HTTPError, OSError) as error:  # pyright: ignore[reportPrivateImportUsage]
            cause, problem = error, f"the download failed ({_reason(error)}); try again"
            break
    raise CheckpointError(
        f"{name}: {problem}; a file downloaded by hand can be given by its path"
    ) from cause


def _read_pickle(path: Path) -> dict[str, np.ndarray]:
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
        document = torch.load(path, map_location="cpu", mmap=mapped, weights_only=True)
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
    for wrapper in _WRAPPERS:
        if isinstance(document, Mapping) and isinstance(document.get(wrapper), Mapping):
            document = document[wrapper]
    if not isinstance(document, Mapping) or not all(isinstance(key, str) for key in document):
        raise CheckpointError(
            f"{path}: holds a {type(document).__name__}, not tensors by name; save them with "
            "torch.save(model.state_dict(), FILE)"
        )
    return {key: _to_numpy(x) for key, x in document.items()}


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
    if x.dtype == torch.bfloat16:
        return x.contiguous().view(torch.int16).numpy().view(ml_dtypes.bfloat16)
    try:
        return x.numpy()
    except (TypeError, RuntimeError):  # quantised, sparse, float8 and others, which fit no rule
        return np.empty(x.shape, dtype=object)


def _reason(error: BaseException) -> str:
    """Returns the line of an error's message that says most, without PyTorch's advice."""
    inner = re.search(r"WeightsUnpickler error: *(.+)", str(error))
    return inner[1] if inner else first_line(error)
