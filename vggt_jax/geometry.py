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

import functools

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

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
    rows = (
        (1 + m00 + m11 + m22, m21 - m12, m02 - m20, m10 - m01),
        (m21 - m12, 1 + m00 - m11 - m22, m10 + m01, m02 + m20),
        (m02 - m20, m10 + m01, 1 - m00 + m11 - m22, m12 + m21),
        (m10 - m01, m02 + m20, m12 + m21, 1 - m00 - m11 + m22),
    )
    outer = _matrix(*rows)  # [... 4 4]
    diagonal = jnp.stack([rows[i][i] for i in range(4)], axis=-1)  # [... 4], 4 times the squares
    best = jax.lax.argmax(diagonal, diagonal.ndim - 1, jnp.int32)[..., None]
    row = jnp.take_along_axis(outer, best[..., None], axis=-2)[..., 0, :]
    square = jnp.take_along_axis(diagonal, best, axis=-1)
    # At least 1 for a rotation. The floor, 0.1 before the root in the official code, is for
    # matrices that are none.
    quaternion = row / (2 * jnp.sqrt(jnp.maximum(square, 0.01)))
    quaternion = jnp.roll(quaternion, -1, axis=-1)
    return jnp.where(quaternion[..., 3:] < 0, -quaternion, quaternion)


@jax.custom_jvp
def nearest_rotation(matrix: Float[Array, "*batch 3 3"]) -> Float[Array, "*batch 3 3"]:
    """The rotation matrices closest to matrices in the sense of squared differences, in float32.

    Unlike that of the decomposition that it is made of, the gradient is finite wherever the
    nearest rotation is unique, equal singular values included.

    Args:
      matrix: [... 3 3], any matrices; a reflection gives the nearest proper rotation.

    Returns:
      [... 3 3]. Values as `svd_orthogonalize` in the official π³, `models/layers/camera_head.py`.
    """
    return _rotation_and_stretch(matrix)[0]


def _rotation_and_stretch(matrix):
    """`R`, `V` and `h` with `matrix = R @ V @ diag(h) @ V^T`, the polar decomposition."""
    u, singular, v_transposed = jnp.linalg.svd(matrix.astype(jnp.float32), full_matrices=False)
    unsigned = _einsum("...ij,...jk->...ik", u, v_transposed)
    is_reflection = (
        jnp.sum(jnp.cross(unsigned[..., 0], unsigned[..., 1]) * unsigned[..., 2], -1) < 0
    )
    sign = jnp.where(is_reflection, np.float32(-1), np.float32(1))[..., None]
    signs = jnp.concatenate([jnp.ones_like(singular[..., :2]), sign], axis=-1)
    rotation = _einsum("...ij,...jk->...ik", u * signs[..., None, :], v_transposed)
    return rotation, jnp.swapaxes(v_transposed, -1, -2), singular * signs


@nearest_rotation.defjvp
def _nearest_rotation_jvp(primals, tangents):
    rotation, v, stretch = _rotation_and_stretch(*primals)
    # In the basis of the stretch, the antisymmetric part of R^T dM is what turns the rotation.
    turned = _einsum("...ij,...ik->...jk", rotation, tangents[0].astype(jnp.float32))
    turned = _einsum("...ji,...jk,...kl->...il", v, turned, v)
    sums = stretch[..., :, None] + stretch[..., None, :]
    is_unique = jnp.abs(sums) > jnp.finfo(jnp.float32).tiny
    turning = (turned - jnp.swapaxes(turned, -1, -2)) / jnp.where(is_unique, sums, 1.0)
    turning = jnp.where(is_unique, turning, 0.0)
    return rotation, _einsum("...ij,...jk,...kl,...ml->...im", rotation, v, turning, v)


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
    return camera_from_world, _centred_intrinsics(focal_x, focal_y, image_size)


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
    return rotated + jax.lax.broadcast_to_rank(translation[..., None, :], rotated.ndim)


def world_points_from_camera(
    camera_points: Float[Array, "*points m 3"], camera_from_world: Float[Array, "*batch 3 4"]
) -> Float[Array, "*result m 3"]:
    """Camera points in world coordinates, the inverse of `camera_points_from_world`."""
    return camera_points_from_world(camera_points, invert_rigid(camera_from_world))


def transform_point_maps(
    points: Float[Array, "*batch h w 3"], world_from_camera: Float[Array, "*batch 4 4"]
) -> Float[Array, "*batch h w 3"]:
    """Maps of camera points in world coordinates, a camera for each map.

    Args:
      points: [... h w 3].
      world_from_camera: [... 4 4].

    Returns:
      [... h w 3].
    """
    rotation = world_from_camera[..., None, None, :3, :3]
    translation = world_from_camera[..., None, None, :3, 3]
    # Sums of products and no matrix product: float32 everywhere, and one pass over the maps.
    return sum(rotation[..., i] * points[..., i, None] for i in range(3)) + translation


def intrinsics_from_point_maps(points: Float[Array, "*batch h w 3"]) -> Float[Array, "*batch 3 3"]:
    """Intrinsics that agree best with maps of camera points: least squares over all pixels.

    Args:
      points: [... h w 3] in camera coordinates; only their directions count.

    Returns:
      [... 3 3] in pixels, with the principal point at (width / 2, height / 2). The focal lengths
      are those of `recover_intrinsic_from_rays_d` with its principal point forced to the centre, as
      the official π³ calls it (`utils/geometry.py`, `example_mm.py`). That function counts from the
      centre of the first pixel, where the same principal point is half a pixel less.
    """
    height, width = points.shape[-3:-1]
    # The official guard against points in the plane of the camera.
    z = jnp.abs(points[..., 2]) + 1e-10

    def focal(along, size, axis):
        pixel = np.arange(size, dtype=np.float32) - np.float32((size - 1) / 2)
        pixel = pixel[:, None] if axis == 0 else pixel[None]
        ray = along / z
        pixel = jax.lax.broadcast_to_rank(pixel, ray.ndim)
        total = lambda x: jnp.sum(jnp.sum(x, axis=-1), axis=-1)
        return total(ray * pixel) / total(ray * ray)

    focal_x, focal_y = focal(points[..., 0], width, 1), focal(points[..., 1], height, 0)
    return _centred_intrinsics(focal_x, focal_y, (height, width))


def depth_edges(
    depth: Float[Array, "*batch h w"],
    *,
    mask: Bool[Array, "*batch h w"] | None = None,
    relative_tolerance: float = 0.03,
) -> Bool[Array, "*batch h w"]:
    """Which pixels lie at a jump of depth, where points float between two surfaces.

    Args:
      depth: [... h w], positive.
      mask: [... h w], pixels that count as neighbours; None for all.
      relative_tolerance: the difference of the largest and the smallest depth among a pixel and its
        eight neighbours that is none yet, as a share of the pixel's own.

    Returns:
      [... h w]. Values as `depth_edge` in the official π³, `utils/geometry.py`, whose users give it
      the default.
    """
    # Nothing here is NaN, which people have JAX look for: no difference of infinities, no 0 / 0.
    is_finite = jnp.isfinite(depth) if mask is None else jnp.isfinite(depth) & mask
    near = lambda x: x if mask is None else jnp.where(mask, x, -jnp.inf)
    largest, opposite = (
        jnp.where(is_finite, _largest_nearby(near(x)), 0.0) for x in (depth, -depth)
    )
    jump = largest + opposite
    return jump / jnp.where((depth == 0) & (jump == 0), 1.0, depth) > relative_tolerance


def _largest_nearby(x: Float[Array, "*batch h w"]) -> Float[Array, "*batch h w"]:
    """The largest value in the 3 x 3 window around each pixel."""
    for axis in (x.ndim - 2, x.ndim - 1):
        margins = [(int(d == axis), int(d == axis)) for d in range(x.ndim)]
        padded = jnp.pad(x, margins, constant_values=-jnp.inf)
        size = x.shape[axis]
        windows = (jax.lax.slice_in_dim(padded, i, i + size, axis=axis) for i in range(3))
        x = functools.reduce(jnp.maximum, windows)
    return x


def camera_points_from_depth(
    depth: Float[Array, "*batch h w"],
    intrinsics: Float[Array, "*batch 3 3"],
    *,
    pixel_centre: float = 0.0,
) -> Float[Array, "*batch h w 3"]:
    """Camera points of depth maps: for every pixel the point at that z on its ray.

    Args:
      depth: [... h w], distance along the optical axis (z, not along the ray).
      intrinsics: [... 3 3]; a skew is honoured. Where a focal length is infinite, that coordinate
        is 0.
      pixel_centre: where the ray of the first pixel meets the image. 0, its corner, is the official
        convention of VGGT with its bias of half a pixel (see the head of this file); 0.5 is its
        centre, as `intrinsics_from_point_maps` takes it.

    Returns:
      [... h w 3]. Values as `depth_to_cam_coords_points` in the official `utils/geometry.py`.
    """
    height, width = depth.shape[-2:]
    focal_x, skew, centre_x = (intrinsics[..., 0, i, None, None] for i in range(3))
    focal_y, centre_y = (intrinsics[..., 1, i, None, None] for i in (1, 2))
    pixel_x, pixel_y = (
        jax.lax.broadcast_to_rank(jnp.arange(size, dtype=depth.dtype) + pixel_centre, depth.ndim)
        for size in (width, height)
    )
    pixel_y = jnp.swapaxes(pixel_y, -1, -2)
    y = (pixel_y - centre_y) * depth / focal_y
    x = ((pixel_x - centre_x) * depth - skew * y) / focal_x
    return jnp.stack([x, y, depth], axis=-1)


def unproject_depth(
    depth: Float[Array, "*batch h w"],
    camera_from_world: Float[Array, "*batch 3 4"],
    intrinsics: Float[Array, "*batch 3 3"],
    *,
    pixel_centre: float = 0.0,
) -> Float[Array, "*batch h w 3"]:
    """World points of depth maps.

    Args:
      depth: [... h w], distance along the optical axis.
      camera_from_world: [... 3 4].
      intrinsics: [... 3 3].
      pixel_centre: as for `camera_points_from_depth`.

    Returns:
      [... h w 3]. Values as `unproject_depth_map_to_point_map` in the official
      `utils/geometry.py`.
    """
    camera_points = camera_points_from_depth(depth, intrinsics, pixel_centre=pixel_centre)
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
    of_camera = lambda i, j: jax.lax.broadcast_to_rank(intrinsics[..., i, j, None], depth.ndim)
    focal_x, skew, centre_x = (of_camera(0, i) for i in range(3))
    focal_y, centre_y = (of_camera(1, i) for i in (1, 2))
    pixels = jnp.stack(
        [focal_x * ray_x + skew * ray_y + centre_x, focal_y * ray_y + centre_y], axis=-1
    )
    return pixels, depth


def _centred_intrinsics(focal_x: Array, focal_y: Array, image_size: tuple[int, int]) -> Array:
    """[... 3 3] with the principal point in the middle of an image of (height, width)."""
    height, width = image_size
    zero, one = jnp.zeros_like(focal_x), jnp.ones_like(focal_x)
    return _matrix(
        (focal_x, zero, one * (width / 2)),
        (zero, focal_y, one * (height / 2)),
        (zero, zero, one),
    )


def _matrix(*rows: tuple[Array, ...]) -> Array:
    """[... rows columns] of its entries."""
    return jnp.stack([jnp.stack(row, axis=-1) for row in rows], axis=-2)


def _einsum(subscripts: str, *factors: Array) -> Array:
    return jnp.einsum(subscripts, *factors, precision=_FULL_PRECISION)
