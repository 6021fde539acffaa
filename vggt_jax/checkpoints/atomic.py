"""Writing a file or folder whole or not at all."""

import contextlib
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def written_whole(destination: Path) -> Iterator[Path]:
    """Yields a path beside the destination, which takes its place when the block ends well.

    A failure removes what was written and leaves what was at the destination. A process that is
    killed leaves `DESTINATION.partial-*`, and the destination untouched.

    Args:
        destination: a file or folder; its parents are made.

    Raises:
        OSError: the destination cannot be written.
    """
    mark = uuid.uuid4().hex[:8]
    partial = destination.with_name(f"{destination.name}.partial-{mark}")
    backup = destination.with_name(f"{destination.name}.old-{mark}")
    destination.parent.mkdir(parents=True, exist_ok=True)
    try:
        yield partial
        if destination.is_dir() and any(destination.iterdir()):
            # A folder cannot replace one with content in a single step.
            os.rename(destination, backup)
            try:
                os.rename(partial, destination)
            except OSError:
                os.rename(backup, destination)
                raise
            _remove(backup)
        else:
            os.replace(partial, destination)
    finally:
        _remove(partial)


def _remove(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
