"""Scenes with truth for evaluation: synthetic, or from a folder. Imported by scripts."""

import dataclasses
import functools
import json
import pathlib
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array

from vggt_jax.errors import InputError
from vggt_jax.evaluation import SceneTruth
from vggt_jax.images.files import find_images
from vggt_jax.pipeline.inputs import read_frames
from vggt_jax.pipeline.options import Options

FOLDER_LAYOUT = """\
a folder of scenes, each of them

    NAME/images/0001.jpg ...   frames in the order of their names
    NAME/cameras.json          {"frames": [{"name": "0001.jpg", "camera_from_world": 3x4,
                               "intrinsics_original": 3x3}, ...]}: the true cameras, in the format
                               that `vggt-jax infer` writes (OpenCV axes; the centre of pixel i at
                               i + 0.5); fields beyond these do not matter
    NAME/depth/0001.npy        float [height width] in the pixels of its image, along the viewing
                               axis, in the unit of the cameras; 0 or NaN where unknown. Without the
                               folder depth and points are not judged.
"""


@dataclasses.dataclass(frozen=True, kw_only=True)
class Batch:
    """Scenes of one size: images [b s height width 3], and their truth with the same first axes."""

    names: tuple[str, ...]
    images: Array
    truth: SceneTruth


def synthetic_batches(
    *,
    num_scenes: int,
    batch_size: int,
    num_frames: int,
    size: tuple[int, int],
    split: str,
    seed: int,
) -> Iterator[Batch]:
    """Scenes of the synthetic world, rendered batch by batch; the last batch may be smaller."""
    for first in range(0, num_scenes, batch_size):
        number = min(batch_size, num_scenes - first)
        # A key for each scene, so that the size of batches does not decide what is drawn.
        rendered = [
            _render(seed, first + i, num_frames=num_frames, size=size, split=split)
            for i in range(number)
        ]
        images, truth = jax.tree.map(lambda *parts: jnp.stack(parts), *rendered)
        names = tuple(f"{split}/{seed}/{first + i}" for i in range(number))
        yield Batch(names=names, images=images, truth=truth)


@functools.partial(jax.jit, static_argnames=("num_frames", "size", "split"))
def _render(seed, index, *, num_frames, size, split) -> tuple[Array, SceneTruth]:
    """One scene, by the interface of `vggt_jax.synthetic`."""
    from vggt_jax.synthetic import render_scenes

    key = jax.random.fold_in(jax.random.key(seed), index)
    scenes = render_scenes(key, 1, num_frames, size=size, split=split)
    return jax.tree.map(lambda x: x[0], (scenes.images, truth_of(scenes)))


def truth_of(scenes: Any) -> SceneTruth:
    """The truth of rendered scenes, `vggt_jax.synthetic.Scenes`, as metrics take it."""
    return SceneTruth(
        camera_from_world=scenes.camera_from_world,
        intrinsics=scenes.intrinsics,
        depth=scenes.depth,
        valid=scenes.valid,
    )


def folder_batches(
    folder: pathlib.Path,
    *,
    model: Any,
    batch_size: int,
    num_frames: int | None,
    image_side: int | None,
) -> Iterator[Batch]:
    """Scenes of a folder (FOLDER_LAYOUT), those of one shape together.

    Args:
        num_frames: so many of each scene, evenly spread; None for all.
        image_side: to resize to, see `vggt_jax.infer`; None is the model's own.

    Raises:
        InputError: a scene is not laid out so, or has too few frames.
    """
    if not folder.is_dir():
        raise InputError(f"{folder}: no such folder")
    names = sorted(path.parent.name for path in folder.glob("*/cameras.json"))
    if not names:
        raise InputError(f"{folder}: holds no scenes; expected {FOLDER_LAYOUT}")
    waiting: dict[tuple, list] = {}
    for name in names:
        images, truth = read_scene(
            folder / name, model=model, num_frames=num_frames, image_side=image_side
        )
        group = waiting.setdefault(images.shape, [])
        group.append((name, images, truth))
        if len(group) == batch_size:
            yield _stack(waiting.pop(images.shape))
    yield from map(_stack, waiting.values())


def read_scene(
    folder: pathlib.Path, *, model: Any, num_frames: int | None, image_side: int | None
) -> tuple[np.ndarray, SceneTruth]:
    """Frames in the sizes of the model, and their truth in the same pixels."""
    paths = find_images(folder / "images")
    if num_frames is not None:
        if len(paths) < num_frames:
            raise InputError(
                f"{folder}: has {len(paths)} images, fewer than the {num_frames} asked for"
            )
        paths = [paths[i] for i in np.linspace(0, len(paths) - 1, num_frames).round().astype(int)]
    frames = read_frames(paths, model, Options(size=image_side))
    cameras = _read_cameras(folder / "cameras.json")
    if missing := [path.name for path in paths if path.name not in cameras]:
        raise InputError(f"{folder / 'cameras.json'}: has no camera for {', '.join(missing[:3])}")
    poses, intrinsics = zip(*(cameras[path.name] for path in paths), strict=True)
    maps = [
        _read_depth(folder / "depth", path, transform)
        for path, transform in zip(paths, frames.transforms, strict=True)
    ]
    depth, valid = (np.stack(x) for x in zip(*maps, strict=True))
    matrices = [
        transform.intrinsics_to_model(matrix)
        for transform, matrix in zip(frames.transforms, intrinsics, strict=True)
    ]
    truth = SceneTruth(
        camera_from_world=np.array(poses, np.float32),
        intrinsics=np.array(matrices, np.float32),
        depth=depth,
        valid=valid & frames.valid_mask(),
    )
    return frames.images, truth


def _stack(scenes: list) -> Batch:
    names, images, truths = zip(*scenes, strict=True)
    truth = jax.tree.map(lambda *parts: jnp.stack(parts), *truths)
    return Batch(names=names, images=jnp.stack(images), truth=truth)


def _read_cameras(path: pathlib.Path) -> dict[str, tuple[np.ndarray, np.ndarray]]:
    try:
        frames = json.loads(path.read_text(encoding="utf-8"))["frames"]
        cameras = {
            frame["name"].rpartition("/")[2]: tuple(
                np.array(frame[field], np.float64)
                for field in ("camera_from_world", "intrinsics_original")
            )
            for frame in frames
        }
    except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
        raise InputError(
            f"{path}: no cameras can be read ({error!r}); expected {FOLDER_LAYOUT}"
        ) from error
    for name, (pose, matrix) in cameras.items():
        if (
            pose.shape != (3, 4)
            or matrix.shape != (3, 3)
            or not np.isfinite([*pose.flat, *matrix.flat]).all()
        ):
            raise InputError(
                f"{path}: the camera of {name} must be a 3x4 and a 3x3 matrix of numbers"
            )
    return cameras


def _read_depth(folder: pathlib.Path, image: pathlib.Path, transform) -> tuple:
    """Depth and its mask in the pixels of a frame: of the nearest pixel, not interpolated."""
    height, width = transform.model_size
    nothing = np.zeros((height, width), np.float32), np.zeros((height, width), bool)
    if not folder.is_dir():
        return nothing
    path = folder / f"{image.stem}.npy"
    try:
        depth = np.load(path)
    except (OSError, ValueError) as error:
        raise InputError(f"{path}: no depth can be read ({error})") from error
    if depth.shape != transform.original_size:
        raise InputError(f"{path}: is {depth.shape}, but its image {transform.original_size}")
    pixels = np.stack(np.meshgrid(np.arange(width), np.arange(height)), axis=-1)
    x, y = np.moveaxis(np.rint(transform.pixels_to_original(pixels)).astype(int), -1, 0)
    inside = (x >= 0) & (y >= 0) & (x < depth.shape[1]) & (y < depth.shape[0])
    found = depth[np.where(inside, y, 0), np.where(inside, x, 0)].astype(np.float32)
    valid = inside & np.isfinite(found) & (found > 0)
    return np.where(valid, found, 0), valid
