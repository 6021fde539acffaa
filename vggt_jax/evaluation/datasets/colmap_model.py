"""Cameras and images of COLMAP models, text and binary, as data sets come with them.

Only these two files are read, so that pycolmap is not needed. The formats are those of COLMAP's
`src/colmap/scene/reconstruction_io.cc` and of its page "Output format".
"""

import dataclasses
import struct
from pathlib import Path

import numpy as np
from jaxtyping import Float

from vggt_jax.errors import InputError
from vggt_jax.evaluation.datasets.reading import first_file, naming, pinhole, read_text

# By COLMAP's numbers (sensor/models.h): name, number of parameters, whether fx = fy.
_MODELS = {
    0: ("SIMPLE_PINHOLE", 3, True), 1: ("PINHOLE", 4, False), 2: ("SIMPLE_RADIAL", 4, True),
    3: ("RADIAL", 5, True), 4: ("OPENCV", 8, False), 5: ("OPENCV_FISHEYE", 8, False),
    6: ("FULL_OPENCV", 12, False), 7: ("FOV", 5, False), 8: ("SIMPLE_RADIAL_FISHEYE", 4, True),
    9: ("RADIAL_FISHEYE", 5, True), 10: ("THIN_PRISM_FISHEYE", 12, False),
}  # fmt: skip
_BY_NAME = {name: (count, is_single) for name, count, is_single in _MODELS.values()}


@dataclasses.dataclass(frozen=True, eq=False)
class ColmapCamera:
    """A camera; pixel centres at i + 0.5, as COLMAP counts.

    Attributes:
        model: COLMAP's name.
        size: height and width.
        params: focal lengths, principal point, distortion.
    """

    model: str
    size: tuple[int, int]
    params: Float[np.ndarray, " n"]

    @property
    def intrinsics(self) -> Float[np.ndarray, "3 3"]:
        """The matrix, without distortion."""
        if _BY_NAME[self.model][1]:
            focal, *centre = self.params[:3]
            return pinhole(focal, focal, *centre)
        return pinhole(*self.params[:4])

    @property
    def distortion(self) -> Float[np.ndarray, " n"]:
        """What comes after the principal point."""
        return self.params[3 if _BY_NAME[self.model][1] else 4 :]


@dataclasses.dataclass(frozen=True, eq=False)
class ColmapImage:
    """An image: its number, name, camera, and pose camera_from_world [3 4]."""

    number: int
    name: str
    camera: int
    camera_from_world: Float[np.ndarray, "3 4"]


def has_model(folder: Path) -> bool:
    """Whether a folder holds cameras and images of a model."""
    return any(
        first_file(folder / f"cameras{ending}") and first_file(folder / f"images{ending}")
        for ending in (".txt", ".bin")
    )


def read_model(folder: Path) -> tuple[dict[int, ColmapCamera], list[ColmapImage]]:
    """Cameras by number, and images in the order of the file.

    Raises:
        InputError: a file is missing, or damaged.
    """
    cameras, images = first_file(folder / "cameras.txt"), first_file(folder / "images.txt")
    if cameras and images:
        with naming(cameras, "cameras.txt of COLMAP"):
            found = _text_cameras(read_text(cameras, "cameras.txt of COLMAP"))
        with naming(images, "images.txt of COLMAP"):
            return found, _text_images(read_text(images, "images.txt of COLMAP"))
    cameras, images = folder / "cameras.bin", folder / "images.bin"
    try:
        with naming(cameras, "cameras.bin of COLMAP"):
            found = _binary_cameras(cameras.read_bytes())
        with naming(images, "images.bin of COLMAP"):
            return found, _binary_images(images.read_bytes())
    except struct.error as error:
        raise InputError(f"{folder}: cameras.bin or images.bin is truncated ({error})") from error


def rotation_of(w: float, x: float, y: float, z: float) -> Float[np.ndarray, "3 3"]:
    """The rotation of a quaternion, which is brought to length 1."""
    w, x, y, z = np.array([w, x, y, z], np.float64) / np.linalg.norm([w, x, y, z])
    return np.array(
        [
            [1 - 2 * (y * y + z * z), 2 * (x * y - z * w), 2 * (x * z + y * w)],
            [2 * (x * y + z * w), 1 - 2 * (x * x + z * z), 2 * (y * z - x * w)],
            [2 * (x * z - y * w), 2 * (y * z + x * w), 1 - 2 * (x * x + y * y)],
        ]
    )


def _camera(model: str, width: int, height: int, params) -> ColmapCamera:
    if model not in _BY_NAME:
        raise ValueError(f"camera model {model} is not known")
    if len(params) != _BY_NAME[model][0]:
        raise ValueError(f"{model} has {_BY_NAME[model][0]} parameters, not {len(params)}")
    return ColmapCamera(model, (height, width), np.array(params, np.float64))


def _pose(quaternion, translation) -> np.ndarray:
    return np.concatenate([rotation_of(*quaternion), np.array(translation)[:, None]], axis=1)


def _text_cameras(text: str) -> dict[int, ColmapCamera]:
    found = {}
    for line in text.split("\n"):
        words = line.split()
        if words and not words[0].startswith("#"):
            params = [float(word) for word in words[4:]]
            found[int(words[0])] = _camera(words[1], int(words[2]), int(words[3]), params)
    return found


def _text_images(text: str) -> list[ColmapImage]:
    """Of two lines an image; the second, its points, may be empty, and comments may be anywhere.

    A line is one of an image if it has a name; one of points is made of numbers alone.
    """
    found = []
    for line in text.split("\n"):
        words = line.split(maxsplit=9)
        if len(words) < 10 or words[0].startswith("#") or _is_number(words[9].split()[-1]):
            continue
        values = [float(word) for word in words[1:8]]
        pose = _pose(values[:4], values[4:])
        found.append(ColmapImage(int(words[0]), words[9].strip(), int(words[8]), pose))
    return found


def _is_number(word: str) -> bool:
    try:
        float(word)
    except ValueError:
        return False
    return True


def _binary_cameras(data: bytes) -> dict[int, ColmapCamera]:
    (count,) = struct.unpack_from("<Q", data, 0)
    at, found = 8, {}
    for _ in range(count):
        number, model, width, height = struct.unpack_from("<IiQQ", data, at)
        at += 24
        name, length, _ = _MODELS.get(model, (f"number {model}", 0, False))
        found[number] = _camera(name, width, height, struct.unpack_from(f"<{length}d", data, at))
        at += 8 * length
    return found


def _binary_images(data: bytes) -> list[ColmapImage]:
    (count,) = struct.unpack_from("<Q", data, 0)
    at, found = 8, []
    for _ in range(count):
        number, *values, camera = struct.unpack_from("<I7dI", data, at)
        at += 64
        end = data.index(b"\0", at)
        name = data[at:end].decode("utf-8", errors="replace")
        (points,) = struct.unpack_from("<Q", data, end + 1)
        at = end + 9 + 24 * points
        if at > len(data):
            raise ValueError(f"it ends in image {name}")
        found.append(ColmapImage(number, name, camera, _pose(values[:4], values[4:])))
    return found
