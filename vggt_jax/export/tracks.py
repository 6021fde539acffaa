"""Points that several frames see, with the pixel where each sees them: what COLMAP calls tracks.

From depth: a pixel of one frame is followed into the others through its depth and the cameras.
Another frame sees the same point if its own depth there agrees and leads back to the first pixel.
The point is the mean of what all of them say, so that the errors of its reprojections tell how well
the frames agree. From the track head: pixels are given, and rays through them are intersected.

Pixels are model pixel indices here (an integer is a pixel's centre), and errors are in these
pixels.
"""

import math
from dataclasses import dataclass

import numpy as np
from jaxtyping import Bool, Float, Float64, Int, UInt8

from vggt_jax.export.cameras import Cameras

_SMALLEST_PARALLAX = math.radians(1.0)  # Rays closer to parallel fix no distance.
_REFINEMENTS = 4  # Of the weights in triangulation: by then they change in the fifth digit.


@dataclass(frozen=True, kw_only=True, eq=False)
class Tracks:
    """Points with their observations, sorted by point, then frame.

    Attributes:
      points: [m 3] in world coordinates.
      colors: [m 3], the mean over the observations.
      observed_point, observed_frame: [o] indices of point and frame of every observation.
      pixels: [o 2] model pixel indices (x, y).
    """

    points: Float64[np.ndarray, "m 3"]
    colors: UInt8[np.ndarray, "m 3"]
    observed_point: Int[np.ndarray, " o"]
    observed_frame: Int[np.ndarray, " o"]
    pixels: Float64[np.ndarray, "o 2"]


@dataclass(frozen=True, kw_only=True)
class TrackErrors:
    """How well the points of a sparse model fit its observations.

    Attributes:
      num_points: points with a track.
      num_observations: of all of them together.
      mean_track_length: observations per point.
      median, mean: distances from observation to projection, in pixels of the photographs; NaN
        without observations.
    """

    num_points: int
    num_observations: int
    mean_track_length: float
    median: float
    mean: float

    def __str__(self) -> str:
        return (
            f"{self.num_points:,} points, mean track length {self.mean_track_length:.2f}, "
            f"reprojection error {self.median:.3f} px (median), {self.mean:.3f} px (mean)"
        )


def tracks_from_depth(
    cameras: Cameras,
    depth: Float[np.ndarray, "s height width"],
    confidence: Float[np.ndarray, "s height width"],
    usable: Bool[np.ndarray, "s height width"],
    images: np.ndarray,
    *,
    max_points: int,
    depth_tolerance: float,
    max_reprojection_error: float,
    min_track_length: int,
) -> Tracks:
    """Tracks by projecting pixels of each frame into the others, with both depths checked.

    Frame by frame, the most confident usable pixel of every cell of a grid that no earlier track
    has observed starts a track. Frame j observes it where

    - the point is in front of the camera and is projected onto usable pixels of frame j,
    - depth there, interpolated, is that of the point up to `depth_tolerance`, and
    - what depth there unprojects to is projected back onto the first pixel up to
      `max_reprojection_error`,

    and where no other track has its pixel. Observations that the mean of all misses by more than
    `max_reprojection_error` are dropped, and with them tracks that become too short.

    Args:
      cameras: of all frames.
      depth, confidence, usable: [s height width].
      images: [s height width 3].
      max_points: the grid is the finest that starts at most so many tracks.
      depth_tolerance: relative.
      max_reprojection_error: in model pixels.
      min_track_length: observations that a point must have, at least 2.

    Returns:
      The tracks; there may be none.
    """
    num_frames, height, width = depth.shape
    depth = np.asarray(depth, np.float64)
    usable = usable & np.isfinite(depth) & (depth > 0)
    world_from_camera = cameras.world_from_camera()
    step = max(1, math.ceil(math.sqrt(num_frames * height * width / max_points)))
    taken = np.zeros((num_frames, height * width), bool)
    found: list[tuple[np.ndarray, ...]] = []
    num_points = 0
    for i in range(num_frames):
        seeds = _seeds(np.where(usable[i], confidence[i], -np.inf), taken[i], step)
        if not len(seeds):
            continue
        seed_pixels = np.stack([seeds % width, seeds // width], axis=1).astype(np.float64)
        seed_points = unprojected(
            cameras.intrinsics[i], world_from_camera[i], seed_pixels, depth[i].ravel()[seeds]
        )
        # Per frame: which seeds it observes, at which pixels, and where its own depth puts them.
        which, where, own_points = [np.arange(len(seeds))], [seed_pixels], [seed_points]
        frames = [np.full(len(seeds), i)]
        for j in range(num_frames):
            if j == i:
                continue
            pixels, z = projected(cameras, j, seed_points)
            inside = (z > 0) & (np.abs(pixels + 0.5) < 1e9).all(axis=1)
            inside &= (pixels >= 0).all(axis=1) & (pixels <= (width - 1, height - 1)).all(axis=1)
            chosen = np.flatnonzero(inside)
            depth_there, is_usable = _interpolated(depth[j], usable[j], pixels[chosen])
            agrees = is_usable & (np.abs(depth_there - z[chosen]) <= depth_tolerance * z[chosen])
            chosen, depth_there = chosen[agrees], depth_there[agrees]
            points = unprojected(
                cameras.intrinsics[j], world_from_camera[j], pixels[chosen], depth_there
            )
            back, z_back = projected(cameras, i, points)
            missed = np.linalg.norm(back - seed_pixels[chosen], axis=1)
            agrees = (z_back > 0) & (missed <= max_reprojection_error)
            chosen, points = chosen[agrees], points[agrees]
            flat = flat_pixels(pixels[chosen], width)
            free = ~taken[j, flat]
            _, first = np.unique(flat, return_index=True)
            is_first = np.zeros(len(flat), bool)
            is_first[first] = True
            kept = free & is_first
            chosen, points = chosen[kept], points[kept]
            which.append(chosen)
            where.append(pixels[chosen])
            own_points.append(points)
            frames.append(np.full(len(chosen), j))
        point, frame = np.concatenate(which), np.concatenate(frames)
        pixel, own = np.concatenate(where), np.concatenate(own_points)
        kept = np.ones(len(point), bool)
        for _ in range(2):  # Without what is far off, the mean is another one: looked at once more.
            count = np.bincount(point[kept], minlength=len(seeds))
            mean = _sums(point[kept], own[kept], len(seeds)) / np.maximum(count, 1)[:, None]
            error = _errors(cameras, mean, point, frame, pixel)
            kept &= error <= max_reprojection_error
            kept &= (np.bincount(point[kept], minlength=len(seeds)) >= min_track_length)[point]
        # The mean of the second look may have moved once more; its tracks are judged as a whole.
        count = np.bincount(point[kept], minlength=len(seeds))
        mean = _sums(point[kept], own[kept], len(seeds)) / np.maximum(count, 1)[:, None]
        error = _errors(cameras, mean, point, frame, pixel)
        spoiled = np.unique(point[kept & (error > max_reprojection_error)])
        kept &= ~np.isin(point, spoiled)
        alive = np.unique(point[kept])
        if not len(alive):
            continue
        point, frame, pixel = point[kept], frame[kept], pixel[kept]
        taken[frame, flat_pixels(pixel, width)] = True
        found.append((mean[alive], np.searchsorted(alive, point) + num_points, frame, pixel))
        num_points += len(alive)
    return _sorted_tracks(found, images)


def tracks_from_head(
    cameras: Cameras,
    tracks: Float[np.ndarray, "s m 2"],
    visibility: Float[np.ndarray, "s m"],
    confidence: Float[np.ndarray, "s m"],
    usable: Bool[np.ndarray, "s height width"],
    images: np.ndarray,
    *,
    min_visibility: float,
    max_reprojection_error: float,
    min_track_length: int,
) -> Tracks:
    """Tracks of the track head, whose rays are intersected.

    A frame observes a point where visibility and confidence are above `min_visibility` and the
    pixel is in the photograph. Observations that the intersection misses by more than
    `max_reprojection_error` are dropped; so are points behind a camera that sees them, and those
    whose rays are all within a degree, which fixes no distance.

    Args:
      cameras: of all frames.
      tracks, visibility, confidence: of the reconstruction.
      usable: [s height width], False on padding.
      images: [s height width 3].
      min_visibility: in [0, 1].
      max_reprojection_error: in model pixels.
      min_track_length: observations that a point must have, at least 2.

    Returns:
      The tracks, in the order of the query points; there may be none.
    """
    _, height, width = usable.shape
    tracks = np.asarray(tracks, np.float64)
    seen = (np.asarray(visibility) > min_visibility) & (np.asarray(confidence) > min_visibility)
    seen &= np.isfinite(tracks).all(-1)
    seen &= (tracks > -0.5).all(-1) & (tracks < (width - 0.5, height - 0.5)).all(-1)
    frame, point = np.nonzero(seen)
    order = np.lexsort((frame, point))
    frame, point = frame[order], point[order]
    pixel = tracks[frame, point]
    flat = flat_pixels(pixel, width)
    kept = usable.reshape(len(usable), -1)[frame, flat]
    # Two points that meet in a pixel cannot both have it.
    _, first = np.unique(np.stack([frame, flat]), axis=1, return_index=True)
    is_first = np.zeros(len(frame), bool)
    is_first[first] = True
    kept &= is_first
    num_points = tracks.shape[1]
    origins, directions = _rays(cameras, frame, pixel)
    points = np.zeros((num_points, 3))
    for _ in range(3):
        kept &= (np.bincount(point[kept], minlength=num_points) >= min_track_length)[point]
        points, parallax = _intersected(point[kept], origins[kept], directions[kept], num_points)
        error = _errors(cameras, points, point, frame, pixel)
        kept &= (error <= max_reprojection_error) & (parallax >= _SMALLEST_PARALLAX)[point]
    spoiled = np.bincount(point[kept], minlength=num_points) < min_track_length
    kept &= ~spoiled[point]
    alive = np.unique(point[kept])
    found = [(points[alive], np.searchsorted(alive, point[kept]), frame[kept], pixel[kept])]
    return _sorted_tracks(found, images)


def _seeds(confidence: np.ndarray, taken: np.ndarray, step: int) -> np.ndarray:
    """Flat indices of the most confident pixel of every cell of step x step, where it is usable."""
    height, width = confidence.shape
    rows, columns = -(-height // step), -(-width // step)
    padded = np.full((rows * step, columns * step), -np.inf)
    padded[:height, :width] = np.where(taken.reshape(height, width), -np.inf, confidence)
    cells = padded.reshape(rows, step, columns, step).swapaxes(1, 2).reshape(rows, columns, -1)
    best = cells.argmax(axis=2)
    y = np.arange(rows)[:, None] * step + best // step
    x = np.arange(columns) * step + best % step
    valid = np.isfinite(np.take_along_axis(cells, best[..., None], axis=2)[..., 0])
    return (y * width + x)[valid]


def flat_pixels(pixels: np.ndarray, width: int) -> np.ndarray:
    """The flat index of the pixel that each of [o 2] lies in."""
    nearest = np.floor(pixels + 0.5).astype(np.int64)
    return nearest[:, 1] * width + nearest[:, 0]


def unprojected(
    intrinsics: np.ndarray, world_from_camera: np.ndarray, pixels: np.ndarray, depth: np.ndarray
) -> np.ndarray:
    """World points [o 3] of pixel indices [o 2] of a frame and their depths."""
    rays = (pixels + 0.5 - intrinsics[:2, 2]) / intrinsics[[0, 1], [0, 1]]
    camera_points = np.concatenate([rays, np.ones((len(rays), 1))], axis=1) * depth[:, None]
    return camera_points @ world_from_camera[:3, :3].T + world_from_camera[:3, 3]


def projected(cameras: Cameras, i: int, points: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Pixel indices in frame i, and depths; without meaning where a depth is not positive."""
    pose, intrinsics = cameras.camera_from_world[i], cameras.intrinsics[i]
    camera_points = points @ pose[:, :3].T + pose[:, 3]
    z = camera_points[:, 2]
    rays = camera_points[:, :2] / np.where(z > 0, z, 1.0)[:, None]
    return rays * intrinsics[[0, 1], [0, 1]] + intrinsics[:2, 2] - 0.5, z


def _interpolated(
    depth: np.ndarray, usable: np.ndarray, pixels: np.ndarray
) -> tuple[np.ndarray, np.ndarray]:
    """Depth between four pixels, and where all four are usable.

    The inverse is interpolated: it is linear in the pixels of a plane, and depth is not.
    """
    height, width = depth.shape
    x0 = np.minimum(np.floor(pixels[:, 0]).astype(np.int64), max(width - 2, 0))
    y0 = np.minimum(np.floor(pixels[:, 1]).astype(np.int64), max(height - 2, 0))
    x1, y1 = np.minimum(x0 + 1, width - 1), np.minimum(y0 + 1, height - 1)
    right, down = pixels[:, 0] - x0, pixels[:, 1] - y0
    inverse, is_usable = np.zeros(len(pixels)), np.ones(len(pixels), bool)
    for y, weight_y in ((y0, 1 - down), (y1, down)):
        for x, weight_x in ((x0, 1 - right), (x1, right)):
            is_usable &= usable[y, x]
            inverse += weight_y * weight_x / np.where(usable[y, x], depth[y, x], 1.0)
    return 1 / inverse, is_usable


def _errors(
    cameras: Cameras, points: np.ndarray, point: np.ndarray, frame: np.ndarray, pixel: np.ndarray
) -> np.ndarray:
    """By how many model pixels each observation is missed; infinite behind a camera."""
    errors = np.full(len(point), np.inf)
    for i in np.unique(frame):
        here = np.flatnonzero(frame == i)
        pixels, z = projected(cameras, i, points[point[here]])
        distance = np.linalg.norm(pixels - pixel[here], axis=1)
        errors[here] = np.where((z > 0) & np.isfinite(distance), distance, np.inf)
    return errors


def _rays(cameras: Cameras, frame: np.ndarray, pixel: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Origins and directions, of length 1, of the rays of pixels in world coordinates."""
    poses = cameras.world_from_camera()[frame]
    intrinsics = cameras.intrinsics[frame]
    focal = np.stack([intrinsics[:, 0, 0], intrinsics[:, 1, 1]], axis=1)
    rays = np.ones((len(frame), 3))
    rays[:, :2] = (pixel + 0.5 - intrinsics[:, :2, 2]) / focal
    directions = np.einsum("oij,oj->oi", poses[:, :3, :3], rays)
    return poses[:, :3, 3], directions / np.linalg.norm(directions, axis=1, keepdims=True)


def _intersected(
    point: np.ndarray, origins: np.ndarray, directions: np.ndarray, num_points: int
) -> tuple[np.ndarray, np.ndarray]:
    """Points nearest to their rays, by angles at cameras; and twice the widest angle to the mean.

    Distances to a ray count by the inverse of the distance along it, which is what a pixel
    measures.
    """
    across = np.eye(3) - directions[:, :, None] * directions[:, None, :]
    weights = np.ones(len(point))
    points = np.zeros((num_points, 3))
    scale = np.abs(origins).max(initial=0) + 1.0
    for _ in range(_REFINEMENTS):
        weighted = across * weights[:, None, None]
        normal = _sums(point, weighted.reshape(-1, 9), num_points).reshape(-1, 3, 3)
        right = _sums(point, np.einsum("oij,oj->oi", weighted, origins), num_points)
        # Where rays are parallel the matrix is singular; the parallax tells, so any solution does.
        trace = np.trace(normal, axis1=1, axis2=2)[:, None, None]
        normal = normal + np.eye(3) * (1e-12 * trace + (trace == 0))
        points = np.linalg.solve(normal, right[..., None])[..., 0]
        distance = np.linalg.norm(points[point] - origins, axis=1)
        weights = 1 / np.maximum(distance, 1e-9 * scale) ** 2
    towards = points[point] - origins
    towards /= np.maximum(np.linalg.norm(towards, axis=1, keepdims=True), 1e-300)
    mean = _sums(point, towards, num_points)
    mean /= np.maximum(np.linalg.norm(mean, axis=1, keepdims=True), 1e-300)
    # Of unit vectors the chord is exact for small angles, where the cosine is not.
    half_angle = 2 * np.arcsin(np.clip(np.linalg.norm(towards - mean[point], axis=1) / 2, 0, 1))
    widest = np.zeros(num_points)
    np.maximum.at(widest, point, half_angle)
    return points, 2 * widest


def _sums(index: np.ndarray, values: np.ndarray, size: int) -> np.ndarray:
    """[size k]: sums of the rows of each index, in their order, so that runs give the same bits."""
    columns = [np.bincount(index, weights=column, minlength=size) for column in values.T]
    # Of nothing, bincount makes integers.
    return np.stack(columns, axis=1).astype(np.float64)


def _sorted_tracks(found: list[tuple[np.ndarray, ...]], images: np.ndarray) -> Tracks:
    empty = (np.zeros((0, 3)), np.zeros(0, np.int64), np.zeros(0, np.int64), np.zeros((0, 2)))
    points, point, frame, pixel = (
        np.concatenate(parts) for parts in zip(empty, *found, strict=True)
    )
    order = np.lexsort((frame, point))
    point, frame, pixel = point[order], frame[order], pixel[order]
    width = images.shape[2]
    colors = images.reshape(len(images), -1, 3)[frame, flat_pixels(pixel, width)].astype(np.float64)
    if images.dtype != np.uint8:
        colors *= 255
    count = np.bincount(point, minlength=len(points))
    mean = _sums(point, colors, len(points)) / np.maximum(count, 1)[:, None]
    return Tracks(
        points=points,
        colors=np.round(mean).astype(np.uint8),
        observed_point=point,
        observed_frame=frame,
        pixels=pixel,
    )
