"""Which pixels of photographs may be used: masks beside them, and background by its colour.

White means use and black leave out, as in COLMAP. The model sees photographs as they are:
`scene.masking` takes points and confidence away from what it predicted.
"""

import os
import warnings
from collections.abc import Collection, Sequence
from pathlib import Path, PurePosixPath
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageOps

from vggt_jax.errors import InputError, InputWarning
from vggt_jax.images.files import composed, counted, files_below, listed
from vggt_jax.images.frames import Frames, FrameTransform
from vggt_jax.images.kinds import is_picture
from vggt_jax.images.opening import opened, reading

Background = Literal["white", "black", "sky"]

# Official file: visual_util.py. White is above the first in every channel; black sums to less than
# the second.
_WHITE_ABOVE = 240
_BLACK_BELOW = 16
_HALF_GREY = 128
# Masks may be of coloured labels; more colours than these has a photograph.
_MOST_LABELS, _GREY_WITHIN, _SAMPLES = 512, 8, 100_000


def background_mask(
    images: UInt8[np.ndarray, "s height width 3"] | Float[np.ndarray, "s height width 3"],
    background: Background | Collection[Background],
) -> Bool[np.ndarray, "s height width"]:
    """True on pixels that are no background, by colour.

    Args:
        images: uint8, or float in [0, 1].
        background: what to leave out. "white": above 240 in every channel, "black": less than 16 in
            the sum of channels, both as in the official `visual_util.py`. "sky": blue, or bright
            and grey, without a break from the upper edge of the frame down; a rule of colours and
            no segmentation, for scenes outdoors (in a room it takes a white ceiling for sky).

    Raises:
        InputError: a background is unknown.
    """
    background = {background} if isinstance(background, str) else set(background)
    if unknown := background - set(get_args(Background)):
        raise InputError(
            f"background {min(unknown)!r} is unknown; use {', '.join(get_args(Background))}"
        )
    if images.dtype != np.uint8:
        images = np.round(np.asarray(images) * 255).astype(np.uint8)
    mask = np.ones(images.shape[:-1], bool)
    if "white" in background:
        mask &= ~(images > _WHITE_ABOVE).all(-1)
    if "black" in background:
        mask &= images.sum(-1, dtype=np.uint16) >= _BLACK_BELOW
    if "sky" in background:
        red, green, blue = np.moveaxis(images.astype(np.int16), -1, 0)
        # Blue sky, pale to deep; and clouds or haze. The bounds are this project's own.
        is_blue = (blue > 90) & (blue >= green) & (blue - red > 10) & (green > red - 10)
        is_haze = (images.min(-1) > 190) & (np.ptp(images, axis=-1) < 30)
        mask &= ~np.logical_and.accumulate(is_blue | is_haze, axis=-2)
    return mask


def load_masks(masks: Any, frames: Frames) -> Bool[np.ndarray, "s height width"]:
    """Masks of photographs, brought to the frames as the photographs were: cut, resized and padded.

    A mask has the size of its photograph as it is shown (after EXIF rotation), or a size in the
    same proportion. In files, black is left out and any other grey used; in JPEG, which has no pure
    black beside white, half grey and above is used. What is transparent counts as black. The pixel
    of a frame takes the value at its centre.

    Args:
        masks: a folder with one mask for each photograph, of the same name (`a.jpg` and `a.png`),
            or with another extension behind it (`a.jpg.png`, as COLMAP names them), in the folder
            itself or in folders like those of the photographs (`cam0/a.jpg.png`); or a sequence
            of paths, PIL images or arrays [height width] (bool, or numbers where 0 is left out),
            one for each frame.
        frames: as `load_images` returns them.

    Returns:
        True where a pixel may be used; False on padding, too.

    Warns:
        InputWarning: files are of as many colours as photographs.

    Raises:
        InputError: a mask is missing or cannot be read, or has another shape than its photograph.
    """
    if isinstance(masks, str | os.PathLike):
        sources = find_masks(masks, frames.names)
    elif isinstance(masks, Sequence) or hasattr(masks, "__array__"):
        sources = list(masks)
    else:
        raise InputError(
            f"masks of type {type(masks).__name__} are not understood; pass a folder, or a "
            "sequence of paths, PIL images or arrays [height width]"
        )
    if len(sources) != len(frames.names):
        raise InputError(
            f"{len(sources)} masks for {len(frames.names)} photographs; pass one for each"
        )
    mask, coloured = frames.valid_mask(), []
    for i, (source, name) in enumerate(zip(sources, frames.names, strict=True)):
        is_path = isinstance(source, str | os.PathLike)
        label = str(source) if is_path else f"mask {i} (of {name})"
        used, has_colours = _read_mask(source, label)
        if has_colours:
            coloured.append(name)
        _check_proportion(used.shape, frames.transforms[i], label, name)
        mask[i] &= _sampled(used, frames.transforms[i])
    if coloured:
        said = (
            f"{counted(len(coloured), 'mask')} (of {listed(coloured)}) with as many colours as a "
            "photograph: is it one? What is not black is used"
        )
        warnings.warn(InputWarning(said), stacklevel=2)
    return mask


def find_masks(folder: str | os.PathLike, names: Sequence[str]) -> list[Path]:
    """The mask of each photograph in a folder and the folders in it; see `load_masks`.

    Raises:
        InputError: the folder cannot be read, or lacks a mask.
    """
    folder = Path(folder)
    try:
        paths = [path for path in files_below(folder) if is_picture(path)]
    except (OSError, ValueError) as error:
        why = getattr(error, "strerror", None) or error
        raise InputError(f"{folder}: the folder of masks cannot be read ({why})") from error
    by_stem: dict[str, list[Path]] = {}
    for path in paths:
        by_stem.setdefault(composed(path.stem), []).append(path)
    found = []
    for name in names:
        photograph = PurePosixPath(composed(name))
        # COLMAP's naming first: it tells a.jpg from a.png.
        candidates = by_stem.get(photograph.name) or by_stem.get(photograph.stem) or []
        candidates = _closest(candidates, folder, photograph)
        if len(candidates) != 1:
            tried = f"{photograph.stem}.png or {photograph.name}.png"
            what = f"{len(candidates)} masks" if candidates else "no mask"
            raise InputError(f"{folder}: {what} for {name}; there must be one, such as {tried}")
        found += candidates
    if len(set(found)) < len(set(names)):
        again = next(path for i, path in enumerate(found) if path in found[:i])
        raise InputError(
            f"{again}: would serve several photographs; name masks after the whole file, such as "
            f"{again.stem}.jpg.png, or give a list of masks"
        )
    return found


def _closest(candidates: list[Path], folder: Path, photograph: PurePosixPath) -> list[Path]:
    """Of masks with the name of a photograph those with most of its folders in common."""

    def in_common(path: Path) -> int:
        ours, theirs = (
            [composed(part) for part in reversed(one.parent.parts)]
            for one in (path.relative_to(folder), photograph)
        )
        same = [one == other for one, other in zip(ours, theirs, strict=False)]
        return same.index(False) if False in same else len(same)

    # Of those the ones that lie least deep.
    rank = {path: (in_common(path), -len(path.parts)) for path in candidates}
    return [path for path in candidates if rank[path] == max(rank.values())]


def _read_mask(source: Any, label: str) -> tuple[Bool[np.ndarray, "height width"], bool]:
    """Which pixels are used, and whether the mask has as many colours as a photograph."""
    if isinstance(source, str | os.PathLike):
        with opened(Path(source)) as (image, _):
            image.load()
            return _used_pixels(image)
    if isinstance(source, Image.Image):
        with reading(label):
            return _used_pixels(source)
    array = np.asarray(source)
    if array.ndim != 2 or 0 in array.shape or array.dtype.kind not in "buif":
        raise InputError(f"{label} is {array.dtype} {array.shape}; an array must be [height width]")
    return array != 0, False


def _used_pixels(image: Image.Image) -> tuple[Bool[np.ndarray, "height width"], bool]:
    is_jpeg = image.format == "JPEG"
    image = ImageOps.exif_transpose(image)
    used = np.ones((image.height, image.width), bool)
    if image.has_transparency_data:
        image = image.convert("RGBA")
        used = np.asarray(image.getchannel("A")) > 0
    # Modes of 16 and 32 bits would be clipped by a conversion to 8.
    values = np.asarray(image if image.mode[0] in "IF1" else image.convert("RGB"))
    has_colours = False
    if values.ndim == 3:
        colours = values.reshape(-1, 3)[:: max(1, values[..., 0].size // _SAMPLES)].astype(np.int32)
        of_grey = (np.ptp(colours, axis=1) <= _GREY_WITHIN).mean()
        distinct = len(np.unique(colours @ [1, 256, 65536]))
        has_colours = of_grey < 0.5 and distinct > _MOST_LABELS
        values = values.max(-1)
    # Above 0 and not from 1 on: files of floats have greys between.
    return used & (values >= _HALF_GREY if is_jpeg else values > 0), bool(has_colours)


def _check_proportion(
    size: tuple[int, int], transform: FrameTransform, label: str, name: str
) -> None:
    (height, width), (original_height, original_width) = size, transform.original_size
    # A side may have been rounded to a whole pixel.
    if abs(height * original_width - width * original_height) > max(
        original_height, original_width
    ):
        raise InputError(
            f"{label}: is {width}x{height} pixels (width x height), and {name} "
            f"{original_width}x{original_height}; a mask must have the size of its photograph, or "
            "one in the same proportion"
        )


def _sampled(used: np.ndarray, transform: FrameTransform) -> Bool[np.ndarray, "height width"]:
    """The mask at the centres of the frame's pixels."""
    height, width = transform.model_size
    pixels = np.stack([np.resize(np.arange(width), max(height, width)),
                       np.resize(np.arange(height), max(height, width))], axis=-1)  # fmt: skip
    original = transform.pixels_to_original(pixels) + 0.5
    of_mask = original * (np.array(used.shape) / transform.original_size)[::-1]
    limits = np.array(used.shape)[::-1] - 1
    columns, rows = np.clip(np.floor(of_mask), 0, limits).astype(int).T
    return used[rows[:height, None], columns[:width]]
