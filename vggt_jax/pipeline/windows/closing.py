"""Loops closed by the model itself: it looks at frames of two windows together."""

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float

from vggt_jax import geometry
from vggt_jax.errors import InputError
from vggt_jax.host import with_numpy
from vggt_jax.images.frames import Frames
from vggt_jax.models.base import SceneModel
from vggt_jax.pipeline.windows.graph import compose, inverse
from vggt_jax.pipeline.windows.joining import Join, depth_of, join
from vggt_jax.pipeline.windows.spans import Span
from vggt_jax.scene.confidence import chosen_source, points_of
from vggt_jax.scene.reconstruction import Reconstruction
from vggt_jax.scene.stretches import frames_of

_DESCRIBED = 4  # Frames of a window that are described.
_EVERY = 3  # Windows between closures of the same two stretches.
# A place is the same if frames are at least as alike as most neighbouring windows are there.
_ALIKE = 0.5
# Points of one side have to be seen in pictures of the other: so many of them at least, which miss
# the depth there by no more than this share of it; and their colours have to be correlated. Models
# put side by side whatever they are shown, so that depth alone says little.
_SEEN, _MISS, _ALIKE_COLOURS = 0.2, 0.05, 0.55
_CELLS = (
    16  # Along the shorter side of a picture: colours are compared as means of so many squares.
)
_POINTS = 2048
# The two sides as the model sees them together have to agree with their windows.
_MOST_ERROR, _LEAST_INLIERS = 0.1, 0.5


class Describer:
    """Descriptions of frames by the model's own encoder: the mean of its tokens, of length 1."""

    def __init__(self, model: SceneModel):
        self._model = model

    def __call__(self, images: np.ndarray) -> Float[np.ndarray, "k d"]:
        """Describes frames of a window, evenly chosen."""
        chosen = np.linspace(0, len(images) - 1, _DESCRIBED).round().astype(int)
        found = _described(self._model, jax.device_put(images[chosen]))
        return np.asarray(jax.device_get(found))


@jax.jit
def _described(model: SceneModel, images: Array) -> Float[Array, "k d"]:
    tokens = model.encode(images[None])[0].astype(jnp.float32)
    return jnp.concatenate([tokens.mean(axis=1), tokens.std(axis=1)], axis=-1)


def is_apart(first: Span, second: Span) -> bool:
    """Whether so much lies between two windows that their join is not known well enough."""
    return second.start - first.stop >= first.stop - first.start


def candidates(
    described: Sequence[Float[np.ndarray, "k d"]], spans: Sequence[Span]
) -> list[tuple[int, int]]:
    """Pairs of windows that may show the same place, the later one second.

    Each window is compared with all that came before it, a window's length or more, and its most
    alike one is taken if frames are as alike as half of the windows are to their neighbours. Of
    windows that follow one another with partners that do, one in three stays.
    """
    if len(described) < 3:
        return []
    stack = np.stack(described)  # [n k d]
    stack = stack - stack.mean(axis=(0, 1))
    stack = stack / np.maximum(stack.std(axis=(0, 1)), 1e-6)
    stack = stack / np.maximum(np.linalg.norm(stack, axis=-1, keepdims=True), 1e-6)
    n, k, _ = stack.shape
    flat = stack.reshape(n * k, -1)
    # How alike frames are that are a description apart: they overlap by construction.
    neighbours = np.sum(flat[:-1] * flat[1:], axis=-1)
    least = float(np.quantile(neighbours, _ALIKE))
    found: list[tuple[int, int]] = []
    for second in range(n):
        apart = [first for first in range(second) if is_apart(spans[first], spans[second])]
        if not apart:
            continue
        alike = np.max(np.einsum("kd,nld->nkl", stack[second], stack[: len(apart)]), axis=(1, 2))
        first = int(np.argmax(alike))
        if alike[first] < least:
            continue
        near = any(abs(first - a) < _EVERY and abs(second - b) < _EVERY for a, b in found)
        if not near:
            found.append((first, second))
    return found


def close(
    first: Reconstruction,
    second: Reconstruction,
    run: Callable[[Frames], Reconstruction],
    num_frames: int,
) -> Join | None:
    """What brings the world of one window into that of another which shows the same place.

    Args:
        first, second: the windows.
        run: reconstructs frames.
        num_frames: how many it takes, half of each window.

    Returns:
        From the world of the second into that of the first; None where they do not show the same
        place after all.
    """
    halves = num_frames - num_frames // 2, num_frames // 2
    sides = [
        frames_of(side, _middle(len(side.images), count))
        for side, count in zip((first, second), halves, strict=True)
    ]
    both = run(
        Frames(
            images=np.concatenate([np.asarray(side.images) for side in sides]),
            names=tuple(name for side in sides for name in side.names),
            transforms=tuple(transform for side in sides for transform in side.transforms),
        )
    )
    parts = [frames_of(both, slice(0, halves[0])), frames_of(both, slice(halves[0], None))]
    for of, by in (parts, parts[::-1]):
        seen, alike = _agreement(of, by)
        if seen < _SEEN or not alike > _ALIKE_COLOURS:
            return None
    try:
        into_both = [join(side, part) for side, part in zip(sides, parts, strict=True)]
    except InputError:
        return None
    if any(x.error > _MOST_ERROR or x.inliers < _LEAST_INLIERS for x in into_both):
        return None
    found = compose(inverse(into_both[0].similarity), into_both[1].similarity)
    worst = max(into_both, key=lambda x: x.error)
    return Join(
        scale=float(found.scale),
        rotation=np.asarray(found.rotation),
        translation=np.asarray(found.translation),
        error=worst.error,
        inliers=min(x.inliers for x in into_both),
    )


def _middle(length: int, count: int) -> slice:
    start = (length - count) // 2
    return slice(start, start + count)


def _agreement(of: Reconstruction, by: Reconstruction) -> tuple[float, float]:
    """The share of points of some frames that others see, and how their colours there correlate."""
    points, colors = points_of(of, chosen_source(of, None)), _blurred(np.asarray(of.images))
    places = np.linspace(0, points[..., 0].size - 1, _POINTS).astype(np.int64)
    arrays = (
        points.reshape(-1, 3)[places],
        colors.reshape(-1, 3)[places],
        depth_of(by),
        _blurred(np.asarray(by.images)),
        by.camera_from_world,
        by.intrinsics,
    )
    seen, alike = with_numpy(_seen, *map(np.asarray, arrays))
    return float(seen), float(alike)


def _blurred(images: np.ndarray) -> Float[np.ndarray, "s height width 3"]:
    """Images of which each square has its mean colour, for poses that are a little off."""
    height, width = images.shape[1:3]
    side = max(1, min(height, width) // _CELLS)
    means = np.asarray(images, np.float32)
    for axis, length in ((1, height), (2, width)):
        starts = np.arange(0, length, side)
        counts = np.diff([*starts, length])
        total = np.add.reduceat(means, starts, axis=axis)
        shape = [-1 if i == axis else 1 for i in range(4)]
        means = np.repeat(total / counts.reshape(shape), counts, axis=axis)
    return means


def _seen(points, colors, depth, images, camera_from_world, intrinsics):
    pixels, far = geometry.project_points(points, camera_from_world, intrinsics)
    _, height, width = depth.shape
    column, row = (jnp.floor(pixels[..., i]).astype(jnp.int32) for i in (0, 1))
    inside = (far > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    frame = jnp.arange(len(depth), dtype=jnp.int32)[:, None]
    row, column = jnp.clip(row, 0, height - 1), jnp.clip(column, 0, width - 1)
    there = depth[frame, row, column]
    miss = jnp.where(inside, jnp.abs(far - there) / there, jnp.inf)
    best = jnp.argmin(miss, axis=0).astype(jnp.int32)
    point = jnp.arange(len(points), dtype=jnp.int32)
    is_seen = miss[best, point] < _MISS
    count = jnp.maximum(jnp.sum(is_seen, dtype=jnp.int32), 1).astype(jnp.float32)

    def centred(x):
        x = jnp.where(is_seen[:, None], x, 0.0)
        return jnp.where(is_seen[:, None], x - jnp.sum(x, axis=0) / count, 0.0)

    first, second = centred(colors), centred(images[best, row[best, point], column[best, point]])
    size = jnp.sqrt(jnp.sum(first**2) * jnp.sum(second**2))
    alike = jnp.where(size > 0, jnp.sum(first * second) / jnp.where(size > 0, size, 1.0), 0.0)
    return count / len(points), alike
