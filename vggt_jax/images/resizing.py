"""The sizes of frames, and how an image becomes one: cropped, padded or stretched."""

import math
import operator
from collections.abc import Sequence
from dataclasses import replace
from typing import Literal

import numpy as np
from jaxtyping import UInt8
from PIL import Image

from vggt_jax.errors import InputError
from vggt_jax.images.frames import WHITE, FrameTransform

DEFAULT_SIZE = 518  # The resolution that VGGT and Pi3 were trained at: 37 patches of 14.
PIXEL_BUDGET = 255_000  # PIXEL_LIMIT in the official pi3/utils/basic.py
Mode = Literal["crop", "pad", "budget", "area", "cover", "longest"]
LARGEST_SIDE = 16_384  # Pixels of a side after resizing: far beyond what any model here can use.


def checked_size(size: int | tuple[int, int], patch_size: int) -> tuple[int, int]:
    """(height, width) of whole patches, of a side or of both.

    Raises:
      InputError: a side is no whole number of patches, or too large.
    """
    sides = tuple(size) if isinstance(size, Sequence) else (size, size)
    try:
        height, width = (operator.index(side) for side in sides)
    except (TypeError, ValueError) as error:
        raise InputError(f"{size=} must be an int or a pair (height, width)") from error
    for side in (height, width):
        if side > LARGEST_SIDE:
            raise InputError(f"{size=} must be at most {LARGEST_SIDE} pixels")
        if side < patch_size or side % patch_size:
            nearest = " or ".join(map(str, nearest_multiples(side, patch_size)))
            raise InputError(f"{size=} must be a positive multiple of {patch_size}; use {nearest}")
    return height, width


def checked_budget(size: int | tuple[int, int] | None, patch_size: int, mode: Mode) -> int:
    """The number of pixels of a square of this side, by default that of the official π³.

    Raises:
      InputError: the side is out of its range, or there are two.
    """
    if size is None:
        return PIXEL_BUDGET
    what = f"with mode '{mode}', the side of a square of as many pixels"
    return checked_side(size, patch_size, what) ** 2


def checked_side(size: int | tuple[int, int], patch_size: int, what: str) -> int:
    """A size that is one number.

    Args:
        what: the mode and the meaning of the number, for the message.

    Raises:
        InputError: it is out of its range, or there are two sides.
    """
    try:
        side = operator.index(size)  # pyright: ignore[reportArgumentType]  that of a pair raises
    except TypeError as error:
        raise InputError(
            f"{size=} must be an int {what}; modes 'crop' and 'pad' take (height, width)"
        ) from error
    if not patch_size <= side <= LARGEST_SIDE:
        raise InputError(
            f"{size=} must be at least a patch ({patch_size}) and at most {LARGEST_SIDE}"
        )
    return side


def nearest_multiples(side: int, patch_size: int) -> list[int]:
    """The whole patches just below and above, at least one patch."""
    below = side // patch_size * patch_size
    return sorted({max(below, patch_size), max(below + patch_size, patch_size)})


def fit_by_cropping(
    original_size: tuple[int, int], target_size: tuple[int, int], patch_size: int, label: str
) -> FrameTransform:
    """Full width, height cut in the middle."""
    height, width = original_size
    target_height, target_width = target_size
    # Order of operations and rounding (half to even) as in the official loader: other orders round
    # to another patch now and then.
    resized_height = round(height * (target_width / width) / patch_size) * patch_size
    _check_not_flat(resized_height, original_size, label)
    if resized_height > LARGEST_SIDE:
        raise InputError(
            f"{label}: {width}x{height} pixels (width x height) would become {target_width}x"
            f"{resized_height} before cropping; cut the image to a less extreme shape"
        )
    model_height = min(resized_height, target_height)
    return FrameTransform(
        original_size=original_size,
        model_size=(model_height, target_width),
        scale_x=target_width / width,
        scale_y=resized_height / height,
        offset_x=0.0,
        offset_y=-float((resized_height - model_height) // 2),
        content_rows=(0, model_height),
        content_columns=(0, target_width),
    )


def fit_by_padding(
    original_size: tuple[int, int], target_size: tuple[int, int], patch_size: int, label: str
) -> FrameTransform:
    """The whole image inside the target, white around it."""
    height, width = original_size
    target_height, target_width = target_size
    if width * target_height >= height * target_width:
        resized_width = target_width
        resized_height = round(height * (target_width / width) / patch_size) * patch_size
    else:
        resized_height = target_height
        resized_width = round(width * (target_height / height) / patch_size) * patch_size
    _check_not_flat(min(resized_height, resized_width), original_size, label)
    resized = FrameTransform(
        original_size=original_size,
        model_size=(resized_height, resized_width),
        scale_x=resized_width / width,
        scale_y=resized_height / height,
        offset_x=0.0,
        offset_y=0.0,
        content_rows=(0, resized_height),
        content_columns=(0, resized_width),
    )
    return _padded(resized, target_size)


def size_within_budget(
    original_size: tuple[float, float], budget: int, patch_size: int, label: str
) -> tuple[int, int]:
    """Whole patches of at most so many pixels in about the shape of an image."""
    height, width = original_size
    scale = math.sqrt(budget / (width * height))
    columns, rows = (round(side * scale / patch_size) for side in (width, height))
    # Rounding up may exceed the budget; the side that is the longer one for this shape gives way.
    while rows * columns * patch_size**2 > budget:
        if columns / rows > (width * scale) / (height * scale):
            columns -= 1
        else:
            rows -= 1
    _check_not_flat(min(rows, columns), original_size, label)
    return rows * patch_size, columns * patch_size


def fit_by_stretching(
    original_size: tuple[int, int],
    target_size: tuple[int, int],
    patch_size: int,
    label: str,
    *,
    budget: int | None,
) -> FrameTransform:
    """All of the image on all of the target.

    With a budget, one whose own size within it is another one keeps that, so that it is noticed.
    """
    if budget is not None:
        target_size = size_within_budget(original_size, budget, patch_size, label)
    height, width = original_size
    identity = FrameTransform.identity(target_size)
    return replace(
        identity,
        original_size=original_size,
        scale_x=target_size[1] / width,
        scale_y=target_size[0] / height,
    )


def _check_not_flat(resized_side: int, original_size: tuple[float, float], label: str) -> None:
    if resized_side < 1:
        height, width = original_size
        raise InputError(
            f"{label}: {width}x{height} pixels (width x height) are so narrow that less than half "
            "a patch would remain after resizing; cut the image to a less extreme shape"
        )


def _margins(size: tuple[int, int], padded_size: tuple[int, int]) -> tuple[int, int]:
    """Rows above and columns left of centred content; an odd pixel goes to the other side."""
    return (padded_size[0] - size[0]) // 2, (padded_size[1] - size[1]) // 2


def _padded(transform: FrameTransform, model_size: tuple[int, int]) -> FrameTransform:
    """The transform after centred padding to `model_size`."""
    top, left = _margins(transform.model_size, model_size)
    first_row, end_row = transform.content_rows
    first_column, end_column = transform.content_columns
    return replace(
        transform,
        model_size=model_size,
        offset_x=transform.offset_x + left,
        offset_y=transform.offset_y + top,
        content_rows=(first_row + top, end_row + top),
        content_columns=(first_column + left, end_column + left),
    )


def model_frame(
    image: Image.Image, transform: FrameTransform, resampling: Image.Resampling
) -> UInt8[np.ndarray, "model_height model_width *channels"]:
    """The model frame: the image resized, cut to what is shown of it, white around it.

    An image of one channel gives a frame without axis of channels. It may be smaller than the
    original, and shows all of it.
    """
    height, width = transform.original_size
    # Scales are quotients of whole numbers, so rounding recovers these exactly.
    resized_size = (round(width * transform.scale_x), round(height * transform.scale_y))
    resized = np.asarray(image.resize(resized_size, resampling))
    rows = [row - int(transform.offset_y) for row in transform.content_rows]
    columns = [column - int(transform.offset_x) for column in transform.content_columns]
    frame = np.full((*transform.model_size, *resized.shape[2:]), WHITE, np.uint8)
    content = frame[slice(*transform.content_rows), slice(*transform.content_columns)]
    content[...] = resized[slice(*rows), slice(*columns)]
    return frame


def padded_to_largest(
    batch: UInt8[np.ndarray, "s height width 3"],
    others: dict[int, UInt8[np.ndarray, "_ _ 3"]],
    transforms: Sequence[FrameTransform],
) -> tuple[UInt8[np.ndarray, "s max_height max_width 3"], list[FrameTransform]]:
    """All frames on white of the largest height and width; `others` replace frames of the batch."""
    model_size = (
        max(transform.model_size[0] for transform in transforms),
        max(transform.model_size[1] for transform in transforms),
    )
    padded_batch = np.full((len(batch), *model_size, 3), WHITE, np.uint8)
    for i, padded_frame in enumerate(padded_batch):
        frame = batch[i]
        if i in others:
            frame = others[i]
        height, width, _ = frame.shape
        top, left = _margins(frame.shape[:2], model_size)
        padded_frame[top : top + height, left : left + width] = frame
    return padded_batch, [_padded(transform, model_size) for transform in transforms]


def shapes_differ(transforms: Sequence[FrameTransform], names: Sequence[str]) -> InputError:
    """The error that names an example of each shape."""
    examples: dict[tuple[int, int], list[str]] = {}
    for transform, name in zip(transforms, names, strict=True):
        examples.setdefault(transform.model_size, []).append(name)
    found = ", ".join(
        f"{height}x{width} ({group[0]}{f' and {len(group) - 1} more' * (len(group) > 1)})"
        for (height, width), group in examples.items()
    )
    return InputError(
        f"the images have {len(examples)} different shapes after resizing (height x width): "
        f"{found}; pass mode='crop' or mode='pad' to bring them to one shape with white padding, "
        "mode='budget' to stretch them to the shape of the first, or mode='cover', 'area' or "
        "'longest' to cut them all to one"
    )
