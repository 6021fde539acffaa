"""Paths on the command line: what can be none is refused before there is any work."""

import errno
import os
import stat
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from vggt_jax.errors import InputError
from vggt_jax.files.addresses import address_of, local_path

# Options that may name a file, or something else.
_TEXTS = ("model", "source", "sources", "image_folder", "out", "intrinsics")
_BY_PLACE = ("source", "sources", "destination")  # Without an option.


def check_paths(command: Any) -> None:
    """Checks the paths that a command was given, those of its output included.

    Raises:
        InputError: one is longer than the system takes, holds a NUL, or is a pipe or a device.
    """
    for name, path in _paths(command):
        if address_of(path, name) is not None:
            continue  # Asked when it is used.
        path = os.fspath(local_path(path))
        option = "path" if name in _BY_PLACE else f"--{name.replace('_', '-')}"
        shown = path if len(path) <= 200 else f"{path[:100]}...{path[-40:]}"
        try:
            mode = os.stat(path).st_mode
        except OSError as error:
            if error.errno == errno.ENAMETOOLONG:
                raise InputError(f"{shown}: {error.strerror}; choose another {option}") from error
            continue  # What is not there, or may not be read, has messages of its own.
        except ValueError as error:
            raise InputError(f"{shown}: is no path ({error}); choose another {option}") from error
        if not stat.S_ISREG(mode) and not stat.S_ISDIR(mode):
            raise InputError(
                f"{shown}: is a pipe or a device, neither a file nor a folder; choose another "
                f"{option}"
            )


def _paths(command: Any) -> Iterator[tuple[str, str | Path]]:
    for name, value in vars(command).items():
        for one in value if isinstance(value, tuple) else (value,):
            if isinstance(one, Path) or (name in _TEXTS and isinstance(one, str)):
                yield name, one
