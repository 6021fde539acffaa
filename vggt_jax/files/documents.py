"""JSON that somebody may have edited, damaged or made up."""

import json
import os
import stat
from typing import Any

from vggt_jax.errors import InputError
from vggt_jax.files.names import checked_path

_LARGEST = 64 * 2**20  # Bytes. A cameras.json of 10,000 photographs has 15 MB.


def read_json(
    path: str | os.PathLike, what: str = "JSON document", *, error: type[ValueError] = InputError
) -> Any:
    """Reads a JSON file.

    Args:
        path: the file.
        what: what it should be, for messages.
        error: what is raised.

    Raises:
        InputError, or `error`: there is no such file, it is no file but a folder, pipe or device,
            it is larger than any of ours, nested deeper than any, or no JSON.
    """
    path = checked_path(path, what, error=error)
    try:
        state = os.stat(path)
        if not stat.S_ISREG(state.st_mode):
            raise error(f"{path}: is no file; give a {what}")
        if state.st_size > _LARGEST:
            raise error(f"{path}: has {state.st_size >> 20} MiB, too much for a {what}")
        data = path.read_bytes()
    except OSError as problem:
        raise error(f"{path}: cannot be read ({problem.strerror or problem})") from problem
    return parse_json(data, str(path), what, error=error)


def parse_json(
    data: bytes | str, source: str, what: str = "JSON document", *, error: type[ValueError]
) -> Any:
    """The value of a JSON text; see `read_json`.

    Args:
        source: where it comes from, for messages.

    Raises:
        error: it is nested too deep, or no JSON.
    """
    try:
        return json.loads(data)
    except RecursionError as problem:
        raise error(f"{source}: not a {what}: it is nested too deep") from problem
    except ValueError as problem:
        raise error(f"{source}: not a {what} ({problem})") from problem
