"""A video of a flight around the points of a scene, or along its cameras."""

import importlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any, Literal, get_args

import numpy as np
from jaxtyping import Float, UInt8

from vggt_jax.errors import InputError, printable
from vggt_jax.export.cameras import scene_cameras
from vggt_jax.files import replacing
from vggt_jax.scene.orientation import level_forward, up_direction
from vggt_jax.scene.reconstruction import Reconstruction

Path_ = Literal["orbit", "cameras"]
_FIELD_OF_VIEW = np.radians(50)  # Of the longer side, on an orbit.
_SWING = np.radians(35)  # To both sides of where the cameras look, on an orbit.
_NEAREST = 0.02  # Share of the scene's size: what is closer would hide everything.
_WHITE = 255


def fly_through(
    recon: Reconstruction,
    points: Float[np.ndarray, "m 3"],
    colors: UInt8[np.ndarray, "m 3"],
    *,
    path: Path_ = "orbit",
    frames: int = 120,
    size: tuple[int, int] = (720, 1280),
    point_size: int | None = None,
) -> Iterator[UInt8[np.ndarray, "height width 3"]]:
    """Pictures of a flight.

    Args:
      recon: the scene, with cameras.
      points, colors: of it, in world coordinates.
      path: "orbit", to and fro around the middle of the points, as far away as all of them need, or
        "cameras", from one camera to the next.
      frames: how many pictures.
      size: their (height, width).
      point_size: side of a point in pixels; None is one that hides most gaps.

    Raises:
      InputError: an argument cannot be, or the scene has no cameras or no points.
    """
    if path not in get_args(Path_):
        raise InputError(f"path={path!r} must be one of {', '.join(get_args(Path_))}")
    height, width = size
    if frames < 1 or min(size) < 16 or height % 2 or width % 2:
        raise InputError(f"frames={frames} must be positive, and size={size} even, from 16 on")
    if point_size is not None and not 1 <= point_size <= 50:
        raise InputError(f"point_size={point_size} must lie between 1 and 50")
    if not len(points):
        raise InputError("there are no points to fly around")
    if point_size is None:
        point_size = int(np.clip(np.ceil(np.sqrt(2 * height * width / len(points))), 1, 6))
    poses, focal = (
        _orbit(recon, points, frames, size) if path == "orbit" else _along(recon, frames, size)
    )
    nearest = _NEAREST * _extent(points)
    for pose in poses:
        yield draw_points(pose, focal, size, points, colors, point_size, nearest)


def write_fly_through(
    file: Path, pictures: Iterator[np.ndarray], *, fps: int = 30, comment: str = ""
) -> int:
    """Writes pictures as a video (H.264 where the ending is .mp4), whole or not at all.

    Returns:
      How many there were.

    Raises:
      InputError: PyAV is not installed, or the file cannot be written.
    """
    try:
        av: Any = importlib.import_module("av")
    except ModuleNotFoundError as error:
        raise InputError(
            "videos need PyAV; install it with: pip install 'vggt-jax[video]'"
        ) from error
    count, stream = 0, None
    with replacing(file) as out, av.open(out, "w", format="mp4") as container:
        if comment:
            container.metadata["comment"] = printable(comment)
        for picture in pictures:
            count += 1
            if stream is None:
                stream = container.add_stream("libx264", rate=fps)
                stream.height, stream.width = picture.shape[:2]
                stream.pix_fmt = "yuv420p"
                stream.options = {"crf": "20"}
            container.mux(stream.encode(av.VideoFrame.from_ndarray(picture, format="rgb24")))
        if stream is not None:
            container.mux(stream.encode())
    return count


def draw_points(
    camera_from_world: Float[np.ndarray, "3 4"],
    focal: float,
    size: tuple[int, int],
    points: Float[np.ndarray, "m 3"],
    colors: UInt8[np.ndarray, "m 3"],
    point_size: int,
    nearest: float = 0.0,
) -> UInt8[np.ndarray, "height width 3"]:
    """Points as squares on white, nearer ones before others.

    Args:
      focal: in pixels; the principal point is in the middle.
      nearest: depth from which on points are drawn.
    """
    height, width = size
    seen = points @ camera_from_world[:, :3].T + camera_from_world[:, 3]
    depth = seen[:, 2]
    keep = depth > max(nearest, 1e-9)
    seen, depth, kept = seen[keep], depth[keep], colors[keep]
    column = np.floor(focal * seen[:, 0] / depth + width / 2).astype(np.int64)
    row = np.floor(focal * seen[:, 1] / depth + height / 2).astype(np.int64)
    half = point_size // 2
    inside = (row >= -half) & (row < height + half) & (column >= -half) & (column < width + half)
    order = np.argsort(-depth[inside], kind="stable")  # The nearest last: they stay.
    row, column, kept = row[inside][order], column[inside][order], kept[inside][order]
    picture = np.full((height, width, 3), _WHITE, np.uint8)
    # By depth first and by place in the square second, so that no far point covers a near one.
    offsets = np.arange(point_size) - half
    rows = np.clip(row[:, None, None] + offsets[None, :, None], 0, height - 1)
    columns = np.clip(column[:, None, None] + offsets[None, None, :], 0, width - 1)
    picture[rows, columns] = kept[:, None, None, :]
    return picture


def _orbit(
    recon: Reconstruction, points: np.ndarray, frames: int, size: tuple[int, int]
) -> tuple[np.ndarray, float]:
    rotations = np.swapaxes(np.asarray(recon.camera_from_world, np.float64)[:, :, :3], 1, 2)
    up = up_direction(rotations)
    ahead = level_forward(rotations, up)
    sample = points[:: max(1, len(points) // 100_000)]
    middle = np.median(sample, axis=0)
    radius = float(np.percentile(np.linalg.norm(sample - middle, axis=1), 95))
    focal = max(size) / (2 * np.tan(_FIELD_OF_VIEW / 2))
    distance = 1.1 * radius / np.sin(np.arctan(min(size) / (2 * focal)))
    poses = []
    for turn in _SWING * np.sin(2 * np.pi * np.arange(frames) / frames):
        side = np.cross(ahead, up)
        towards = np.cos(turn) * ahead + np.sin(turn) * side
        centre = middle + distance * (0.25 * up - towards)
        poses.append(_looking(centre, middle, up))
    return np.stack(poses), float(focal)


def _along(recon: Reconstruction, frames: int, size: tuple[int, int]) -> tuple[np.ndarray, float]:
    cameras = scene_cameras(recon)
    poses = cameras.world_from_camera()
    at = np.linspace(0, len(poses) - 1, frames)
    first = np.minimum(at.astype(int), max(0, len(poses) - 2))
    second = np.minimum(first + 1, len(poses) - 1)
    share = (at - first)[:, None]
    share = share * share * (3 - 2 * share)  # To set off and to arrive gently.
    blend = lambda x: (1 - share) * x[first] + share * x[second]
    centres, ahead, down = (blend(poses[:, :3, i]) for i in (3, 2, 1))
    height, width = size
    of_frame = np.asarray(recon.images).shape[2]
    focal = float(np.median(cameras.intrinsics[:, 0, 0])) * width / of_frame
    found = [_looking(c, c + a, -d) for c, a, d in zip(centres, ahead, down, strict=True)]
    return np.stack(found), max(focal, 0.3 * height)


def _looking(centre: np.ndarray, target: np.ndarray, up: np.ndarray) -> np.ndarray:
    """[R | t] of a camera at a place that looks at another."""
    z = (target - centre) / np.linalg.norm(target - centre)
    x = np.cross(z, up)
    x /= np.linalg.norm(x)
    rotation = np.stack([x, np.cross(z, x), z])
    return np.concatenate([rotation, -(rotation @ centre)[:, None]], axis=1)


def _extent(points: np.ndarray) -> float:
    low, high = np.percentile(points[:: max(1, len(points) // 100_000)], (2, 98), axis=0)
    return float(np.linalg.norm(high - low)) or 1.0
