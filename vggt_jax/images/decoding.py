"""One image, from a file or from memory, to upright RGB, with what is known of its pixels."""

import dataclasses
from collections.abc import Iterable, Mapping
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image, ImageOps

from vggt_jax.errors import InputError
from vggt_jax.images.frames import WHITE
from vggt_jax.images.opening import factor_of, is_huge, opened, reading

SLIVER = "sliver"
"""A remark: integers that use a sliver of their 16 bits, so that the picture is nearly black."""

ORIENTATION = 0x0112  # The EXIF tag.
_QUARTER_TURNS = (5, 6, 7, 8)
_SLIVER = 0.25  # Of the range.
_OUTLIERS = 0.1  # Per cent of the values at either end, such as pixels of a sensor that are dead.
_SAMPLES = 1_000_000

Limits = Mapping[str, tuple[float, float]]
"""The range that is stretched to all of [0, 255], by the type of pixels; see `measured`."""


@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class Picture:
    """A photograph that was read.

    Attributes:
        image: upright RGB, transparency on white; smaller than the file's if that is huge.
        size: (height, width) of the file's, upright.
        alpha: how opaque pixels are, of the size of `image`; None if all are.
        remarks: what somebody should know of it.
    """

    image: Image.Image
    size: tuple[int, int]
    alpha: Image.Image | None = None
    remarks: frozenset[str] = frozenset()

    @classmethod
    def of(cls, image: Image.Image) -> "Picture":
        """A picture that is RGB and upright."""
        return cls(image=image, size=(image.height, image.width))


def read_file(path: Path, *, limits: Limits | None = None) -> Picture:
    """Reads an image file.

    Raises:
      InputError: there is no such file, or it cannot be read.
    """
    with opened(path) as (image, remarks):
        size, is_deep = image.size, has_many_bits(image)
        image = loaded_small(image)
        return upright_rgb(
            image, str(path), limits, stored_size=size, remarks=remarks, is_deep=is_deep
        )


def read_pil(image: Image.Image, label: str, *, limits: Limits | None = None) -> Picture:
    """A PIL image; errors call it `label`.

    Raises:
      InputError: it cannot be read.
    """
    with reading(label):
        return upright_rgb(image, label, limits)


def read_array(array: np.ndarray, label: str, *, limits: Limits | None = None) -> Picture:
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
    image = Image.fromarray(np.ascontiguousarray(array))
    return Picture.of(_stretched(image, limits) if limits else image)


def measured(image: Image.Image, label: str) -> tuple[str, float, float]:
    """The type of an image's pixels, and the range of their values but for a few at either end.

    Raises:
      InputError: no value is finite; errors call the image `label`.
    """
    if image.mode == "F":
        kind = "floats"
    elif image.mode.startswith("I"):
        kind = "integers"
    else:
        kind, image = "bytes", image.convert("RGB")
    values = np.asarray(image).ravel()
    values = values[np.isfinite(values)]
    if not len(values):
        raise InputError(f"{label}: no pixel has a finite value; remove the image")
    values = values[:: max(1, len(values) // _SAMPLES)]
    low, high = np.percentile(values, (_OUTLIERS, 100 - _OUTLIERS))
    return kind, float(low), float(high)


def measure(source: Any, label: str) -> tuple[str, float, float]:
    """`measured` of a file, a PIL image or an array.

    Raises:
      InputError: it cannot be read.
    """
    if isinstance(source, Image.Image):
        with reading(label):
            return measured(source, label)
    if isinstance(source, np.ndarray):
        return measured(read_array(source, label).image, label)
    with opened(source) as (image, _):
        return measured(loaded_small(image), label)


def loaded_small(image: Image.Image) -> Image.Image:
    """An opened image decoded; a huge one smaller than it is."""
    if not is_huge(image):
        image.load()  # All of it now, so that truncation is seen here.
        return image
    factor, (width, height) = factor_of(image), image.size
    if image.format in ("JPEG", "MPO"):
        image.draft(None, (width // factor, height // factor))
    image.load()
    small = image
    if image.size == (width, height):
        if image.mode not in ("L", "LA", "RGB", "RGBA", "RGBX", "CMYK", "YCbCr"):
            return image
        small = image.reduce(factor)
    # Where sides do not divide, the last pixels were made from what was left.
    factor = max(round(width / small.width), round(height / small.height))
    small = small.resize(small.size, box=(0, 0, width / factor, height / factor))
    small.info = image.info
    small.getexif()[ORIENTATION] = image.getexif().get(ORIENTATION, 1)
    return small


def composed_rgb(image: Image.Image) -> tuple[Image.Image, Image.Image | None]:
    """An image of 8 bits of any mode as RGB, transparency on white, and its opacity if it has any.

    Raises:
      ValueError: Pillow knows no way.
    """
    alpha = None
    if image.mode == "LAB":
        from PIL import ImageCms

        profiles = ImageCms.createProfile("LAB"), ImageCms.createProfile("sRGB")
        converted = ImageCms.profileToProfile(image, *profiles, outputMode="RGB")
        assert converted is not None
        return converted, None
    if image.has_transparency_data:
        if image.mode == "La":  # Premultiplied; Pillow has no direct way to RGBA.
            image = image.convert("LA")
        image = image.convert("RGBA")
        alpha = image.getchannel("A")
        background = Image.new("RGBA", image.size, (WHITE, WHITE, WHITE, WHITE))
        image = Image.alpha_composite(background, image)
        if alpha.getextrema()[0] == 255:
            alpha = None
    return image.convert("RGB"), alpha


def upright_rgb(
    image: Image.Image,
    label: str,
    limits: Limits | None = None,
    *,
    stored_size: tuple[int, int] | None = None,
    remarks: Iterable[str] = (),
    is_deep: bool = False,
) -> Picture:
    """An image of any mode as upright RGB of 8 bits; errors call it `label`.

    Args:
      image: decoded.
      label: see above.
      limits: stretches values; see `Limits`.
      stored_size: (width, height) of the file's image, where this one is smaller.
      remarks: of the file.
      is_deep: whether only the upper bits of its colours were read.

    Raises:
      InputError: its values have no known range.
      ValueError: Pillow knows no way.
    """
    remarks = set(remarks)
    width, height = stored_size or image.size
    if image.getexif().get(ORIENTATION, 1) in _QUARTER_TURNS:
        width, height = height, width
    upright = ImageOps.exif_transpose(image)
    if upright.mode[0] in "IF":
        grey, alpha = _grey_of_many_bits(upright, label, limits, remarks)
        rgb = grey.convert("RGB")
    else:
        rgb, alpha = composed_rgb(upright)
        if is_deep and measured(rgb, label)[2] < 256 * _SLIVER:
            remarks.add(SLIVER)
        rgb = _stretched(rgb, limits) if limits else rgb
    return Picture(image=rgb, size=(height, width), alpha=alpha, remarks=frozenset(remarks))


def has_many_bits(image: Image.Image) -> bool:
    """Whether a file that is opened has colours of 16 bits, of which Pillow reads the upper 8."""
    tiles = getattr(image, "tile", [])
    return image.mode in ("RGB", "RGBA") and any("16" in str(tile[3]) for tile in tiles)


def _grey_of_many_bits(
    image: Image.Image, label: str, limits: Limits | None, remarks: set[str]
) -> tuple[Image.Image, Image.Image | None]:
    """Grey of 16 bits (Pillow modes I;16* and I): 65535 becomes 255; Pillow alone would clip.

    With limits these become 0 and 255, and floats and other integers are taken, too. Floats that
    are not finite are no pixels, and transparent.
    """
    kind, low, high = measured(image, label)
    if limits:
        low, high = limits[kind]
        values = np.asarray(image, np.float32)
        grey = (np.where(np.isfinite(values), values, low) - low) / ((high - low) or 1.0)
        grey = np.round(np.clip(grey, 0, 1) * 255)
    elif image.mode == "F":
        raise InputError(
            f"{label}: floating-point pixels have no known range; convert the image to 8 or 16 "
            "bits, or stretch=True"
        )
    else:
        values = np.asarray(image).astype(np.int64)
        if values.size and (values.min() < 0 or values.max() > 65535):
            raise InputError(
                f"{label}: grey values from {values.min()} to {values.max()} are not 16-bit and "
                "have no known range; convert the image to 8 or 16 bits, or stretch=True"
            )
        if high - low < 65536 * _SLIVER:
            remarks.add(SLIVER)
        grey = (values * 255 + 32767) // 65535
    transparent, alpha = image.info.get("transparency"), None
    is_clear = ~np.isfinite(values)
    if isinstance(transparent, int):
        is_clear |= values == transparent
    if is_clear.any():
        grey[is_clear] = WHITE
        alpha = Image.fromarray(np.where(is_clear, 0, 255).astype(np.uint8))
    return Image.fromarray(grey.astype(np.uint8)), alpha


def _stretched(image: Image.Image, limits: Limits) -> Image.Image:
    low, high = limits["bytes"]
    table = np.clip((np.arange(256) - low) / ((high - low) or 1.0), 0, 1)
    return image.point(np.round(table * 255).astype(int).tolist() * 3)


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
