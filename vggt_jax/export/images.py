"""The photographs beside an export, as programs that know no EXIF orientation must find them."""

import dataclasses
import os
import re
from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath, PureWindowsPath

import numpy as np
from PIL import Image

from vggt_jax.errors import InputError
from vggt_jax.export.cameras import Cameras, checked_names
from vggt_jax.export.photograph import Stored, check_size, limits_of, stored
from vggt_jax.export.photograph import write as write_photograph
from vggt_jax.files import replacing
from vggt_jax.images.files import composed, counted, listed, scene_folder
from vggt_jax.images.frames import FrameTransform
from vggt_jax.images.kinds import PICTURES, is_picture
from vggt_jax.images.video import decoded_frames, indices_of_names
from vggt_jax.scene.reconstruction import Reconstruction

Images = str | os.PathLike | Sequence[str | os.PathLike]

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
        if not Path(images).is_dir():
            indices_of_names(images, names)
            return None
        folder = scene_folder(images).path
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
    extensions = ("",) if has_extension(name) else ("", *PICTURES)
    tried = [
        folder / f"{place}{extension}"
        for place in (name, Path(name).name, name.replace("\\", "/"), PureWindowsPath(name).name)
        for extension in extensions
    ]
    found = next((path for path in tried if path.is_file()), None)
    return found or next(filter(None, map(_alike, tried)), tried[0])


def _alike(path: Path) -> Path | None:
    """A file whose name looks the same: accents may be written in two ways."""
    if path.name.isascii() or not path.parent.is_dir():
        return None
    return next(
        (one for one in path.parent.iterdir() if composed(one.name) == composed(path.name)), None
    )


def _is_picture(path: Path) -> bool:
    return is_picture(path) and not path.is_dir()


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


def check_photographs(cameras: Cameras, photographs: Sequence[Stored]) -> tuple[str, ...]:
    """Checks photographs that stay where they are.

    Returns:
      Notes on what other programs misread.

    Raises:
      InputError: one is not of the size that was reconstructed, or is stored turned, which COLMAP,
        gsplat and nerfstudio do not see.
    """
    for one, size in zip(photographs, cameras.original_sizes, strict=True):
        check_size(one, size)
        if one.is_turned:
            raise InputError(
                f"{one.path}: is stored turned, and lies where it would be read as it is stored; "
                "choose another --out, where photographs are written upright"
            )
    if not (unlike := [one for one in photographs if one.unlike]):
        return ()
    note = (
        f"{counted(len(unlike), 'photograph')} ({listed([one.path.name for one in unlike])}) "
        f"{_are(unlike)} {_kinds(unlike)}, which other programs misread, and left as it lies here; "
        "with another --out it is written as RGB of 8 bits"
    )
    return (note,)


def write_photographs(
    folder: Path, cameras: Cameras, photographs: Sequence[Stored]
) -> tuple[str, ...]:
    """Writes photographs to `folder`, under the names of the frames.

    Files are copied byte by byte, but where EXIF says that an image is to be turned, and where it
    is no 8-bit RGB: sizes and cameras of a reconstruction are those of the turned image, while
    COLMAP, gsplat and nerfstudio read pixels as they are stored. Such a one is written again, with
    its colour profile and what EXIF says of the camera.

    Returns:
      Notes on what was changed.

    Raises:
      InputError: a photograph cannot be read, is not of the size that was reconstructed, or cannot
        be written.
    """
    for one, size in zip(photographs, cameras.original_sizes, strict=True):
        check_size(one, size)
    limits = limits_of(photographs)
    for name, one in zip(cameras.names, photographs, strict=True):
        with replacing(folder / name) as file:
            write_photograph(one, file, limits)
    notes = []
    if turned := sum(one.is_turned for one in photographs):
        notes.append(f"{turned} photographs were turned as their EXIF data says, and written anew")
    if unlike := [one for one in photographs if one.unlike]:
        notes.append(
            f"{counted(len(unlike), 'photograph')} ({listed([one.path.name for one in unlike])}) "
            f"{_are(unlike)} {_kinds(unlike)}, and written anew as RGB of 8 bits"
        )
    if limits:
        notes.append("grey of more bits is stretched from what all photographs use of it")
    return tuple(notes)


def _are(photographs: Sequence[Stored]) -> str:
    return "is" if len(photographs) == 1 else "are"


def _kinds(photographs: Sequence[Stored]) -> str:
    return " or ".join(dict.fromkeys(what for one in photographs for what in one.unlike))


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
      photographs: how they are stored; None where they are frames, or those of a video.
      video: that the frames come from.
      are_written: whether the folder is part of the export.
      notes: what a person should know, a sentence each.
    """

    cameras: Cameras
    frame_names: tuple[str, ...]
    photographs: tuple[Stored, ...] | None = None
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

        def made(called: tuple[str, ...], notes: Iterable[str] = (), **fields) -> "Photographs":
            # a.x and a.y would both become a.png.
            if len({composed(name) for name in called}) < len(names):
                called = tuple(
                    name if one == name else f"{name}{PurePosixPath(one).suffix or '.png'}"
                    for name, one in zip(names, called, strict=True)
                )
            readable = tuple(map(_in_utf8, called))
            if num_changed := sum(a != b for a, b in zip(called, readable, strict=True)):
                notes = (*notes, f"{counted(num_changed, 'name')} that are no UTF-8 were changed")
            renamed = dataclasses.replace(cameras, names=readable)
            return cls(cameras=renamed, frame_names=names, notes=tuple(notes), **fields)

        if images is not None:
            paths = find_photographs(names, images)
            if paths is None:
                assert isinstance(images, str | os.PathLike)
                return made(_with_png(names), video=Path(images), are_written=True)
            photographs = tuple(map(stored, paths))
            if lie_in_place(images, path):
                assert isinstance(images, str | os.PathLike)
                notes = check_photographs(cameras, photographs)
                called = tuple(file.relative_to(images).as_posix() for file in paths)
                return cls(
                    cameras=dataclasses.replace(cameras, names=called),
                    frame_names=names,
                    photographs=photographs,
                    are_written=False,
                    notes=notes,
                )
            _check_not_in_place(paths, path)
            # Frames of arrays have no extension: it is that of their file, or of its new format.
            called = tuple(
                one.name(
                    name
                    if has_extension(name) or PurePosixPath(name).name == one.path.name
                    else f"{name}{one.path.suffix}"
                )
                for name, one in zip(names, photographs, strict=True)
            )
            return made(called, photographs=photographs, are_written=True)
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
        return made(called, (note,), are_written=False)

    def write(self, folder: Path, recon: Reconstruction) -> tuple[str, ...]:
        """Writes them to `folder`, and returns notes."""
        if not self.are_written:
            return ()
        if self.video is not None:
            write_video_frames(folder, self.cameras, self.video, self.frame_names)
        elif self.photographs is not None:
            return write_photographs(folder, self.cameras, self.photographs)
        else:
            write_frames(folder, self.cameras, np.asarray(recon.images))
        return ()


def _check_not_in_place(paths: Sequence[Path], out: Path) -> None:
    """Checks that photographs are not read from where they will be written."""
    place = out / "images"
    if place.is_dir() and (inside := [one for one in paths if _lies_in(one, place)]):
        raise InputError(
            f"{inside[0]}: lies in {place}, which would be replaced; give that folder itself as "
            "the images, and it is left as it is, or choose another --out"
        )


def _lies_in(path: Path, folder: Path) -> bool:
    return folder.resolve() in path.resolve().parents


def _in_utf8(name: str) -> str:
    """A name in which bytes that are no UTF-8 are written out, for programs that know no others."""
    return re.sub("[\ud800-\udfff]", lambda found: f"_x{ord(found[0]) & 0xFF:02x}", name)


def _with_png(names: Iterable[str]) -> tuple[str, ...]:
    return tuple(f"{name}.png" for name in names)
