"""Files that change places one by one, noted in a journal that whoever comes next finishes.

For systems that cannot exchange two folders in one step. `predictions.npz` leaves first and comes
last, so that a folder that holds it holds the rest that belongs to it.
"""

import json
import os
from collections.abc import Iterable
from pathlib import Path, PurePosixPath

from vggt_jax.files import system
from vggt_jax.files.names import RESULTS

_JOURNAL = "journal.json"


class Moves:
    """The files in `STAGING/new` on their way to `out`, and others out of it to `STAGING/old`."""

    def __init__(self, staging: Path, out: Path, removed: Iterable[str], added: Iterable[str]):
        self.new, self.old, self.out = staging / "new", staging / "old", out
        # `added` may be done for some: a file that is in `new` no more is in its place.
        self.removed = sorted(removed, key=lambda name: (name != RESULTS, name))
        self.added = sorted(added, key=lambda name: (name == RESULTS, name))
        self._journal = staging / _JOURNAL

    def run(self) -> None:
        """Moves everything, or nothing where an error or a signal comes in between.

        Raises:
            OSError: something cannot be moved.
        """
        inside = self._journal.parent.parent == self.out
        document = {"out": "" if inside else self.out.name}
        document |= {"removed": self.removed, "added": self.added}
        partial = self._journal.with_suffix(".tmp")
        with open(partial, "w", encoding="utf-8") as file:
            json.dump(document, file)
            system.flush(file)
        os.replace(partial, self._journal)
        system.flush_folder(self._journal.parent)
        try:
            self._go_on()
        except BaseException:
            self._undo()
            self._journal.unlink()
            raise
        self._journal.unlink()

    @classmethod
    def finish(cls, staging: Path) -> None:
        """Moves what is left to move of a process that died.

        Raises:
            OSError: something cannot be moved.
        """
        if not cls.are_unfinished(staging):
            return
        try:
            document = json.loads((staging / _JOURNAL).read_text(encoding="utf-8"))
            out, removed, added = (document[name] for name in ("out", "removed", "added"))
            # A journal speaks of nothing but what it lies in or beside.
            out = staging.parent / PurePosixPath(out).name
            moves = cls(staging, out, map(_checked, removed), map(_checked, added))
        except (ValueError, KeyError, TypeError, RecursionError):  # None of ours: it appears whole.
            (staging / _JOURNAL).unlink()
            return
        moves._go_on()
        moves._journal.unlink()

    @staticmethod
    def are_unfinished(staging: Path) -> bool:
        """Whether files are on their way."""
        return (staging / _JOURNAL).is_file()

    def _go_on(self) -> None:
        replaced = set(self.added)
        for name in self.removed:
            # What comes in its place and has come already is not what was to go.
            if name not in replaced or os.path.lexists(self.new / name):
                _move(self.out / name, self.old / name)
        for name in self.added:
            _move(self.new / name, self.out / name)
        system.flush_folder(self.out)
        for name in self.removed:
            _remove_empty_folders(self.out, name)

    def _undo(self) -> None:
        for name in reversed(self.added):
            if not os.path.lexists(self.new / name):
                _move(self.out / name, self.new / name)
        for name in reversed(self.removed):
            if os.path.lexists(self.old / name):
                _move(self.old / name, self.out / name)


def _move(source: Path, target: Path) -> None:
    """Moves a file; one that is not there has been moved before."""
    if os.path.lexists(source):
        target.parent.mkdir(parents=True, exist_ok=True)
        os.replace(source, target)


def _remove_empty_folders(out: Path, name: str) -> None:
    for folder in list(PurePosixPath(name).parents)[:-1]:
        try:
            (out / folder).rmdir()
        except OSError:
            return


def _checked(name: str) -> str:
    path = PurePosixPath(name)
    if path.is_absolute() or ".." in path.parts:
        raise ValueError(name)
    return name
