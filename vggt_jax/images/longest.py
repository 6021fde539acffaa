"""Frames as Depth Anything 3 takes them: the longer side of one length, both whole patches.

Official file: depth_anything_3/utils/io/input_processor.py ("upper_bound_resize"), which resizes
with OpenCV: by areas where images shrink, else bicubic. Both are here as OpenCV on x86 does them
with bytes, in float32; without Intel's IPP, its bicubic weights have 11 bits, and one pixel in 25
differs by 1.
"""

import math
from collections.abc import Callable, Sequence
from dataclasses import replace

import numpy as np
from jaxtyping import Float32, Int32, UInt8
from PIL import Image

from vggt_jax.errors import InputError
from vggt_jax.images.frames import FrameTransform
from vggt_jax.images.resizing import checked_side

LONGEST_SIDE = 504  # depth_anything_3/api.py, process_res
_CUBIC = -0.75  # OpenCV's constant of Keys' kernel
_ROWS = 128


def sizes_to_longest(
    original_size: tuple[int, int], longest: int, patch_size: int, label: str
) -> tuple[tuple[int, int], tuple[int, int]]:
    """The two sizes, (height, width), that an image has one after the other: one whose longer side
    is as asked for, and that of the nearest whole patches, the larger one of two.

    Raises:
        InputError: less than half a patch would remain.
    """
    scale = longest / max(original_size)
    height, width = (max(1, round(side * scale)) for side in original_size)
    first = height, width
    nearest = lambda side: (side + patch_size // 2) // patch_size * patch_size
    second = nearest(height), nearest(width)
    if not all(second):
        height, width = original_size
        raise InputError(
            f"{label}: {width}x{height} pixels (width x height) are so narrow that less than half "
            "a patch would remain after resizing; cut the image to a less extreme shape"
        )
    return first, second


def checked_longest(size: int | tuple[int, int] | None, patch_size: int) -> int:
    """The length of the longer side.

    Raises:
        InputError: it is out of its range, or there are two sides.
    """
    if size is None:
        return LONGEST_SIDE
    return checked_side(size, patch_size, "with mode 'longest', the longer side")


def fit_to_longest(
    original_size: tuple[int, int], longest: int, patch_size: int, label: str
) -> FrameTransform:
    """All of the image, its longer side as asked for, stretched to whole patches."""
    _, size = sizes_to_longest(original_size, longest, patch_size, label)
    return replace(
        FrameTransform.identity(size),
        original_size=original_size,
        scale_x=size[1] / original_size[1],
        scale_y=size[0] / original_size[0],
    )


def frame_of_longest(
    image: Image.Image, transform: FrameTransform, *, longest: int, patch_size: int
) -> UInt8[np.ndarray, "model_height model_width *channels"]:
    """The model frame, in two steps of resizing, each of which rounds to bytes.

    Args:
        image: may be smaller than the original, and shows all of it.
        longest, patch_size: by which the transform was made.
    """
    pixels = np.asarray(image)
    for size in sizes_to_longest(transform.original_size, longest, patch_size, "image"):
        pixels = resized_as_opencv(pixels, size)
    return pixels


def cut_to_smallest(
    frames: Sequence[np.ndarray],
    transforms: Sequence[FrameTransform],
    *,
    size: tuple[int, int] | None = None,
) -> tuple[list[np.ndarray], list[FrameTransform]]:
    """All frames [height width ...] cut in the middle to one size.

    Args:
        size: (height, width); None for the least height and width among them.
    """
    if size is None:
        least = lambda axis: min(transform.model_size[axis] for transform in transforms)
        size = least(0), least(1)
    height, width = size
    cut, changed = [], []
    for frame, transform in zip(frames, transforms, strict=True):
        top = (transform.model_size[0] - height) // 2
        left = (transform.model_size[1] - width) // 2
        cut.append(frame[top : top + height, left : left + width])
        changed.append(
            replace(
                transform,
                model_size=(height, width),
                offset_x=transform.offset_x - left,
                offset_y=transform.offset_y - top,
                content_rows=(0, height),
                content_columns=(0, width),
            )
        )
    return cut, changed


def resized_as_opencv(
    image: UInt8[np.ndarray, "height width *channels"], size: tuple[int, int]
) -> UInt8[np.ndarray, "new_height new_width *channels"]:
    """Resizes as `cv2.resize` does: by areas (INTER_AREA) where no side grows, else bicubic
    (INTER_CUBIC), the same image where the size is."""
    if image.shape[:2] == size:
        return image
    x = image.reshape(*image.shape[:2], -1)
    grows = size[0] > x.shape[0] or size[1] > x.shape[1]
    resized = _resampled(x, size, _cubic_weights) if grows else _by_area(x, size)
    return resized.reshape(*size, *image.shape[2:])


def _by_area(x: np.ndarray, size: tuple[int, int]) -> np.ndarray:
    """Means over the areas of the new pixels, rounded to the nearest, half to even."""
    if (x.shape[0], x.shape[1]) == (2 * size[0], 2 * size[1]):  # but here half up
        blocks = x.reshape(size[0], 2, size[1], 2, -1).astype(np.int32)
        return ((blocks.sum((1, 3)) + 2) >> 2).astype(np.uint8)
    return _resampled(x, size, _area_weights)


def _resampled(
    x: np.ndarray,
    size: tuple[int, int],
    weights: Callable[[int, int], tuple[np.ndarray, np.ndarray]],
) -> np.ndarray:
    """Sums of weighted columns, then rows, in float32, rounded to the nearest, half to even."""
    columns = weights(x.shape[1], size[1])
    # Some rows at a time stay in the processor's cache.
    blocks = (x[row : row + _ROWS] for row in range(0, len(x), _ROWS))
    total = np.concatenate([_along(*columns, block, 1) for block in blocks])
    total = _along(*weights(x.shape[0], size[0]), total, 0)
    return np.clip(np.rint(total), 0, 255).astype(np.uint8)


def _along(places: np.ndarray, factors: np.ndarray, x: np.ndarray, axis: int) -> np.ndarray:
    """Weighted sums of the pixels that each new one is made of, one tap after the other; float32.

    Args:
        places, factors: [new taps].
    """
    shape = [1] * x.ndim
    shape[axis] = len(places)
    first, *others = (
        (place, factor.reshape(shape)) for place, factor in zip(places.T, factors.T, strict=True)
    )
    total = np.take(x, first[0], axis) * first[1]
    for place, factor in others:
        total += np.take(x, place, axis) * factor
    return total


def _area_weights(
    old: int, new: int
) -> tuple[Int32[np.ndarray, "new taps"], Float32[np.ndarray, "new taps"]]:
    """Places and weights of the old pixels under each new one; those at its ends by their share."""
    scale = old / new
    begin = np.arange(new) * scale
    end = np.minimum(begin + scale, old)
    places = np.floor(begin + 1e-9).astype(np.int32)[:, None] + np.arange(math.ceil(scale) + 1)
    shares = np.minimum(places + 1, end[:, None]) - np.maximum(places, begin[:, None])
    weights = np.clip(shares, 0, None) / (end - begin)[:, None]
    return np.minimum(places, old - 1), weights.astype(np.float32)


def _cubic_weights(
    old: int, new: int
) -> tuple[Int32[np.ndarray, "new 4"], Float32[np.ndarray, "new 4"]]:
    """Places and weights of the four old pixels around each new one, by Keys' kernel; the border
    goes on beyond the image."""
    position = (np.arange(new) + 0.5) * (old / new) - 0.5
    first = np.floor(position).astype(np.int32)
    distance = np.abs(position[:, None] - first[:, None] - np.arange(-1, 3))
    a = _CUBIC
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = a * (((distance - 5) * distance + 8) * distance - 4)
    weights = np.where(distance <= 1, near, far).astype(np.float32)
    return np.clip(first[:, None] + np.arange(-1, 3), 0, old - 1), weights
