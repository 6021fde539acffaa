"""Models of COLMAP that somebody may have cut, damaged or made up.

pycolmap reads binary files that are cut as if nothing were missing, or without an end. So their
structure is followed first: how many of what they say they hold, against their bytes.
"""

import mmap
import struct
from collections.abc import Callable
from pathlib import Path
from typing import Any

from vggt_jax.errors import InputError
from vggt_jax.export.colmap import import_pycolmap

# Where COLMAP keeps models in a folder of a scene.
_FOLDERS = (".", "sparse/0", "sparse", "colmap/sparse/0", "dense/sparse")
_PARTS = ("cameras", "images", "points3D", "rigs", "frames")
_LONGEST_NAME = 4096  # Bytes of a photograph's name with its folders.
_RIGID = 7 * 8  # Bytes of a rotation and a translation.


def find_model(folder: Path) -> Path | None:
    """The folder of a model: this one, or one where COLMAP puts it; None if there is none."""
    for name in _FOLDERS:
        if any((folder / name / f"cameras{suffix}").is_file() for suffix in (".bin", ".txt")):
            return folder / name
    return None


def model_files(folder: Path) -> list[Path]:
    """The files of a model that are there."""
    names = [f"{part}{suffix}" for suffix in (".bin", ".txt") for part in _PARTS]
    return [folder / name for name in names if (folder / name).is_file()]


def is_part(path: Path) -> bool:
    """Whether a file has the name of one of a model's."""
    return path.stem in _PARTS and path.suffix in (".bin", ".txt")


def read_model(folder: Path):
    """A model as pycolmap reads it.

    Raises:
        InputError: pycolmap is not installed; a file is missing, cut or damaged.
    """
    pycolmap = import_pycolmap()
    for path in model_files(folder):
        if path.suffix == ".bin":
            _check(path, pycolmap)
    try:
        return pycolmap.Reconstruction(str(folder))
    except Exception as error:  # pycolmap raises what its C++ does
        why = " ".join(str(error).split())[:200]
        raise InputError(f"{folder}: cannot be read as a COLMAP model ({why})") from error


class _Bytes:
    """A file that is read from its beginning on, as far as it goes.

    Raises:
        ValueError: it ends earlier than it says; so do all methods.
    """

    def __init__(self, data: mmap.mmap):
        self._data, self._at = data, 0

    def skip(self, size: int) -> None:
        if size > len(self._data) - self._at:
            raise ValueError(f"it ends after {len(self._data):,} bytes, and says it holds more")
        self._at += size

    def numbers(self, form: str) -> tuple[Any, ...]:
        """Numbers as `struct` names them."""
        start = self._at
        self.skip(struct.calcsize(form))
        return struct.unpack_from(form, self._data, start)

    def count(self, least: int) -> int:
        """A number of things of at least so many bytes each."""
        (number,) = self.numbers("<Q")
        if number * least > len(self._data) - self._at:
            raise ValueError(f"it says it holds {number:,} parts, and has not the bytes for them")
        return number

    def skip_records(self, number: int, size: int, of_each: int) -> None:
        """Records of a size and a number of parts; there may be millions."""
        at, read, data = self._at, struct.Struct("<Q").unpack_from, self._data
        end = len(data) - 8
        for _ in range(number):
            at += size
            if at > end:
                break
            at += 8 + of_each * read(data, at)[0]
        self.skip(at - self._at)

    def name(self) -> None:
        end = self._data.find(b"\0", self._at, self._at + _LONGEST_NAME)
        if end < 0:
            raise ValueError("the name of a photograph has no end")
        self._at = end + 1


# What a part is made of; by reconstruction_io_binary.cc of COLMAP 4.


def _cameras(file: _Bytes, pycolmap) -> None:
    models = {int(model): model for model in pycolmap.CameraModelId.__members__.values()}
    for _ in range(file.count(24)):
        _, number, *size = file.numbers("<IiQQ")
        if number < 0 or number not in models or 0 in size:
            raise ValueError(f"a camera of model {number} and of {size[0]}x{size[1]} pixels")
        camera = pycolmap.Camera()
        camera.model = models[number]
        file.skip(8 * len(camera.params_info.split(",")))


def _images(file: _Bytes, pycolmap) -> None:
    del pycolmap
    for _ in range(file.count(4 + _RIGID + 4 + 1 + 8)):
        file.skip(4 + _RIGID + 4)
        file.name()
        file.skip(24 * file.count(24))  # Points of the image.


def _points(file: _Bytes, pycolmap) -> None:
    del pycolmap
    file.skip_records(file.count(43 + 8), 43, 8)  # Number, place, colour, error; and its track.


def _rigs(file: _Bytes, pycolmap) -> None:
    del pycolmap
    for _ in range(file.count(8)):
        _, sensors = file.numbers("<II")
        file.skip(8 if sensors else 0)  # That of reference.
        for _ in range(sensors - 1):
            *_, has_pose = file.numbers("<iIB")
            file.skip(_RIGID if has_pose else 0)


def _frames(file: _Bytes, pycolmap) -> None:
    del pycolmap
    for _ in range(file.count(8 + _RIGID + 4)):
        file.skip(8 + _RIGID)
        (number,) = file.numbers("<I")
        file.skip(16 * number)


_STRUCTURE: dict[str, Callable[[_Bytes, Any], None]] = {
    "cameras": _cameras,
    "images": _images,
    "points3D": _points,
    "rigs": _rigs,
    "frames": _frames,
}


def _check(path: Path, pycolmap) -> None:
    try:
        if not path.stat().st_size:
            raise ValueError("it is empty")
        with open(path, "rb") as file, mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
            _STRUCTURE[path.stem](_Bytes(data), pycolmap)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: is cut or damaged ({error}); export the model again") from error
