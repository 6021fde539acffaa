"""Files that appear whole or not at all, under names that are safe and distinct."""

import contextlib
import glob
import os
import re
import secrets
import shutil
from collections.abc import Iterator, Sequence
from pathlib import Path, PurePosixPath
from typing import BinaryIO

from vggt_jax.errors import InputError

# What a reconstruction writes into a folder. Here, at the bottom, because whoever looks for images
# must know that an overview beside results is none.
RESULTS, OVERVIEW = "predictions.npz", "overview.png"
_TEMPORARY = ".{name}.{token}.tmp"
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
    temporary = path.with_name(_TEMPORARY.format(name=path.name, token=secrets.token_hex(4)))
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


def remove_unfinished(path: str | os.PathLike) -> None:
    """Removes what `replacing(path)` left in processes that were killed."""
    path = Path(path)
    pattern = _TEMPORARY.format(name=glob.escape(path.name), token="*")
    for temporary in path.parent.glob(pattern):
        temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def output_folder(
    out: Path,
    *,
    overwrite: bool,
    entries: Sequence[str] | None = None,
    stale: Sequence[str] = (),
) -> Iterator[Path]:
    """A folder beside `out` to write into, whose contents move to `out` when all went well.

    What is replaced is put aside first and comes back if a move fails, so that `out` holds the old
    results or the new ones. What has another name stays.

    Args:
      out: the folder; it and its parents are made if they are missing.
      overwrite: whether earlier contents may be replaced.
      entries: names of the files and folders that will be written. Only these count as earlier
        contents; None means that anything in `out` does.
      stale: names of what an earlier run may have written and goes with it, even if nothing of that
        name is written now.

    Yields:
      An empty folder in the same file system.

    Raises:
      InputError: `out` is no folder, cannot be written, or holds something that may not be
        replaced.
    """
    partial = None
    try:
        check_output_folder(out, overwrite=overwrite, entries=entries)
        with _writing(out):
            # In the nearest folder that exists: what cannot be written shows before the long work.
            parent = next(folder for folder in out.absolute().parents if folder.exists())
            partial = parent / f".vggt-jax-{secrets.token_hex(4)}.partial"
            partial.mkdir()
        new = partial / "new"
        new.mkdir()
        yield new
        with _writing(out):
            if not out.is_dir():
                out.parent.mkdir(parents=True, exist_ok=True)
                os.replace(new, out)
                return
            _move_into(out, new, aside=partial / "old", stale=stale)
    finally:
        if partial is not None:
            shutil.rmtree(partial, ignore_errors=True)


def check_output_folder(
    out: Path, *, overwrite: bool, entries: Sequence[str] | None = None
) -> None:
    """Checks that `output_folder` may write here.

    Raises:
      InputError: `out` is no folder, cannot be read, or holds something that may not be replaced.
    """
    with _writing(out):
        if os.path.lexists(out) and not out.is_dir():
            raise InputError(f"{out}: exists and is no folder; choose another --out")
        earlier = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
    if entries is not None:
        earlier = [name for name in earlier if name in entries]
    if earlier and not overwrite:
        what = "is not empty" if entries is None else f"holds {', '.join(earlier)} already"
        raise InputError(f"{out}: {what}; choose another --out, or replace with --overwrite")


def check_file(path: Path, *, overwrite: bool) -> None:
    """Checks that a file may be written here.

    Raises:
      InputError: it is a folder, or a file that may not be replaced.
    """
    if path.is_dir():
        raise InputError(f"{path}: is a folder; name a file")
    if os.path.lexists(path) and not overwrite:
        raise InputError(f"{path}: exists; choose another --out, or replace with --overwrite")


def _move_into(out: Path, new: Path, *, aside: Path, stale: Sequence[str]) -> None:
    """Moves the entries of `new` to `out`, all or none, and what is stale out of it."""
    aside.mkdir()
    undo: list[tuple[Path, Path]] = []
    try:
        for name in stale:
            if os.path.lexists(out / name) and not os.path.lexists(new / name):
                undo.append((aside / name, out / name))
                os.replace(out / name, aside / name)
        for path in sorted(new.iterdir()):
            place = out / path.name
            # Noted before each move, so that an interruption between the two finds it.
            if os.path.lexists(place):
                undo.append((aside / path.name, place))
                os.replace(place, aside / path.name)
            undo.append((place, path))
            os.replace(path, place)
    except BaseException:
        for here, there in reversed(undo):
            if os.path.lexists(here):
                os.replace(here, there)
        raise


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written ({error.strerror or error}); choose another --out"
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
