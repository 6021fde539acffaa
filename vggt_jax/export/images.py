"""The photographs beside an export, as programs that know no EXIF orientation must find them."""

import os
import shutil
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from PIL import Image, ImageOps

from vggt_jax.errors import InputError
from vggt_jax.export.files import replacing
from vggt_jax.export.scene import Cameras
from vggt_jax.preprocess import reading

_ORIENTATION = 0x0112  # The EXIF tag.
_JPEG_QUALITY = 95


def find_photographs(
    cameras: Cameras, images: str | os.PathLike | Sequence[str | os.PathLike]
) -> tuple[Path, ...]:
    """The file of every frame.

    Args:
      cameras: whose names are looked for.
      images: a folder that holds files of these names, or the files, one per frame in their order.

    Raises:
      InputError: a photograph is missing, or there are too many or too few.
    """
    if not isinstance(images, (str, os.PathLike)):
        paths = tuple(map(Path, images))
        if len(paths) != len(cameras.names):
            raise InputError(
                f"{len(paths)} images for a reconstruction of {len(cameras.names)} frames; give one "
                "for each frame, in their order"
            )
    else:
        folder = Path(images)
        if not folder.is_dir():
            raise InputError(f"{folder}: no such folder of images")
        # Names hold as many folders as told them apart; the folder given may be the last of these.
        paths = tuple(
            next(
                (path for path in (folder / name, folder / Path(name).name) if path.is_file()),
                folder / name,
            )
            for name in cameras.names
        )
        if len(set(paths)) < len(set(cameras.names)):
            raise InputError(
                f"{folder}: {_first_repeated(paths)} would serve several of the frames, whose names differ "
                "by their folders; give the folder that was reconstructed"
            )
    if missing := [path for path in paths if not path.is_file()]:
        raise InputError(
            f"{missing[0]}: no such image; {len(missing)} of {len(paths)} are missing; give the folder "
            "that was reconstructed"
        )
    return paths


def _first_repeated(paths: Sequence[Path]) -> Path:
    return next(path for i, path in enumerate(paths) if path in paths[:i])


def _upright(image: Image.Image, path: Path, size: tuple[int, int]) -> Image.Image:
    """The image itself, or turned as its EXIF data says, of the (height, width) that is asked for."""
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
                f"{path}: is stored turned, and lies where it would be read as it is stored; choose "
                "another --out, where photographs are written upright"
            )


def write_photographs(folder: Path, cameras: Cameras, paths: Sequence[Path]) -> int:
    """Copies photographs to `folder`, under the names of the frames.

    Files are copied byte by byte, but where EXIF says that a picture is to be turned: sizes and cameras
    of a reconstruction are those of the turned picture, while COLMAP, gsplat and nerfstudio read pixels
    as they are stored. Such a one is turned and written again.

    Returns:
      How many were turned.

    Raises:
      InputError: a photograph cannot be read, is not of the size that was reconstructed, or cannot be
        written.
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


def write_frames(folder: Path, cameras: Cameras, frames: np.ndarray) -> None:
    """Writes frames as they are, for reconstructions of arrays that nobody resized."""
    for name, frame in zip(cameras.names, frames, strict=True):
        if frame.dtype != np.uint8:
            frame = np.round(frame * 255).astype(np.uint8)
        with replacing(folder / name) as file:
            Image.fromarray(frame).save(file, format="PNG")
