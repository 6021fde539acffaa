"""Tensors in files of PyTorch's `torch.save`, read without PyTorch and without running anything.

Since version 1.6 such a file is a ZIP archive: `NAME/data.pkl`, a pickle in which tensors refer to
numbered storages, and `NAME/data/0`, ..., which hold their bytes (pytorch, torch/serialization.py).
Of the pickle only containers, numbers, text and tensors are accepted. Bytes are read when they are
asked for, so that a large file can be listed quickly.
"""

import collections
import contextlib
import dataclasses
import io
import pickle
import zipfile
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np

from vggt_jax.errors import InputError
from vggt_jax.evaluation.datasets.reading import naming

_TYPES = {
    "BoolStorage": "?", "ByteStorage": "u1", "CharStorage": "i1", "ShortStorage": "i2",
    "IntStorage": "i4", "LongStorage": "i8", "HalfStorage": "f2", "FloatStorage": "f4",
    "DoubleStorage": "f8",
}  # fmt: skip


@dataclasses.dataclass(frozen=True)
class StoredTensor:
    """A tensor of a file, whose bytes are not read yet.

    Attributes:
        path: the file.
        member: of the archive, which holds the bytes.
        kind: of the numbers.
        start: the first of its numbers in the member.
        shape, strides: as PyTorch counts them, strides in numbers.
    """

    path: Path
    member: str
    kind: np.dtype
    start: int
    shape: tuple[int, ...]
    strides: tuple[int, ...]

    def read(self) -> np.ndarray:
        """Its values.

        Raises:
            InputError: the file is missing or damaged.
        """
        with _archive(self.path) as archive:
            values = np.frombuffer(archive.read(self.member), self.kind)[self.start :]
            steps = zip(self.shape, self.strides, strict=True)
            last = sum((size - 1) * step for size, step in steps)
            if min((*self.shape, *self.strides, self.start, 0)) < 0:
                raise ValueError(f"a tensor of shape {self.shape} and strides {self.strides}")
            if 0 in self.shape:
                return np.zeros(self.shape, self.kind.newbyteorder("="))
            if last >= len(values):
                raise ValueError(f"{self.member} is shorter than its tensor")
            strides = [step * self.kind.itemsize for step in self.strides]
            view = np.lib.stride_tricks.as_strided(values, self.shape, strides, writeable=False)
            return view.astype(self.kind.newbyteorder("="))


def read_archive(path: Path) -> Any:
    """What a file of `torch.save` holds, with a `StoredTensor` for each tensor.

    Raises:
        InputError: it is missing or damaged, no such file, or holds other objects.
    """
    with _archive(path) as archive:
        names = archive.namelist()
        pickles = [name for name in names if name.rpartition("/")[2] == "data.pkl"]
        if len(pickles) != 1:
            raise ValueError("there is no data.pkl in it")
        folder = pickles[0].removesuffix("data.pkl")
        order = archive.read(f"{folder}byteorder") if f"{folder}byteorder" in names else b"little"
        data = io.BytesIO(archive.read(pickles[0]))
        return _Reader(data, path, folder, ">" if order.strip() == b"big" else "<").load()


@contextlib.contextmanager
def _archive(path: Path) -> Iterator[zipfile.ZipFile]:
    """A file that was opened; what reading it raises becomes an InputError."""
    with naming(path, "file of torch.save"):
        try:
            with zipfile.ZipFile(path) as archive:
                yield archive
        except (
            zipfile.BadZipFile,
            zlib.error,
            pickle.UnpicklingError,
            AttributeError,
            NotImplementedError,
            RuntimeError,
        ) as error:
            raise InputError(
                f"{path}: is damaged, or no file of torch.save by PyTorch 1.6 or newer ({error})"
            ) from error


class _Reader(pickle.Unpickler):
    """An unpickler that knows tensors and plain containers, and calls nothing else."""

    def __init__(self, file: io.BytesIO, path: Path, folder: str, order: str):
        super().__init__(file, encoding="utf-8")
        self._path, self._folder, self._order = path, folder, order

    def find_class(self, module: str, name: str) -> Any:
        if (module, name) == ("torch._utils", "_rebuild_tensor_v2"):
            return self._tensor
        if module == "torch" and name in _TYPES:
            return np.dtype(self._order + _TYPES[name])
        if (module, name) == ("collections", "OrderedDict"):
            return collections.OrderedDict
        raise pickle.UnpicklingError(f"it holds {module}.{name}, which is not read")

    def persistent_load(self, pid: Any) -> Any:
        """A storage: the member of the archive and the type of its numbers."""
        what, kind, key, *_ = pid
        if what != "storage" or not isinstance(kind, np.dtype):
            raise pickle.UnpicklingError(f"it refers to {what!r}, which is not read")
        return f"{self._folder}data/{key}", kind

    def _tensor(self, storage: Any, start: int, shape: Any, strides: Any, *_: Any) -> StoredTensor:
        member, kind = storage
        return StoredTensor(self._path, member, kind, start, tuple(shape), tuple(strides))
