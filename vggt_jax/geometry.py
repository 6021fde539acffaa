"""Cameras, rotations, depth and points: pure functions of jax arrays with any leading dimensions.

Conventions, everywhere in the project:

- Camera coordinates are OpenCV's: x right, y down, z forward. `camera_from_world` is [R | t] with
  `camera_points = R @ world_points + t`.
- Quaternions are (x, y, z, w), the scalar last.
- Sizes are (height, width); pixels and points are (x, y) and (x, y, z).
- Pixels here are what `intrinsics` maps to, and the official code takes the indices 0 .. width - 1
  for that, although the principal point it predicts, (width / 2, height / 2), is the middle of an
  image whose pixel centres lie at index + 0.5. So points that are unprojected here carry a bias of
  half a pixel. It is kept: the released models were trained and measured with it.

The products of these small matrices are computed in full float32 on every device. On a GPU the
default would round the factors to TF32, whose 10 bits put a point off by up to 2^-11 of its
distance.
"""

import jax
import jax.numpy as jnp
from jaxtyping import Array, Float

_FULL_PRECISION = jax.lax.Precision.HIGHEST


# Rotations


def matrix_from_quaternion(quaternion: Float[Array, "*batch 4"]) -> Float[Array, "*batch 3 3"]:
    """Rotation matrices of quaternions of any length; the length is divided out.

    Args:
      quaternion: [... 4] (x, y, z, w). A quaternion of length 0, which has no direction, gives the
        identity (the official `quat_to_mat` gives NaN).

    Returns:
      [... 3 3]. Values as `quat_to_mat` in the official `utils/rotation.py`.
    """
    x, y, z, w = jnp.moveaxis(quaternion, -1, 0)
    squared_length = jnp.sum(quaternion * quaternion, axis=-1)
    is_zero = squared_length == 0
    # Guarded twice, so that the branch not taken has a finite gradient.
    factor = jnp.where(is_zero, 0.0, 2.0 / jnp.where(is_zero, 1.0, squared_length))
    return _matrix(
        (1 - factor * (y * y + z * z), factor * (x * y - z * w), factor * (x * z + y * w)),
        (factor * (x * y + z * w), 1 - factor * (x * x + z * z), factor * (y * z - x * w)),
        (factor * (x * z - y * w), factor * (y * z + x * w), 1 - factor * (x * x + y * y)),
    )


def quaternion_from_matrix(rotation: Float[Array, "*batch 3 3"]) -> Float[Array, "*batch 4"]:
    """Unit quaternions of rotation matrices, with a non-negative scalar.

    The gradient is finite everywhere, half turns included.

    Args:
      rotation: [... 3 3], rotation matrices.

    Returns:
      [... 4] (x, y, z, w), w >= 0. Values as `mat_to_quat` in the official `utils/rotation.py`.
    """
    (m00, m01, m02), (m10, m11, m12), (m20, m21, m22) = (
        tuple(rotation[..., row, column] for column in range(3)) for row in range(3)
    )
    # Four times the outer product of (w, x, y, z) with itself. Each row is a multiple of the
    # quaternion; the row of the largest component is the best conditioned.
    outer = _matrix(
        (1 + m00 + m11 + m22, m21 - m12, m02 - m20, m10 - m01),
        (m21 - m12, 1 + m00 - m11 - m22, m10 + m01, m02 + m20),
        (m02 - m20, m10 + m01, 1 - m00 + m11 - m22, m12 + m21),
        (m10 - m01, m02 + m20, m12 + m21, 1 - m00 - m11 + m22),
    )  # [... 4 4]
    diagonal = jnp.diagonal(outer, axis1=-2, axis2=-1)  # [... 4], 4 times the squares
    best = jnp.argmax(diagonal, axis=-1)[..., None]
    row = jnp.take_along_axis(outer, best[..., None], axis=-2)[..., 0, :]
    square = jnp.take_along_axis(diagonal, best, axis=-1)
    # At least 1 for a rotation. The floor, 0.1 before the root in the official code, is for
    # matrices that are none.
    quaternion = row / (2 * jnp.sqrt(jnp.maximum(square, 0.01)))
    quaternion = jnp.roll(quaternion, -1, axis=-1)
    return jnp.where(quaternion[..., 3:] < 0, -quaternion, quaternion)


# Cameras


def camera_from_pose_encoding(
    pose_enc: Float[Array, "*batch 9"], image_size: tuple[int, int]
) -> tuple[Float[Array, "*batch 3 4"], Float[Array, "*batch 3 3"]]:
    """Extrinsics and intrinsics of the model's pose encoding.

    Args:
      pose_enc: [... 9]: translation (3), quaternion (x, y, z, w) of any length (4), vertical and
        horizontal field of view in radians (2). A field of view of 0, which the model's ReLU can
        produce, gives an infinite focal length and leaves everything else finite.
      image_size: (height, width) of the model frame in pixels.

    Returns:
      camera_from_world [... 3 4] and intrinsics [... 3 3] in model pixels, with the principal point
      at (width / 2, height / 2). Values as `pose_encoding_to_extri_intri` in the official
      `utils/pose_enc.py`.
    """
    height, width = image_size
    rotation = matrix_from_quaternion(pose_enc[..., 3:7])
    camera_from_world = jnp.concatenate([rotation, pose_enc[..., :3, None]], axis=-1)
    focal_y = (height / 2) / jnp.tan(pose_enc[..., 7] / 2)
    focal_x = (width / 2) / jnp.tan(pose_enc[..., 8] / 2)
    zero, one = jnp.zeros_like(focal_x), jnp.ones_like(focal_x)
    intrinsics = _matrix(
        (focal_x, zero, one * (width / 2)),
        (zero, focal_y, one * (height / 2)),
        (zero, zero, one),
    )
    return camera_from_world, intrinsics


def pose_encoding_from_camera(
    camera_from_world: Float[Array, "*batch 3 4"],
    intrinsics: Float[Array, "*batch 3 3"],
    image_size: tuple[int, int],
) -> Float[Array, "*batch 9"]:
    """The model's pose encoding of extrinsics and intrinsics.

    The encoding has no place for a principal point or a skew: both are dropped.

    Args:
      camera_from_world: [... 3 4].
      intrinsics: [... 3 3] in pixels of an image of `image_size`.
      image_size: (height, width) in pixels.

    Returns:
      [... 9] as `camera_from_pose_encoding` takes it, with a unit quaternion. Values as
      `extri_intri_to_pose_encoding` in the official `utils/pose_enc.py`.
    """
    height, width = image_size
    field_of_view_y = 2 * jnp.arctan((height / 2) / intrinsics[..., 1, 1])
    field_of_view_x = 2 * jnp.arctan((width / 2) / intrinsics[..., 0, 0])
    return jnp.concatenate(
        [
            camera_from_world[..., 3],
            quaternion_from_matrix(camera_from_world[..., :3]),
            field_of_view_y[..., None],
            field_of_view_x[..., None],
        ],
        axis=-1,
    )


def invert_rigid(camera_from_world: Float[Array, "*batch r c"]) -> Float[Array, "*batch r c"]:
    """World_from_camera of camera_from_world, and the other way round.

    Args:
      camera_from_world: [... 3 4] or [... 4 4], a rotation and a translation.

    Returns:
      The inverse in the shape given.

    Raises:
      ValueError: another shape.
    """
    rows = camera_from_world.shape[-2]
    if rows not in (3, 4) or camera_from_world.shape[-1] != 4:
        raise ValueError(f"{camera_from_world.shape=} must end in (3, 4) or (4, 4)")
    rotation, translation = camera_from_world[..., :3, :3], camera_from_world[..., :3, 3]
    inverse_rotation = jnp.swapaxes(rotation, -1, -2)
    inverse_translation = -_einsum("...ij,...j->...i", inverse_rotation, translation)
    inverse = jnp.concatenate([inverse_rotation, inverse_translation[..., None]], axis=-1)
    if rows == 4:
        inverse = jnp.concatenate([inverse, camera_from_world[..., 3:, :]], axis=-2)
    return inverse


def camera_positions(camera_from_world: Float[Array, "*batch 3 4"]) -> Float[Array, "*batch 3"]:
    """Where the cameras stand, in world coordinates: [... 3] of [... 3 4]."""
    return invert_rigid(camera_from_world)[..., 3]


# Points


def camera_points_from_world(
    world_points: Float[Array, "*points m 3"], camera_from_world: Float[Array, "*batch 3 4"]
) -> Float[Array, "*result m 3"]:
    """World points in camera coordinates; leading dimensions broadcast."""
    rotation, translation = camera_from_world[..., :3], camera_from_world[..., 3]
    rotated = _einsum("...ij,...mj->...mi", rotation, world_points)
    return rotated + translation[..., None, :]


def world_points_from_camera(
    camera_points: Float[Array, "*points m 3"], camera_from_world: Float[Array, "*batch 3 4"]
) -> Float[Array, "*result m 3"]:
    """Camera points in world coordinates, the inverse of `camera_points_from_world`."""
    return camera_points_from_world(camera_points, invert_rigid(camera_from_world))


def camera_points_from_depth(
    depth: Float[Array, "*batch h w"], intrinsics: Float[Array, "*batch 3 3"]
) -> Float[Array, "*batch h w 3"]:
    """Camera points of depth maps: for every pixel the point at that z on its ray.

    Args:
      depth: [... h w], distance along the optical axis (z, not along the ray).
      intrinsics: [... 3 3]; a skew is honoured. Pixels are integer indices, the official convention
        with its bias of half a pixel (see the head of this file). Where a focal length is
        infinite, that coordinate is 0.

    Returns:
      [... h w 3]. Values as `depth_to_cam_coords_points` in the official `utils/geometry.py`.
    """
    height, width = depth.shape[-2:]
    focal_x, skew, centre_x = (intrinsics[..., 0, i, None, None] for i in range(3))
    focal_y, centre_y = (intrinsics[..., 1, i, None, None] for i in (1, 2))
    pixel_x = jnp.arange(width, dtype=depth.dtype)
    pixel_y = jnp.arange(height, dtype=depth.dtype)[:, None]
    y = (pixel_y - centre_y) * depth / focal_y
    x = ((pixel_x - centre_x) * depth - skew * y) / focal_x
    return jnp.stack([x, y, depth], axis=-1)


def unproject_depth(
    depth: Float[Array, "*batch h w"],
    camera_from_world: Float[Array, "*batch 3 4"],
    intrinsics: Float[Array, "*batch 3 3"],
) -> Float[Array, "*batch h w 3"]:
    """World points of depth maps.

    Args:
      depth: [... h w], distance along the optical axis.
      camera_from_world: [... 3 4].
      intrinsics: [... 3 3]; pixels are integer indices, as in `camera_points_from_depth`.

    Returns:
      [... h w 3]. Values as `unproject_depth_map_to_point_map` in the official
      `utils/geometry.py`.
    """
    camera_points = camera_points_from_depth(depth, intrinsics)
    flat = camera_points.reshape(*camera_points.shape[:-3], -1, 3)
    return world_points_from_camera(flat, camera_from_world).reshape(camera_points.shape)


def project_points(
    world_points: Float[Array, "*points m 3"],
    camera_from_world: Float[Array, "*batch 3 4"],
    intrinsics: Float[Array, "*batch 3 3"],
) -> tuple[Float[Array, "*result m 2"], Float[Array, "*result m"]]:
    """Pixels and depths of world points, the inverse of `unproject_depth`.

    Args:
      world_points: [... m 3]; leading dimensions broadcast against the cameras.
      camera_from_world: [... 3 4].
      intrinsics: [... 3 3].

    Returns:
      pixels [... m 2] (x, y) in the pixel convention of `intrinsics`, and depth [... m] along the
      optical axis. A point is in front of the camera where its depth is positive; elsewhere its
      pixel means nothing. At depth 0, or with an infinite focal length, it is not finite.
    """
    camera_points = camera_points_from_world(world_points, camera_from_world)
    x, y, depth = jnp.moveaxis(camera_points, -1, 0)
    ray_x, ray_y = x / depth, y / depth
    focal_x, skew, centre_x = (intrinsics[..., 0, i, None] for i in range(3))
    focal_y, centre_y = (intrinsics[..., 1, i, None] for i in (1, 2))
    pixels = jnp.stack(
        [focal_x * ray_x + skew * ray_y + centre_x, focal_y * ray_y + centre_y], axis=-1
    )
    return pixels, depth


def _matrix(*rows: tuple[Array, ...]) -> Array:
    """[... rows columns] of its entries."""
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def _einsum(subscripts: str, a: Array, b: Array) -> Array:
    return jnp.einsum(subscripts, a, b, precision=_FULL_PRECISION)
