"""One photograph as programs that read exports must find it: upright, 8-bit RGB, in a usual format.

What is so already is copied byte by byte. What is written anew keeps its colour profile and what
EXIF says of the camera, such as the focal length.
"""

import io
import shutil
import struct
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import Any, BinaryIO

from PIL import Image, TiffImagePlugin

from vggt_jax.errors import InputError
from vggt_jax.images.decoding import (
    ORIENTATION,
    SLIVER,
    Limits,
    has_many_bits,
    measure,
    upright_rgb,
)
from vggt_jax.images.opening import SEVERAL, opened

# Formats that COLMAP, gsplat and nerfstudio read, by Pillow's names, and how their names end.
_ENDINGS = {
    "JPEG": (".jpg", ".jpeg", ".jpe"),
    "PNG": (".png",),
    "TIFF": (".tif", ".tiff"),
    "BMP": (".bmp",),
    "PPM": (".ppm",),
    "WEBP": (".webp",),
}
_LOSSY = ("AVIF", "HEIF", "JPEG2000")
_JPEG_QUALITY = 95
# EXIF 2.32: maker, model and time; in the camera's part all but the maker's note, which holds
# places in the file it was written for, and the link to another table.
_CAMERA_TAGS = (0x010F, 0x0110, 0x0132)
_EXIF_PART, _GPS_PART = 0x8769, 0x8825
_LEFT_OUT_TAGS = (0x927C, 0xA005)
_WIDTH_TAG, _HEIGHT_TAG = 0xA002, 0xA003
_MANY_BITS = ("I", "F")


@dataclass(frozen=True, kw_only=True)
class Stored:
    """How a photograph is stored.

    Attributes:
      path: the file.
      size: (height, width) of it, upright.
      is_turned: whether EXIF asks to turn it.
      unlike: what it is that others misread, such as "grey"; empty if it can be copied as it is.
      format: that it is written in.
    """

    path: Path
    size: tuple[int, int]
    is_turned: bool
    unlike: tuple[str, ...]
    format: str

    @property
    def is_copied(self) -> bool:
        """Whether it can be copied byte by byte."""
        return not self.is_turned and not self.unlike

    def name(self, name: str) -> str:
        """The name of the file that is written, where the frame is called `name`."""
        endings = _ENDINGS[self.format]
        if PurePosixPath(name).suffix.lower() in endings:
            return name
        return f"{name.removesuffix(PurePosixPath(name).suffix)}{endings[0]}"


def stored(path: Path) -> Stored:
    """How a photograph is stored, by the beginning of its file.

    Raises:
      InputError: it cannot be read.
    """
    with opened(path) as (image, remarks):
        orientation = image.getexif().get(ORIENTATION, 1)
        is_turned = orientation in range(2, 9)
        width, height = image.size
        # Of TIFF files Pillow gives the size upright.
        is_on_its_side = orientation in range(5, 9) and image.format != "TIFF"
        own = "JPEG" if image.format == "MPO" else image.format or ""
        unlike = []
        if own not in _ENDINGS:
            unlike.append(f"{own} files")
        if image.mode != "RGB":
            unlike.append(_KINDS_OF_MODES.get(image.mode, f"of the kind {image.mode}"))
        elif image.has_transparency_data:
            unlike.append("transparent")
        if has_many_bits(image):
            unlike.append("of 16 bits")
        if SEVERAL in remarks and image.format != "MPO":
            unlike.append("one of several pictures")
        return Stored(
            path=path,
            size=(width, height) if is_on_its_side else (height, width),
            is_turned=is_turned,
            unlike=tuple(unlike),
            format=own if own in _ENDINGS else "JPEG" if own in _LOSSY else "PNG",
        )


_KINDS_OF_MODES = {
    "1": "black and white",
    "L": "grey",
    "LA": "transparent",
    "RGBA": "transparent",
    "PA": "transparent",
    "P": "of a palette",
    "CMYK": "CMYK",
    "LAB": "LAB",
    "YCbCr": "YCbCr",
    "F": "of floats",
    "I": "grey of 16 bits",
    "I;16": "grey of 16 bits",
    "I;16B": "grey of 16 bits",
    "I;16L": "grey of 16 bits",
}


def limits_of(photographs: Sequence[Stored]) -> Limits | None:
    """The range that grey of many bits is stretched from, all photographs alike.

    None if there is none, or it uses its 16 bits.

    Raises:
      InputError: a photograph cannot be read.
    """
    limits: dict[str, tuple[float, float]] = {}
    needed = False
    for path in _of_many_bits(photographs):
        kind, low, high = measure(path, str(path))
        lowest, highest = limits.get(kind, (low, high))
        limits[kind] = min(low, lowest), max(high, highest)
        needed |= kind == "floats" or low < 0 or high > 65535
        if not needed:
            with opened(path) as (image, _):
                image.load()
                needed = SLIVER in upright_rgb(image, str(path)).remarks
    return limits if needed else None


def _of_many_bits(photographs: Sequence[Stored]) -> Iterator[Path]:
    for one in photographs:
        if any(what in ("grey of 16 bits", "of floats") for what in one.unlike):
            yield one.path


def write(one: Stored, file: BinaryIO, limits: Limits | None) -> None:
    """Writes a photograph to an open file.

    Raises:
      InputError: it cannot be read.
      OSError: the file cannot be written.
    """
    if one.is_copied:
        with open(one.path, "rb") as original:
            shutil.copyfileobj(original, file)
        return
    encoded = io.BytesIO()
    with opened(one.path) as (image, _):
        image.load()
        profile, kept = image.info.get("icc_profile"), {}
        rgb = _of_cmyk(image, profile) if image.mode == "CMYK" else None
        if rgb is None:
            used = limits if image.mode[0] in _MANY_BITS else None
            rgb = upright_rgb(image, str(one.path), used).image
            # A profile of grey is none for RGB.
            if isinstance(profile, bytes) and profile[16:20] == b"RGB ":
                kept["icc_profile"] = profile
        camera = _camera_of(image, rgb.size, one.format)
        rgb.info = {}
        if one.format in ("JPEG", "WEBP"):
            kept["quality"] = _JPEG_QUALITY
        try:
            rgb.save(encoded, format=one.format, **kept, **camera)
        except (ValueError, struct.error, TypeError, KeyError, OverflowError, RuntimeError):
            # What EXIF holds cannot be written again: its pixels can.
            encoded = io.BytesIO()
            rgb.save(encoded, format=one.format, **kept)
    file.write(encoded.getbuffer())


def _of_cmyk(image: Image.Image, profile: object) -> Image.Image | None:
    """Colours of inks as RGB by their profile, upright; None if there is no usable one."""
    from PIL import ImageCms, ImageOps

    if not isinstance(profile, bytes):
        return None
    try:
        converted = ImageCms.profileToProfile(
            ImageOps.exif_transpose(image),
            ImageCms.ImageCmsProfile(io.BytesIO(profile)),
            ImageCms.createProfile("sRGB"),
            outputMode="RGB",
        )
    except (ImageCms.PyCMSError, OSError):
        return None
    return converted


def _camera_of(image: Image.Image, size: tuple[int, int], format: str) -> dict[str, Any]:
    """What EXIF says of the camera, the place and the time, for pixels that are upright.

    Returns:
      Options of Pillow's `save` for a format; none if there is nothing, or it is damaged.
    """
    try:
        old = image.getexif()
        tags = {tag: old[tag] for tag in _CAMERA_TAGS if tag in old}
        parts = {}
        for part in (_EXIF_PART, _GPS_PART):
            values = old.get_ifd(part)
            values = {tag: value for tag, value in values.items() if tag not in _LEFT_OUT_TAGS}
            sides = zip((_WIDTH_TAG, _HEIGHT_TAG), size, strict=True)
            values |= {tag: side for tag, side in sides if tag in values}
            if values:
                parts[part] = values
        if not tags and not parts:
            return {}
        if format == "TIFF":  # There it is no part of its own.
            directory = TiffImagePlugin.ImageFileDirectory_v2()
            for tag, value in {**tags, **parts}.items():
                directory[tag] = value
            return {"tiffinfo": directory}
        new = Image.Exif()
        new.update(tags)
        for part, values in parts.items():
            new.get_ifd(part).update(values)
        return {"exif": new.tobytes()}
    except (ValueError, TypeError, KeyError, OverflowError, SyntaxError, struct.error):
        return {}


def check_size(one: Stored, size: tuple[int, int]) -> None:
    """Checks that a photograph has the (height, width) that was reconstructed.

    Raises:
      InputError: it has not.
    """
    if one.size != size:
        raise InputError(
            f"{one.path}: {one.size[1]}x{one.size[0]} pixels, and what was reconstructed "
            f"had {size[1]}x{size[0]}; give the folder that was reconstructed"
        )
