"""Official checkpoints: where they are, and their tensors as memory-mapped NumPy arrays.

What a file is, its content tells, whatever its name.
"""

import dataclasses
import os
import re
import stat
import zipfile
from pathlib import Path

import numpy as np

from vggt_jax.checkpoints.errors import CheckpointError, first_line
from vggt_jax.checkpoints.safetensors_file import begins_like_safetensors, read_safetensors
from vggt_jax.checkpoints.torch_file import read_torch
from vggt_jax.files import checked_path, read_json, stand_in

_HUB_FILES = ("model.safetensors", "model.pt")  # in order of preference; those on huggingface.co
_FILES = (*_HUB_FILES, "pytorch_model.bin")  # that a folder of several is taken to mean
_INDEX = ".index.json"
_TORCH = (".pt", ".pth", ".ckpt", ".bin")
_SUFFIXES = (".safetensors", *_TORCH)
_SHARD = re.compile(r"(.*)-\d+-of-(\d+)(\.\w+)")
_FORMS = "a .safetensors, .pt, .pth, .ckpt or .bin file"


@dataclasses.dataclass(frozen=True)
class Source:
    """An official checkpoint.

    Attributes:
        files: one, or the shards of one.
        name: what people call it.
        beside: the path beside which its configuration may lie, with the suffix `.json`.
    """

    files: tuple[Path, ...]
    name: str
    beside: Path

    @classmethod
    def of_file(cls, path: Path, name: str | None = None) -> "Source":
        """A checkpoint in one file."""
        return cls((path,), name or str(path), path)


def find_checkpoint(source: str | os.PathLike) -> Source:
    """Finds the files of a checkpoint, downloading it where the source is a hub name.

    Args:
        source: a file, whose content tells what it is; a folder with model.safetensors, model.pt,
            an index of shards, or one checkpoint of any name; an index of shards; or a name on
            huggingface.co such as `facebook/VGGT-1B`.

    Raises:
        CheckpointError: there is no such file, folder or name, it cannot be downloaded, or a folder
            holds several checkpoints.
    """
    path = checked_path(source, "checkpoint", error=CheckpointError)
    if path.is_dir():
        return _in_folder(path)
    is_file_name = path.exists() or path.suffix in _SUFFIXES
    if not is_file_name and re.fullmatch(r"[\w.-]+/[\w.-]+", os.fspath(source)):
        return _download(os.fspath(source))
    if not path.exists():
        raise CheckpointError(
            f"{path}: no such file; give {_FORMS}, a folder that holds one, or a name on "
            "huggingface.co such as facebook/VGGT-1B"
        )
    return _shards(path) if path.name.endswith(_INDEX) else Source.of_file(path)


def read_tensors(*paths: Path) -> dict[str, np.ndarray]:
    """Reads the tensors of an official checkpoint.

    Args:
        paths: one file, or the shards of one.

    Returns:
        Arrays by key, memory-mapped where the format allows; see `read_torch` for what training
        wraps around them.

    Raises:
        CheckpointError: a file is truncated, damaged or of another kind, PyTorch is missing, or two
            shards hold the same key.
    """
    tensors: dict[str, np.ndarray] = {}
    for path in paths:
        kind = _kind_of(path)
        if kind is None:
            raise CheckpointError(f"{path}: must be {_FORMS}")
        found = read_safetensors(path)[0] if kind == "safetensors" else read_torch(path)
        if twice := sorted(tensors.keys() & found.keys()):
            raise CheckpointError(f"{path}: {twice[0]} is in another shard, too; copy them again")
        tensors |= found
    return tensors


def _kind_of(path: Path) -> str | None:
    """Whether a file is "safetensors" or "torch", by its content, or else by its name."""
    try:
        state = path.stat()
        if not stat.S_ISREG(state.st_mode):
            raise CheckpointError(f"{path}: is no file; give {_FORMS}")
        with open(path, "rb") as file:
            start = file.read(64)
    except OSError as error:
        raise CheckpointError(f"{path}: cannot be read ({error.strerror})") from error
    if what := stand_in(start):
        raise CheckpointError(f"{path}: is {what}")
    if begins_like_safetensors(path):
        return "safetensors"
    if start[:2] == b"PK" or (start[:1] == b"\x80" and start[1:2] <= b"\x05"):
        return "torch"
    if path.suffix == ".safetensors":
        return "safetensors"
    return "torch" if path.suffix in _TORCH else None


def _in_folder(folder: Path) -> Source:
    files = [folder / name for name in _FILES if (folder / name).is_file()]
    if files:
        return Source.of_file(files[0])
    try:
        entries = sorted(path for path in folder.iterdir() if not path.name.startswith("."))
    except OSError as error:
        raise CheckpointError(f"{folder}: cannot be read ({error.strerror})") from error
    indices = [path for path in entries if path.name.endswith(_INDEX) and path.is_file()]
    if indices:
        # Of safetensors, rather than of pickles.
        return _shards(min(indices, key=lambda path: ("safetensors" not in path.name, path.name)))
    found = [path for path in entries if path.is_file() and _holds_tensors(path)]
    if len(found) == 1:
        return Source.of_file(found[0])
    if not found:
        raise CheckpointError(
            f"{folder}: the folder holds neither {' nor '.join(_FILES)} nor another checkpoint; "
            "name the file itself"
        )
    of_shards = {match.groups() for path in found if (match := _SHARD.fullmatch(path.name))}
    if len(of_shards) == 1 and len(found) == int(next(iter(of_shards))[1]):
        return Source(tuple(found), str(folder), folder / "model")
    names = ", ".join(path.name for path in found[:4]) + ", ..." * (len(found) > 4)
    raise CheckpointError(
        f"{folder}: the folder holds several checkpoints ({names}); name one file"
    )


def _holds_tensors(path: Path) -> bool:
    """Whether a file of any name looks like a checkpoint: other archives and pickles exist."""
    try:
        kind = _kind_of(path)
        if kind == "torch" and zipfile.is_zipfile(path):
            with zipfile.ZipFile(path) as archive:
                return any(name.endswith("data.pkl") for name in archive.namelist())
    except (CheckpointError, OSError, zipfile.BadZipFile, ValueError, NotImplementedError):
        return False
    return kind is not None and path.stat().st_size > 0


def _shards(index: Path) -> Source:
    """The shards that an index lists: `weight_map`, from keys to names of files beside it."""
    document = read_json(index, "index of shards", error=CheckpointError)
    names = document.get("weight_map") if isinstance(document, dict) else None
    if not isinstance(names, dict) or not all(isinstance(name, str) for name in names.values()):
        raise CheckpointError(f"{index}: must hold a weight_map, from keys to names of files")
    files = sorted(set(names.values()))
    if not files or any(Path(name).name != name for name in files):
        raise CheckpointError(f"{index}: must name files that lie beside it")
    if missing := [name for name in files if not (index.parent / name).is_file()]:
        raise CheckpointError(
            f"{index}: {missing[0]} is missing, one of {len(files)} shards; copy it, too"
        )
    beside = index.with_name(index.name.removesuffix(_INDEX))
    return Source(tuple(index.parent / name for name in files), str(index.parent), beside)


def _download(name: str) -> Source:
    from huggingface_hub import errors, hf_hub_download

    offline, cause, problem = False, None, ""
    for file in _HUB_FILES:
        try:
            path = hf_hub_download(name, file, local_files_only=offline)
            return Source.of_file(Path(path), f"{name}/{file}")
        except errors.LocalEntryNotFoundError as error:
            cause, offline = error, True  # the cache may hold the other file
            problem = "huggingface.co cannot be reached and the file is not in the local cache"
        except errors.EntryNotFoundError as error:
            cause, problem = error, f"the repository holds neither {' nor '.join(_HUB_FILES)}"
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
            cause, problem = error, f"the download failed ({first_line(error)}); try again"
            break
    raise CheckpointError(
        f"{name}: {problem}; a file downloaded by hand can be given by its path"
    ) from cause
