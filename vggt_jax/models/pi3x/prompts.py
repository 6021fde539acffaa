"""What is known of a scene in the form in which Pi3X is shown it (official file: pi3x.py)."""

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vggt_jax import geometry
from vggt_jax.layers.shards import FrameShards, of_all, of_own
from vggt_jax.scene.priors import Priors

_EPSILON = 1e-8  # of divisions by a mean
_RAY_EPSILON = 1e-6
_STILL = 2e-2  # a scene whose positions all lie nearer than this keeps its lengths


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Prompts:
    """Known rays, depth and poses, each with the frames whose values are shown; None where nobody
    gave any.

    Attributes:
        rays: x and y where the ray of each pixel meets the plane z = 1.
        depth: divided by the scale of the scene, and where it is known (0 or 1), as channels.
        poses: world_from_camera in the coordinates of the first frame with a pose, positions
            divided by the scale of the scene.
    """

    rays: Float[Array, "b s height width 2"] | None
    rays_shown: Bool[Array, "b s"] | None
    depth: Float[Array, "b s height width 2"] | None
    depth_shown: Bool[Array, "b s"] | None
    poses: Float[Array, "b s 4 4"] | None
    poses_shown: Bool[Array, "b s"] | None

    @classmethod
    def of_priors(cls, priors: Priors, images: Any, shards: FrameShards | None = None) -> "Prompts":
        """Prompts for images [b s height width 3]; of several devices, for those of this one.

        The scale of a scene is the mean of its depths, or, where no frame's depth is shown, that of
        the distances of its cameras from the first. All values that there are, which is to say
        finite ones (and positive ones of depth), count in these means, also those of frames that
        `Priors` says not to show. So only ratios of lengths matter.
        """
        filled: Any = priors.for_images(images)
        rays, rays_shown = _rays(filled, images.shape[2:4])
        (b, s), everywhere = images.shape[:2], functools.partial(of_all, shards)
        depth, depth_shown, mean_depth = None, None, jnp.ones(b, jnp.float32)
        if priors.depth is not None:
            given = jnp.asarray(priors.depth).astype(jnp.float32)
            depth, mean_depth = _normalized_depth(given, shards)
            depth_shown = filled.depth_known
        poses, poses_shown = None, None
        if priors.camera_from_world is not None:
            # Poses are few numbers, so each device has those of all frames.
            cameras = everywhere(jnp.asarray(priors.camera_from_world))
            there = jnp.all(jnp.isfinite(cameras), axis=(-2, -1))
            # Values that are there, whether shown or not.
            of_poses = dataclasses.replace(
                priors.only(["poses"]), camera_from_world=cameras, poses_known=there
            )
            all_images = jax.ShapeDtypeStruct((*there.shape, *images.shape[2:]), jnp.uint8)
            every: Any = of_poses.for_images(all_images).camera_from_world
            poses, scale = _normalized_poses(
                every, there, mean_depth, None if depth_shown is None else everywhere(depth_shown)
            )
            poses = of_own(shards, poses, s)
            if depth is not None:
                divided = depth[..., :1] / scale[:, None, None, None, None]
                depth = jnp.concatenate([divided, depth[..., 1:]], axis=-1)
            poses_shown = filled.poses_known
            # One pose says nothing: they are relative to each other.
            number = jnp.sum(everywhere(poses_shown), axis=1, keepdims=True, dtype=jnp.int32)
            poses_shown = poses_shown & (number != 1)
        return cls(
            rays=rays,
            rays_shown=rays_shown,
            depth=depth,
            depth_shown=depth_shown,
            poses=poses,
            poses_shown=poses_shown,
        )


def _rays(priors: Any, size: tuple[int, int]):
    """Rays of every pixel, and the frames that have some: as given, or of intrinsics."""
    of_intrinsics = shown = None
    if priors.intrinsics is not None:
        height, width = size
        # Through the centres of pixels.
        x, y = (np.arange(n, dtype=np.float32) + np.float32(0.5) for n in (width, height))
        focal_x, skew, centre_x = (priors.intrinsics[..., 0, i] for i in (0, 1, 2))
        focal_y, centre_y = priors.intrinsics[..., 1, 1], priors.intrinsics[..., 1, 2]
        by_pixel = lambda value: value[..., None, None]
        y_ray = (y[None, None, :, None] - by_pixel(centre_y)) / by_pixel(focal_y)
        x_ray = x[None, None, None] - by_pixel(centre_x) - by_pixel(skew) * y_ray
        x_ray = x_ray / by_pixel(focal_x)
        of_intrinsics = jnp.stack(jnp.broadcast_arrays(x_ray, y_ray), axis=-1)
        shown = priors.intrinsics_known
    if priors.rays is None:
        return of_intrinsics, shown
    rays = priors.rays[..., :2] / (priors.rays[..., 2:] + jnp.float32(_RAY_EPSILON))
    if of_intrinsics is None:
        return rays, priors.rays_known
    known = priors.rays_known
    return jnp.where(known[..., None, None, None], rays, of_intrinsics), known | shown


def _normalized_depth(depth: Float[Array, "b s height width"], shards: FrameShards | None):
    """Depth over its mean in each scene, with the channel of where it is known, and the means."""
    is_there = jnp.isfinite(depth) & (depth > 0)
    depth = jnp.where(is_there, depth, jnp.zeros((), jnp.float32))
    number = jnp.sum(is_there, axis=(1, 2, 3), dtype=jnp.int32)
    total = jnp.sum(depth, axis=(1, 2, 3))
    if shards is not None:
        number, total = jax.lax.psum((number, total), shards.axis)
    number = number.astype(jnp.float32)
    mean = jnp.where(number > 0, total / jnp.maximum(number, 1.0), 1.0)
    depth = depth / (mean[:, None, None, None] + _EPSILON)
    return jnp.stack([depth, (depth > 0).astype(jnp.float32)], axis=-1), mean


def _normalized_poses(
    camera_from_world: Float[Array, "b s 4 4"],
    there: Bool[Array, "b s"],
    mean_depth: Float[Array, " b"],
    depth_shown: Bool[Array, "b s"] | None,
):
    """World_from_camera relative to the first frame that is there, and the scale of its positions
    beside the mean depth; identity where there is none."""
    first = jax.lax.argmax(there, 1, jnp.int32)
    is_first = jnp.arange(there.shape[1], dtype=jnp.int32)[None] == first[:, None]
    zero = jnp.zeros((), jnp.float32)
    of_first = jnp.where(is_first[..., None, None], camera_from_world, zero)
    reference = jnp.sum(of_first, axis=1, keepdims=True)
    world_from_camera = geometry.invert_rigid(camera_from_world)
    poses = jnp.matmul(reference, world_from_camera, precision=jax.lax.Precision.HIGHEST)
    identity = jnp.broadcast_to(np.eye(4, dtype=np.float32), poses.shape)
    poses = jnp.where(there[..., None, None], poses, identity)
    positions = poses[..., :3, 3] / mean_depth[:, None, None]

    is_other = there & ~is_first
    squared = jnp.sum(positions * positions, axis=-1)
    distance = jnp.where(is_other, jnp.sqrt(jnp.where(is_other, squared, 1.0)), 0.0)
    number = jnp.sum(is_other, axis=1, dtype=jnp.int32).astype(jnp.float32)
    mean = jnp.sum(distance, axis=1) / jnp.maximum(number, 1.0)
    moves = jnp.max(distance, axis=1) >= _STILL
    if depth_shown is not None:
        moves = moves & ~jnp.any(depth_shown, axis=1)
    scale = jnp.where(moves, mean + _EPSILON, 1.0)
    positions = positions / scale[:, None, None]
    upper = jnp.concatenate([poses[..., :3, :3], positions[..., None]], axis=-1)
    return jnp.concatenate([upper, poses[..., 3:, :]], axis=-2), scale
