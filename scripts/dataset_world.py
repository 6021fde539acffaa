"""A world of two planes and a box, and pictures of it, in NumPy: what synthetic data sets show.

It shares no code with the loaders of `vggt_jax.evaluation.datasets`, so that both can be compared.
Axes: x right, y away from the first camera, z up; lengths are in metres.
"""

import dataclasses

import numpy as np

WALL_Y, WALL_HEIGHT = 3.0, 2.4  # Above it there is nothing, at no depth.
BOX = np.array([[-0.6, 1.3, 0.0], [0.5, 2.1, 0.9]])


@dataclasses.dataclass(frozen=True, kw_only=True)
class View:
    """A camera that took a picture, in metres and OpenCV's axes; pixel centres at i + 0.5."""

    camera_from_world: np.ndarray  # [4 4]
    intrinsics: np.ndarray  # [3 3]
    size: tuple[int, int]  # height, width


def camera(fx, fy, cx, cy):
    """Intrinsics."""
    return np.array([[fx, 0, cx], [0, fy, cy], [0, 0, 1]], np.float64)


def track(number, *, seed=0):
    """Poses camera_from_world [number 4 4] along an arc before the box, with some roll."""
    random = np.random.default_rng(seed)
    poses = []
    for i in range(number):
        turn = (i / max(number - 1, 1) - 0.5) * 1.1
        place = np.array(
            [2.2 * np.sin(turn), 1.4 - 2.2 * np.cos(turn), 1.1 + 0.3 * np.cos(3 * turn)]
        )
        place += random.uniform(-0.05, 0.05, 3)
        forward = np.array([0.0, 1.8, 0.75]) - place
        forward /= np.linalg.norm(forward)
        right = np.cross(forward, [0.0, 0.0, 1.0])
        right /= np.linalg.norm(right)
        down = np.cross(forward, right)
        roll = random.uniform(-0.1, 0.1)
        rotation = np.stack([right, down, forward])
        rotation = (
            np.array([[np.cos(roll), -np.sin(roll), 0], [np.sin(roll), np.cos(roll), 0], [0, 0, 1]])
            @ rotation
        )
        pose = np.eye(4)
        pose[:3, :3], pose[:3, 3] = rotation, -rotation @ place
        poses.append(pose)
    return np.stack(poses)


def pixel_rays(view):
    """Where the rays of pixels meet the plane z = 1 of the camera, [height width 2]."""
    height, width = view.size
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    (fx, _, cx), (_, fy, cy), _ = view.intrinsics
    return np.stack([(x - cx) / fx, (y - cy) / fy], axis=-1)


def render(view, rays=None):
    """Colours [height width 3] uint8 and depth [height width], infinite where nothing is.

    Args:
        view: the camera.
        rays: those of a camera that distorts; see `pixel_rays`.
    """
    rays = pixel_rays(view) if rays is None else rays
    world_from_camera = np.linalg.inv(view.camera_from_world)
    directions = np.concatenate([rays, np.ones((*rays.shape[:2], 1))], -1)
    directions = directions @ world_from_camera[:3, :3].T
    origin = world_from_camera[:3, 3]
    with np.errstate(divide="ignore", invalid="ignore"):
        floor = -origin[2] / directions[..., 2]
        floor = np.where(floor > 0, floor, np.inf)
        wall = (WALL_Y - origin[1]) / directions[..., 1]
        high = origin[2] + wall * directions[..., 2]
        wall = np.where((wall > 0) & (high >= 0) & (high <= WALL_HEIGHT), wall, np.inf)
        floor = np.where(origin[1] + floor * directions[..., 1] <= WALL_Y, floor, np.inf)
        ends = np.sort((BOX[:, None, None] - origin) / directions, axis=0)
        near, far = ends[0].max(-1), ends[1].min(-1)
        box = np.where((near < far) & (near > 0), near, np.inf)
    depth = np.minimum(np.minimum(floor, wall), box)  # Rays have length 1 along the axis.
    points = origin + np.where(np.isfinite(depth), depth, 0)[..., None] * directions
    surface = np.argmin(np.stack([floor, wall, box]), axis=0)[..., None]
    waves = np.sin(3 * points + 2 * surface) + np.sin(8 * points[..., [1, 2, 0]]) + 0.8 * surface
    colours = np.clip(110 + 40 * waves, 0, 255)
    colours = np.where(np.isfinite(depth)[..., None], colours, (150, 190, 240))
    return np.round(colours).astype(np.uint8), depth


def distance(points):
    """How far points [n 3] lie from the nearest surface."""
    points = np.asarray(points, np.float64)
    outside = np.maximum(np.maximum(BOX[0] - points, points - BOX[1]), 0)
    within = np.minimum(points - BOX[0], BOX[1] - points).min(-1)
    box = np.where(within > 0, within, np.linalg.norm(outside, axis=-1))
    return np.min([np.abs(points[:, 2]), np.abs(points[:, 1] - WALL_Y), box], axis=0)


def surface_points(number, *, seed=0):
    """Points [number 3] on the floor, the wall and the top of the box, as a scanner finds them."""
    random = np.random.default_rng(seed)
    a, b = random.uniform(size=(2, number))
    kind = random.integers(0, 3, number)
    floor = np.stack([4 * a - 2, 3 * b, 0 * a], -1)
    wall = np.stack([4 * a - 2, 0 * a + WALL_Y, WALL_HEIGHT * b], -1)
    extent = BOX[1] - BOX[0]
    top = np.stack([BOX[0, 0] + extent[0] * a, BOX[0, 1] + extent[1] * b, 0 * a + BOX[1, 2]], -1)
    return np.choose(kind[:, None], [floor, wall, top])
