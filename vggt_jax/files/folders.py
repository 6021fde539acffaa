"""A folder whose contents are replaced together, and nothing of anybody else's with them."""

import contextlib
import errno
import os
import shutil
from collections.abc import Callable, Collection, Iterator, Sequence
from pathlib import Path

from vggt_jax.errors import InputError
from vggt_jax.files import claims, listing, system
from vggt_jax.files.claims import Claim
from vggt_jax.files.moves import Moves
from vggt_jax.files.names import checked_path
from vggt_jax.files.whole import WriteError

_OF_THE_DISK = (errno.ENOSPC, errno.EDQUOT, errno.EROFS, errno.EFBIG, errno.EIO)
_NOT_OURS = (
    "was not written by an earlier run, or was changed since, and is not replaced; move it away, "
    "or choose another --out"
)
_MOST_LINKS = 50_000  # Files of others up to which a folder is made anew and exchanged.


@contextlib.contextmanager
def output_folder(
    out: Path,
    *,
    overwrite: bool,
    entries: Sequence[str] | None = None,
    stale: Sequence[str] = (),
    inputs: Sequence[str | os.PathLike] = (),
) -> Iterator[Path]:
    """A folder beside `out` to write into, whose contents move to `out` when all went well.

    While the block runs, no other process of ours may write to `out`. What is written is listed
    there (`listing`), and only what earlier runs listed, and nobody changed since, is replaced or
    removed; other files stay. `out` is exchanged for the new folder in one step where the system
    can. Elsewhere files are moved one by one, and the next process finishes that if this one is
    killed.

    Args:
      out: the folder; it and its parents are made if they are missing.
      overwrite: whether what earlier runs wrote may be replaced.
      entries: names of the files and folders that will be written. Only these count as earlier
        contents; None means that anything in `out` does.
      stale: names of what an earlier run may have written and goes with it, even if nothing of that
        name is written now.
      inputs: files and folders that must not be replaced or removed.

    Yields:
      An empty folder in the same file system.

    Raises:
      InputError: `out` is no folder, cannot be written, another process writes there, or it holds
        something that may not be replaced.
    """
    with place_for_folder(out) as place:
        check_output_folder(out, overwrite=overwrite, entries=entries, stale=stale)
        yield place.new
        # Others may have written here meanwhile.
        check_output_folder(out, overwrite=overwrite, entries=entries, stale=stale)
        with _writing(out):
            _put_results(place, overwrite=overwrite, stale=stale, inputs=inputs)


def _put_results(
    place: "Place", *, overwrite: bool, stale: Sequence[str], inputs: Sequence[str | os.PathLike]
) -> None:
    """Lists what was written, and puts it in place of what earlier runs listed."""
    ours = listing.written_by_us(place.out) - {listing.LISTING}
    added = place.added()
    removed = (listing.below(ours, stale) if overwrite else set()) | (ours & added)
    _check_inputs(place.out, removed, inputs)
    earlier = listing.read_listing(place.out)
    kept = {name: earlier[name] for name in ours - removed}
    listing.write_listing(place.new, kept)
    place.put(removed, replaceable=[listing.LISTING])


class Place:
    """A claimed folder `out`, and the folder whose contents will take its place."""

    def __init__(self, claim: Claim, out: Path, shown: Path):
        self.claim, self.out, self.shown = claim, out, shown
        self.new = claim.new

    def added(self) -> set[str]:
        """The files that were written, by their paths in the folder."""
        return {path.relative_to(self.new).as_posix() for path in system.files_below(self.new)}

    def put(self, removed: set[str], *, replaceable: Collection[str] = ()) -> None:
        """Puts what was written in place, and what is removed out of it: all or nothing.

        Args:
            removed: files of `out`, by their paths in it; those that are not there are left aside.
            replaceable: files that may be replaced whoever wrote them.

        Raises:
            InputError: a file would replace one that is not removed.
            OSError: it cannot be written.
        """
        system.flush_tree(self.new)
        if not self.out.is_dir() or not any(self.out.iterdir()):
            os.replace(self.new, self.out)
            system.flush_folder(self.out.parent)
            return
        removed = {name for name in removed if os.path.lexists(self.out / name)}
        added = self.added()
        removed |= {
            name for name in added.intersection(replaceable) if os.path.lexists(self.out / name)
        }
        for name in sorted(added - removed):
            _check_free(self.out, name, removed, self.shown)
        if not self._exchange(removed):
            Moves(self.claim.folder, self.out, removed, added).run()

    def _exchange(self, removed: set[str]) -> bool:
        """Exchanges the folder for one with the new files and those of others; False where this
        cannot be done, and then nothing has changed."""
        if self.claim.folder.parent == self.out or _is_somewhere_below(Path.cwd, self.out):
            return False
        whole = self.claim.folder / "whole"
        try:
            kept = _linked(self.new, whole, set()) and _linked(self.out, whole, removed)
            if kept is None:
                return False
            for folder, _, _ in os.walk(whole):
                system.flush_folder(Path(folder))
            shutil.copystat(self.out, whole)
            if not system.exchange(whole, self.out):
                return False
        except OSError:
            return False  # No hard links here, or not to these files.
        system.flush_folder(self.out.parent)
        for path in system.files_below(whole):  # What was in `out`.
            name = path.relative_to(whole).as_posix()
            # What somebody wrote there in between.
            if name not in removed and kept.get(name) != path.lstat().st_ino:
                (self.out / name).parent.mkdir(parents=True, exist_ok=True)
                os.replace(path, self.out / name)
        return True


@contextlib.contextmanager
def place_for_folder(out: Path) -> Iterator[Place]:
    """Claims a folder, and yields a `Place` to write its new contents to.

    Raises:
      InputError: `out` is no folder, cannot be written, or another process writes there.
    """
    checked_path(out, "output folder")
    made: list[Path] = []
    with contextlib.ExitStack() as stack:
        with _writing(out):
            # What cannot be written shows before the long work. Links lead to what is replaced.
            real = Path(os.path.realpath(out))
            if real.parent == real:
                raise InputError(f"{out}: is the root of a file system; choose another --out")
            if os.path.lexists(out) and not out.is_dir():
                raise InputError(f"{out}: exists and is no folder; choose another --out")
            missing = [folder for folder in real.parents if not folder.exists()]
            stack.callback(_remove_empty, made)
            for folder in reversed(missing):
                folder.mkdir(exist_ok=True)
                made.insert(0, folder)
            claims.remove_leftovers(real.parent)
            if real.is_dir():
                claims.remove_leftovers(real)
            place = Place(stack.enter_context(Claim.of(real)), real, out)
            place.new.mkdir()
        try:
            yield place
        except WriteError as error:
            if not error.path.is_relative_to(place.new):
                raise
            raise WriteError(out / error.path.relative_to(place.new), error.why) from error
        except OSError as error:
            of_ours = error.filename is not None and str(error.filename).startswith(str(place.new))
            if of_ours or error.errno in _OF_THE_DISK:
                raise WriteError(out, system.reason(error)) from error
            raise


def check_output_folder(
    out: Path,
    *,
    overwrite: bool,
    entries: Sequence[str] | None = None,
    stale: Sequence[str] = (),
) -> None:
    """Checks that `output_folder` may write here.

    Raises:
      InputError: `out` is no folder, cannot be read, or holds something that may not be replaced.
    """
    checked_path(out, "output folder")
    with _writing(out):
        if os.path.lexists(out) and not out.is_dir():
            raise InputError(f"{out}: exists and is no folder; choose another --out")
        if out.is_dir():
            claims.settle(Path(os.path.realpath(out)))
        earlier = sorted(path.name for path in out.iterdir()) if out.is_dir() else []
        earlier = [name for name in earlier if not name.startswith(".vggt-jax")]
    if entries is not None:
        earlier = [name for name in earlier if name in entries]
    if not earlier:
        return
    ours = listing.written_by_us(out)
    # What is certain now; the rest shows when it is known which files there are.
    certain = stale if entries is None else entries
    foreign = [name for name in earlier if name in certain and not listing.below(ours, [name])]
    if entries is None:
        foreign = [name for name in foreign if not (out / name).is_dir()]
    if foreign := [name for name in foreign if not _is_empty_folder(out / name)]:
        raise InputError(f"{out}: holds {', '.join(earlier)} already, and {foreign[0]} {_NOT_OURS}")
    if not overwrite:
        what = "is not empty" if entries is None else f"holds {', '.join(earlier)} already"
        raise InputError(f"{out}: {what}; choose another --out, or replace with --overwrite")


def _is_empty_folder(path: Path) -> bool:
    return path.is_dir() and not any(system.files_below(path))


def _check_free(out: Path, name: str, removed: set[str], shown: Path) -> None:
    """Checks that nothing of others lies where a file is to go."""
    place = out / name
    others = []
    parents = [path for path in place.parents if path.is_relative_to(out) and path != out]
    links = [path for path in parents if path.is_symlink()]
    if links:  # They may lead into somebody's photographs.
        others = [path.relative_to(out).as_posix() for path in links]
    elif place.is_dir() and not place.is_symlink():
        below = (path.relative_to(out).as_posix() for path in system.files_below(place))
        others = [path for path in below if path not in removed]
    elif os.path.lexists(place):
        others = [name]
    else:
        files = (path for path in parents if os.path.lexists(path) and not path.is_dir())
        others = [path.relative_to(out).as_posix() for path in files]
        others = [path for path in others if path not in removed]
    if others:
        raise InputError(f"{shown}: {others[0]} {_NOT_OURS}")


def _check_inputs(out: Path, replaced: set[str], inputs: Sequence[str | os.PathLike]) -> None:
    """Checks that nothing goes that the command reads."""
    places = {os.path.realpath(out / name) for name in replaced}
    for path in inputs:
        real = os.path.realpath(path)
        if real in places or any(place.startswith(real + os.sep) for place in places):
            raise InputError(
                f"{path}: is what this command reads, and would be replaced; choose another --out"
            )


def _linked(source: Path, target: Path, leave_out: set[str]) -> dict[str, int] | None:
    """Makes a folder anew, with hard links to its files.

    Returns:
        What stands for each file's identity, by path; None if there are too many, or another file
        system is mounted below.
    """
    linked: dict[str, int] = {}
    device = source.stat().st_dev
    for here, folders, files in os.walk(source):
        place = target / os.path.relpath(here, source)
        was_empty = not folders and not files
        if os.stat(here).st_dev != device:
            return None
        links = [name for name in folders if os.path.islink(os.path.join(here, name))]
        for name in [*files, *links]:
            path = Path(here, name)
            relative = path.relative_to(source).as_posix()
            if relative in leave_out:
                continue
            place.mkdir(parents=True, exist_ok=True)
            os.link(path, place / name, follow_symlinks=False)
            linked[relative] = path.lstat().st_ino
        if len(linked) > _MOST_LINKS:
            return None
        if was_empty:
            place.mkdir(parents=True, exist_ok=True)
        if place.is_dir() and not os.path.samefile(here, source):
            shutil.copystat(here, place)
    return linked


def _is_somewhere_below(where: Callable[[], Path], folder: Path) -> bool:
    """Whether this process works in a folder, which must then remain the same."""
    try:
        return Path(os.path.realpath(where())).is_relative_to(folder)
    except OSError:
        return True


def _remove_empty(folders: list[Path]) -> None:
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.rmdir()


@contextlib.contextmanager
def _writing(out: Path) -> Iterator[None]:
    try:
        yield
    except OSError as error:
        raise InputError(
            f"{out}: cannot be written ({system.reason(error)}); choose another --out"
        ) from error
