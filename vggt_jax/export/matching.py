"""Observations of tracks moved to where the images agree.

Tracks from depth lie where the predicted cameras put them, and fit these cameras by construction,
right or wrong. Bundle adjustment can learn nothing from them. Here every observation is compared
with the pixel that its track starts at: the patch around that, warped by its own depth, is aligned
with the other image by Gauss-Newton steps (B. D. Lucas and T. Kanade, "An iterative image
registration technique with an application to stereo vision", 1981). What the images say is then
independent of the cameras.
"""

import dataclasses

import numpy as np

from vggt_jax.export.cameras import Cameras
from vggt_jax.export.tracks import Tracks, flat_pixels, projected, unprojected

_RADIUS = 5  # Of a patch in model pixels.
_STEPS = 12
_CONVERGED = 0.02  # Model pixels that the last step may move.
_LARGEST_SHIFT = 4.0  # Model pixels: beyond, a patch of this size finds something else.
_SMALLEST_CORRELATION = 0.9
_SMALLEST_CONTRAST = 2.0  # Grey levels per pixel, across the direction with the least of it.
_CHUNK = 4096  # Observations at a time, for memory.


def matched_tracks(
    cameras: Cameras,
    tracks: Tracks,
    depth: np.ndarray,
    images: np.ndarray,
    *,
    min_track_length: int,
) -> Tracks:
    """Tracks whose observations are where the images agree; those without a match are dropped.

    Args:
      cameras, depth, images: that the tracks were found with.
      tracks: from `tracks_from_depth`, each with one observation at the centre of a pixel.
      min_track_length: shorter ones are dropped.

    Returns:
      The tracks that are left, in their order, with the same points.
    """
    width = images.shape[2]
    grey = images.astype(np.float64).mean(axis=-1) * (1 if images.dtype == np.uint8 else 255)
    # The observation that starts a track is at a pixel's centre, where no other one falls.
    starts = np.flatnonzero((tracks.pixels == np.round(tracks.pixels)).all(axis=1))
    which, first = np.unique(tracks.observed_point[starts], return_index=True)
    start = np.full(len(tracks.points), -1)
    start[which] = starts[first]
    pixels = tracks.pixels.copy()
    kept = np.zeros(len(pixels), bool)
    kept[start[start >= 0]] = True
    gradients = {}
    others = np.flatnonzero(~kept & (start[tracks.observed_point] >= 0))
    source = tracks.observed_frame[start[tracks.observed_point[others]]]
    target = tracks.observed_frame[others]
    for i, j in np.unique(np.stack([source, target], axis=1), axis=0):
        if j not in gradients:
            gradients = {j: np.gradient(grey[j])}
        pair = others[(source == i) & (target == j)]
        for k in range(0, len(pair), _CHUNK):
            chosen = pair[k : k + _CHUNK]
            begin = tracks.pixels[start[tracks.observed_point[chosen]]].astype(np.int64)
            textured = _has_contrast(grey[i], begin)
            chosen, begin = chosen[textured], begin[textured]
            found, good = _aligned(cameras, i, j, begin, depth[i], grey[i], grey[j], gradients[j])
            pixels[chosen], kept[chosen] = found, good
    flat = np.zeros(len(pixels), np.int64)
    flat[kept] = flat_pixels(pixels[kept], width)
    # Matches may meet in a pixel; the first track keeps it.
    place = np.flatnonzero(kept)
    _, unique = np.unique(
        np.stack([tracks.observed_frame[place], flat[place]]), axis=1, return_index=True
    )
    kept[:] = False
    kept[place[unique]] = True
    count = np.bincount(tracks.observed_point[kept], minlength=len(tracks.points))
    alive = np.flatnonzero(count >= min_track_length)
    kept &= np.isin(tracks.observed_point, alive)
    return dataclasses.replace(
        tracks,
        points=tracks.points[alive],
        colors=tracks.colors[alive],
        observed_point=np.searchsorted(alive, tracks.observed_point[kept]),
        observed_frame=tracks.observed_frame[kept],
        pixels=pixels[kept],
    )


def _patches(begin: np.ndarray) -> np.ndarray:
    """[o k 2] pixels around [o 2], row by row."""
    side = np.arange(-_RADIUS, _RADIUS + 1)
    return begin[:, None] + np.stack(np.meshgrid(side, side), axis=-1).reshape(-1, 2)


def _has_contrast(image: np.ndarray, begin: np.ndarray) -> np.ndarray:
    """Where patches are whole and have structure in both directions: most of a room has not."""
    height, width = image.shape
    inside = (begin >= _RADIUS) & (begin < (width - _RADIUS, height - _RADIUS))
    patch = _patches(np.clip(begin, 0, (width - 1, height - 1)))
    patch = np.clip(patch, 0, (width - 1, height - 1))
    slopes = np.stack([x[patch[..., 1], patch[..., 0]] for x in np.gradient(image)], axis=-1)
    return inside.all(axis=1) & (_least_contrast(slopes) >= _SMALLEST_CONTRAST**2)


def _least_contrast(slopes: np.ndarray) -> np.ndarray:
    slopes = slopes - slopes.mean(axis=1, keepdims=True)
    normal = np.einsum("oka,okb->oab", slopes, slopes) / slopes.shape[1]
    return np.linalg.eigvalsh(normal)[:, 0]


def _aligned(cameras, i, j, begin, depth, source, target, gradients):
    """Pixels in frame j of the pixels `begin` [o 2] of frame i, and which can be trusted."""
    height, width = source.shape
    patch = _patches(begin)
    num_pixels = patch.shape[1]
    good = np.all((patch >= 0) & (patch <= (width - 1, height - 1)), axis=(1, 2))
    patch = np.clip(patch, 0, (width - 1, height - 1))
    x, y = patch[..., 0], patch[..., 1]
    z = np.asarray(depth[y, x], np.float64)
    usable = np.isfinite(z) & (z > 0)
    good &= usable.all(axis=1)
    pose = cameras.world_from_camera()[i]
    flat = patch.reshape(-1, 2).astype(np.float64)
    points = unprojected(cameras.intrinsics[i], pose, flat, np.where(usable, z, 1.0).ravel())
    warped, ahead = projected(cameras, j, points)
    warped = warped.reshape(patch.shape)
    good &= (ahead > 0).reshape(z.shape).all(axis=1)
    template = source[y, x]
    template = template - template.mean(axis=1, keepdims=True)
    found, shift = template, np.zeros((len(begin), 2))
    step = np.full(len(begin), np.inf)
    for _ in range(_STEPS):
        where = warped + shift[:, None]
        inside = ((where >= 0) & (where <= (width - 1, height - 1))).all(axis=(1, 2))
        good &= inside
        where = np.where(good[:, None, None], where, 0.0)
        value, slope_y, slope_x = (_bilinear(x, where) for x in (target, *gradients))
        found, *slopes = (a - a.mean(axis=1, keepdims=True) for a in (value, slope_x, slope_y))
        difference, slopes = found - template, np.stack(slopes, axis=-1)  # [o k 2]
        normal = np.einsum("oka,okb->oab", slopes, slopes) / num_pixels
        right = np.einsum("oka,ok->oa", slopes, difference) / num_pixels
        contrast = np.linalg.eigvalsh(normal)[:, 0]
        good &= contrast >= _SMALLEST_CONTRAST**2
        normal = np.where(good[:, None, None], normal, np.eye(2))
        move = np.where(good[:, None], -np.linalg.solve(normal, right[..., None])[..., 0], 0.0)
        shift += move
        step = np.linalg.norm(move, axis=1)
        good &= np.linalg.norm(shift, axis=1) <= _LARGEST_SHIFT
    norms = np.linalg.norm(found, axis=1) * np.linalg.norm(template, axis=1)
    correlation = (found * template).sum(axis=1) / np.maximum(norms, 1e-12)
    good &= (step <= _CONVERGED) & (correlation >= _SMALLEST_CORRELATION)
    return warped[:, num_pixels // 2] + shift, good


def _bilinear(image: np.ndarray, where: np.ndarray) -> np.ndarray:
    height, width = image.shape
    x0 = np.minimum(np.floor(where[..., 0]).astype(np.int64), width - 2)
    y0 = np.minimum(np.floor(where[..., 1]).astype(np.int64), height - 2)
    right, down = where[..., 0] - x0, where[..., 1] - y0
    above = image[y0, x0] * (1 - right) + image[y0, x0 + 1] * right
    below = image[y0 + 1, x0] * (1 - right) + image[y0 + 1, x0 + 1] * right
    return above * (1 - down) + below * down
