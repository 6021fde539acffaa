"""Which files of a folder are images, in which order, and what they are called."""

import os
import re
from collections.abc import Sequence
from pathlib import Path

from vggt_jax.errors import InputError
from vggt_jax.files import OVERVIEW, RESULTS

EXTENSIONS = (".avif", ".bmp", ".jpeg", ".jpg", ".pgm", ".png", ".ppm", ".tif", ".tiff", ".webp")


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


def _natural_key(path: Path) -> tuple[list[str | int], str]:
    parts = re.split(r"([0-9]+)", path.name.casefold())
    return [int(part) if i % 2 else part for i, part in enumerate(parts)], path.name


def short_names(paths: Sequence[Path]) -> list[str]:
    """File names, with as many parent folders as tell different paths apart."""
    different, names = set(paths), {}
    longest = max((len(path.parts) for path in paths), default=1)
    for depth in range(1, longest + 1):
        names = {path: "/".join(path.parts[-depth:]) for path in different}
        if len(set(names.values())) == len(different):
            break
    return [names[path] for path in paths]
