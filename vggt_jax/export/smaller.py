"""Smaller copies of the photographs beside an export, as trainers of splats ask for them."""

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

from PIL import Image

from vggt_jax.errors import InputError
from vggt_jax.export.cameras import Cameras
from vggt_jax.export.masks import FOLDER as MASKS
from vggt_jax.files import replacing

_LARGEST = 64
_JPEG_QUALITY = 95


def check_factors(factors: Sequence[int]) -> None:
    """Checks by which whole numbers photographs shall be made smaller.

    Raises:
      InputError: one cannot be, or is named twice.
    """
    if any(factor != int(factor) or not 2 <= factor <= _LARGEST for factor in factors):
        raise InputError(
            f"data_factor={_listed(factors)} must be whole numbers from 2 to {_LARGEST}"
        )
    if len(set(factors)) < len(factors):
        raise InputError(f"data_factor={_listed(factors)} names a factor twice")


def folders_of(factors: Sequence[int], *, with_masks: bool) -> list[str]:
    """The names of the folders that `write_smaller` makes."""
    kinds = ["images", *([MASKS] if with_masks else [])]
    return [f"{kind}_{factor}" for factor in factors for kind in kinds]


def write_smaller(
    folder: Path, place: Path, cameras: Cameras, factors: Sequence[int], *, flat: bool
) -> None:
    """Writes `images_2`, `images_4` and so on, and `masks_2` where there are masks.

    Sizes are those of the photographs divided by the factor and rounded down, as gsplat and
    nerfstudio divide the sizes of cameras; names are the same.

    Args:
      folder: of the export, as it is being written.
      place: where it will be; photographs or masks that are not in `folder` lie there.
      cameras: with the names of photographs and masks.
      factors: as `check_factors` takes them.
      flat: whether the program looks for names without folders (nerfstudio).

    Raises:
      InputError: photographs are not at hand, or a file cannot be written.
    """
    kinds = {"images": cameras.names, **({MASKS: cameras.masks} if cameras.masks else {})}
    for kind, names in kinds.items():
        source = folder / kind if (folder / kind).is_dir() else place / kind
        if missing := [name for name in names if not (source / name).is_file()]:
            raise InputError(
                f"{source / missing[0]}: no such file, of which data_factor={_listed(factors)} is "
                "to make smaller ones; give the photographs with images"
            )
        called = [PurePosixPath(name).name if flat else name for name in names]
        if len(set(called)) < len(called):
            raise InputError(
                "data_factor: nerfstudio looks for smaller photographs without their folders, and "
                "two have one name; rename them, or leave it out"
            )
        resampling = Image.Resampling.NEAREST if kind == MASKS else Image.Resampling.LANCZOS
        for name, shown in zip(names, called, strict=True):
            with Image.open(source / name) as image:
                format = image.format
                for factor in factors:
                    size = max(1, image.width // factor), max(1, image.height // factor)
                    with replacing(folder / f"{kind}_{factor}" / shown) as file:
                        _save(image.resize(size, resampling), file, format)


def _save(image: Image.Image, file, format: str | None) -> None:
    settings = {"quality": _JPEG_QUALITY, "subsampling": 0} if format == "JPEG" else {}
    image.save(file, format=format or "PNG", **settings)


def _listed(factors: Sequence[int]) -> str:
    return " ".join(map(str, factors))
