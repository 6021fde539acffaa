"""Places that one process has to itself while it writes, and what dead ones left there.

Whoever writes `OUT` makes a folder `.vggt-jax-KEY.partial` beside it, whose name follows from
OUT's, and holds a lock in it for as long as it lives. The system gives the lock back when a process
ends, however that happens, so that a folder whose lock is free was left by a dead one. It holds

- `lock`, with the process that holds it, for messages;
- `new`, what is being written;
- `old`, what it replaces, while files are moved one by one;
- `journal.json`, while they are: which files go and come. The next process finishes that.

Single files, `.vggt-jax-TOKEN.tmp`, are locked themselves.
"""

import hashlib
import os
import secrets
import shutil
import socket
import threading
import time
from collections.abc import Iterable
from pathlib import Path
from typing import Any

from vggt_jax.errors import InputError
from vggt_jax.files import system
from vggt_jax.files.moves import Moves

_MARK = ".vggt-jax-"
_FOLDER, _FILE = ".partial", ".tmp"
_PATIENCE = 1.0  # Seconds to wait for a process that only looks whether a folder was left behind.
_LOCKLESS_AGE = 24 * 3600.0  # Where there are no locks, what is older was left behind.

_mine: set[Path] = set()
"""Temporary files and folders of this process."""
_swept: dict[Path, float] = {}
"""When folders were last looked through."""
_guard = threading.Lock()


class Claim:
    """The right to write a place, until `release`."""

    def __init__(self, out: Path, folder: Path, descriptor: int):
        self.out, self.folder, self._descriptor = out, folder, descriptor

    @classmethod
    def of(cls, out: Path) -> "Claim":
        """Takes a place, after finishing or removing what dead processes left there.

        Args:
            out: the file or folder that will be written, without links in its path. Its parent
                exists.

        Raises:
            InputError: a living process has it.
            OSError: nothing can be written there.
        """
        parents = [out.parent]
        if out.is_dir() and not _takes_folders(out):
            parents = [out]  # A mount, or in a folder where only this one may be written.
        folder = parents[0] / f"{_MARK}{_key(out.name)}{_FOLDER}"
        until = time.monotonic() + _PATIENCE
        while True:
            try:
                folder.mkdir(exist_ok=True)
                descriptor = system.lock(folder / "lock")
                break
            except FileNotFoundError:
                # Another process removed it just now; or nothing can be made there, as in /proc.
                if time.monotonic() > until:
                    raise
            except system.HeldError as error:
                if time.monotonic() > until:
                    raise InputError(
                        f"{out}: is being written by another process{_holder(folder)}; wait for "
                        "it, or choose another --out"
                    ) from error
                time.sleep(0.02)
        claim = cls(out, folder, descriptor)
        with _guard:
            _mine.add(folder)
        try:
            os.truncate(descriptor, 0)
            os.write(descriptor, f"{os.getpid()} {socket.gethostname()}\n".encode())
            Moves.finish(folder)
            claim.clear()
        except BaseException:
            claim.release()
            raise
        return claim

    @property
    def new(self) -> Path:
        """The folder to write into, in the file system of the place."""
        return self.folder / "new"

    def clear(self) -> None:
        """Empties the folder but for the lock."""
        for path in self.folder.iterdir():
            if path.name != "lock":
                _remove(path)

    def release(self) -> None:
        """Gives the place back. A journal that could not be finished stays for the next process."""
        with _guard:
            _mine.discard(self.folder)
        try:
            if not Moves.are_unfinished(self.folder):
                _remove_folder(self.folder)
        finally:
            os.close(self._descriptor)

    def __enter__(self) -> "Claim":
        return self

    def __exit__(self, *_: Any) -> None:
        self.release()


def temporary_file(folder: Path) -> Path:
    """A path for a file of this process, which `remove_leftovers` removes if the process dies."""
    path = folder / f"{_MARK}{secrets.token_hex(6)}{_FILE}"
    with _guard:
        _mine.add(path)
    return path


def forget(path: Path) -> None:
    """Says that a temporary file is gone."""
    with _guard:
        _mine.discard(path)


def remove_leftovers(folder: Path, *, at_most_every: float = 0.0) -> None:
    """Finishes what dead processes began to put in place in a folder, and removes their rest.

    What living processes write stays, and so does what may not be removed.

    Args:
        folder: need not exist.
        at_most_every: seconds; a folder that was looked through since then is left aside.
    """
    now = time.monotonic()
    if now - _swept.get(folder, -1e9) < at_most_every:
        return
    _swept[folder] = now
    try:
        found = [Path(entry.path) for entry in os.scandir(folder) if entry.name.startswith(_MARK)]
    except OSError:
        return
    for path in found:
        if path in _mine:
            continue
        try:
            if path.name.endswith(_FOLDER):
                _remove_left_folder(path)
            elif path.name.endswith(_FILE):
                _remove_left_file(path)
        except OSError:
            continue  # Living, or not ours to remove.


def settle(out: Path) -> None:
    """Finishes what a process that died began to put in place at `out`, if there is such a
    thing."""
    for parent in (out.parent, out):
        remove_leftovers(parent, at_most_every=1.0)


def remove_own() -> None:
    """Removes the temporary files and folders of this process, which is about to end at once."""
    for path in list(_mine):
        try:
            if not Moves.are_unfinished(path):
                _remove(path)
        except OSError:
            continue


def _remove_left_folder(folder: Path) -> None:
    if system.fcntl is None and time.time() - folder.stat().st_mtime < _LOCKLESS_AGE:
        return
    descriptor = system.lock(folder / "lock")
    try:
        Moves.finish(folder)
        _remove_folder(folder)
    finally:
        os.close(descriptor)


def _remove_left_file(path: Path) -> None:
    if system.fcntl is None and time.time() - path.stat().st_mtime < _LOCKLESS_AGE:
        return
    descriptor = os.open(path, os.O_RDWR)
    try:
        system.lock_descriptor(descriptor, path)
        path.unlink()
    finally:
        os.close(descriptor)


def _remove_folder(folder: Path) -> None:
    """Removes a folder of this kind, its lock last."""
    entries: Iterable[Path] = folder.iterdir()
    for path in [path for path in entries if path.name != "lock"]:
        _remove(path)
    try:
        (folder / "lock").unlink(missing_ok=True)
        folder.rmdir()
    except OSError:
        pass  # Another process takes it over.


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)


def _takes_folders(out: Path) -> bool:
    """Whether what lies beside a folder can be moved into it."""
    parent = out.parent
    if out.stat().st_dev != parent.stat().st_dev or os.path.ismount(out):
        return False
    return os.access(parent, os.W_OK | os.X_OK)


def _key(name: str) -> str:
    return hashlib.sha256(os.fsencode(name)).hexdigest()[:12]


def _holder(folder: Path) -> str:
    """Which process holds a folder, for messages."""
    try:
        number, host = (folder / "lock").read_text(encoding="utf-8")[:300].split()
    except (OSError, ValueError):
        return ""
    where = "" if host == socket.gethostname() else f" on {host}"
    return f" ({number}{where})"
