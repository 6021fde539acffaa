"""Cameras that fit the rays which Depth Anything 3 predicts, instead of those of its camera head.

Official file: depth_anything_3/utils/ray_utils.py.
"""

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Float, Int

from vggt_jax import geometry

_NUM_DRAWS, _RAYS_PER_DRAW = 100, 8
_SHARE_OF_CANDIDATES = 0.3  # of rays, the most confident ones, from which draws are taken
_SMALLEST_Z = 1e-4
_LARGEST_ERROR = 0.2  # of rays that support a draw, on the plane at distance 1
_REVERSED = np.eye(3, dtype=np.float32)[::-1].copy()


def num_candidates(num_rays: int) -> int:
    """Of how many rays, the most confident ones, draws are taken."""
    return max(_RAYS_PER_DRAW, int(num_rays * _SHARE_OF_CANDIDATES))


def cameras_from_rays(
    ray: Float[Array, "*b s h w 6"],
    ray_conf: Float[Array, "*b s h w"],
    image_size: tuple[int, int],
    *,
    draws: Int[Array | np.ndarray, "i 8"] | None = None,
) -> tuple[Float[Array, "*b s 3 4"], Float[Array, "*b s 3 3"]]:
    """`camera_from_world` and intrinsics of each frame from its rays: a pure function.

    A homography from the image to the directions of its rays is a rotation times intrinsics. Eight
    rays find one; of a hundred draws that counts by which the most confidence comes near, and all
    of these rays find the last. The camera is right only where the principal point is the middle of
    the image.

    Args:
        ray, ray_conf: as the model predicts them when it is called with `rays=True`.
        image_size: (height, width) of the frames in pixels.
        draws: which rays to take, the same for all frames: places among the `num_candidates` most
            confident ones. None for a hundred that are always the same; the official code draws
            anew in every call, and takes 8000 random ones of more rays in the end.
    """
    num = ray.shape[-3] * ray.shape[-2]
    if draws is None:
        random, candidates = np.random.default_rng(0), num_candidates(num)
        draws = np.stack(
            [random.permutation(candidates)[:_RAYS_PER_DRAW] for _ in range(_NUM_DRAWS)]
        )
    chosen = jnp.asarray(draws, jnp.int32)
    frames = ray.reshape(-1, num, 6), ray_conf.reshape(-1, num)
    x, y = (
        jnp.asarray((2 * np.arange(size, dtype=np.float32) + 1) / size - 1)
        for size in (ray.shape[-2], ray.shape[-3])
    )
    grid = jnp.stack(jnp.meshgrid(x, y), axis=-1).reshape(num, 2)
    pose, intrinsics = jax.lax.map(lambda frame: _camera(frame[0], frame[1], grid, chosen), frames)
    height, width = image_size
    to_pixels = jnp.asarray(np.diag([width / 2, height / 2, 1]).astype(np.float32))
    intrinsics = jnp.einsum("ij,fjk->fik", to_pixels, intrinsics, precision="highest")
    pose, intrinsics = (x.reshape(*ray.shape[:-3], 3, -1) for x in (pose, intrinsics))
    return geometry.invert_rigid(pose), intrinsics


def _camera(ray, weight, grid, draws):
    """World_from_camera, and intrinsics of an image that spans [0, 2] x [0, 2]."""
    z = ray[:, 2:3]
    is_ahead = jnp.abs(z) > _SMALLEST_Z
    target = jnp.where(is_ahead, ray[:, :2] / jnp.where(is_ahead, z, 1.0), ray[:, :2])
    weight = jnp.where(is_ahead[:, 0], weight, 0.0)
    most_confident = jnp.argsort(-weight)[: num_candidates(len(ray))].astype(jnp.int32)
    of_draw = most_confident[draws]
    found = jax.vmap(_homography)(grid[of_draw], target[of_draw], weight[of_draw])

    def near(homography):
        projected = jnp.einsum("ij,nj->ni", homography, _with_one(grid), precision="highest")
        error = projected[:, :2] / projected[:, 2:] - target
        return jnp.sum(jnp.square(error), axis=1) < _LARGEST_ERROR**2

    support = jax.lax.map(lambda homography: jnp.sum(weight * near(homography)), found)
    best = found[jax.lax.argmax(support, 0, jnp.int32)]
    homography = _homography(grid, target, jnp.where(near(best), weight, 0.0))
    homography = jnp.where(jnp.linalg.det(homography) < 0, -homography, homography)
    rotation, lower = _rotation_times_lower(homography)
    lower = lower / lower[2, 2]
    zero, one = jnp.zeros(()), jnp.ones(())
    intrinsics = jnp.stack(
        [
            jnp.stack([1 / lower[0, 0], zero, lower[2, 0] + 1]),
            jnp.stack([zero, 1 / lower[1, 1], lower[2, 1] + 1]),
            jnp.stack([zero, zero, one]),
        ]
    )
    position = jnp.sum(ray[:, 3:] * weight[:, None], axis=0) / jnp.sum(weight)
    return jnp.concatenate([rotation, position[:, None]], axis=1), intrinsics


def _homography(source, target, weight):
    """The homography that maps points to points with the least weighted algebraic error, and whose
    last entry is 1."""
    root, ones = jnp.sqrt(weight)[:, None], _with_one(source)
    zeros = jnp.zeros_like(ones)
    u, v = target[:, :1], target[:, 1:]
    rows = jnp.concatenate(
        [
            root * jnp.concatenate([-ones, zeros, u * ones], axis=1),
            root * jnp.concatenate([zeros, -ones, v * ones], axis=1),
        ]
    )
    # The triangle has the singular values and directions of the many rows.
    triangle = jnp.linalg.qr(rows, mode="r")
    direction = jnp.linalg.svd(triangle, full_matrices=False)[2][-1]
    matrix = direction.reshape(3, 3)
    return matrix / matrix[2, 2]


def _rotation_times_lower(matrix):
    """An orthogonal matrix times a lower triangular one with a positive diagonal."""
    product = lambda *factors: jnp.linalg.multi_dot(factors, precision="highest")
    orthogonal, upper = jnp.linalg.qr(product(matrix, _REVERSED))
    orthogonal = product(orthogonal, _REVERSED)
    lower = product(_REVERSED, upper, _REVERSED)
    signs = jnp.sign(jnp.diagonal(lower))
    return orthogonal * signs[None], lower * signs[:, None]


def _with_one(points):
    return jnp.concatenate([points, jnp.ones_like(points[:, :1])], axis=1)
