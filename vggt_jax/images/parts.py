"""Images of any source, read a few at a time: many more than fit into the memory."""

import dataclasses
import itertools
import os
import warnings
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import numpy as np
from PIL import Image

from vggt_jax.errors import InputError, InputWarning
from vggt_jax.images.decoding import is_array
from vggt_jax.images.files import photographs, short_names
from vggt_jax.images.frames import Frames
from vggt_jax.images.loading import load_images
from vggt_jax.images.video import VideoFrames, choose_frames, is_video

_DECODED = 8  # Frames of a video, in its own size, that are in memory at a time.


class ImageParts:
    """Images of which `read` loads some.

    Args:
        images: as `load_images` takes them.
        fps, frames, pattern, recursive, progress: as there.

    Attributes:
        names: of all frames, as `load_images` gives them.
        sources: the images in their order: paths, PIL images or arrays; or the chosen frames of a
            video.

    Raises:
        InputError: there are no images, or something is wrong with them that shows without
            decoding.
    """

    names: tuple[str, ...]
    sources: Any

    def __init__(
        self,
        images: Any,
        *,
        fps: float | None = None,
        frames: int | None = None,
        pattern: str | Sequence[str] = (),
        recursive: bool = False,
        progress: bool = False,
    ):
        self._decoding: tuple[int, Iterator[Image.Image]] | None = None
        self._size: tuple[int, int] | None = None
        if isinstance(images, Sequence) and not isinstance(images, str) and len(images) == 1:
            images = images[0] if is_video(images[0]) else images
        is_path = isinstance(images, str | os.PathLike)
        if is_path and os.path.isdir(images):
            folder = photographs(images, pattern, recursive=recursive)
            if message := folder.message():
                warnings.warn(InputWarning(message), stacklevel=2)
            self.sources = list(folder.images)
            self.names = tuple(
                path.relative_to(images).as_posix() if recursive else name
                for path, name in zip(self.sources, short_names(self.sources), strict=True)
            )
        elif isinstance(images, VideoFrames) or (
            is_path and (is_video(images) or fps is not None or frames is not None)
        ):
            if not isinstance(images, VideoFrames):
                images = choose_frames(images, fps=fps, frames=frames, progress=progress)
            self.sources, self.names = images, images.names
        else:
            self.sources = images if is_array(images) else list([images] if is_path else images)
            paths = {
                i: Path(image)
                for i, image in enumerate(self.sources)
                if isinstance(image, str | os.PathLike)
            }
            names = dict(zip(paths, short_names(list(paths.values())), strict=True))
            self.names = tuple(names.get(i, f"{i:04d}") for i in range(len(self.sources)))
        if not self.names:
            raise InputError("no images were given; pass at least one")

    def __len__(self) -> int:
        return len(self.names)

    def read(self, start: int, stop: int, **settings: Any) -> Frames:
        """Frames `start` to `stop`, of the size of those that were read first.

        A video is decoded onwards, and from its beginning where `start` is not the frame after the
        last that was read.

        Args:
            settings: `mode`, `default_mode`, `size` and `patch_size` of `load_images`.

        Raises:
            InputError: images cannot be read, or come to another size.
        """
        if isinstance(self.sources, VideoFrames):
            pieces = [
                self._loaded(self._decoded(i, min(i + _DECODED, stop)), **settings)
                for i in range(start, stop, _DECODED)
            ]
            found = joined(pieces)
        elif not is_array(self.sources) and start and self._follows_first(settings):
            # All are stretched to one size, that of the first.
            found = self._loaded([self.sources[0], *self.sources[start:stop]], **settings)
            found = part_of(found, slice(1, None))
        else:
            found = self._loaded(self.sources[start:stop], **settings)
        size = found.images.shape[1:3]
        self._size = self._size or size
        if size != self._size:
            raise InputError(
                f"{self.names[start]} to {self.names[stop - 1]} come to {size[1]}x{size[0]}, and "
                f"those before to {self._size[1]}x{self._size[0]}; photographs of one shape can go "
                "through windows, or those of any with mode='budget'"
            )
        return dataclasses.replace(found, names=self.names[start:stop])

    @staticmethod
    def _follows_first(settings: dict[str, Any]) -> bool:
        return (settings.get("mode") or settings.get("default_mode")) == "budget"

    @staticmethod
    def _loaded(images: Any, **settings: Any) -> Frames:
        return load_images(images, **settings)

    def _decoded(self, start: int, stop: int) -> list[Image.Image]:
        if self._decoding is None or self._decoding[0] != start:
            rest = dataclasses.replace(
                self.sources,
                indices=self.sources.indices[start:],
                times=self.sources.times[start:],
            )
            self._decoding = (start, rest.images())
        images = self._decoding[1]
        self._decoding = (stop, images)
        return list(itertools.islice(images, stop - start))


def part_of(frames: Frames, part: slice) -> Frames:
    """Some of the frames; images are views."""
    return Frames(
        images=frames.images[part],
        names=frames.names[part],
        transforms=frames.transforms[part],
        opaque=None if frames.opaque is None else frames.opaque[part],
    )


def joined(pieces: Sequence[Frames]) -> Frames:
    """Frames of one size, one piece after another."""
    opaque = None
    if any(piece.opaque is not None for piece in pieces):
        opaque = np.concatenate([
            np.ones(piece.images.shape[:3], bool) if piece.opaque is None else piece.opaque
            for piece in pieces
        ])  # fmt: skip
    return Frames(
        images=np.concatenate([piece.images for piece in pieces]),
        names=tuple(name for piece in pieces for name in piece.names),
        transforms=tuple(transform for piece in pieces for transform in piece.transforms),
        opaque=opaque,
    )
