"""What systems do differently: exchanging two folders in one step, locks, and flushing to disk."""

import contextlib
import ctypes
import errno
import functools
import os
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import IO, Any

try:
    import fcntl
except ModuleNotFoundError:  # Windows
    fcntl = None

_AT_FDCWD, _RENAME_EXCHANGE = -100, 2  # linux/fcntl.h, linux/fs.h
_MANY_FILES = 64  # From here on all of the disk is flushed at once.


class HeldError(OSError):
    """A lock that a living process holds."""


@functools.cache
def _renameat2() -> Callable[..., int] | None:
    if not sys.platform.startswith("linux"):
        return None
    return getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)


def exchange(first: Path, second: Path) -> bool:
    """Swaps two files or folders in one step; False where the system or the file system cannot."""
    rename = _renameat2()
    if rename is None:
        return False
    paths = os.fsencode(first), os.fsencode(second)
    return rename(_AT_FDCWD, paths[0], _AT_FDCWD, paths[1], _RENAME_EXCHANGE) == 0


def lock(path: Path) -> int:
    """Creates a file, if it is not there, and locks it for as long as this process lives.

    Returns:
        An open descriptor; closing it gives the lock back. Where the system has no locks it holds
        none.

    Raises:
        HeldError: another process, or another part of this one, holds it.
        FileNotFoundError: the folder vanished meanwhile.
        OSError: the file cannot be made.
    """
    while True:
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT | getattr(os, "O_CLOEXEC", 0), 0o666)
        try:
            lock_descriptor(descriptor, path)
            # Whoever held it may have removed the file before this process got the lock.
            if os.path.samestat(os.fstat(descriptor), os.stat(path)):
                return descriptor
        except FileNotFoundError:
            pass
        except BaseException:
            os.close(descriptor)
            raise
        os.close(descriptor)
        if not path.parent.is_dir():
            raise FileNotFoundError(errno.ENOENT, os.strerror(errno.ENOENT), str(path))


def lock_descriptor(descriptor: int, path: Path) -> None:
    """Locks an open file.

    Raises:
        HeldError: somebody else has.
    """
    if fcntl is None:
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError as error:
        raise HeldError(errno.EBUSY, "another process holds it", str(path)) from error
    except OSError:
        pass  # A network file system without locks.


def try_lock_file(file: IO[Any]) -> None:
    """Locks an open file, which nobody else can have locked."""
    if fcntl is not None:
        with contextlib.suppress(OSError):
            fcntl.flock(file.fileno(), fcntl.LOCK_EX | fcntl.LOCK_NB)


def flush(file: IO[Any]) -> None:
    """Has the disk hold what was written to an open file.

    Raises:
        OSError: it does not fit, or the disk is damaged.
    """
    file.flush()
    os.fsync(file.fileno())


def flush_folder(folder: Path) -> None:
    """Has the disk hold the names in a folder, where the system can."""
    try:
        descriptor = os.open(folder, os.O_RDONLY)
    except OSError:  # Windows opens no folders.
        return
    try:
        os.fsync(descriptor)
    except OSError:
        pass
    finally:
        os.close(descriptor)


def flush_tree(folder: Path) -> None:
    """Has the disk hold a folder with all that is in it.

    Raises:
        OSError: it does not fit, or the disk is damaged.
    """
    files = list(files_below(folder))
    if len(files) > _MANY_FILES and hasattr(os, "sync"):
        os.sync()
        return
    for path in files:
        if path.is_file() and not path.is_symlink():
            with open(path, "rb") as file:
                os.fsync(file.fileno())
    for path in {folder, *(file.parent for file in files)}:
        flush_folder(path)


def files_below(folder: Path) -> Iterator[Path]:
    """Everything below a folder that is no folder itself; links are not followed.

    Raises:
        OSError: a folder cannot be read.
    """

    def fail(error: OSError) -> None:
        raise error

    for here, folders, files in os.walk(folder, onerror=fail):
        for name in files:
            yield Path(here, name)
        for name in folders:
            if os.path.islink(os.path.join(here, name)):
                yield Path(here, name)


def reason(error: OSError) -> str:
    """What went wrong, without the path."""
    return error.strerror or str(error)
