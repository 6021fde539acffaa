"""One image, from a file or from memory, to upright RGB."""

import contextlib
import struct
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from vggt_jax.errors import InputError
from vggt_jax.images.frames import WHITE

# What Pillow's decoders raise for bytes that they cannot use: OSError for unknown formats and most
# damage, RuntimeError for AVIF, the others for damaged chunks and headers.
_DECODE_ERRORS = (
    OSError,
    RuntimeError,
    SyntaxError,
    ValueError,
    EOFError,
    struct.error,
    zlib.error,
)


def read_file(path: Path) -> Image.Image:
    """Reads an image file.

    Raises:
      InputError: there is no such file, or it cannot be read.
    """
    if path.is_dir():
        raise InputError(
            f"{path}: a folder inside a list of images; pass the folder alone or list its files"
        )
    if not path.exists():
        raise InputError(f"{path}: no such file; check the path")
    label = str(path)
    with reading(label), Image.open(path) as image:
        image.load()  # All of it now, so that truncation is seen here.
        return _as_rgb(ImageOps.exif_transpose(image), label)


def read_pil(image: Image.Image, label: str) -> Image.Image:
    """A PIL image; errors call it `label`.

    Raises:
      InputError: it cannot be read.
    """
    with reading(label):
        return _as_rgb(ImageOps.exif_transpose(image), label)


def read_array(array: np.ndarray, label: str) -> Image.Image:
    """An array [height width 3]; errors call it `label`.

    Raises:
      InputError: its shape, type or values are others.
    """
    if array.ndim != 3 or array.shape[-1] != 3 or 0 in array.shape:
        raise InputError(
            f"{label} has shape {array.shape}; each array of a list is [height width 3], colour "
            "channels last: a layout is never guessed"
        )
    array = checked_pixels(array, label)
    if array.dtype != np.uint8:
        array = np.round(array * 255).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(array))


@contextlib.contextmanager
def reading(label: str) -> Iterator[None]:
    """Turns what Pillow raises into an InputError that names the image."""
    try:
        yield
    except InputError:
        raise
    except Image.UnidentifiedImageError as error:
        raise InputError(
            f"{label}: not an image in a format that can be read, whatever its name, or its "
            "beginning is damaged; remove it or convert it to JPEG or PNG"
        ) from error
    except Image.DecompressionBombError as error:
        raise InputError(f"{label}: too many pixels ({error}); make it smaller first") from error
    except PermissionError as error:
        raise InputError(f"{label}: no permission to read it ({error.strerror})") from error
    except _DECODE_ERRORS as error:
        raise InputError(
            f"{label}: the image is truncated or damaged ({error}); copy it again or remove it"
        ) from error


def _as_rgb(image: Image.Image, label: str) -> Image.Image:
    """Any Pillow mode to RGB, transparency on white."""
    if image.mode == "F":
        raise InputError(
            f"{label}: floating-point pixels have no known range; convert the image to 8 or 16 bits"
        )
    if image.mode.startswith("I"):
        return _sixteen_bit_as_rgb(image, label)
    if image.has_transparency_data:
        if image.mode == "La":  # Premultiplied; Pillow has no direct way to RGBA.
            image = image.convert("LA")
        image = image.convert("RGBA")
        background = Image.new("RGBA", image.size, (WHITE, WHITE, WHITE, WHITE))
        image = Image.alpha_composite(background, image)
    return image.convert("RGB")


def _sixteen_bit_as_rgb(image: Image.Image, label: str) -> Image.Image:
    """16-bit greyscale (Pillow modes I;16* and I): 65535 becomes 255; Pillow alone would clip."""
    values = np.asarray(image).astype(np.int64)
    if values.size and (values.min() < 0 or values.max() > 65535):
        raise InputError(
            f"{label}: grey values from {values.min()} to {values.max()} are not 16-bit and have "
            "no known range; convert the image to 8 or 16 bits"
        )
    grey = (values * 255 + 32767) // 65535
    transparent = image.info.get("transparency")
    if isinstance(transparent, int):
        grey[values == transparent] = WHITE
    return Image.fromarray(grey.astype(np.uint8)).convert("RGB")


def is_array(value: Any) -> bool:
    """NumPy, JAX and PyTorch arrays; a PIL image is not one."""
    return hasattr(value, "__array__") and not isinstance(value, Image.Image)


def checked_pixels(array: np.ndarray, label: str) -> np.ndarray:
    """uint8 as it is, floats in [0, 1] as float32.

    Raises:
      InputError: another type, or values out of range.
    """
    if array.dtype == np.uint8:
        return array
    if not np.issubdtype(array.dtype, np.floating):
        raise InputError(f"{label} has dtype {array.dtype}; use uint8, or float in [0, 1]")
    low, high = array.min(), array.max()  # NaN if any value is NaN, which then fails the test.
    if not (low >= 0 and high <= 1):
        raise InputError(
            f"{label} has float values from {low} to {high}; they must lie in [0, 1] without NaN "
            "(divide by 255, or pass uint8)"
        )
    return array.astype(np.float32, copy=False)
