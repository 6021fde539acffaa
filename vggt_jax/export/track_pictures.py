"""Tracks drawn on the frames that they go through."""

import colorsys
import os
from collections.abc import Sequence
from pathlib import Path

import numpy as np
from jaxtyping import Float, UInt8
from PIL import Image, ImageDraw

from vggt_jax.export.pictures import as_bytes, write_png
from vggt_jax.files import file_stems

_VISIBLE = 0.5  # From this visibility on a dot is full, and a ring below.
_FINER = 4  # Dots are drawn so many times as large, and shrunk.


def write_track_pictures(
    folder: str | os.PathLike,
    images: UInt8[np.ndarray, "s height width 3"] | Float[np.ndarray, "s height width 3"],
    tracks: Float[np.ndarray, "s m 2"],
    names: Sequence[str],
    visibility: Float[np.ndarray, "s m"] | None = None,
) -> tuple[Path, ...]:
    """Writes a PNG of every frame with a dot for each track.

    A track has one colour in all frames, by the place of its query point: hue goes from left to
    right, and light from top to bottom. Dots are full where the point is visible and rings where it
    is hidden; what lies outside of a frame is not drawn.

    Args:
      folder: made if it is missing.
      images: [s height width 3], uint8, or float in [0, 1].
      tracks: [s m 2], pixels (x, y) of the frames; integers are pixel centres.
      names: one per frame; the files are called `<stem>_tracks.png` after them.
      visibility: [s m] in [0, 1]; None means that all are visible.

    Returns:
      The files, one per frame.

    Raises:
      InputError: a file cannot be written.
      ValueError: shapes do not fit together.
    """
    count = len(images)
    if visibility is None:
        visibility = np.ones(tracks.shape[:2])
    if not (len(tracks) == len(names) == count and visibility.shape == tracks.shape[:2]):
        raise ValueError(
            f"{images.shape=}, {tracks.shape=}, {visibility.shape=} and {len(names)=} must speak "
            "of the same frames and tracks"
        )
    height, width = images.shape[1:3]
    radius = max(2.0, min(height, width) / 120)
    colors = _track_colors(tracks[0], (height, width)) if count else []
    paths = tuple(Path(folder) / f"{stem}_tracks.png" for stem in file_stems(names))
    for path, image, places, seen in zip(paths, images, tracks, visibility, strict=True):
        dots = Image.new("RGBA", (width * _FINER, height * _FINER), (0, 0, 0, 0))
        draw = ImageDraw.Draw(dots)
        for place, is_seen, color in zip(places, seen >= _VISIBLE, colors, strict=True):
            if not np.isfinite(place).all():
                continue
            # The centre of the first pixel lies half a pixel from the corner.
            x, y = (place + 0.5) * _FINER
            r = radius * _FINER
            box = (x - r, y - r, x + r, y + r)
            # A dark rim shows dots on any ground.
            inner = (x - 0.75 * r, y - 0.75 * r, x + 0.75 * r, y + 0.75 * r)
            if is_seen:
                draw.ellipse(box, fill=(0, 0, 0, 255))
                draw.ellipse(inner, fill=(*color, 255))
            else:
                draw.ellipse(box, outline=(*color, 255), width=round(0.35 * r))
        frame = Image.fromarray(as_bytes(image)).convert("RGBA")
        frame.alpha_composite(dots.resize((width, height), Image.Resampling.BOX))
        write_png(path, np.asarray(frame.convert("RGB")))
    return paths


def _track_colors(places: np.ndarray, size: tuple[int, int]) -> list[tuple[int, int, int]]:
    height, width = size
    colors = []
    for x, y in np.nan_to_num(places):
        # Five sixths of the circle, so that left and right differ.
        hue = np.clip(x / width, 0, 1) * 5 / 6
        light = 0.4 + 0.3 * np.clip(y / height, 0, 1)
        rgb = colorsys.hls_to_rgb(float(hue), float(light), 1.0)
        colors.append(tuple(round(255 * value) for value in rgb))
    return colors
