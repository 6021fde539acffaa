"""Images of any source to the frames of a scene.

Host side: numpy and Pillow. `load_images` does what the official `utils/load_fn.py` (VGGT) and
`utils/basic.py` (π³) do, value for value, and also honours the orientation that a camera writes
into EXIF and every kind of transparency.
"""

import os
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
from PIL import Image

from vggt_jax.errors import InputError
from vggt_jax.images.covering import fit_by_covering, resampling_to_cover, size_to_cover
from vggt_jax.images.decoding import (
    checked_pixels,
    is_array,
    read_array,
    read_file,
    read_pil,
    reading,
)
from vggt_jax.images.files import find_images, short_names
from vggt_jax.images.frames import Frames, FrameTransform
from vggt_jax.images.resizing import (
    DEFAULT_SIZE,
    Mode,
    checked_budget,
    checked_size,
    fit_by_cropping,
    fit_by_padding,
    fit_by_stretching,
    model_frame,
    nearest_multiples,
    padded_to_largest,
    shapes_differ,
    size_within_budget,
)
from vggt_jax.images.video import VideoFrames, check_is_not_in_list, choose_frames, is_video


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

    `"cover"`: all images are resized to cover one size, and cut in the middle to it. `size` is its
    longer side, or both; None takes that of ten sizes of about 518 whose shape is nearest to the
    mean of those of the images. Resizing is Lanczos where images shrink, else bicubic. Source:
    `load_images` in MapAnything's `utils/image.py` ("longest_side", "fixed_size",
    "fixed_mapping").

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
            raise InputError(f"mode={given!r} is unknown; use 'crop', 'pad', 'budget' or 'cover'")
    images = _video_if_any(images, fps, frames, progress)
    if is_array(images):
        size = DEFAULT_SIZE if size is None else size
        return _pass_through(images, mode, checked_size(size, patch_size), patch_size)

    is_strict, mode = mode is None, mode or default_mode
    resampling_of = lambda _: Image.Resampling.BICUBIC
    target_size: Any = None
    if mode == "cover":
        labels, names, readers = _sources(images)
        if not is_strict:
            alike = readers[:1] if isinstance(images, VideoFrames) else readers
            target_size = size_to_cover(_mean_aspect_ratio(alike), size, patch_size)
        fit, resampling_of = partial(fit_by_covering, size=size), resampling_to_cover
    elif mode == "budget":
        resampling_of = lambda _: Image.Resampling.LANCZOS
        budget = checked_budget(size, patch_size)
        labels, names, readers = _sources(images)
        first = readers[0]()
        readers[0] = lambda: first
        size_of_first = (first.height, first.width)
        target_size = size_within_budget(size_of_first, budget, patch_size, labels[0])
        fit = partial(fit_by_stretching, budget=budget if is_strict else None)
    else:
        target_size = checked_size(DEFAULT_SIZE if size is None else size, patch_size)
        labels, names, readers = _sources(images)
        fit = fit_by_padding if mode == "pad" else fit_by_cropping

    def prepare(label: str, read: Callable[[], Image.Image]) -> tuple[np.ndarray, FrameTransform]:
        image = read()
        width, height = image.size
        transform = fit((height, width), target_size, patch_size, label)
        return model_frame(image, transform, resampling_of(transform)), transform

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
            raise shapes_differ(transforms, names)
        batch, transforms = padded_to_largest(batch, others, transforms)
    return Frames(images=batch, names=names, transforms=tuple(transforms))


def _mean_aspect_ratio(readers: list[Callable[[], Image.Image]]) -> float:
    """The mean width over height; replaces the first reader by one that has read."""
    first = readers[0]()
    readers[0] = lambda: first
    ratios = (image.width / image.height for image in (read() for read in readers))
    return sum(ratios) / len(readers)


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
            label, read = str(paths[i]), partial(read_file, paths[i])
        elif isinstance(item, Image.Image):
            label = f"image {i} ({getattr(item, 'filename', '') or 'a PIL image'})"
            with reading(label):
                item.load()  # Here and not in a worker: the same object may be given twice.
            read = partial(read_pil, item, label)
        elif is_array(item):
            label = f"image {i} (an array)"
            read = partial(read_array, np.asarray(item), label)
        else:
            raise InputError(
                f"image {i} of type {type(item).__name__} is not understood; pass paths, PIL "
                "images or arrays [height width 3]"
            )
        labels.append(label)
        readers.append(read)
    names = dict(zip(paths, short_names(list(paths.values())), strict=True))
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
            " or ".join(map(str, nearest_multiples(side, patch_size))) + f" {word}"
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
    images = checked_pixels(images, "the array of images")
    return Frames(
        images=images,
        names=tuple(f"{i:04d}" for i in range(len(images))),
        transforms=(FrameTransform.identity((height, width)),) * len(images),
    )


def _with_progress(results: Iterable[Any], total: int, progress: bool) -> Iterable[Any]:
    if not progress:
        return results
    from tqdm import tqdm

    return tqdm(results, total=total, desc="images", unit="image")
