"""ScanNet's `.sens` files, version 4: colour, depth and poses of a video in one file.

The layout is that of SensReader/c++/sensorData.h in ScanNet's repository. What comes after the
frames, such as records of an inertial sensor, is not read.
"""

import dataclasses
import io
import struct
import zlib
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image

from vggt_jax.errors import InputError
from vggt_jax.evaluation.datasets.reading import naming
from vggt_jax.images.opening import reading

_VERSION = 4
_COLOUR = {1: "png", 2: "jpeg"}
_RAW_DEPTH, _ZLIB_DEPTH = 0, 1
_FRAME = struct.Struct("<16f4Q")  # Pose, two times, the sizes of colour and depth.


@dataclasses.dataclass(frozen=True, eq=False)
class SensEntry:
    """Where a frame lies in the file; `pose` is world_from_camera, -inf where it was lost."""

    pose: Float[np.ndarray, "4 4"]
    start: int
    colour_bytes: int
    depth_bytes: int


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class SensFile:
    """The header of a file and its frames.

    Attributes:
        colour_intrinsics, depth_intrinsics: 4x4, pixel centres at whole numbers.
        colour_size, depth_size: height and width.
        is_truncated: whether the file ends before its last frame; `entries` are the whole ones.
    """

    path: Path
    colour_intrinsics: Float[np.ndarray, "4 4"]
    depth_intrinsics: Float[np.ndarray, "4 4"]
    colour_size: tuple[int, int]
    depth_size: tuple[int, int]
    depth_compression: int
    depth_shift: float
    entries: tuple[SensEntry, ...]
    is_truncated: bool

    @classmethod
    def open(cls, path: Path) -> "SensFile":
        """Reads the header and walks through the frames.

        Raises:
            InputError: it is no such file, or compressed in a way that is not read.
        """
        try:
            with naming(path, ".sens file"), path.open("rb") as file:
                return cls._read(path, file)
        except struct.error as error:
            raise InputError(f"{path}: is truncated in its header ({error})") from error

    @classmethod
    def _read(cls, path: Path, file) -> "SensFile":
        unpack = lambda form: struct.unpack(form, file.read(struct.calcsize(form)))
        version, length = unpack("<IQ")
        if version != _VERSION or length > 4096:
            raise InputError(f"{path}: is no .sens file of version {_VERSION}")
        file.read(length)
        matrices = np.array(unpack("<64f"), np.float64).reshape(4, 4, 4)
        colour_kind, depth_kind, *sizes, shift, count = unpack("<ii4IfQ")
        if colour_kind not in _COLOUR or depth_kind not in (_RAW_DEPTH, _ZLIB_DEPTH):
            raise InputError(
                f"{path}: colour or depth is compressed in a way that is not read "
                f"({colour_kind}, {depth_kind}); JPEG and zlib are"
            )
        end, entries = path.stat().st_size, []
        for _ in range(count):
            header = file.read(_FRAME.size)
            if len(header) < _FRAME.size:
                break
            values = _FRAME.unpack(header)
            colour_bytes, depth_bytes = values[18:]
            start = file.tell()
            if start + colour_bytes + depth_bytes > end:
                break
            pose = np.array(values[:16], np.float64).reshape(4, 4)
            entries.append(SensEntry(pose, start, colour_bytes, depth_bytes))
            file.seek(start + colour_bytes + depth_bytes)
        return cls(
            path=path,
            colour_intrinsics=matrices[0],
            depth_intrinsics=matrices[2],
            colour_size=(sizes[1], sizes[0]),
            depth_size=(sizes[3], sizes[2]),
            depth_compression=depth_kind,
            depth_shift=shift,
            entries=tuple(entries),
            is_truncated=len(entries) < count,
        )

    def read_image(self, i: int) -> UInt8[np.ndarray, "height width 3"]:
        """Colour of a frame."""
        entry = self.entries[i]
        label = f"{self.path}, frame {i}"
        with (
            reading(label),
            Image.open(io.BytesIO(self._bytes(entry.start, entry.colour_bytes))) as image,
        ):
            return np.array(image.convert("RGB"))

    def read_depth(self, i: int) -> Float[np.ndarray, "height width"]:
        """Depth of a frame in metres, 0 where there is none."""
        entry = self.entries[i]
        data = self._bytes(entry.start + entry.colour_bytes, entry.depth_bytes)
        try:
            if self.depth_compression == _ZLIB_DEPTH:
                data = zlib.decompress(data)
            values = np.frombuffer(data, "<u2").reshape(self.depth_size)
        except (zlib.error, ValueError) as error:
            raise InputError(f"{self.path}: depth of frame {i} is damaged ({error})") from error
        return values.astype(np.float32) / np.float32(self.depth_shift)

    def _bytes(self, start: int, count: int) -> bytes:
        with naming(self.path, ".sens file"), self.path.open("rb") as file:
            file.seek(start)
            return file.read(count)
