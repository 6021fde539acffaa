"""Arrays by name as an Orbax checkpoint, without a second copy of them in memory."""

import contextlib
import logging
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from vggt_jax.checkpoints.errors import CheckpointError, first_line


def write_arrays(path: Path, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes arrays, none of them without elements, to a folder that does not exist.

    Raises:
        OSError, ValueError: the folder cannot be written (ValueError is TensorStore's type).
    """
    with _checkpointer() as checkpointer:
        checkpointer.save(path.resolve(), {name: x.view(_Lent) for name, x in arrays.items()})


def read_arrays(path: Path) -> dict[str, np.ndarray]:
    """Reads what `write_arrays` wrote into host memory, whatever devices are there.

    Raises:
        CheckpointError: the folder is damaged.
    """
    import orbax.checkpoint as ocp

    try:
        with _checkpointer() as checkpointer:
            index = checkpointer.metadata(path.resolve()).item_metadata
            if index is None:
                raise ValueError("it has no readable index")
            wanted = {name: ocp.RestoreArgs(restore_type=np.ndarray) for name in index.tree}
            return checkpointer.restore(
                path.resolve(), args=ocp.args.PyTreeRestore(restore_args=wanted)
            )
    except (OSError, ValueError) as error:
        raise CheckpointError(
            f"{path}: damaged ({first_line(error)}); copy or convert it again"
        ) from error


class _Lent(np.ndarray):
    """An array that Orbax does not copy before it writes it.

    Orbax guards against changes during asynchronous writing, at the price of a second copy of all
    arrays. Here writing is waited for.
    """

    def __deepcopy__(self, memo: dict[int, Any] | None, /) -> "_Lent":
        return self


@contextlib.contextmanager
def _checkpointer() -> Iterator[Any]:
    """An Orbax checkpointer that writes arrays uncompressed.

    Weights do not compress: zstd saves 8 % and takes six times as long.
    """
    import orbax.checkpoint as ocp  # takes seconds, so not before it is needed

    log = logging.getLogger("absl")
    level = log.level
    log.setLevel(logging.CRITICAL)  # it logs what it raises as well
    try:
        with ocp.Checkpointer(ocp.PyTreeCheckpointHandler(use_compression=False)) as checkpointer:
            yield checkpointer
    finally:
        log.setLevel(level)
