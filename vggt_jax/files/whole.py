"""One file that appears whole or not at all."""

import contextlib
import os
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from vggt_jax.errors import InputError
from vggt_jax.files import claims, system
from vggt_jax.files.names import checked_path

_BEGINNING = 2**16  # Bytes.


class WriteError(InputError):
    """A file that cannot be written, for a reason of the system's.

    Attributes:
        path: the file.
        why: the reason.
    """

    def __init__(self, path: Path, why: str):
        super().__init__(
            f"{path} cannot be written ({why}); choose another place or make room and give "
            "permission there"
        )
        self.path, self.why = path, why


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Opens a file for writing that takes its place only when the block ends without an error.

    Missing parent folders are made. An older file stays until it is replaced. What was written is
    on the disk before that, and what processes that died left in the same folder is removed.

    Args:
      path: where the file goes.

    Yields:
      A binary, seekable file in the same folder.

    Raises:
      InputError: the folder or the file cannot be written, or the disk is full.
    """
    path = checked_path(path)
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        claims.remove_leftovers(path.parent, at_most_every=1.0)
        # Opened here rather than by tempfile, whose files only their owner may read.
        temporary = claims.temporary_file(path.parent)
        try:
            with open(temporary, "xb") as file:
                system.try_lock_file(file)
                yield file
                system.flush(file)
                if (
                    os.name == "posix"
                ):  # While it is locked, so that nobody takes it for left behind.
                    os.replace(temporary, path)
            if os.name != "posix":
                os.replace(temporary, path)
            system.flush_folder(path.parent)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
        finally:
            claims.forget(temporary)
    except OSError as error:
        raise WriteError(path, system.reason(error)) from error


def check_file(path: Path, *, overwrite: bool, mark: bytes) -> None:
    """Checks that a file may be written here.

    Args:
      path: the file.
      overwrite: whether an earlier one may be replaced.
      mark: what the beginning of a file of ours holds.

    Raises:
      InputError: it is a folder, or a file that may not be replaced.
    """
    checked_path(path)
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a file")
    if not os.path.lexists(path):
        return
    if not _is_marked(path, mark):
        raise InputError(
            f"{path}: exists and was not written by an export of this format; move it away, or "
            "choose another --out"
        )
    if not overwrite:
        raise InputError(f"{path}: exists; choose another --out, or replace with --overwrite")


def _is_marked(path: Path, mark: bytes) -> bool:
    if not path.is_file():
        return False
    try:
        with open(path, "rb") as file:
            beginning = file.read(_BEGINNING)
            return mark in beginning or not beginning
    except OSError as error:
        raise WriteError(path, system.reason(error)) from error
