"""Cameras as Depth Anything 3 encodes them: poses that lead from the camera to the world."""

import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vggt_jax import geometry

# Official files: depth_anything_3/model/utils/transform.py, depth_anything_3/api.py.
_SMALLEST_TANGENT = 1e-6
_SMALLEST_SCALE = 0.1


def cameras_from_encoding(
    pose_enc: Float[Array, "*b 9"], image_size: tuple[int, int]
) -> tuple[Float[Array, "*b 3 4"], Float[Array, "*b 3 3"]]:
    """`camera_from_world` and intrinsics of an encoding.

    Args:
        pose_enc: world_from_camera as translation (3) and quaternion (4, x y z w, of any length),
            and vertical and horizontal field of view (2, radians). One of 0 is the smallest that
            there is, whose focal length is a million times half the side.
        image_size: (height, width) of the frame in pixels.
    """
    pose = jnp.concatenate(
        [geometry.matrix_from_quaternion(pose_enc[..., 3:7]), pose_enc[..., :3, None]], axis=-1
    )
    sides = jnp.asarray(np.array(image_size, np.float32))
    tangents = jnp.maximum(jnp.tan(pose_enc[..., 7:9] / 2), _SMALLEST_TANGENT)
    focal = (sides / 2) / tangents
    zero, one = jnp.zeros_like(focal[..., 0]), jnp.ones_like(focal[..., 0])
    rows = (
        (focal[..., 1], zero, one * (image_size[1] / 2)),
        (zero, focal[..., 0], one * (image_size[0] / 2)),
        (zero, zero, one),
    )
    intrinsics = jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)
    return geometry.invert_rigid(pose), intrinsics


def encoding_from_cameras(
    camera_from_world: Float[Array, "*b r 4"],
    intrinsics: Float[Array, "*b 3 3"],
    image_size: tuple[int, int],
) -> Float[Array, "*b 9"]:
    """The encoding of cameras, with a quaternion of length 1 whose scalar is not negative.

    It has no place for a principal point.
    """
    world_from_camera = geometry.invert_rigid(camera_from_world)[..., :3, :]
    return geometry.pose_encoding_from_camera(world_from_camera, intrinsics, image_size)


def normalised_cameras(
    camera_from_world: Float[Array, "b s 4 4"], counts: Bool[Array, "b s"] | None = None
) -> Float[Array, "b s 4 4"]:
    """The same cameras in the world of the first of them and in units of their median distance to
    it, the lower one of two, of a tenth of the given unit at least.

    Args:
        counts: which frames count, the first ones of each scene; None for all.
    """
    first = geometry.invert_rigid(camera_from_world[:, :1])
    relative = jnp.einsum("bsij,btjk->bsik", camera_from_world, first, precision="highest")
    distance = jnp.sqrt(jnp.sum(jnp.square(geometry.invert_rigid(relative)[..., :3, 3]), axis=-1))
    b, s = distance.shape
    if counts is None:
        counts = jnp.ones((b, s), bool)
    ordered = jnp.sort(jnp.where(counts, distance, jnp.inf), axis=1)
    place = (jnp.sum(counts, axis=1, keepdims=True) - 1) // 2
    scale = jnp.maximum(jnp.take_along_axis(ordered, place, axis=1), _SMALLEST_SCALE)
    translation = relative[..., :3, 3:] / scale[..., None, None]
    moved = jnp.concatenate([relative[..., :3, :3], translation], axis=-1)
    return jnp.concatenate([moved, relative[..., 3:, :]], axis=-2)
