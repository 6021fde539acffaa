"""Tracks in space: rays from the cameras that saw a point to where it lies."""

import colorsys

import numpy as np
from jaxtyping import Float32, UInt8

from vggt_jax.scene.reconstruction import Reconstruction

_VISIBLE = 0.5  # Of visibility, from which on a camera counts as one that saw the point.
_MOST_RAYS = 20_000


def track_rays(
    recon: Reconstruction,
) -> tuple[Float32[np.ndarray, "rays 2 3"], UInt8[np.ndarray, "rays 2 3"]] | None:
    """Lines from cameras to tracked points, and their colours, one for each point.

    A frame's point lies as deep as the depth of its nearest pixel says.

    Returns:
      None where there are no tracks, cameras or depth, or nothing was seen.
    """
    if recon.tracks is None or recon.depth is None or recon.camera_from_world is None:
        return None
    tracks, visible = np.asarray(recon.tracks), np.asarray(recon.track_visibility)
    points = np.asarray(recon.points_from_depth())
    height, width = points.shape[1:3]
    frames, which = np.nonzero(visible > _VISIBLE)
    column, row = np.round(tracks[frames, which]).T.astype(int)
    inside = (row >= 0) & (row < height) & (column >= 0) & (column < width)
    frames, which, row, column = (x[inside] for x in (frames, which, row, column))
    ends = points[frames, row, column]
    known = np.isfinite(ends).all(axis=1)
    frames, which, ends = frames[known][:_MOST_RAYS], which[known][:_MOST_RAYS], ends[known]
    if not len(frames):
        return None
    poses = np.asarray(recon.camera_from_world, np.float64)
    centres = -np.einsum("sji,sj->si", poses[:, :, :3], poses[:, :, 3])
    segments = np.stack([centres[frames], ends[:_MOST_RAYS]], axis=1).astype(np.float32)
    hues = np.arange(tracks.shape[1]) * 0.618 % 1.0
    table = np.array([colorsys.hsv_to_rgb(hue, 0.8, 0.9) for hue in hues])
    colors = np.round(255 * table[which]).astype(np.uint8)
    return segments, np.repeat(colors[:, None], 2, axis=1)
