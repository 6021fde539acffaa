"""Images of any source to the frames of a scene.

Host side: numpy and Pillow. `load_images` does what the official `utils/load_fn.py` (VGGT) and
`utils/basic.py` (π³) do, value for value, and also honours the orientation that a camera writes
into EXIF and every kind of transparency. What is left out or read in another way than somebody
could expect is said once, as an `InputWarning`.
"""

import dataclasses
import os
import warnings
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from functools import partial
from pathlib import Path
from typing import Any, get_args

import numpy as np
from PIL import Image

from vggt_jax.errors import InputError, InputWarning
from vggt_jax.images.covering import fit_by_covering, resampling_to_cover, sizes_of
from vggt_jax.images.decoding import (
    SLIVER,
    Limits,
    Picture,
    checked_pixels,
    is_array,
    measure,
    read_array,
    read_file,
    read_pil,
)
from vggt_jax.images.files import (
    as_patterns,
    counted,
    listed,
    photographs,
    short_names,
)
from vggt_jax.images.frames import Frames, FrameTransform
from vggt_jax.images.longest import (
    checked_longest,
    cut_to_smallest,
    fit_to_longest,
    frame_of_longest,
)
from vggt_jax.images.opening import SEVERAL, reading
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

_CLEAR = "clear"
_SAID = {
    SEVERAL: "{images} of several pictures or pages: the first of each is taken",
    SLIVER: "{images} of 16 bits that use a quarter of their range or less, and are dark to black; "
    "stretch=True stretches what they use",
    _CLEAR: "{images} with transparent pixels, which are left out as by a mask",
}


def load_images(
    images: Any,
    *,
    mode: Mode | None = None,
    default_mode: Mode = "crop",
    size: int | tuple[int, int] | None = None,
    patch_size: int = 14,
    fps: float | None = None,
    frames: int | None = None,
    pattern: str | Sequence[str] = (),
    recursive: bool = False,
    stretch: bool = False,
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

    `"area"`: as `"cover"`, with one size that is the largest of whole patches of about the shape
    of the images (the mean of theirs) and at most `size * size` pixels: for models that were
    trained on squares of that side.

    `"longest"`: the longer side of each image becomes `size`, 504 by default, and both sides then
    the nearest whole patches; where results differ in shape, all are cut in the middle to the least
    height and width. Resizing is OpenCV's, by areas where images shrink, else bicubic. Source:
    `InputProcessor` in Depth Anything 3's `utils/io/input_processor.py` ("upper_bound_resize").

    `"budget"`: all images are stretched to one size, the largest of whole patches that has about
    the shape of the first image and at most `size * size` pixels. Resizing is Lanczos. Source:
    `load_images_as_tensor` in π³'s `utils/basic.py`.

    The official loaders neither turn images by their EXIF orientation nor composite transparency
    (that of VGGT does for RGBA). Here it lies on white, and is left out of what is made of the
    frames (`Frames.opaque`). A picture of more than 89 million pixels is decoded smaller.

    Args:
      images: a folder (or one with the photographs in its folder `images`), a path, or a sequence
        of paths, of PIL images or of arrays [height width 3] (uint8, or float in [0, 1], rounded to
        uint8 before resizing), any sizes. Or one array [s height width 3] whose sides are whole
        patches: it is passed through untouched, float arrays as float32. Or a video file, or what
        `video.choose_frames` chose of one.
      mode: None means `default_mode`, and that images which would differ in shape are an error.
      default_mode: what the model was made for.
      size: side of the target square, or (height, width); whole patches. For `"budget"`, `"area"`
        and `"longest"` an int of at least one patch. None is 518, a budget of 255,000 pixels, or a
        longer side of 504.
      patch_size: side of a patch in pixels.
      fps, frames: of a video, how many frames to take in a second or in all; see
        `video.choose_frames`. With either, a file of any name is read as a video.
      pattern: of a folder, the files to take, such as "*.color.png"; with "!" before it, those to
        leave out, such as "!*_mask.png". One or several.
      recursive: of a folder, take the files of all folders in it, too; names of frames are their
        paths in it.
      stretch: bring the range of values that the images use, a thousandth at either end aside, to
        all of [0, 255], the same for all images of a scene: for cameras of 12 bits in 16, thermal
        ones, and floats.
      progress: shows a progress bar.

    Returns:
      The frames, in the order given.

    Warns:
      InputWarning: files of the folder are no photographs, by kind; of files only one of several
        pictures is taken; pixels are transparent; values use a sliver of their range; a video is
        damaged. Each is said once.

    Raises:
      InputError: an image cannot be read or has values out of range, no image was given, shapes
        differ without a mode, or an argument is out of its range. The message names the file.
    """
    if patch_size < 1:
        raise InputError(f"{patch_size=} must be at least 1")
    for given in (mode, default_mode):
        if given not in (None, *get_args(Mode)):
            raise InputError(f"mode={given!r} is unknown; use one of {get_args(Mode)}")
    images = _video_if_any(images, fps, frames, progress)
    _check_pattern(images, pattern, recursive)
    if is_array(images):
        if stretch:
            raise InputError("stretch=True is for files and lists; one array is passed as it is")
        size = DEFAULT_SIZE if size is None else size
        return _pass_through(images, mode, checked_size(size, patch_size), patch_size)

    is_strict, mode = mode is None, mode or default_mode
    resampling_of = lambda _: Image.Resampling.BICUBIC
    draw = lambda image, transform: model_frame(image, transform, resampling_of(transform))
    target_size: Any = None
    if mode == "longest":
        sources = _stretched(_sources(images, pattern, recursive), stretch)
        target_size = checked_longest(size, patch_size)
        fit = fit_to_longest
        draw = partial(frame_of_longest, longest=target_size, patch_size=patch_size)
    elif mode in ("area", "cover"):
        sources = _stretched(_sources(images, pattern, recursive), stretch)
        size_of = sizes_of(mode, size, patch_size)
        if not is_strict:
            alike = sources[:1] if isinstance(images, VideoFrames) else sources
            target_size = size_of(_mean_shape(alike), "the mean of all")
        fit, resampling_of = partial(fit_by_covering, size_of=size_of), resampling_to_cover
    elif mode == "budget":
        resampling_of = lambda _: Image.Resampling.LANCZOS
        budget = checked_budget(size, patch_size, mode)
        sources = _stretched(_sources(images, pattern, recursive), stretch)
        first = sources[0].read()
        sources[0] = dataclasses.replace(sources[0], read=lambda: first)
        target_size = size_within_budget(first.size, budget, patch_size, sources[0].label)
        fit = partial(fit_by_stretching, budget=budget if is_strict else None)
    else:
        target_size = checked_size(DEFAULT_SIZE if size is None else size, patch_size)
        sources = _stretched(_sources(images, pattern, recursive), stretch)
        fit = fit_by_padding if mode == "pad" else fit_by_cropping

    def prepare(source: _Source) -> _Prepared:
        picture = source.read()
        transform = fit(picture.size, target_size, patch_size, source.label)
        frame, opaque = draw(picture.image, transform), None
        if picture.alpha is not None:
            opaque = draw(picture.alpha, transform) >= 128
        return _Prepared(frame=frame, opaque=opaque, transform=transform, remarks=picture.remarks)

    prepared = _all_prepared(prepare, sources, progress)
    names, transforms = tuple(source.name for source in sources), prepared.transforms
    batch, opaque = prepared.batch, prepared.opaque
    if prepared.others:
        if is_strict:
            raise shapes_differ(transforms, names)
        if mode == "longest":
            batch, opaque, transforms = _cut(prepared)
        else:
            batch, padded = padded_to_largest(batch, prepared.others, transforms)
            opaque = _padded_opaque(opaque, transforms, padded)
            transforms = padded
    _say(prepared.remarks, names)
    all_opaque = None
    if opaque:
        all_opaque = np.ones(batch.shape[:3], bool)
        for i, of_frame in opaque.items():
            all_opaque[i] = of_frame
    return Frames(images=batch, names=names, transforms=tuple(transforms), opaque=all_opaque)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Source:
    """An image to read.

    Attributes:
      label: what errors call it.
      name: of its frame.
      read: reads it, with `limits` if it can be stretched.
      pixels: what is measured to stretch it; None if it cannot be.
    """

    label: str
    name: str
    read: Callable[..., Picture]
    pixels: Any = None


@dataclasses.dataclass(frozen=True, kw_only=True)
class _Prepared:
    """A frame, and what is known of it."""

    frame: np.ndarray
    opaque: np.ndarray | None
    transform: FrameTransform
    remarks: frozenset[str]


@dataclasses.dataclass(kw_only=True)
class _Batch:
    """Frames of the first one's shape, by index those of other shapes, and what is known of all."""

    batch: np.ndarray
    others: dict[int, np.ndarray]
    transforms: list[FrameTransform]
    opaque: dict[int, np.ndarray]
    remarks: dict[str, list[int]]


def _all_prepared(
    prepare: Callable[[_Source], _Prepared], sources: Sequence[_Source], progress: bool
) -> _Batch:
    """Reads in several threads.

    Each worker holds one original at a time. Frames go straight to their place in the batch, of the
    first one's shape; those of another shape wait beside it.
    """
    result = _Batch(batch=np.empty(0, np.uint8), others={}, transforms=[], opaque={}, remarks={})
    executor = ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1))
    try:
        prepared = executor.map(prepare, sources)
        for i, one in enumerate(_with_progress(prepared, len(sources), progress)):
            if i == 0:
                result.batch = np.empty((len(sources), *one.frame.shape), np.uint8)
            if one.frame.shape == result.batch.shape[1:]:
                result.batch[i] = one.frame
            else:
                result.others[i] = one.frame
            result.transforms.append(one.transform)
            remarks = one.remarks
            if one.opaque is not None and not one.opaque.all():
                result.opaque[i], remarks = one.opaque, remarks | {_CLEAR}
            for remark in remarks:
                result.remarks.setdefault(remark, []).append(i)
    finally:
        executor.shutdown(cancel_futures=True)
    return result


def _mean_shape(sources: Sequence[_Source]) -> tuple[float, float]:
    """1, and the mean width over height."""
    sizes = (source.read().size for source in sources)
    return 1.0, sum(width / height for height, width in sizes) / len(sources)


def _cut(
    prepared: _Batch,
) -> tuple[np.ndarray, dict[int, np.ndarray], list[FrameTransform]]:
    """Frames, and what of them is opaque, cut to the least height and width."""
    places = range(len(prepared.transforms))
    others, batch = prepared.others, prepared.batch
    frames = [others[i] if i in others else batch[i] for i in places]
    frames, transforms = cut_to_smallest(frames, prepared.transforms)
    clear = list(prepared.opaque)
    opaque, _ = cut_to_smallest(
        [prepared.opaque[i] for i in clear],
        [prepared.transforms[i] for i in clear],
        size=transforms[0].model_size,
    )
    return np.stack(frames), dict(zip(clear, opaque, strict=True)), transforms


def _padded_opaque(
    opaque: dict[int, np.ndarray],
    transforms: Sequence[FrameTransform],
    padded: Sequence[FrameTransform],
) -> dict[int, np.ndarray]:
    """What is opaque, on the larger frames that padding made."""
    result = {}
    for i, of_frame in opaque.items():
        result[i] = np.ones(padded[i].model_size, bool)
        before, after = transforms[i], padded[i]
        top = after.content_rows[0] - before.content_rows[0]
        left = after.content_columns[0] - before.content_columns[0]
        height, width = of_frame.shape
        result[i][top : top + height, left : left + width] = of_frame
    return result


def _say(remarks: dict[str, list[int]], names: Sequence[str]) -> None:
    """Warns of what was remarked of images, once for each remark."""
    for remark, text in _SAID.items():
        if indices := remarks.get(remark):
            images = counted(len(indices), "image") + f" ({listed([names[i] for i in indices])})"
            warnings.warn(InputWarning(text.format(images=images)), stacklevel=3)


def _sources(images: Any, pattern: str | Sequence[str], recursive: bool) -> list[_Source]:
    """Every image that is to be read."""
    if isinstance(images, VideoFrames):
        frames = zip(images.names, images.readers(), strict=True)
        return [
            _Source(
                label=f"{images.path}: {name}",
                name=name,
                read=lambda read=read: Picture.of(read()),
            )
            for name, read in frames
        ]
    folder = None
    if isinstance(images, (str, os.PathLike)):
        folder = images if recursive else None
        images = _of_path(images, pattern, recursive)
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
    if any(isinstance(image, str) and not image for image in images):
        raise InputError("the path of an image is empty; name a file")
    check_is_not_in_list(images)

    labels, pixels, readers, paths = [], [], [], {}
    for i, item in enumerate(images):
        if isinstance(item, (str, os.PathLike)):
            paths[i] = item = Path(item)
            label, read = str(paths[i]), partial(read_file, paths[i])
        elif isinstance(item, Image.Image):
            label = f"image {i} ({getattr(item, 'filename', '') or 'a PIL image'})"
            with reading(label):
                item.load()  # Here and not in a worker: the same object may be given twice.
            read = partial(read_pil, item, label)
        elif is_array(item):
            label, item = f"image {i} (an array)", np.asarray(item)
            read = partial(read_array, item, label)
        else:
            raise InputError(
                f"image {i} of type {type(item).__name__} is not understood; pass paths, PIL "
                "images or arrays [height width 3]"
            )
        labels.append(label)
        pixels.append(item)
        readers.append(read)
    short = short_names(list(paths.values()))
    if folder is not None:
        short = [path.relative_to(folder).as_posix() for path in paths.values()]
    names = dict(zip(paths, short, strict=True))
    return [
        _Source(label=labels[i], name=names.get(i, f"{i:04d}"), read=readers[i], pixels=pixels[i])
        for i in range(len(images))
    ]


def _of_path(
    images: str | os.PathLike, pattern: str | Sequence[str], recursive: bool
) -> Sequence[Path]:
    """The images of a folder, whose other files are spoken of, or one file."""
    if not os.fspath(images):
        raise InputError("the path of the images is empty; '.' is the current folder")
    if not os.path.isdir(images):
        return [Path(images)]
    folder = photographs(images, pattern, recursive=recursive)
    if message := folder.message():
        warnings.warn(InputWarning(message), stacklevel=4)
    return folder.images


def _check_pattern(images: Any, pattern: str | Sequence[str], recursive: bool) -> None:
    is_folder = isinstance(images, (str, os.PathLike)) and os.path.isdir(images)
    if as_patterns(pattern) and not is_folder:
        raise InputError(f"{pattern=} is for a folder of images; give one, or leave it out")
    if recursive and not is_folder:
        raise InputError(f"{recursive=} is for a folder of images; give one, or leave it out")


def _stretched(sources: list[_Source], stretch: bool) -> list[_Source]:
    """The sources with readers that stretch the range which all of them use, by type of pixels."""
    if not stretch:
        return sources
    if any(source.pixels is None for source in sources):
        raise InputError("stretch=True is for images, not for videos; leave it out")
    with ThreadPoolExecutor(max_workers=min(8, os.cpu_count() or 1)) as executor:
        ranges = list(executor.map(lambda one: measure(one.pixels, one.label), sources))
    limits: dict[str, tuple[float, float]] = {}
    for kind, low, high in ranges:
        lowest, highest = limits.get(kind, (low, high))
        limits[kind] = min(low, lowest), max(high, highest)
    shared: Limits = limits
    return [
        dataclasses.replace(source, read=partial(source.read, limits=shared)) for source in sources
    ]


def _video_if_any(images: Any, fps: float | None, frames: int | None, progress: bool) -> Any:
    """The frames to take of a video; anything else as it is."""
    if isinstance(images, Sequence) and not isinstance(images, str) and len(images) == 1:
        (alone,) = images
        images = alone if is_video(alone) else images
    is_asked_for = fps is not None or frames is not None
    if isinstance(images, (str, os.PathLike)) and not os.path.isdir(images):
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
