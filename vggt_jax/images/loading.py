"""Photographs on disk or in memory to frames of the model, and the way back to original pixels.

Host side: numpy and Pillow. `load_images` does what the official `utils/load_fn.py` (VGGT) and
`utils/basic.py` (π³) do, value for value, and also honours the orientation that a camera writes
into EXIF and every kind of transparency. `FrameTransform` is the one home of the relation between
original and model pixels.
"""

import contextlib
import math
import operator
import os
import re
import struct
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Bool, Float32, Float64, UInt8
from PIL import Image, ImageOps

from vggt_jax.errors import InputError
from vggt_jax.images.video import VideoFrames, check_is_not_in_list, choose_frames, is_video

EXTENSIONS = (".avif", ".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")
DEFAULT_SIZE = 518  # The resolution that VGGT and Pi3 were trained at: 37 patches of 14.
PIXEL_BUDGET = 255_000  # PIXEL_LIMIT in the official pi3/utils/basic.py
Mode = Literal["crop", "pad", "budget"]
LARGEST_SIDE = 16_384  # Pixels of a side after resizing: far beyond what any model here can use.
WHITE = 255
# What `vggt-jax infer` writes into a folder: beside the first, the second is no photograph.
RESULTS, OVERVIEW = "predictions.npz", "overview.png"

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


@dataclass(frozen=True, kw_only=True)
class FrameTransform:
    """How the pixels of an original image became the pixels of a model frame.

    In continuous image coordinates, where the image spans [0, width] x [0, height] and the centre
    of the pixel with index i lies at i + 0.5,

        x_model = x_original * scale_x + offset_x,    y_model = y_original * scale_y + offset_y.

    Two quantities are converted, each by its own convention:

    - **Pixels** are indices: an integer names a pixel's centre, as in array indexing and in the
      model's tracks. So `x_model + 0.5 = (x_original + 0.5) * scale_x + offset_x`.
    - **Intrinsics** live in continuous coordinates: a principal point in the middle of the image is
      (width / 2, height / 2). The model predicts exactly that, and COLMAP means the same.

    Sizes are (height, width). Arrays may have any leading shape; results are float64.

    Attributes:
      original_size: size of the original after its EXIF rotation.
      model_size: size of the model frame.
      scale_x, scale_y: model pixels per original pixel; they differ slightly, as resized sides are
        rounded to whole patches.
      offset_x, offset_y: model coordinates of the original's top left corner: positive where there
        is padding, negative where the top was cropped.
      content_rows, content_columns: half-open ranges of the model frame that show the photograph;
        what lies outside is padding.
    """

    original_size: tuple[int, int]
    model_size: tuple[int, int]
    scale_x: float
    scale_y: float
    offset_x: float
    offset_y: float
    content_rows: tuple[int, int]
    content_columns: tuple[int, int]

    @classmethod
    def identity(cls, size: tuple[int, int]) -> "FrameTransform":
        """The transform of an image of `size` (height, width) that is used as it is."""
        height, width = size
        return cls(
            original_size=size,
            model_size=size,
            scale_x=1.0,
            scale_y=1.0,
            offset_x=0.0,
            offset_y=0.0,
            content_rows=(0, height),
            content_columns=(0, width),
        )

    def pixels_to_original(self, pixels_model: Any) -> Float64[np.ndarray, "... 2"]:
        """Original pixel indices of model pixel indices.

        Args:
          pixels_model: [... 2], (x, y); integers are pixel centres, fractions lie between them.

        Returns:
          [... 2] float64. Points on padding fall outside the original.
        """
        pixels_model = np.asarray(pixels_model, np.float64)
        return (pixels_model + 0.5 - self._offset) / self._scale - 0.5

    def pixels_to_model(self, pixels_original: Any) -> Float64[np.ndarray, "... 2"]:
        """Model pixel indices of original pixel indices, the inverse of `pixels_to_original`.

        Args:
          pixels_original: [... 2], (x, y); integers are pixel centres.

        Returns:
          [... 2] float64. Points on a part that was cropped away fall outside the model frame.
        """
        pixels_original = np.asarray(pixels_original, np.float64)
        return (pixels_original + 0.5) * self._scale + self._offset - 0.5

    def intrinsics_to_original(self, intrinsics_model: Any) -> Float64[np.ndarray, "... 3 3"]:
        """Intrinsics for the original image of intrinsics for the model frame.

        Args:
          intrinsics_model: [... 3 3] in model pixels, continuous coordinates. An infinite focal
            length stays infinite.

        Returns:
          [... 3 3] float64 in original pixels, continuous coordinates.
        """
        # Row by row and not as a matrix product, in which an infinite focal length would meet a
        # zero and become NaN.
        xy, last = np.split(np.asarray(intrinsics_model, np.float64), [2], axis=-2)
        xy = (xy - self._offset[:, None] * last) / self._scale[:, None]
        return np.concatenate([xy, last], axis=-2)

    def intrinsics_to_model(self, intrinsics_original: Any) -> Float64[np.ndarray, "... 3 3"]:
        """Intrinsics for the model frame, the inverse of `intrinsics_to_original`.

        Args:
          intrinsics_original: [... 3 3] in original pixels, continuous coordinates.

        Returns:
          [... 3 3] float64 in model pixels, continuous coordinates.
        """
        xy, last = np.split(np.asarray(intrinsics_original, np.float64), [2], axis=-2)
        xy = xy * self._scale[:, None] + self._offset[:, None] * last
        return np.concatenate([xy, last], axis=-2)

    @property
    def _scale(self) -> Float64[np.ndarray, "2"]:
        return np.array([self.scale_x, self.scale_y])

    @property
    def _offset(self) -> Float64[np.ndarray, "2"]:
        return np.array([self.offset_x, self.offset_y])


@dataclass(frozen=True, kw_only=True, eq=False)
class Frames:
    """Frames of one scene as the model takes them.

    Attributes:
      images: [s height width 3] RGB, uint8, or float32 in [0, 1] where float arrays were passed
        through.
      names: one per frame: file names, with as many parent folders as it takes to tell them apart,
        or the number of the frame where it did not come from a path.
      transforms: one per frame, to and from original pixels.
    """

    images: UInt8[np.ndarray, "s height width 3"] | Float32[np.ndarray, "s height width 3"]
    names: tuple[str, ...]
    transforms: tuple[FrameTransform, ...]

    def valid_mask(self) -> Bool[np.ndarray, "s height width"]:
        """True on pixels that show the photograph, False on padding; bool [s height width]."""
        mask = np.zeros(self.images.shape[:3], bool)
        for frame, transform in zip(mask, self.transforms, strict=True):
            frame[slice(*transform.content_rows), slice(*transform.content_columns)] = True
        return mask


def find_images(folder: str | os.PathLike) -> list[Path]:
    """The image files of a folder in natural order (2 before 10).

    Hidden files, other extensions and subfolders are left out, and `overview.png` beside
    `predictions.npz`, which `vggt-jax infer` wrote. Extensions count in any case.

    Raises:
      InputError: the folder does not exist, cannot be read, or holds no image.
    """
    folder = Path(folder)
    try:
        entries = list(folder.iterdir())
    except OSError as error:
        raise InputError(f"{folder}: the folder cannot be read ({error.strerror})") from error
    own = OVERVIEW if any(path.name == RESULTS for path in entries) else None
    found = [
        path
        for path in entries
        if path.name != own
        and path.suffix.lower() in EXTENSIONS
        and not path.name.startswith(".")
        and _is_readable(path)
    ]
    if not found:
        raise InputError(
            f"{folder}: no images in this folder; files ending in {', '.join(EXTENSIONS)} are "
            "read, subfolders are not searched"
        )
    return sorted(found, key=_natural_key)


def _is_readable(path: Path) -> bool:
    """Whether reading a file ends: a missing target of a link is left to the error of reading."""
    return path.is_file() or not path.exists()


def load_images(
    images: Any,
    *,
    mode: Mode | None = None,
    default_mode: Mode = "crop",
    size: int | tuple[int, int] | None = None,
    patch_size: int = 14,
    fps: float | None = None,
    frames: int | None = None,
    progress: bool = False,
) -> Frames:
    """Reads images and brings them to sides that are whole patches, like the official loaders.

    `"crop"`: the width becomes the width of `size`, the height follows the aspect ratio, rounded to
    whole patches, and is cut in the middle to the height of `size` where it is larger. `"pad"`: the
    image is resized to fit inside `size` and padded with white to fill it. Resizing is bicubic.
    Where the results of these modes, given explicitly, differ in shape, all are padded with white
    to the largest height and width. Source: `load_and_preprocess_images` in VGGT's
    `utils/load_fn.py`, which knows the square 518 only.

    `"budget"`: all images are stretched to one size, the largest of whole patches that has about
    the shape of the first image and at most `size * size` pixels. Resizing is Lanczos. Source:
    `load_images_as_tensor` in π³'s `utils/basic.py`.

    The official loaders neither turn images by their EXIF orientation nor composite transparency
    (that of VGGT does for RGBA).

    Args:
      images: a folder, a path, or a sequence of paths, of PIL images or of arrays [height width 3]
        (uint8, or float in [0, 1], rounded to uint8 before resizing), any sizes. Or one array
        [s height width 3] whose sides are whole patches: it is passed through untouched, float
        arrays as float32. Or a video file, or what `video.choose_frames` chose of one.
      mode: None means `default_mode`, and that images which would differ in shape are an error.
      default_mode: what the model was made for.
      size: side of the target square, or (height, width); whole patches. For `"budget"` an int of
        at least one patch. None is 518, or a budget of 255,000 pixels.
      patch_size: side of a patch in pixels.
      fps, frames: of a video, how many frames to take in a second or in all; see
        `video.choose_frames`. With either, a file of any name is read as a video.
      progress: shows a progress bar.

    Returns:
      The frames, in the order given.

    Raises:
      InputError: an image cannot be read or has values out of range, no image was given, shapes
        differ without a mode, or an argument is out of its range. The message names the file.
    """
    if patch_size < 1:
        raise InputError(f"{patch_size=} must be at least 1")
    for given in (mode, default_mode):
        if given not in (None, *get_args(Mode)):
            raise InputError(f"mode={given!r} is unknown; use 'crop', 'pad' or 'budget'")
    images = _video_if_any(images, fps, frames, progress)
    if _is_array(images):
        size = DEFAULT_SIZE if size is None else size
        return _pass_through(images, mode, _checked_size(size, patch_size), patch_size)

    is_strict, mode = mode is None, mode or default_mode
    resampling = Image.Resampling.LANCZOS if mode == "budget" else Image.Resampling.BICUBIC
    if mode == "budget":
        budget = _checked_budget(size, patch_size)
        labels, names, readers = _sources(images)
        first = readers[0]()
        readers[0] = lambda: first
        size_of_first = (first.height, first.width)
        target_size = _size_within_budget(size_of_first, budget, patch_size, labels[0])
        fit = partial(_fit_by_stretching, budget=budget if is_strict else None)
    else:
        target_size = _checked_size(DEFAULT_SIZE if size is None else size, patch_size)
        labels, names, readers = _sources(images)
        fit = _fit_by_padding if mode == "pad" else _fit_by_cropping

    def prepare(label: str, read: Callable[[], Image.Image]) -> tuple[np.ndarray, FrameTransform]:
        image = read()
        width, height = image.size
        transform = fit((height, width), target_size, patch_size, label)
        return _resized(image, transform, resampling), transform

    # Each worker holds one original at a time. Frames go straight to their place in the batch, of
    # the first one's shape; those of another shape wait beside it.
    batch, others, transforms = np.empty(0, np.uint8), {}, []
    executor = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))
    try:
        results = executor.map(prepare, labels, readers)
        for i, (frame, transform) in enumerate(_with_progress(results, len(labels), progress)):
            if i == 0:
                batch = np.empty((len(labels), *frame.shape), np.uint8)
            if frame.shape == batch.shape[1:]:
                batch[i] = frame
            else:
                others[i] = frame
            transforms.append(transform)
    finally:
        executor.shutdown(cancel_futures=True)

    if others:
        if is_strict:
            raise _shapes_differ(transforms, names)
        batch, transforms = _padded_to_largest(batch, others, transforms)
    return Frames(images=batch, names=names, transforms=tuple(transforms))


# Sizes and placement


def _checked_size(size: int | tuple[int, int], patch_size: int) -> tuple[int, int]:
    sides = tuple(size) if isinstance(size, Sequence) else (size, size)
    try:
        height, width = (operator.index(side) for side in sides)
    except (TypeError, ValueError) as error:
        raise InputError(f"{size=} must be an int or a pair (height, width)") from error
    for side in (height, width):
        if side > LARGEST_SIDE:
            raise InputError(f"{size=} must be at most {LARGEST_SIDE} pixels")
        if side < patch_size or side % patch_size:
            nearest = " or ".join(map(str, _nearest_multiples(side, patch_size)))
            raise InputError(f"{size=} must be a positive multiple of {patch_size}; use {nearest}")
    return height, width


def _checked_budget(size: int | tuple[int, int] | None, patch_size: int) -> int:
    """Pixels of a square of this side."""
    if size is None:
        return PIXEL_BUDGET
    try:
        side = operator.index(size)  # pyright: ignore[reportArgumentType]  that of a pair raises
    except TypeError as error:
        raise InputError(
            f"{size=} must be an int with mode 'budget', the side of a square of as many pixels; "
            "modes 'crop' and 'pad' take (height, width)"
        ) from error
    if not patch_size <= side <= LARGEST_SIDE:
        raise InputError(
            f"{size=} must be at least a patch ({patch_size}) and at most {LARGEST_SIDE}"
        )
    return side**2


def _nearest_multiples(side: int, patch_size: int) -> list[int]:
    below = side // patch_size * patch_size
    return sorted({max(below, patch_size), max(below + patch_size, patch_size)})


def _fit_by_cropping(
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


def _fit_by_padding(
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


def _size_within_budget(
    original_size: tuple[int, int], budget: int, patch_size: int, label: str
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


def _fit_by_stretching(
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
        target_size = _size_within_budget(original_size, budget, patch_size, label)
    height, width = original_size
    identity = FrameTransform.identity(target_size)
    return replace(
        identity,
        original_size=original_size,
        scale_x=target_size[1] / width,
        scale_y=target_size[0] / height,
    )


def _check_not_flat(resized_side: int, original_size: tuple[int, int], label: str) -> None:
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


def _resized(
    image: Image.Image, transform: FrameTransform, resampling: Image.Resampling
) -> UInt8[np.ndarray, "model_height model_width 3"]:
    """The model frame: the image resized, cut to what is shown of it, white around it."""
    height, width = transform.original_size
    # Scales are quotients of whole numbers, so rounding recovers these exactly.
    resized_size = (round(width * transform.scale_x), round(height * transform.scale_y))
    resized = np.asarray(image.resize(resized_size, resampling))
    rows = [row - int(transform.offset_y) for row in transform.content_rows]
    columns = [column - int(transform.offset_x) for column in transform.content_columns]
    frame = np.full((*transform.model_size, 3), WHITE, np.uint8)
    content = frame[slice(*transform.content_rows), slice(*transform.content_columns)]
    content[...] = resized[slice(*rows), slice(*columns)]
    return frame


def _padded_to_largest(
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


def _shapes_differ(transforms: Sequence[FrameTransform], names: Sequence[str]) -> InputError:
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
        "or mode='budget' to stretch them to the shape of the first"
    )


# Reading


def _sources(
    images: Any,
) -> tuple[list[str], tuple[str, ...], list[Callable[[], Image.Image]]]:
    """For every image: what errors call it, its name, and the function that reads it as RGB."""
    if isinstance(images, VideoFrames):
        return [f"{images.path}: {name}" for name in images.names], images.names, images.readers()
    if isinstance(images, (str, os.PathLike)):
        path = Path(images)
        images = find_images(path) if path.is_dir() else [path]
    elif isinstance(images, Image.Image):
        images = [images]
    elif not isinstance(images, Iterable) or isinstance(images, (bytes, dict)):
        raise InputError(
            f"images of type {type(images).__name__} are not understood; pass a folder, a path, a "
            "sequence of paths, PIL images or arrays, or an array [s height width 3]"
        )
    images = list(images)
    if not images:
        raise InputError("no images were given; pass at least one")
    check_is_not_in_list(images)

    labels, readers, paths = [], [], {}
    for i, item in enumerate(images):
        if isinstance(item, (str, os.PathLike)):
            paths[i] = Path(item)
            label, read = str(paths[i]), partial(_read_file, paths[i])
        elif isinstance(item, Image.Image):
            label = f"image {i} ({getattr(item, 'filename', '') or 'a PIL image'})"
            with reading(label):
                item.load()  # Here and not in a worker: the same object may be given twice.
            read = partial(_read_pil, item, label)
        elif _is_array(item):
            label = f"image {i} (an array)"
            read = partial(_read_array, np.asarray(item), label)
        else:
            raise InputError(
                f"image {i} of type {type(item).__name__} is not understood; pass paths, PIL "
                "images or arrays [height width 3]"
            )
        labels.append(label)
        readers.append(read)
    names = dict(zip(paths, _short_names(list(paths.values())), strict=True))
    return labels, tuple(names.get(i, f"{i:04d}") for i in range(len(images))), readers


def _video_if_any(images: Any, fps: float | None, frames: int | None, progress: bool) -> Any:
    """The frames to take of a video; anything else as it is."""
    if isinstance(images, Sequence) and not isinstance(images, str) and len(images) == 1:
        (alone,) = images
        images = alone if is_video(alone) else images
    is_asked_for = fps is not None or frames is not None
    if isinstance(images, (str, os.PathLike)) and not Path(images).is_dir():
        if is_asked_for or is_video(images):
            return choose_frames(images, fps=fps, frames=frames, progress=progress)
    elif is_asked_for:
        raise InputError(f"{fps=} and {frames=} are for a video; give one file, or leave them out")
    return images


def _read_file(path: Path) -> Image.Image:
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


def _read_pil(image: Image.Image, label: str) -> Image.Image:
    with reading(label):
        return _as_rgb(ImageOps.exif_transpose(image), label)


def _read_array(array: np.ndarray, label: str) -> Image.Image:
    if array.ndim != 3 or array.shape[-1] != 3 or 0 in array.shape:
        raise InputError(
            f"{label} has shape {array.shape}; each array of a list is [height width 3], colour "
            "channels last: a layout is never guessed"
        )
    array = _checked_pixels(array, label)
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


# Arrays


def _is_array(value: Any) -> bool:
    """NumPy, JAX and PyTorch arrays; a PIL image is not one."""
    return hasattr(value, "__array__") and not isinstance(value, Image.Image)


def _pass_through(
    images: Any, mode: str | None, target_size: tuple[int, int], patch_size: int
) -> Frames:
    images = np.asarray(images)
    if images.ndim != 4 or images.shape[-1] != 3 or 0 in images.shape:
        raise InputError(
            f"an array of images has shape {images.shape}; it must be [s height width 3], colour "
            "channels last: a layout is never guessed (one image: array[None]; channels first: "
            "array.transpose(0, 2, 3, 1))"
        )
    height, width = images.shape[1:3]
    if height % patch_size or width % patch_size:
        nearest = " or ".join(
            " or ".join(map(str, _nearest_multiples(side, patch_size))) + f" {word}"
            for side, word in ((height, "high"), (width, "wide"))
            if side % patch_size
        )
        raise InputError(
            f"images of {height}x{width} (height x width): both sides must be multiples of "
            f"{patch_size}; nearest: {nearest}; or pass list(images) to have them resized"
        )
    asked_for_size = target_size not in ((DEFAULT_SIZE, DEFAULT_SIZE), (height, width))
    if mode is not None or asked_for_size:
        raise InputError(
            f"one array of images is passed through as it is ({height}x{width}), so mode={mode!r} "
            f"and size={target_size} cannot apply; pass list(images) to have them resized"
        )
    images = _checked_pixels(images, "the array of images")
    return Frames(
        images=images,
        names=tuple(f"{i:04d}" for i in range(len(images))),
        transforms=(FrameTransform.identity((height, width)),) * len(images),
    )


def _checked_pixels(array: np.ndarray, label: str) -> np.ndarray:
    """uint8 as it is, floats in [0, 1] as float32."""
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


# Names and progress


def _natural_key(path: Path) -> tuple[list[str | int], str]:
    parts = re.split(r"([0-9]+)", path.name.casefold())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], path.name


def _short_names(paths: Sequence[Path]) -> list[str]:
    """File names, with as many parent folders as tell different paths apart."""
    different, names = set(paths), {}
    longest = max((len(path.parts) for path in paths), default=1)
    for depth in range(1, longest + 1):
        names = {path: "/".join(path.parts[-depth:]) for path in different}
        if len(set(names.values())) == len(different):
            break
    return [names[path] for path in paths]


def _with_progress(results: Iterable[Any], total: int, progress: bool) -> Iterable[Any]:
    if not progress:
        return results
    from tqdm import tqdm

    return tqdm(results, total=total, desc="images", unit="image")
