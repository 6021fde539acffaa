"""Masks of a scene in the size of its photographs, in COLMAP's layout: `masks/NAME.png`."""

import dataclasses
import hashlib
import math
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from jaxtyping import Bool
from PIL import Image

from vggt_jax.errors import InputError
from vggt_jax.export.cameras import Cameras
from vggt_jax.export.images import Photographs
from vggt_jax.files import replacing
from vggt_jax.images.frames import FrameTransform
from vggt_jax.images.masks import find_masks
from vggt_jax.scene.reconstruction import Reconstruction

FOLDER = "masks"
_LONGEST_NAME = 255  # Bytes of a name in file systems.


def mask_names(names: Sequence[str]) -> tuple[tuple[str, ...], tuple[str, ...]]:
    """The names of the masks of photographs below `masks`, and notes.

    COLMAP looks for the whole name of the photograph, folders included, with `.png` behind it.
    """
    found, changed = [], []
    for name in names:
        folder, _, last = f"{name}.png".rpartition("/")
        if len(last.encode()) > _LONGEST_NAME:
            last = f"{hashlib.sha256(name.encode()).hexdigest()[:32]}.png"
            changed.append(name)
        found.append(f"{folder}/{last}" if folder else last)
    if not changed:
        return tuple(found), ()
    note = (
        f"{len(changed)} masks have other names, since {changed[0]} is too long for `.png` behind "
        "it; COLMAP does not find them"
    )
    return tuple(found), (note,)


def has_masks(recon: Reconstruction, transforms: Sequence[FrameTransform]) -> bool:
    """Whether any pixel that shows a photograph is masked."""
    if recon.mask is None:
        return False
    return not all(
        mask[slice(*transform.content_rows), slice(*transform.content_columns)].all()
        for mask, transform in zip(np.asarray(recon.mask), transforms, strict=True)
    )


def write_masks(
    folder: Path,
    names: Sequence[str],
    masks: Bool[np.ndarray, "s height width"],
    transforms: Sequence[FrameTransform],
) -> None:
    """Writes a mask for each photograph: white is used, black is not.

    Args:
      folder: `masks` of the export; made if it is missing.
      names: of the files in it.
      masks: of the frames.
      transforms: to the photographs.
    """
    for name, mask, transform in zip(names, masks, transforms, strict=True):
        picture = Image.fromarray(np.where(of_photograph(mask, transform), 255, 0).astype(np.uint8))
        with replacing(folder / name) as file:
            picture.save(file, format="PNG")


def of_photograph(
    mask: Bool[np.ndarray, "model_height model_width"], transform: FrameTransform
) -> Bool[np.ndarray, "height width"]:
    """A frame's mask in the pixels of its photograph.

    Between the centres of the frame's pixels it is interpolated, so that edges are straight; what
    of the photograph was cropped away goes on as at the edge of the frame.
    """
    height, width = transform.original_size
    first_row, end_row = transform.content_rows
    first_column, end_column = transform.content_columns
    content = mask[first_row:end_row, first_column:end_column]
    # How far the photograph reaches beyond its content, and a pixel for the interpolation.
    left, top = transform.offset_x - first_column, transform.offset_y - first_row
    right = width * transform.scale_x + left - content.shape[1]
    bottom = height * transform.scale_y + top - content.shape[0]
    before_x, before_y = (max(0, math.ceil(-side)) + 1 for side in (left, top))
    after_x, after_y = (max(0, math.ceil(side)) + 1 for side in (right, bottom))
    padded = np.pad(content, ((before_y, after_y), (before_x, after_x)), mode="edge")
    grey = Image.fromarray(np.where(padded, 255, 0).astype(np.uint8))
    shown = grey.transform(
        (width, height),
        Image.Transform.AFFINE,
        (transform.scale_x, 0, left + before_x, 0, transform.scale_y, top + before_y),
        Image.Resampling.BILINEAR,
    )
    return np.asarray(shown) >= 128


@dataclass(frozen=True, kw_only=True)
class SceneMasks:
    """What will lie in the folder `masks`, decided before anything is written.

    Attributes:
      cameras: under the names of the photographs, with those of their masks.
      are_written: whether the folder is part of the export.
      notes: what a person should know, a sentence each.
    """

    cameras: Cameras
    are_written: bool
    notes: tuple[str, ...] = ()

    @classmethod
    def of(cls, recon: Reconstruction, photographs: Photographs, path: Path) -> "SceneMasks":
        """Finds them: the masks of the scene, or those that lie beside photographs in place."""
        cameras, place = photographs.cameras, path / FOLDER
        if not has_masks(recon, cameras.transforms):
            return cls(cameras=cameras, are_written=False)
        names, notes = mask_names(cameras.names)
        if photographs.are_written or not place.is_dir():
            named = dataclasses.replace(cameras, masks=names)
            return cls(cameras=named, are_written=True, notes=notes)
        # Somebody's own, perhaps those that the scene was masked with.
        try:
            found = find_masks(place, cameras.names)
        except InputError as error:
            note = f"masks are not written, since {place} is there and stays ({error})"
            return cls(cameras=cameras, are_written=False, notes=(note,))
        names = tuple(file.relative_to(place).as_posix() for file in found)
        note = f"the masks in {place} stay as they are"
        named = dataclasses.replace(cameras, masks=names)
        return cls(cameras=named, are_written=False, notes=(note,))

    def write(self, folder: Path, recon: Reconstruction) -> None:
        """Writes them to `masks` in the folder of an export."""
        if self.are_written:
            transforms = self.cameras.transforms
            write_masks(folder / FOLDER, self.cameras.masks, np.asarray(recon.mask), transforms)
