"""Opening an image file: formats, numbers of pixels, and which of its pictures is the photograph.

Pillow's own `open` is not used, for three reasons: it would hand PostScript to Ghostscript, it
talks of bombs where a large photograph is read, and it takes the first picture of a file, which may
be a thumbnail.
"""

import contextlib
import math
import struct
import threading
import zlib
from collections.abc import Iterator
from pathlib import Path
from typing import BinaryIO

from PIL import Image, features

from vggt_jax.errors import InputError
from vggt_jax.files import stand_in
from vggt_jax.images.files import checked_file
from vggt_jax.images.kinds import (
    FORMATS,
    FORMATS_BY_NAME,
    HEIF_EXTRA,
    RAW,
    extension,
    format_of_bytes,
    has_heif,
)

# What Pillow's decoders raise for bytes that they cannot use: OSError for unknown formats and most
# damage, RuntimeError for AVIF, the others for damaged chunks, headers and tables.
_DECODE_ERRORS = (
    OSError,
    RuntimeError,
    SyntaxError,
    ValueError,
    EOFError,
    TypeError,
    AttributeError,
    LookupError,
    ArithmeticError,
    AssertionError,
    MemoryError,
    struct.error,
    zlib.error,
)
# A picture of more pixels must be large as a file, too: JPEG's smallest is a byte for 85 pixels,
# and a PNG of one colour has a byte for hundreds.
_PIXELS_PER_BYTE = 128
_MOST_PIXELS = 2**30
_LONGEST_SIDE = 300_000
_ENOUGH_PIXELS = 16e6  # What is left of a huge picture: several times what a model sees.
_PIXELS_AT_ONCE = 400e6  # In all threads.

_NEW_SUBFILE_TYPE, _SUBFILE_TYPE, _DNG_VERSION = 254, 255, 50706  # TIFF 6.0, DNG 1.7
_REDUCED_OR_MASK = 0b101
_MOST_PAGES = 64

SEVERAL = "several"
"""A remark: the file holds several pictures, of which the first is taken."""


@contextlib.contextmanager
def opened(path: str | Path) -> Iterator[tuple[Image.Image, set[str]]]:
    """An image file, not decoded yet, at the picture that is the photograph.

    What Pillow raises in the block becomes an InputError.

    Yields:
        The image as it is stored, and remarks.

    Raises:
        InputError: it is no image in a format that is read, holds too many pixels, or only a
            preview.
    """
    path = checked_file(path)
    label = str(path)
    if extension(path) in RAW:
        raise _is_raw(label)
    with reading(label), open(path, "rb") as file:
        with _limit.lifted():
            image = _identified(file, path)
        _check_size(image, label, path.stat().st_size)
        remarks = _go_to_photograph(image, label)
        with _room(math.prod(image.size)):
            if not is_huge(image):
                yield image, remarks
                return
            with _limit.lifted():
                yield image, remarks


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
    except MemoryError as error:
        raise InputError(f"{label}: does not fit into the memory; make it smaller first") from error
    except _DECODE_ERRORS as error:
        raise InputError(
            f"{label}: the image is truncated or damaged ({error}); copy it again or remove it"
        ) from error


def is_huge(image: Image.Image) -> bool:
    """Whether an image is decoded smaller than it is: above the number that Pillow warns of."""
    return math.prod(image.size) > _limit.pixels


def factor_of(image: Image.Image) -> int:
    """By how much a huge image is made smaller: 2, 4 or 8."""
    factor = math.sqrt(math.prod(image.size) / _ENOUGH_PIXELS)
    return min(8, max(2, 2 ** math.ceil(math.log2(factor))))


def _identified(file: BinaryIO, path: Path) -> Image.Image:
    start = file.read(64)
    if what := stand_in(start):
        raise InputError(f"{path}: is {what}")
    Image.init()
    if has_heif() and "HEIF" not in Image.OPEN:
        import pillow_heif  # pyright: ignore[reportMissingImports]  an extra

        pillow_heif.register_heif_opener()
    by_name = FORMATS_BY_NAME.get(extension(path))
    for name in (*FORMATS, *([by_name] if by_name else [])):
        if name not in Image.OPEN:
            continue
        factory, accept = Image.OPEN[name]
        try:
            # A text says which library is missing.
            if accept and (not (verdict := accept(start[:16])) or isinstance(verdict, str)):
                continue
            file.seek(0)
            return factory(file, str(path))
        except (SyntaxError, IndexError, TypeError, struct.error):
            continue  # Another format, as in Pillow's open.
    raise _unidentified(start, str(path))


def _unidentified(start: bytes, label: str) -> Exception:
    found = format_of_bytes(start)
    if found == "RAW":
        return _is_raw(label)
    if found == "HEIC" and not has_heif():
        return InputError(f"{label}: is a HEIC picture; {HEIF_EXTRA}, or convert it to JPEG")
    if found == "AVIF" and not features.check("avif"):
        return InputError(
            f"{label}: is an AVIF picture, which this Pillow was built without; install one with "
            "it (pip install --upgrade pillow), or convert it to JPEG"
        )
    if found == "a video":
        return InputError(f"{label}: is a video, whatever its name; give it alone")
    if found and found not in ("HEIC", "AVIF", "JPEG", "PNG", "GIF", "TIFF", "PSD", "WebP"):
        return InputError(f"{label}: is {found}, which is not read; convert it to JPEG or PNG")
    return Image.UnidentifiedImageError(label)


def _is_raw(label: str) -> InputError:
    return InputError(
        f"{label}: is a RAW file, whose first picture is a preview; develop it to JPEG, PNG or "
        "16-bit TIFF"
    )


def _check_size(image: Image.Image, label: str, num_bytes: int) -> None:
    width, height = image.size
    pixels = width * height
    is_bomb = pixels > 2 * _limit.pixels and pixels > _PIXELS_PER_BYTE * num_bytes
    if is_bomb or pixels > _MOST_PIXELS or max(width, height) > _LONGEST_SIDE:
        raise InputError(
            f"{label}: too many pixels ({width}x{height} in a file of {num_bytes:,} bytes); make "
            "it smaller first"
        )


def _go_to_photograph(image: Image.Image, label: str) -> set[str]:
    """Seeks the first picture that is neither a preview nor a mask; remarks if there are more."""
    if image.format == "TIFF":
        return _go_to_tiff_page(image, label)
    if image.format == "MPO":
        return {SEVERAL} if _has_other_views(image) else set()
    # Of Photoshop's files the first picture is all layers together.
    is_many = image.format != "PSD" and getattr(image, "is_animated", False)
    return {SEVERAL} if is_many else set()


def _go_to_tiff_page(image, label: str) -> set[str]:
    if _DNG_VERSION in image.tag_v2:
        raise _is_raw(label)
    whole = []
    for page in range(_MOST_PAGES):
        try:
            image.seek(page)
        except EOFError:
            break
        if not _is_reduced(image.tag_v2):
            whole.append(page)
        if len(whole) == 2:
            break
    if not whole:
        raise InputError(
            f"{label}: holds only a reduced picture of another, as RAW files begin with; develop "
            "it to JPEG, PNG or 16-bit TIFF"
        )
    image.seek(whole[0])
    return {SEVERAL} if len(whole) > 1 else set()


def _is_reduced(tags) -> bool:
    kind, old_kind = tags.get(_NEW_SUBFILE_TYPE, 0), tags.get(_SUBFILE_TYPE, 1)
    return (isinstance(kind, int) and bool(kind & _REDUCED_OR_MASK)) or old_kind == 2


def _has_other_views(image) -> bool:
    """Whether pictures of the same size lie behind a JPEG's own: others are previews and maps."""
    size, found = image.size, False
    for page in range(1, min(image.n_frames, _MOST_PAGES)):
        image.seek(page)
        found = found or image.size == size
    image.seek(0)
    return found


class _Limit:
    """Pillow's number of pixels that it warns of; at twice as many some decoders refuse.

    It is one for the process. Here `_check_size` stands for it, so that it is lifted while a file
    is identified, and while a huge one is decoded.
    """

    def __init__(self):
        self._lock, self._num_lifted, self._usual = threading.Lock(), 0, None

    @property
    def pixels(self) -> float:
        """The limit, lifted or not; infinite if somebody took it away."""
        with self._lock:
            return (self._usual if self._num_lifted else Image.MAX_IMAGE_PIXELS) or math.inf

    @contextlib.contextmanager
    def lifted(self) -> Iterator[None]:
        with self._lock:
            if not self._num_lifted:
                self._usual, Image.MAX_IMAGE_PIXELS = Image.MAX_IMAGE_PIXELS, None
            self._num_lifted += 1
        try:
            yield
        finally:
            with self._lock:
                self._num_lifted -= 1
                if not self._num_lifted:
                    Image.MAX_IMAGE_PIXELS = self._usual


class _Room:
    """Lets threads decode at once what fits into so many pixels, or one picture alone."""

    def __init__(self, most: float):
        self._most, self._taken, self._changed = most, 0, threading.Condition()

    @contextlib.contextmanager
    def __call__(self, pixels: int) -> Iterator[None]:
        with self._changed:
            self._changed.wait_for(lambda: not self._taken or self._taken + pixels <= self._most)
            self._taken += pixels
        try:
            yield
        finally:
            with self._changed:
                self._taken -= pixels
                self._changed.notify_all()


_limit, _room = _Limit(), _Room(_PIXELS_AT_ONCE)
