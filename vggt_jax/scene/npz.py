"""All arrays of a prediction in one .npz file, written whole and read with care."""

import contextlib
import dataclasses
import lzma
import math
import os
import struct
import tokenize
import zipfile
import zlib
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any, BinaryIO, Literal

import numpy as np

from vggt_jax.errors import InputError
from vggt_jax.files import replacing, stand_in

# What arrays may take in all, as a multiple of the file: somebody may have compressed them. Small
# ones take nobody's memory.
_MOST_COMPRESSED, _SMALL = 100, 2**28
_HEADERS = {
    (1, 0): np.lib.format.read_array_header_1_0,
    (2, 0): np.lib.format.read_array_header_2_0,
}
# What reading raises for files that are truncated, damaged or made up.
_DAMAGE = (
    OSError, ValueError, EOFError, KeyError, TypeError, SyntaxError, MemoryError, OverflowError,
    RuntimeError, NotImplementedError, zipfile.BadZipFile, zlib.error, lzma.LZMAError, struct.error,
    tokenize.TokenError,
)  # fmt: skip


@dataclasses.dataclass(frozen=True, kw_only=True)
class InPieces:
    """An array that is written piece by piece, since it is too large to be in memory.

    Attributes:
      shape, dtype: of the whole.
      pieces: gives the pieces along the first axis, one after another.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    pieces: Callable[[], Iterable[np.ndarray]]


def write_predictions(path: str | os.PathLike, arrays: Mapping[str, np.ndarray | InPieces]) -> None:
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
    arrays = {
        name: array if isinstance(array, InPieces) else np.asarray(array)
        for name, array in arrays.items()
    }
    for name, array in arrays.items():
        if name in ("", "file", "allow_pickle"):  # Parameters of numpy.savez.
            raise ValueError(f"an array cannot be called {name!r} in an .npz file; rename it")
        # Kind V holds bfloat16 and other types from outside NumPy, which would be read as bytes.
        if array.dtype.kind in "OV":
            raise ValueError(
                f"array {name!r} of dtype {array.dtype} cannot be stored in an .npz file; convert "
                "it first, bfloat16 to float32"
            )
    with replacing(path) as file, zipfile.ZipFile(file, "w") as archive:
        for name, array in arrays.items():
            with archive.open(f"{name}.npy", "w", force_zip64=True) as member:
                if isinstance(array, InPieces):
                    _write_pieces(member, array)
                else:
                    np.lib.format.write_array(member, array, allow_pickle=False)


def _write_pieces(member: Any, array: InPieces) -> None:
    header = {
        "descr": np.lib.format.dtype_to_descr(array.dtype),
        "fortran_order": False,
        "shape": array.shape,
    }
    np.lib.format.write_array_header_1_0(member, header)
    length = 0
    for piece in array.pieces():
        if piece.dtype != array.dtype or piece.shape[1:] != array.shape[1:]:
            raise ValueError(f"a piece {piece.dtype}{piece.shape} is not one of {array}")
        member.write(np.ascontiguousarray(piece).reshape(-1).view(np.uint8).data)
        length += len(piece)
    if length != array.shape[0]:
        raise ValueError(f"pieces of {length} in all are not {array.shape[0]}")


@dataclasses.dataclass(frozen=True)
class Member:
    """An array in an .npz file that has not been read.

    Attributes:
      shape, dtype: as its header says, and its size agrees.
      num_bytes: of its values.
    """

    shape: tuple[int, ...]
    dtype: np.dtype
    num_bytes: int


class Predictions:
    """An open .npz file whose arrays are looked at before they are read.

    Args:
      path: the file.
      otherwise: what messages say is to be done.
      opened: the file, where it lies in no folder of this machine and `path` is its name for
        messages alone.

    Raises:
      InputError: the file is no .npz file, or damaged; so do its methods.
    """

    def __init__(
        self, path: Path, *, otherwise: str = "run infer again", opened: BinaryIO | None = None
    ):
        self.path, self._otherwise = path, otherwise
        with self._reading(), contextlib.ExitStack() as at_the_end:
            file = opened or at_the_end.enter_context(open(path, "rb"))
            if what := stand_in(file.read(64)):
                raise InputError(f"{path}: is {what}")
        source = opened or path
        if not zipfile.is_zipfile(source):
            raise InputError(f"{path}: is no .npz file, or damaged; {otherwise}")
        with self._reading():
            self._zip = zipfile.ZipFile(source)
            self._infos = {
                info.filename.removesuffix(".npy"): info for info in self._zip.infolist()
            }
            size = opened.seek(0, os.SEEK_END) if opened else path.stat().st_size
            self._most = max(_SMALL, _MOST_COMPRESSED * size)
            self._size = size

    def __enter__(self) -> "Predictions":
        return self

    def __exit__(self, *_) -> None:
        self._zip.close()

    def members(self, names: Collection[str]) -> dict[str, Member]:
        """Those of these arrays that are there, by name.

        Raises:
          InputError: one of them, or all together, claim more than the file can hold.
        """
        found = {name: self._member(name) for name in names if name in self._infos}
        total = sum(member.num_bytes for member in found.values())
        if total > self._most:
            raise InputError(
                f"{self.path}: claims to hold {total / 2**30:,.1f} GiB in "
                f"{self._size / 2**20:.1f} MiB; it is damaged or made up"
            )
        return found

    def read(self, name: str) -> np.ndarray:
        """An array that `members` has looked at."""
        with self._reading(), self._zip.open(self._infos[name]) as file:
            array = np.lib.format.read_array(file, allow_pickle=False)
            # The rest of it, which holds nothing but a checksum that has to be right.
            file.read(1)
        return np.ascontiguousarray(array, array.dtype.newbyteorder("=")).reshape(array.shape)

    def mapped(self, name: str) -> np.ndarray:
        """An array that `members` has looked at, as a map of the file, of which parts are read when
        they are used; what is changed stays in memory. It is not checked against its checksum. One
        that is compressed, or of another order of bytes, is read."""
        info = self._infos[name]
        with self._reading():
            if info.compress_type != zipfile.ZIP_STORED or 0 in self._member(name).shape:
                return self.read(name)
            with open(self.path, "rb") as file:
                # A zip entry is a head of 30 bytes, its name, other fields, and what is stored.
                file.seek(info.header_offset)
                head = file.read(30)
                if head[:4] != b"PK\x03\x04":
                    raise ValueError("an entry does not begin as one")
                file.seek(sum(struct.unpack("<HH", head[26:30])), os.SEEK_CUR)
                shape, is_fortran, dtype = _HEADERS[np.lib.format.read_magic(file)](file)
                if not dtype.isnative:
                    return self.read(name)
                order: Literal["F", "C"] = "F" if is_fortran else "C"
                return np.memmap(self.path, dtype, "c", file.tell(), shape, order)

    def _member(self, name: str) -> Member:
        info = self._infos[name]
        with self._reading(), self._zip.open(info) as file:
            shape, dtype, start = _read_header(file)
        if any(length < 0 for length in shape) or dtype.hasobject:
            raise InputError(f"{self.path}: {name} is no array of numbers; {self._otherwise}")
        num_bytes = math.prod(shape) * dtype.itemsize
        if start + num_bytes != info.file_size:
            raise InputError(
                f"{self.path}: {name} claims {num_bytes / 2**20:,.1f} MiB and has "
                f"{(info.file_size - start) / 2**20:,.1f}; the file is damaged, "
                f"{self._otherwise}"
            )
        return Member(shape, dtype, num_bytes)

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        try:
            yield
        except InputError:
            raise
        except _DAMAGE as error:
            raise InputError(
                f"{self.path}: cannot be read or is damaged ({error or type(error).__name__}); "
                f"{self._otherwise}"
            ) from error


def read_array(path: Path) -> np.ndarray:
    """The array of an .npy file.

    Raises:
      InputError: it cannot be read, is damaged, holds no numbers, or less than it claims.
    """
    try:
        with open(path, "rb") as file:
            shape, dtype, start = _read_header(file)
            if any(length < 0 for length in shape) or dtype.hasobject:
                raise ValueError("no array of numbers")
            if start + math.prod(shape) * dtype.itemsize > path.stat().st_size:
                raise ValueError(f"it has not the bytes for an array of shape {list(shape)}")
            file.seek(0)
            return np.lib.format.read_array(file, allow_pickle=False)
    except _DAMAGE as error:
        raise InputError(
            f"{path}: cannot be read or is damaged ({error or type(error).__name__}); write it "
            "again"
        ) from error


def _read_header(file: Any) -> tuple[tuple[int, ...], np.dtype, int]:
    """Shape and type of an array in a file, and where its values begin."""
    version = np.lib.format.read_magic(file)
    if version not in _HEADERS:
        raise ValueError(f"it has a header of version {version}")
    shape, _, dtype = _HEADERS[version](file)
    return shape, dtype, file.tell()
