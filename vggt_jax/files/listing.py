"""What runs wrote into a folder: a list, so that no other file is ever replaced or removed.

The list, `.vggt-jax.json`, has for each file its size and a hash of some of it. A file counts as
written by us while it is as it was written, wherever the folder has been copied to.
"""

import hashlib
import json
import os
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vggt_jax.errors import InputError
from vggt_jax.files import system
from vggt_jax.files.documents import read_json

LISTING = ".vggt-jax.json"
_FORMAT = "files that vggt-jax wrote"
_SAMPLE = 2**16  # Bytes at the beginning, in the middle and at the end of a file.

Files = dict[str, list[Any]]
"""By path in the folder: size and hash."""


def read_listing(folder: Path) -> Files:
    """The files that runs listed, whether or not they are still there; none where there is no list
    or it cannot be used."""
    if not os.path.lexists(folder / LISTING):
        return {}
    try:
        document = read_json(folder / LISTING)
        if document["format"] != _FORMAT:
            return {}
        return {
            str(name): [int(size), str(digest)]
            for name, (size, digest) in document["files"].items()
        }
    except (InputError, KeyError, TypeError, ValueError, AttributeError, OverflowError):
        return {}


def written_by_us(folder: Path) -> set[str]:
    """The paths in a folder of files that are as a run of ours wrote and listed them."""
    found = {
        name
        for name, (size, digest) in read_listing(folder).items()
        if _is_unchanged(folder / name, size, digest)
    }
    return found | {LISTING} if found else found


def write_listing(new: Path, earlier: Files) -> None:
    """Lists what is in a folder.

    Args:
        new: the folder.
        earlier: what else is listed, of files that will be there.

    Raises:
        OSError: the list cannot be written.
    """
    files = dict(earlier)
    for path in system.files_below(new):
        if path.is_file() and not path.is_symlink():
            size = path.stat().st_size
            files[path.relative_to(new).as_posix()] = [size, _digest(path, size)]
    files.pop(LISTING, None)
    text = json.dumps({"format": _FORMAT, "files": dict(sorted(files.items()))}, indent=0)
    with open(new / LISTING, "w", encoding="utf-8") as file:
        file.write(text + "\n")


def below(names: Iterable[str], entries: Iterable[str]) -> set[str]:
    """Those paths that are among entries of the folder, or below them."""
    entries = set(entries)
    return {name for name in names if name.partition("/")[0] in entries}


def _is_unchanged(path: Path, size: int, digest: str) -> bool:
    try:
        is_file = path.is_file() and not path.is_symlink()
        return is_file and os.lstat(path).st_size == size and _digest(path, size) == digest
    except (OSError, ValueError):
        return False


def _digest(path: Path, size: int) -> str:
    digest = hashlib.sha256()
    with open(path, "rb") as file:
        for start in sorted({0, max(0, size // 2 - _SAMPLE // 2), max(0, size - _SAMPLE)}):
            file.seek(start)
            digest.update(file.read(_SAMPLE))
    return digest.hexdigest()[:32]
