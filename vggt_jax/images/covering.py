"""Images resized to cover a size, and cut in the middle: as MapAnything takes them, or to a size of
so many pixels."""

import math
from collections.abc import Callable, Sequence
from typing import Literal, TypeAlias

from PIL import Image

from vggt_jax.errors import InputError
from vggt_jax.images.frames import FrameTransform
from vggt_jax.images.resizing import (
    DEFAULT_SIZE,
    LARGEST_SIDE,
    checked_budget,
    checked_size,
    size_within_budget,
)

SizeOf: TypeAlias = Callable[[tuple[float, float], str], tuple[int, int]]
"""The (height, width) of a frame, of those of an image and what errors call that."""

_PATCH_SIZE = 14
# Sizes, (height, width), by width over height, for these patches (official file:
# mapanything/utils/image.py, RESOLUTION_MAPPINGS, whose keys are rounded like this).
_SIZES = {
    0.486: (518, 252),
    0.567: (518, 294),
    0.649: (518, 336),
    0.757: (518, 392),
    1.000: (518, 518),
    1.321: (392, 518),
    1.542: (336, 518),
    1.762: (294, 518),
    2.056: (252, 518),
    3.083: (168, 518),
}


def size_to_cover(
    aspect_ratio: float, size: int | tuple[int, int] | None, patch_size: int
) -> tuple[int, int]:
    """(height, width) of frames of images of this width over height.

    Args:
        size: the longer side, the other one follows the shape, rounded to whole patches; or both,
            whatever the shape; or None for that of ten sizes whose shape is nearest.

    Raises:
        InputError: a side is no whole number of patches.
    """
    if size is None:
        if patch_size != _PATCH_SIZE:
            raise InputError(f"mode 'cover' needs a size for {patch_size=}; give one")
        return _SIZES[min(_SIZES, key=lambda ratio: abs(ratio - aspect_ratio))]
    height, width = checked_size(size, patch_size)
    if isinstance(size, Sequence):
        return height, width
    patches = width // patch_size
    shorter = round(patches / aspect_ratio if aspect_ratio >= 1 else patches * aspect_ratio)
    shorter = max(shorter, 1) * patch_size
    return (shorter, width) if aspect_ratio >= 1 else (height, shorter)


def sizes_of(
    mode: Literal["area", "cover"], size: int | tuple[int, int] | None, patch_size: int
) -> SizeOf:
    """What images come to: see `size_to_cover`, and of "area" `size_within_budget`.

    Raises:
        InputError: the size is out of the range of "area".
    """
    if mode == "cover":
        return lambda original, label: size_to_cover(original[1] / original[0], size, patch_size)
    budget = checked_budget(DEFAULT_SIZE if size is None else size, patch_size, mode)
    return lambda original, label: size_within_budget(original, budget, patch_size, label)


def fit_by_covering(
    original_size: tuple[int, int],
    target_size: tuple[int, int] | None,
    patch_size: int,
    label: str,
    *,
    size_of: SizeOf,
) -> FrameTransform:
    """All of the target covered; what is beyond it is cut on both sides alike.

    Args:
        target_size: (height, width); None for that which suits this image alone, by `size_of`.
    """
    height, width = original_size
    if target_size is None:
        target_size = size_of(original_size, label)
    target_height, target_width = target_size
    # As in the official loader: a little more, so that rounding down leaves enough.
    scale = max(target_width / width, target_height / height) + 1e-8
    resized_height, resized_width = math.floor(height * scale), math.floor(width * scale)
    if max(resized_height, resized_width) > LARGEST_SIDE:
        raise InputError(
            f"{label}: {width}x{height} pixels (width x height) would become {resized_width}x"
            f"{resized_height} before cropping; cut the image to a less extreme shape"
        )
    return FrameTransform(
        original_size=original_size,
        model_size=target_size,
        scale_x=resized_width / width,
        scale_y=resized_height / height,
        offset_x=-float((resized_width - target_width) // 2),
        offset_y=-float((resized_height - target_height) // 2),
        content_rows=(0, target_height),
        content_columns=(0, target_width),
    )


def resampling_to_cover(transform: FrameTransform) -> Image.Resampling:
    """Lanczos where images shrink, else bicubic."""
    height, width = transform.original_size
    scale = max(transform.model_size[1] / width, transform.model_size[0] / height) + 1e-8
    return Image.Resampling.LANCZOS if scale < 1 else Image.Resampling.BICUBIC
