"""All pictures of one reconstruction."""

import os
from pathlib import Path

import numpy as np
from jaxtyping import Bool

from vggt_jax.errors import printable
from vggt_jax.export.pictures import overview_width, write_depth_pictures, write_overview
from vggt_jax.export.points import select_points
from vggt_jax.export.top_view import draw_top_view
from vggt_jax.export.track_pictures import write_track_pictures
from vggt_jax.scene.confidence import confidence_limits, confidence_of, points_of, usable_pixels
from vggt_jax.scene.reconstruction import Reconstruction

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
      mask: [s height width], False on padding; None means that there is none.

    Raises:
      InputError: a file cannot be written.
    """
    folder, images = Path(folder), np.asarray(recon.images)
    names = recon.names or tuple(f"{i:04d}" for i in range(len(images)))
    if recon.tracks is not None:
        visibility = None if recon.track_visibility is None else np.asarray(recon.track_visibility)
        tracks = np.asarray(recon.tracks)
        write_track_pictures(folder / "track_pictures", images, tracks, names, visibility)
    if recon.depth is None:
        return
    depth = np.asarray(recon.depth)
    write_depth_pictures(folder / "depth_pictures", depth, names, mask)
    write_overview(
        folder / "overview.png",
        images,
        depth,
        mask,
        confidence=None if recon.depth_confidence is None else np.asarray(recon.depth_confidence),
        top_view=None if recon.camera_from_world is None else _top_view(recon, mask),
        title=scene_title(recon),
    )


def scene_title(recon: Reconstruction) -> str:
    """What a scene is of and what made it, on one line."""
    names = " to ".join(dict.fromkeys(map(printable, (*recon.names[:1], *recon.names[-1:]))))
    made_by = f", by {printable(recon.provenance.model)}" if recon.provenance else ""
    return f"{len(recon.images)} frames{names and f', {names}'}{made_by}"


def _top_view(recon: Reconstruction, mask: np.ndarray | None) -> np.ndarray:
    percentile, smallest = confidence_limits(recon.confidence_kind)
    usable = usable_pixels(recon, "depth", min_confidence=smallest, depth_edges=recon.depth_edges)
    usable &= mask if mask is not None else True
    points, colors = select_points(
        points_of(recon, "depth"),
        confidence_of(recon, "depth"),
        np.asarray(recon.images),
        confidence_percentile=percentile,
        mask=usable,
        max_points=_TOP_VIEW_POINTS,
    )
    width = overview_width(usable.shape) - _OVERVIEW_MARGINS
    height = int(np.clip(0.45 * width, 200, 600))
    return draw_top_view(
        (height, width),
        np.asarray(recon.camera_from_world),
        None if recon.intrinsics is None else np.asarray(recon.intrinsics),
        image_width=recon.images.shape[2],
        points=points,
        colors=colors,
    )
