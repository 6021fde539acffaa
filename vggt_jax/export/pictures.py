"""Depth maps and confidence as pictures, and one picture of a whole scene."""

import os
from collections.abc import Mapping, Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Bool, Float, UInt8
from PIL import Image, ImageDraw, ImageFont

from vggt_jax.files import file_stems, replacing

# Reversed turbo: near is red and far is blue. Of matplotlib's maps it separates the most depths.
_DEPTH_COLORS = "turbo_r"
_CONFIDENCE_COLORS = "viridis"  # Dark is doubtful.
_WHITE = 255
# Outliers (sky, reflections, edges) beyond these take the colour of the end of the range.
_PERCENTILES = (2, 98)
_GAP = 8  # Pixels between the pictures of the overview.
_WORDS = 16  # Pixels of a line of words in it.
_INK = (60, 60, 60)


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
    return draw_depth_pictures(folder, depth, file_stems(names), mask, range_of_depths(depth, mask))


def range_of_depths(
    depth: Float[np.ndarray, "s height width"], mask: Bool[np.ndarray, "s height width"] | None
) -> tuple[float, float]:
    """The depths between which `write_depth_pictures` has colours."""
    return _valid_range(depth, mask)[1]


def draw_depth_pictures(
    folder: str | os.PathLike,
    depth: Float[np.ndarray, "s height width"],
    stems: Sequence[str],
    mask: Bool[np.ndarray, "s height width"] | None,
    near_far: tuple[float, float],
) -> tuple[Path, ...]:
    """`write_depth_pictures` of some frames of a scene, by the beginnings of their files' names and
    the range of all."""
    valid, _ = _valid_range(depth, mask)
    table = _color_table()
    paths = tuple(Path(folder) / f"{stem}_depth.png" for stem in stems)
    for path, depth_map, valid_map in zip(paths, depth, valid, strict=True):
        write_png(path, _colored(depth_map, valid_map, near_far, table))
    return paths


def write_overview(
    path: str | os.PathLike,
    images: UInt8[np.ndarray, "s height width 3"] | Float[np.ndarray, "s height width 3"],
    depth: Float[np.ndarray, "s height width"],
    mask: Bool[np.ndarray, "s height width"] | None = None,
    *,
    confidence: Float[np.ndarray, "s height width"] | None = None,
    top_view: UInt8[np.ndarray, "h w 3"] | None = None,
    title: str = "",
    max_frames: int = 6,
    frame_width: int = 320,
) -> None:
    """Writes a PNG: a strip of photographs with depth and confidence below, the scene from above.

    Args:
      path: the file; its folder is made if it is missing.
      images: [s height width 3], uint8, or float in [0, 1].
      depth: [s height width], coloured as in `write_depth_pictures`.
      mask: [s height width], False where depth and confidence shall be white; None means nowhere.
      confidence: [s height width], on any scale, or None for no such row. A colour stands for a
        percentile of all frames together, from dark blue, the least confident, to yellow.
      top_view: a picture for the last row, see `draw_top_view` and `overview_width`; None for no
        such row.
      title: words above everything, which say of what scene this is; with them every row is called
        by what it shows.
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
    if confidence is not None and confidence.shape != depth.shape:
        raise ValueError(f"{confidence.shape=} must be that of the depth, {depth.shape}")
    if max_frames < 1 or frame_width < 1:
        raise ValueError(f"{max_frames=} and {frame_width=} must be at least 1")
    frame_count, height, width = depth.shape
    shown_width = min(frame_width, width)
    shown_height = max(1, round(height * shown_width / width))
    shown = np.unique(np.linspace(0, frame_count - 1, min(max_frames, frame_count)).round())
    shown = shown.astype(int)
    valid, near_far = _valid_range(depth, mask)

    # Depth is not interpolated: between two colours of the map lies no depth between.
    rows = {
        "photographs": ([as_bytes(images[i]) for i in shown], Image.Resampling.LANCZOS),
        "depth: near is red, far is blue": (
            [_colored(depth[i], valid[i], near_far, _color_table()) for i in shown],
            Image.Resampling.NEAREST,
        ),
    }
    if confidence is not None:
        ranked = _colored_by_rank(confidence, mask, shown)
        rows["confidence: yellow is sure, blue is not"] = (ranked, Image.Resampling.NEAREST)
    above = _GAP + (_WORDS if title else 0)  # Every row.
    head = _WORDS if title else 0
    words = {2: title}
    sheet_width = overview_width(depth.shape, max_frames=max_frames, frame_width=frame_width)
    last_height = 0 if top_view is None else len(top_view) + above
    sheet_height = head + len(rows) * (shown_height + above) + _GAP + last_height
    sheet = np.full((sheet_height, sheet_width, 3), _WHITE, np.uint8)
    for row, (name, (pictures, resampling)) in enumerate(rows.items()):
        top = head + above + row * (shown_height + above)
        words[top - _WORDS] = name
        for column, picture in enumerate(pictures):
            left = _GAP + column * (shown_width + _GAP)
            resized = Image.fromarray(picture).resize((shown_width, shown_height), resampling)
            sheet[top : top + shown_height, left : left + shown_width] = np.asarray(resized)
    if top_view is not None:
        if top_view.shape[1] != sheet_width - 2 * _GAP:
            raise ValueError(f"{top_view.shape=} must be {sheet_width - 2 * _GAP} wide")
        top = sheet_height - _GAP - len(top_view)
        sheet[top:-_GAP, _GAP:-_GAP] = top_view
        words[top - _WORDS] = "cameras and points from above; the first camera is orange"
    write_png(Path(path), _with_words(sheet, words) if title else sheet)


def _with_words(
    sheet: UInt8[np.ndarray, "height width 3"], words: Mapping[int, str]
) -> UInt8[np.ndarray, "height width 3"]:
    """A picture with lines of text, by their first rows of pixels, cut where they are too long."""
    picture = Image.fromarray(sheet)
    draw, font = ImageDraw.Draw(picture), ImageFont.load_default(11)
    for top, text in words.items():
        while text and draw.textlength(text, font=font) > picture.width - 2 * _GAP:
            text = f"{text.removesuffix('...')[:-1]}..." if len(text) > 4 else ""
        draw.text((_GAP, top), text, fill=_INK, font=font)
    return np.asarray(picture)


def overview_width(
    depth_shape: tuple[int, ...], *, max_frames: int = 6, frame_width: int = 320
) -> int:
    """How wide an overview of depth maps of this shape is; the top view is 16 pixels narrower."""
    frame_count, _, width = depth_shape
    return min(max_frames, frame_count) * (min(frame_width, width) + _GAP) + _GAP


def as_bytes(image: np.ndarray) -> UInt8[np.ndarray, "height width 3"]:
    """An image of uint8, or float in [0, 1], as uint8."""
    return image if image.dtype == np.uint8 else np.round(image * 255).astype(np.uint8)


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


def _color_table(name: str = _DEPTH_COLORS) -> UInt8[np.ndarray, "256 3"]:
    from matplotlib import colormaps

    return np.round(colormaps[name](np.arange(256))[:, :3] * 255).astype(np.uint8)


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


def _colored_by_rank(
    confidence: np.ndarray, mask: np.ndarray | None, shown: np.ndarray
) -> list[UInt8[np.ndarray, "height width 3"]]:
    """Pictures of some frames' confidence, by its percentile among all frames."""
    valid = np.isfinite(confidence) if mask is None else mask & np.isfinite(confidence)
    table = _color_table(_CONFIDENCE_COLORS)
    pictures = []
    # A million values are enough for 256 colours.
    sample = confidence[valid][:: max(1, confidence.size // 1_000_000)]
    limits = np.percentile(sample, np.arange(1, 256) / 2.56) if len(sample) else []
    for i in shown:
        picture = table[np.searchsorted(limits, confidence[i], side="right")]
        picture[~valid[i]] = _WHITE
        pictures.append(picture)
    return pictures


def write_png(path: Path, picture: UInt8[np.ndarray, "height width 3"]) -> None:
    """Writes a PNG, whole or not at all."""
    with replacing(path) as file:
        Image.fromarray(picture).save(file, format="PNG")
