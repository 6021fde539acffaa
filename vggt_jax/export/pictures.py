"""Depth maps as pictures, and one picture of a whole scene."""

import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image

from vggt_jax.export.files import file_stems, replacing

# Reversed turbo: near is red and far is blue. Of matplotlib's maps it separates the most depths.
_COLORMAP = "turbo_r"
_WHITE = 255
# Outliers (sky, reflections, edges) beyond these take the colour of the end of the range.
_PERCENTILES = (2, 98)
_GAP = 8  # Pixels between the pictures of the overview.


def write_depth_pictures(
    folder: str | os.PathLike,
    depth: Float[np.ndarray, "s height width"],
    names: Sequence[str],
    mask: Bool[np.ndarray, "s height width"] | None = None,
) -> tuple[Path, ...]:
    """Writes a coloured PNG of every depth map, near in red and far in blue.

    One range of depths serves all frames, from the 2nd to the 98th percentile of the valid depths,
    so that colours can be compared. Colours follow the logarithm of depth: depth has no unit here,
    and equal ratios get equal steps. Depths that are not finite and positive are white.

    Args:
      folder: made if it is missing.
      depth: [s height width].
      names: one per frame; the files are called after them, `<stem>_depth.png`, and are distinct
        even where two names are alike.
      mask: [s height width], False where the picture shall be white; None means nowhere.

    Returns:
      The files, one per frame.

    Raises:
      InputError: a file cannot be written.
      ValueError: depth, names and mask do not fit together.
    """
    if len(names) != len(depth):
        raise ValueError(f"{len(names)=} must be the number of frames, {len(depth)}")
    valid, near_far = _valid_range(depth, mask)
    table = _color_table()
    paths = tuple(Path(folder) / f"{stem}_depth.png" for stem in file_stems(names))
    for path, depth_map, valid_map in zip(paths, depth, valid, strict=True):
        _write_png(path, _colored(depth_map, valid_map, near_far, table))
    return paths


def write_overview(
    path: str | os.PathLike,
    images: UInt8[np.ndarray, "s height width 3"] | Float[np.ndarray, "s height width 3"],
    depth: Float[np.ndarray, "s height width"],
    mask: Bool[np.ndarray, "s height width"] | None = None,
    *,
    max_frames: int = 6,
    frame_width: int = 320,
) -> None:
    """Writes one PNG: a strip of photographs with their depth maps below.

    Args:
      path: the file; its folder is made if it is missing.
      images: [s height width 3], uint8, or float in [0, 1].
      depth: [s height width], coloured as in `write_depth_pictures`.
      mask: [s height width], False where the depth shall be white; None means nowhere.
      max_frames: of a longer scene so many frames are shown, evenly spaced from first to last.
      frame_width: width of each photograph in pixels; smaller frames keep theirs.

    Raises:
      InputError: the file cannot be written.
      ValueError: shapes do not fit together, or a limit is below 1.
    """
    if images.shape != (*depth.shape, 3):
        raise ValueError(
            f"{images.shape=} must be that of the depth, {depth.shape}, with 3 channels"
        )
    if max_frames < 1 or frame_width < 1:
        raise ValueError(f"{max_frames=} and {frame_width=} must be at least 1")
    frame_count, height, width = depth.shape
    shown_width = min(frame_width, width)
    shown_height = max(1, round(height * shown_width / width))
    shown = np.unique(np.linspace(0, frame_count - 1, min(max_frames, frame_count)).round())
    valid, near_far = _valid_range(depth, mask)
    table = _color_table()

    sheet_height = 2 * shown_height + 3 * _GAP
    sheet_width = len(shown) * (shown_width + _GAP) + _GAP
    sheet = np.full((sheet_height, sheet_width, 3), _WHITE, np.uint8)
    for column, i in enumerate(shown.astype(int)):
        photograph = images[i]
        if photograph.dtype != np.uint8:
            photograph = np.round(photograph * 255).astype(np.uint8)
        # Depth is not interpolated: between two colours of the map lies no depth between.
        pictures = (
            (photograph, Image.Resampling.LANCZOS),
            (_colored(depth[i], valid[i], near_far, table), Image.Resampling.NEAREST),
        )
        left = _GAP + column * (shown_width + _GAP)
        for row, (picture, resampling) in enumerate(pictures):
            top = _GAP + row * (shown_height + _GAP)
            resized = Image.fromarray(picture).resize((shown_width, shown_height), resampling)
            sheet[top : top + shown_height, left : left + shown_width] = np.asarray(resized)
    _write_png(Path(path), sheet)


def _valid_range(
    depth: np.ndarray, mask: np.ndarray | None
) -> tuple[np.ndarray, tuple[float, float]]:
    """Which depths can be shown, and the range of depths that the colours span."""
    if mask is not None and mask.shape != depth.shape:
        raise ValueError(f"{mask.shape=} must be that of the depth, {depth.shape}")
    valid = np.isfinite(depth) & (depth > 0)
    if mask is not None:
        valid &= mask
    if not valid.any():
        return valid, (1.0, 1.0)
    near, far = np.percentile(depth[valid], _PERCENTILES)
    return valid, (float(near), float(far))


def _color_table() -> UInt8[np.ndarray, "256 3"]:
    from matplotlib import colormaps

    return np.round(colormaps[_COLORMAP](np.arange(256))[:, :3] * 255).astype(np.uint8)


def _colored(
    depth_map: np.ndarray, valid: np.ndarray, near_far: tuple[float, float], table: np.ndarray
) -> UInt8[np.ndarray, "height width 3"]:
    near, far = near_far
    # A flat scene has no range; all of it gets the colour of the near end.
    extent = np.log(far / near) or 1.0
    fraction = np.clip(np.log(np.where(valid, depth_map, near) / near) / extent, 0, 1)
    picture = table[np.round(fraction * 255).astype(np.uint8)]
    picture[~valid] = _WHITE
    return picture


def _write_png(path: Path, picture: UInt8[np.ndarray, "height width 3"]) -> None:
    with replacing(path) as file:
        Image.fromarray(picture).save(file, format="PNG")
