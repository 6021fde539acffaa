"""DTU's maps of depth, in files of PFM or NumPy, and the sizes that its releases made of pictures.

A photograph has 1600x1200 pixels. MVSNet's training halves it and cuts the middle 640x512 out of
that; its depth is a quarter of this again. `Depths_raw` is in the pixels of the whole photograph.
"""

import re
from pathlib import Path
from typing import BinaryIO

import numpy as np

from vggt_jax.errors import InputError
from vggt_jax.evaluation.datasets.reading import finite_depth, naming, read_grey, scaled

Size = tuple[int, int]
# Height and width.
_FULL, _HALF, _CUT = (1200, 1600), (600, 800), (512, 640)
# Of the width and height, from the middle: principal points of DTU are within .02.
_MIDDLE = 0.2
_SAME_SHAPE = 0.01
_HEADER = re.compile(rb"(P[Ff])\s+(\d+)\s+(\d+)\s+([-+.\deE]+)[ \t]*\r?\n")
_MOST_HEADER = 256  # Bytes.


def is_of(matrix: np.ndarray, size: Size) -> bool:
    """Whether intrinsics have their principal point in the middle of a picture of this size."""
    return bool(np.all(np.abs(matrix[:2, 2] / (size[1], size[0]) - 0.5) < _MIDDLE))


def intrinsics_for(matrix: np.ndarray, size: Size) -> np.ndarray:
    """Intrinsics of a photograph, from those of its camera file, which may be for another size.

    Files of 1600x1200 lie beside pictures of training, those of 160x128 beside pictures four times
    as large and, cut or not, beside whole photographs. Which it is, the principal point tells.

    Args:
        matrix: of the file.
        size: of the photograph.
    """
    quarter = scaled(matrix, 4, 4)
    if is_of(matrix, size):
        return matrix
    if is_of(quarter, size):
        return quarter
    if is_of(matrix, _FULL):
        whole = matrix
    elif is_of(quarter, _CUT):
        whole = quarter.copy()
        whole[:2, 2] += np.subtract(_HALF, _CUT)[::-1] / 2
        whole = scaled(whole, 2, 2)
    else:
        return matrix
    if not _is_cut(size):
        return scaled(whole, size[1] / _FULL[1], size[0] / _FULL[0])
    half = scaled(whole, 0.5, 0.5)
    half[:2, 2] -= np.subtract(_HALF, _CUT)[::-1] / 2
    return scaled(half, size[1] / _CUT[1], size[0] / _CUT[0])


def _is_cut(size: Size) -> bool:
    """Whether a picture has the shape of those that were cut for training."""
    return _has_shape(size, _CUT)


def _has_shape(size: Size, other: Size) -> bool:
    return abs(size[1] * other[0] / (size[0] * other[1]) - 1) < _SAME_SHAPE


def field(size: Size, image_size: Size) -> Size:
    """The size of a map once it shows what the photograph shows: larger, smaller, or as it is.

    Whole maps may lie beside photographs that were cut, and the other way round.
    """
    height, width = np.round(_exact_field(size, image_size)).astype(int)
    return int(height), int(width)


def depth_intrinsics(matrix: np.ndarray, size: Size, image_size: Size) -> np.ndarray:
    """Intrinsics of a map that was brought to its `field`.

    Args:
        matrix: of the photograph.
        size: of the map as stored.
    """
    exact, shown = _exact_field(size, image_size), field(size, image_size)
    found = scaled(matrix, *(exact / image_size)[::-1])
    # Its middle moved by a part of a pixel, where sides were rounded.
    for axis in range(2):
        before = (size[axis] - exact[axis]) / 2 - _first(size[axis], shown[axis])
        found[1 - axis, 2] += before
    return found


def _exact_field(size: Size, image_size: Size) -> np.ndarray:
    if _has_shape(size, _FULL) and _is_cut(image_size):
        return np.multiply(size, np.divide(_CUT, _HALF))
    if _is_cut(size) and _has_shape(image_size, _FULL):
        return np.multiply(size, np.divide(_HALF, _CUT))
    return np.array(size, np.float64)


def _first(stored: int, shown: int) -> int:
    """The row or column of a stored map that becomes the first of what is shown."""
    return (stored - shown) // 2 if stored >= shown else -((shown - stored) // 2)


def map_size(path: Path) -> Size:
    """Height and width of a map, of which no more is read than its header.

    Raises:
        InputError: it is missing or damaged, or shorter than it says.
    """
    if path.suffix.lower() == ".pfm":
        with naming(path, "PFM file of one channel"), path.open("rb") as file:
            _, height, width = _pfm_header(file)
            if path.stat().st_size < file.tell() + 4 * height * width:
                raise ValueError("it is truncated")
            return height, width
    with naming(path, "array of depth"):
        height, width = (n for n in np.load(path, mmap_mode="r").shape if n != 1)
        return height, width


def read_depth(path: Path, seen: Path | None, size: Size | None) -> np.ndarray:
    """Depth in millimetres, 0 where there is none.

    Args:
        path: PFM or NumPy.
        seen: a picture of the same size, brighter than 10 where depth counts; None for all.
        size: the map is cut to it, or filled up to it, about its middle; None leaves it.
    """
    if path.suffix.lower() == ".pfm":
        depth = finite_depth(read_pfm(path))
    else:
        depth = _read_array(path)
    if seen is not None:
        counts = read_grey(seen) > 10  # As MVSNet's training takes it.
        if counts.shape != depth.shape:
            raise InputError(f"{seen}: is of another size than {path}")
        depth = np.where(counts, depth, np.float32(0))
    return depth if size is None else _about_the_middle(depth, size)


def _about_the_middle(depth: np.ndarray, size: Size) -> np.ndarray:
    result = np.zeros(size, depth.dtype)
    into, of = [], []
    for stored, shown in zip(depth.shape, size, strict=True):
        first = _first(stored, shown)
        into.append(slice(max(-first, 0), max(-first, 0) + min(stored, shown)))
        of.append(slice(max(first, 0), max(first, 0) + min(stored, shown)))
    result[tuple(into)] = depth[tuple(of)]
    return result


def _read_array(path: Path) -> np.ndarray:
    with naming(path, "array of depth"):
        depth = np.load(path, allow_pickle=False)
        if depth.ndim == 3 and 1 in depth.shape:
            depth = depth.squeeze()
        if depth.ndim != 2:
            raise ValueError(f"an array of shape {depth.shape}")
        return finite_depth(depth)


def read_pfm(path: Path) -> np.ndarray:
    """A PFM picture of one channel [height width], the top row first, float32.

    Its scale's sign tells the order of bytes (negative: little-endian); rows are stored from below.

    Raises:
        InputError: it has colours, or is truncated.
    """
    with naming(path, "PFM file of one channel"), path.open("rb") as file:
        order, height, width = _pfm_header(file)
        values = np.frombuffer(file.read(), f"{order}f4", width * height)
    return values.reshape(height, width)[::-1].astype(np.float32)


def _pfm_header(file: BinaryIO) -> tuple[str, int, int]:
    """The order of bytes, height and width; the file is left where the numbers begin."""
    found = _HEADER.match(file.read(_MOST_HEADER))
    if found is None or found[1] != b"Pf":
        raise ValueError("its header is not that of one channel")
    file.seek(found.end())
    return "<" if float(found[4]) < 0 else ">", int(found[3]), int(found[2])
