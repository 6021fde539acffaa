"""Files that appear whole or not at all, under names that are safe and distinct."""

import contextlib
import os
import re
import secrets
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from vggt_jax.errors import InputError

_LONGEST_STEM = 50  # Characters; in UTF-8 with suffixes well below the 255 bytes of file systems.


@contextlib.contextmanager
def replacing(path: str | os.PathLike) -> Iterator[BinaryIO]:
    """Opens a file for writing that takes its place only when the block ends without an error.

    Missing parent folders are made. An older file stays until it is replaced.

    Args:
      path: where the file goes.

    Yields:
      A binary, seekable file in the same folder.

    Raises:
      InputError: the folder or the file cannot be written, or the disk is full.
    """
    path = Path(path)
    # Opened here rather than by tempfile, whose files only their owner may read.
    temporary = path.with_name(f".{path.name}.{secrets.token_hex(4)}.tmp")
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            with open(temporary, "xb") as file:
                yield file
            os.replace(temporary, path)
        except BaseException:
            temporary.unlink(missing_ok=True)
            raise
    except OSError as error:
        raise InputError(
            f"{path} cannot be written ({error.strerror or error}); choose another place or make "
            "room and give permission there"
        ) from error


def file_stems(names: Sequence[str]) -> tuple[str, ...]:
    """File name stems for frames: distinct even where case is ignored, and safe in any folder.

    Args:
      names: names of frames, possibly with folders and extensions.

    Returns:
      One per name: the last part without its extension. Where two would be alike (a/0.jpg and
      b/0.jpg), every stem is preceded by the number of its frame.
    """
    stems = []
    for name in names:
        stem = PurePosixPath(name.replace("\\", "/")).stem
        stems.append(re.sub(r"[^\w.-]", "_", stem).lstrip(".")[:_LONGEST_STEM] or "frame")
    if len({stem.casefold() for stem in stems}) < len(stems):
        return tuple(f"{i:04d}_{stem}" for i, stem in enumerate(stems))
    return tuple(stems)
