"""The photographs beside an export, as programs that know no EXIF orientation must find them."""

import dataclasses
import os
import re
import shutil
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath

import numpy as np
from PIL import Image, ImageOps

from vggt_jax.errors import InputError
from vggt_jax.export.cameras import Cameras, checked_names
from vggt_jax.files import replacing
from vggt_jax.images.frames import FrameTransform
from vggt_jax.images.kinds import PICTURES as EXTENSIONS
from vggt_jax.images.opening import reading
from vggt_jax.images.video import decoded_frames, indices_of_names
from vggt_jax.scene.reconstruction import Reconstruction

Images = str | os.PathLike | Sequence[str | os.PathLike]

_ORIENTATION = 0x0112  # The EXIF tag.
_JPEG_QUALITY = 95
_EXTENSION = re.compile(r"\.[A-Za-z][A-Za-z0-9]{1,4}$")


def check_images(images: Images) -> None:
    """Checks that what is given for photographs is there: a folder, a video or files.

    Raises:
      InputError: it is not.
    """
    if isinstance(images, (str, os.PathLike)):
        if not Path(images).exists():
            raise InputError(f"{images}: no such folder of images, and no such video")
    elif missing := [path for path in images if not Path(path).is_file()]:
        raise _missing(missing, len(images))


def lie_in_place(images: Images, folder: Path) -> bool:
    """Whether the photographs lie in the folder `images` of the folder of an export already."""
    place = folder / "images"
    return isinstance(images, str | os.PathLike) and place.is_dir() and place.samefile(images)


def find_photographs(names: Sequence[str], images: Images) -> tuple[Path, ...] | None:
    """The file of every frame, or None if they are in a video.

    Args:
      names: of the frames. One without extension, as frames of videos and arrays have, is found
        with any that images have.
      images: a folder that holds files of these names, or the files, one per frame in their order,
        or the video that was reconstructed.

    Raises:
      InputError: a photograph is missing, there are too many or too few, or the video is another.
    """
    if isinstance(images, (str, os.PathLike)) and _is_picture(Path(images)):
        images = [images]
    if not isinstance(images, (str, os.PathLike)):
        paths = tuple(map(Path, images))
        if len(paths) != len(names):
            raise InputError(
                f"{len(paths)} images for a reconstruction of {len(names)} frames; give one "
                "for each frame, in their order"
            )
    else:
        folder = Path(images)
        if not folder.is_dir():
            indices_of_names(folder, names)
            return None
        # Names hold as many folders as told them apart; the folder given may be the last of these.
        paths = tuple(_in_folder(folder, name) for name in names)
        if len(set(paths)) < len(set(names)):
            raise InputError(
                f"{folder}: {_first_repeated(paths)} would serve several of the frames, whose "
                "names differ by their folders; give the folder that was reconstructed"
            )
    if missing := [path for path in paths if not path.is_file()]:
        raise _missing(missing, len(paths))
    return paths


def _in_folder(folder: Path, name: str) -> Path:
    """The file of a frame in a folder; the first that was tried where there is none."""
    extensions = ("",) if has_extension(name) else ("", *EXTENSIONS)
    tried = [
        folder / f"{place}{extension}"
        for place in (name, Path(name).name)
        for extension in extensions
    ]
    return next((path for path in tried if path.is_file()), tried[0])


def _is_picture(path: Path) -> bool:
    return path.suffix.lower() in EXTENSIONS and not path.is_dir()


def has_extension(name: str) -> bool:
    """Whether the name of a frame ends like a file: `clip_000123` and `v1.0_000123` do not."""
    return _EXTENSION.search(name) is not None


def _missing(paths: Sequence[str | os.PathLike], num_frames: int) -> InputError:
    return InputError(
        f"{paths[0]}: no such image; {len(paths)} of {num_frames} are missing; give the folder "
        "that was reconstructed"
    )


def _first_repeated(paths: Sequence[Path]) -> Path:
    return next(path for i, path in enumerate(paths) if path in paths[:i])


def _upright(image: Image.Image, path: Path, size: tuple[int, int]) -> Image.Image:
    """The image itself, or turned as its EXIF data says, of the (height, width) asked for."""
    is_turned = image.getexif().get(_ORIENTATION, 1) != 1
    upright = ImageOps.exif_transpose(image) if is_turned else image
    if (upright.height, upright.width) != size:
        raise InputError(
            f"{path}: {upright.width}x{upright.height} pixels, and what was reconstructed "
            f"had {size[1]}x{size[0]}; give the folder that was reconstructed"
        )
    return upright


def check_photographs(cameras: Cameras, paths: Sequence[Path]) -> None:
    """Checks photographs that stay where they are.

    Raises:
      InputError: one is not of the size that was reconstructed, or is stored turned, which COLMAP,
        gsplat and nerfstudio do not see.
    """
    for path, size in zip(paths, cameras.original_sizes, strict=True):
        with reading(str(path)), Image.open(path) as image:
            is_turned = _upright(image, path, size) is not image
        if is_turned:
            raise InputError(
                f"{path}: is stored turned, and lies where it would be read as it is stored; "
                "choose another --out, where photographs are written upright"
            )


def write_photographs(folder: Path, cameras: Cameras, paths: Sequence[Path]) -> int:
    """Copies photographs to `folder`, under the names of the frames.

    Files are copied byte by byte, but where EXIF says that an image is to be turned: sizes and
    cameras of a reconstruction are those of the turned image, while COLMAP, gsplat and nerfstudio
    read pixels as they are stored. Such a one is turned and written again.

    Returns:
      How many were turned.

    Raises:
      InputError: a photograph cannot be read, is not of the size that was reconstructed, or cannot
        be written.
    """
    turned = 0
    for name, path, size in zip(cameras.names, paths, cameras.original_sizes, strict=True):
        target = folder / name
        try:
            with Image.open(path) as image:
                upright = _upright(image, path, size)
                is_turned = upright is not image
                with replacing(target) as file:
                    if is_turned:
                        lossy = image.format in ("JPEG", "MPO", "WEBP", "AVIF")
                        quality = {"quality": _JPEG_QUALITY} if lossy else {}
                        upright.save(file, format=image.format, **quality)
                    else:
                        with open(path, "rb") as original:
                            shutil.copyfileobj(original, file)
        except (OSError, SyntaxError, Image.DecompressionBombError) as error:
            raise InputError(f"{path}: cannot be read as an image ({error})") from error
        turned += is_turned
    return turned


def write_video_frames(folder: Path, cameras: Cameras, video: Path, names: Sequence[str]) -> None:
    """Writes the frames of a video that were reconstructed, as PNG in their original size.

    Args:
      folder: made if it is missing.
      cameras: with the names of the files to write.
      video: that the frames are from.
      names: of the frames in it, see `video.VideoFrames.names`.

    Raises:
      InputError: the video cannot be decoded, is another one, or a file cannot be written.
    """
    indices = indices_of_names(video, names)
    order = sorted(range(len(indices)), key=indices.__getitem__)
    images = decoded_frames(video, [indices[i] for i in order])
    for i, image in zip(order, images, strict=True):
        height, width = cameras.original_sizes[i]
        if image.size != (width, height):
            raise InputError(
                f"{video}: its frames have {image.width}x{image.height} pixels, and those that "
                f"were reconstructed {width}x{height}; give the same video"
            )
        with replacing(folder / cameras.names[i]) as file:
            image.save(file, format="PNG")


def write_frames(folder: Path, cameras: Cameras, frames: np.ndarray) -> None:
    """Writes frames as they are, for reconstructions of arrays that nobody resized."""
    for name, frame in zip(cameras.names, frames, strict=True):
        if frame.dtype != np.uint8:
            frame = np.round(frame * 255).astype(np.uint8)
        with replacing(folder / name) as file:
            Image.fromarray(frame).save(file, format="PNG")


@dataclass(frozen=True, kw_only=True)
class Photographs:
    """What will lie in the folder `images`, decided before anything is written.

    Attributes:
      cameras: under the names of the files.
      frame_names: what the reconstruction calls the frames.
      paths: where the photographs are; None where they are frames, or those of a video.
      video: that the frames come from.
      are_written: whether the folder is part of the export.
      notes: what a person should know, a sentence each.
    """

    cameras: Cameras
    frame_names: tuple[str, ...]
    paths: tuple[Path, ...] | None = None
    video: Path | None = None
    are_written: bool
    notes: tuple[str, ...] = ()

    @classmethod
    def of(
        cls, cameras: Cameras, recon: Reconstruction, path: Path, images: Images | None
    ) -> "Photographs":
        """Finds them.

        Args:
          cameras: of the frames.
          recon: the scene.
          path: the folder of the export.
          images: see `export_reconstruction`.

        Raises:
          InputError: a photograph is missing or of another size.
        """
        names = checked_names(cameras.names, len(cameras.names), distinct=True)

        def made(called: tuple[str, ...], **fields) -> "Photographs":
            # a.x and a.y would both become a.png.
            called = called if len(set(called)) == len(names) else _with_png(names)
            renamed = dataclasses.replace(cameras, names=called)
            return cls(cameras=renamed, frame_names=names, **fields)

        if images is not None:
            paths = find_photographs(names, images)
            if paths is None:
                assert isinstance(images, str | os.PathLike)
                return made(_with_png(names), video=Path(images), are_written=True)
            if lie_in_place(images, path):
                assert isinstance(images, str | os.PathLike)
                check_photographs(cameras, paths)
                called = tuple(file.relative_to(images).as_posix() for file in paths)
                return made(called, paths=paths, are_written=False)
            # Frames of arrays have no extension: it is that of their file.
            called = tuple(
                name
                if has_extension(name) or PurePosixPath(name).name == file.name
                else f"{name}{file.suffix}"
                for name, file in zip(names, paths, strict=True)
            )
            return made(called, paths=paths, are_written=True)
        height, width = recon.images.shape[1:3]
        untouched = FrameTransform.identity((height, width))
        if all(transform == untouched for transform in cameras.transforms):
            called = (
                str(PurePosixPath(name).with_suffix("")) if has_extension(name) else name
                for name in names
            )
            return made(_with_png(called), are_written=True)
        have_names = all(map(has_extension, names))
        called = names if have_names else _with_png(names)
        of = "folder of images" if have_names else "folder of images or the video"
        note = (
            f"the photographs are not at hand: give the {of}, or put {called[0]} and "
            f"the others into {path / 'images'}, turned as their EXIF data says"
        )
        return made(called, are_written=False, notes=(note,))

    def write(self, folder: Path, recon: Reconstruction) -> list[str]:
        """Writes them to `folder`, and returns notes."""
        if not self.are_written:
            return []
        if self.video is not None:
            write_video_frames(folder, self.cameras, self.video, self.frame_names)
            return []
        if self.paths is None:
            write_frames(folder, self.cameras, np.asarray(recon.images))
            return []
        turned = write_photographs(folder, self.cameras, self.paths)
        if not turned:
            return []
        return [f"{turned} photographs were turned as their EXIF data says, and written anew"]


def _with_png(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{name}.png" for name in names)
