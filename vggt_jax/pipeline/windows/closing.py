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
from vggt_jax.pipeline.windows.joining import Join, join
from vggt_jax.pipeline.windows.spans import Span
from vggt_jax.scene.confidence import chosen_source, points_of
from vggt_jax.scene.reconstruction import Reconstruction
from vggt_jax.scene.stretches import frames_of

_DESCRIBED = 4  # Frames of a window that are described.
_EVERY = 3  # Windows between closures of the same two stretches.
# A place is the same if frames are at least as alike as most neighbouring windows are there.
_ALIKE = 0.5
# Of the points of one side that lie in pictures of the other, the share that is seen there, and how
# many of them have to lie there at all; by how much of the depth a point may miss what is seen.
_SEEN, _LYING, _MISS = 0.5, 0.1, 0.05
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


def candidates(
    described: Sequence[Float[np.ndarray, "k d"]], spans: Sequence[Span]
) -> list[tuple[int, int]]:
    """Pairs of windows, without common frames, that may show the same place, the later one second.

    Each window is compared with all that came before, and its most alike one is taken if frames are
    as alike as half of the windows are to their neighbours. Of windows that follow one another with
    partners that do, one in three stays.
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
        apart = [first for first in range(second) if spans[first].stop <= spans[second].start]
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
    if min(_share_seen(*parts), _share_seen(*parts[::-1])) < _SEEN:
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


def _share_seen(of: Reconstruction, by: Reconstruction) -> float:
    """The share of points of some frames that other frames see where they lie in their pictures; 0
    where hardly any do."""
    points = points_of(of, chosen_source(of, None)).reshape(-1, 3)
    chosen = points[np.linspace(0, len(points) - 1, _POINTS).astype(np.int64)]
    depth = by.depth
    if depth is None:
        poses, found = np.asarray(by.camera_from_world), np.asarray(by.world_points)
        depth = np.einsum("sj,shwj->shw", poses[:, 2, :3], found) + poses[:, 2, 3, None, None]
    arrays = (chosen, np.asarray(depth), by.camera_from_world, by.intrinsics)
    lying, seen = with_numpy(_seen, *map(np.asarray, arrays))
    return float(seen) if lying >= _LYING else 0.0


def _seen(points, depth, camera_from_world, intrinsics):
    pixels, far = geometry.project_points(points, camera_from_world, intrinsics)
    _, height, width = depth.shape
    column, row = (jnp.floor(pixels[..., i]).astype(jnp.int32) for i in (0, 1))
    inside = (far > 0) & (column >= 0) & (column < width) & (row >= 0) & (row < height)
    frame = jnp.arange(len(depth), dtype=jnp.int32)[:, None]
    there = depth[frame, jnp.clip(row, 0, height - 1), jnp.clip(column, 0, width - 1)]
    agrees = inside & (jnp.abs(far - there) < _MISS * there)
    # Behind what a frame sees a point is hidden there, and says nothing.
    hidden = inside & (far > (1 + _MISS) * there)
    lying = (inside & ~hidden).any(axis=0)
    seen = agrees.any(axis=0)
    count = lambda x: jnp.sum(x, dtype=jnp.int32).astype(jnp.float32)
    return count(lying) / len(points), count(seen) / jnp.maximum(count(lying), 1.0)
