"""All arrays of a prediction in one .npz file."""

import os
from collections.abc import Mapping

import numpy as np

from vggt_jax.files import replacing


def write_predictions(path: str | os.PathLike, arrays: Mapping[str, np.ndarray]) -> None:
    """Writes named arrays to an .npz file that `numpy.load` reads without pickle.

    Uncompressed: the low bits of a network's float32 outputs are noise, so zlib takes a tenth off
    the size and minutes of time for a long scene.

    Args:
      path: the file; its folder is made if it is missing.
      arrays: what to write, by name.

    Raises:
      InputError: the file cannot be written.
      ValueError: an array has a dtype that the format cannot hold, such as object or bfloat16, or
        a name that `numpy.savez` keeps for itself.
    """
    arrays = {name: np.asarray(array) for name, array in arrays.items()}
    for name, array in arrays.items():
        if name in ("", "file", "allow_pickle"):  # Parameters of numpy.savez.
            raise ValueError(f"an array cannot be called {name!r} in an .npz file; rename it")
        # Kind V holds bfloat16 and other types from outside NumPy, which would be read as bytes.
        if array.dtype.kind in "OV":
            raise ValueError(
                f"array {name!r} of dtype {array.dtype} cannot be stored in an .npz file; convert "
                "it first, bfloat16 to float32"
            )
    with replacing(path) as file:
        # No name is that of a parameter of numpy.savez.
        np.savez(file, **arrays)  # pyright: ignore[reportArgumentType]
