"""All pictures of one reconstruction."""

import dataclasses
import os
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from vggt_jax.errors import printable
from vggt_jax.export.pictures import (
    draw_depth_pictures,
    overview_width,
    range_of_depths,
    write_overview,
)
from vggt_jax.export.points import joined_points, select_points, share_of
from vggt_jax.export.top_view import draw_top_view
from vggt_jax.export.track_pictures import write_track_pictures
from vggt_jax.files import file_stems
from vggt_jax.scene.confidence import (
    allowed_pixels,
    confidence_limits,
    confidence_of,
    points_of,
    usable_pixels,
)
from vggt_jax.scene.reconstruction import Reconstruction
from vggt_jax.scene.stretches import stretches, thinned

_TOP_VIEW_POINTS = 1_000_000  # More than the picture has pixels.
_OVERVIEW_MARGINS = 16  # Pixels to the left and right of what it shows.


def write_scene_pictures(
    folder: str | os.PathLike,
    recon: Reconstruction,
    mask: Bool[np.ndarray, "s height width"] | None = None,
) -> None:
    """Writes `overview.png`, `depth_pictures/` and `track_pictures/`, so far as there is data.

    The overview holds photographs, depth, confidence, and the cameras from above over the points
    that are confident enough by the defaults of the model (`confidence.confidence_limits`).

    Args:
      folder: made if it is missing.
      recon: one scene in NumPy arrays, without scene axis.
      mask: [s height width], False where pictures shall be white; None means padding and where the
        scene's own mask says so.

    Raises:
      InputError: a file cannot be written.
    """
    folder = Path(folder)
    if mask is not None:
        recon = dataclasses.replace(recon, mask=mask)
    names = recon.names or tuple(f"{i:04d}" for i in range(len(recon.images)))
    if recon.tracks is not None:
        visibility = None if recon.track_visibility is None else np.asarray(recon.track_visibility)
        images, tracks = np.asarray(recon.images), np.asarray(recon.tracks)
        write_track_pictures(folder / "track_pictures", images, tracks, names, visibility)
    if recon.depth is None:
        return
    shown = thinned(recon)
    depth, mask = np.asarray(shown.depth), _mask(shown)
    near_far, stems, start = range_of_depths(depth, mask), file_stems(names), 0
    for part in stretches(recon):
        of_part = stems[start : start + len(part.images)]
        start += len(part.images)
        draw_depth_pictures(
            folder / "depth_pictures", np.asarray(part.depth), of_part, _mask(part), near_far
        )
    write_overview(
        folder / "overview.png",
        np.asarray(shown.images),
        depth,
        mask,
        confidence=None if shown.depth_confidence is None else np.asarray(shown.depth_confidence),
        top_view=None if recon.camera_from_world is None else _top_view(recon),
        title=scene_title(recon),
    )


def _mask(recon: Reconstruction) -> np.ndarray | None:
    return allowed_pixels(recon) if recon.transforms or recon.mask is not None else None


def scene_title(recon: Reconstruction) -> str:
    """What a scene is of and what made it, on one line."""
    names = " to ".join(dict.fromkeys(map(printable, (*recon.names[:1], *recon.names[-1:]))))
    made_by = f", by {printable(recon.provenance.model)}" if recon.provenance else ""
    return f"{len(recon.images)} frames{names and f', {names}'}{made_by}"


def _top_view(recon: Reconstruction) -> np.ndarray:
    percentile, smallest = confidence_limits(recon.confidence_kind)
    points, colors = joined_points(
        [
            select_points(
                points_of(part, "depth"),
                confidence_of(part, "depth"),
                np.asarray(part.images),
                confidence_percentile=percentile,
                mask=usable_pixels(
                    part, "depth", min_confidence=smallest, depth_edges=part.depth_edges
                ),
                max_points=share_of(_TOP_VIEW_POINTS, part, recon),
            )
            for part in stretches(recon)
        ]
    )
    width = overview_width(recon.images.shape[:3]) - _OVERVIEW_MARGINS
    height = int(np.clip(0.45 * width, 200, 600))
    return draw_top_view(
        (height, width),
        np.asarray(recon.camera_from_world),
        None if recon.intrinsics is None else np.asarray(recon.intrinsics),
        image_width=recon.images.shape[2],
        points=points,
        colors=colors,
    )
