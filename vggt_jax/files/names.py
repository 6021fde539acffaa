"""Names of files: those that results have, safe ones for frames, and paths that can be none."""

import errno
import os
import re
from collections.abc import Iterable, Sequence
from pathlib import Path, PurePosixPath

from vggt_jax.errors import InputError

# What a reconstruction writes into a folder. Here, at the bottom, because whoever looks for images
# must know that an overview beside results is none.
RESULTS, OVERVIEW = "predictions.npz", "overview.png"
_LONGEST_STEM = 50  # Characters; in UTF-8 with suffixes well below the 255 bytes of file systems.


def checked_path(
    path: str | os.PathLike, what: str = "path", *, error: type[ValueError] = InputError
) -> Path:
    """A path that a system can be asked for.

    Args:
        path: as somebody gave it.
        what: what messages call it.
        error: what is raised.

    Raises:
        InputError, or `error`: it is empty, holds a NUL character, or is longer than the system
            takes.
    """
    text = os.fspath(path)
    shown = text if len(text) <= 100 else f"{text[:60]}...{text[-20:]}"
    if not text:
        raise error(f"the {what} is empty; name a file or folder ('.' is the current folder)")
    if "\0" in text:
        raise error(f"{shown!r}: a {what} cannot hold a NUL character")
    try:
        os.lstat(text)
    except OSError as problem:
        # Other problems are those of whoever reads or writes there.
        if problem.errno == errno.ENAMETOOLONG:
            raise error(
                f"{shown}: is longer than the system allows; choose a shorter {what}"
            ) from problem
    except ValueError as problem:
        raise error(f"{shown!r}: no {what} ({problem})") from problem
    return Path(path)


def stand_in(start: bytes) -> str | None:
    """What a file is that stands in the place of one that was not fetched; None for others.

    Args:
        start: its first bytes, 32 or more.
    """
    if start.startswith(b"version https://git-lfs."):
        return "a pointer of Git LFS, whose file was not fetched; fetch it with `git lfs pull`"
    if start.lstrip().lower().startswith((b"<!doctype html", b"<html")):
        return "a web page in place of a file that was to be downloaded; download it again"
    return None


def check_not_input(out: Path, inputs: Iterable[str | os.PathLike], what: str = "--out") -> None:
    """Checks that an output is none of the inputs of the same command.

    Args:
        out: the file or folder that will be written; it need not exist.
        inputs: files and folders that are read; what does not exist is left aside.
        what: the option that named it.

    Raises:
        InputError: it is one of them.
    """
    for path in map(Path, inputs):
        if _is_same(out, path):
            raise InputError(f"{out}: is what this command reads; choose another {what}")


def _is_same(first: Path, second: Path) -> bool:
    try:
        return first.samefile(second)
    except OSError:
        return False


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
