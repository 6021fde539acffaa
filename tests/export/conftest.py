"""A room whose cameras, depth and photographs are known exactly, as a model would predict them."""

import dataclasses
from pathlib import Path

import numpy as np
import pytest
from PIL import Image

from vggt_jax.images.frames import Frames, FrameTransform
from vggt_jax.images.loading import load_images
from vggt_jax.scene.reconstruction import Reconstruction

# (height, width) of the photographs: landscape, portrait, square, and landscape once more.
SIZES = ((90, 141), (151, 97), (113, 113), (90, 141))
MODEL_SIZE = 112
ROOM = np.array([[-3.0, -2.0, -1.0], [3.0, 2.0, 6.0]])  # Corners; cameras are near the origin.
BOX = np.array([[-0.7, 0.1, 2.8], [0.9, 2.0, 3.9]])  # Hides a part of the walls.

WAVES = np.array([[4.1, -1.3, 2.2], [1.7, 4.9, -2.4], [-2.1, 1.9, 4.3]])  # Of each colour.


@dataclasses.dataclass(frozen=True, kw_only=True)
class Room:
    """A reconstruction without errors, the files behind it, and the truth.

    `intrinsics` are those of the photographs for continuous coordinates.
    """

    recon: Reconstruction
    folder: Path
    camera_from_world: np.ndarray
    intrinsics: np.ndarray
    sizes: tuple[tuple[int, int], ...]
    valid: np.ndarray


def cast(size, intrinsics, camera_from_world):
    """Depth and colours of the room through the centres of all pixels of an image."""
    height, width = size
    x, y = np.meshgrid(np.arange(width) + 0.5, np.arange(height) + 0.5)
    (focal_x, _, centre_x), (_, focal_y, centre_y), _ = intrinsics
    rays = np.stack([(x - centre_x) / focal_x, (y - centre_y) / focal_y, np.ones_like(x)], -1)
    rotation, translation = camera_from_world[:, :3], camera_from_world[:, 3]
    origin, rays = -rotation.T @ translation, rays @ rotation
    rays = np.where(rays == 0, 1e-12, rays)
    # Rays have length 1 along the viewing axis, so that their parameter is the depth.
    walls = np.where(rays > 0, ROOM[1] - origin, ROOM[0] - origin) / rays
    slabs = np.sort((BOX[:, None, None] - origin) / rays, axis=0)
    enter, leave = slabs[0].max(-1), slabs[1].min(-1)
    depth = np.where((enter < leave) & (enter > 0), enter, walls.min(-1))
    points = origin + depth[..., None] * rays
    colors = 127.5 + 100 * np.sin(points @ WAVES + (0.3, 1.0, 2.0))
    return depth, np.round(colors).astype(np.uint8)


def truth(num_frames):
    """Cameras: a little apart, a little turned, with pixels that are not square."""
    poses, matrices = [], []
    for i in range(num_frames):
        ax, ay, az = 0.05 * i - 0.1, 0.11 * i - 0.15, 0.04 * i
        turn = np.eye(3)
        for axis, angle in enumerate((ax, ay, az)):
            c, s = np.cos(angle), np.sin(angle)
            j, k = (axis + 1) % 3, (axis + 2) % 3
            step = np.eye(3)
            step[[j, j, k, k], [j, k, j, k]] = c, -s, s, c
            turn = step @ turn
        centre = np.array([0.35 * i - 0.5, 0.12 * (i % 2), 0.05 * i])
        poses.append(np.concatenate([turn, -(turn @ centre)[:, None]], axis=1))
        height, width = SIZES[i % len(SIZES)]
        matrices.append(
            np.array([[95.0 + 3 * i, 0, width / 2 + 2], [0, 103.0 + i, height / 2 - 1], [0, 0, 1]])
        )
    return np.stack(poses), np.stack(matrices)


@pytest.fixture
def make_room(tmp_path):
    """Makes a `Room`.

    Args:
      mode: of `load_images`, or "identity" for frames that nobody resized.
      pixel_centre: where the rays of the model meet its pixels.
      sizes: of the photographs.
    """

    def make(mode="pad", *, pixel_centre=0.0, sizes=SIZES, name="photographs"):
        folder = tmp_path / name
        folder.mkdir()
        if mode == "identity":
            sizes = ((98, 126),) * 3
        poses, matrices = truth(len(sizes))
        paths = []
        for i, (size, pose, matrix) in enumerate(zip(sizes, poses, matrices, strict=True)):
            paths.append(folder / f"view {i}.png")
            Image.fromarray(cast(size, matrix, pose)[1]).save(paths[-1])
        if mode == "identity":
            images = np.stack([np.asarray(Image.open(path)) for path in paths])
            transforms = (FrameTransform.identity(sizes[0]),) * len(sizes)
            names = tuple(path.name for path in paths)
            frames = Frames(images=images, names=names, transforms=transforms)
        else:
            frames = load_images(paths, mode=mode, size=MODEL_SIZE)
        valid = frames.valid_mask()
        of_model = np.stack(
            [t.intrinsics_to_model(m) for t, m in zip(frames.transforms, matrices, strict=True)]
        )
        size = frames.images.shape[1:3]
        depth = [cast(size, m, p)[0] for m, p in zip(of_model, poses, strict=True)]
        depth = np.where(valid, depth, 1.5)  # What a model says of padding means nothing.
        predicted = of_model.copy()
        predicted[:, :2, 2] -= 0.5 - pixel_centre
        rng = np.random.default_rng(0)
        recon = Reconstruction(
            images=frames.images,
            camera_from_world=poses.astype(np.float32),
            intrinsics=predicted.astype(np.float32),
            depth=depth.astype(np.float32),
            depth_confidence=1 + rng.random(depth.shape, np.float32),
            pixel_centre=pixel_centre,
            names=frames.names,
            transforms=frames.transforms,
        )
        return Room(
            recon=recon,
            folder=folder,
            camera_from_world=poses,
            intrinsics=matrices,
            sizes=tuple(sizes),
            valid=valid,
        )

    return make


@pytest.fixture
def contents():
    """All files below a folder with their bytes, hidden ones included."""

    def read(folder):
        files = sorted(path for path in folder.rglob("*") if path.is_file())
        return {str(path.relative_to(folder)): path.read_bytes() for path in files}

    return read
