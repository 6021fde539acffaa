"""How many of the views that see a point agree on it: a confidence that no head predicts."""

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vggt_jax import geometry
from vggt_jax.errors import InputError
from vggt_jax.host import with_numpy
from vggt_jax.scene.confidence import allowed_pixels
from vggt_jax.scene.reconstruction import Reconstruction

# Official files: mapanything/utils/multiview_confidence.py, utils/wai/intersection_check.py.
_SMALLEST_DEPTH = 0.04
_DEPTHS_OF_NOTHING = (0.1, 100.0)  # nearest and farthest of a view without depth
# Cut pyramids meet unless there is a gap of so much of their extent.
_TOUCHING = 1e-5


def with_multiview_confidence(recon: Reconstruction) -> Reconstruction:
    """Puts `multiview_confidence` in place of the confidences that a model predicted.

    Args:
        recon: a scene in NumPy arrays, without scene axis.

    Returns:
        The scene whose confidences are shares of views, in [0, 1] (`confidence_kind` "sigmoid"), 0
        on masked pixels and on padding, which say nothing of other views either.

    Raises:
        InputError: it has no depth or no cameras.
    """
    if recon.depth is None or recon.camera_from_world is None or recon.intrinsics is None:
        raise InputError("multiview_confidence needs a scene with depth and cameras")
    allowed = allowed_pixels(recon)
    arrays = (recon.depth, recon.intrinsics, recon.camera_from_world, allowed, allowed)
    found = with_numpy(_of_masked, *map(np.asarray, arrays), pixel_centre=recon.pixel_centre)
    of_points = None if recon.world_points is None else np.array(found)
    return dataclasses.replace(
        recon,
        depth_confidence=np.array(found),
        world_points_confidence=of_points,
        confidence_kind="sigmoid",
    )


def multiview_confidence(
    depth: Float[Array, "*b s h w"],
    intrinsics: Float[Array, "*b s 3 3"],
    camera_from_world: Float[Array, "*b s 3 4"],
    *,
    mask: Bool[Array, "*b s h w"] | None = None,
    compared: Bool[Array, "*b s h w"] | None = None,
    pixel_centre: float = 0.5,
    absolute: float = 0.02,
    relative: float = 0.02,
) -> Float[Array, "*b s h w"]:
    """The share of the other views that see each pixel's point at the depth that they have there.

    A pure function. A view counts for a point that lies in its image more than 0.04 before its
    camera, if what both views see can meet at all: the pyramids of their images between the nearest
    and the farthest depth. Values as `compute_multiview_depth_confidence` of MapAnything, but that
    pyramids which merely touch meet here.

    Args:
        depth: along the viewing axis; 0 where there is none.
        intrinsics: in pixels.
        camera_from_world: OpenCV.
        mask: pixels to find a confidence of; of others it is 0, as without depth. None: all.
        compared: pixels of other views that points are compared with; None: all, as in the official
            code.
        pixel_centre: see `Reconstruction.pixel_centre`.
        absolute, relative: views agree whose depths differ by less than `absolute`, in the unit of
            depth, and `relative` times the depth.

    Returns:
        In [0, 1]; 0 where no other view sees the point, and 1 in a view that meets no other.
    """
    has_depth = depth > 0
    mask = has_depth if mask is None else mask & has_depth
    compared = jnp.ones(depth.shape, bool) if compared is None else compared

    def of_scene(arrays):
        depth, intrinsics, cameras, mask, compared = arrays
        meets = pyramids_meet(depth, intrinsics, cameras)

        def of_view(view):
            number, depth_of_view, intrinsics_of_view, camera, mask_of_view, meets_view = view
            points = geometry.unproject_depth(
                depth_of_view, camera, intrinsics_of_view, pixel_centre=pixel_centre
            )
            others = meets_view & (jnp.arange(len(depth), dtype=jnp.int32) != number)

            def compare(counts, other):
                depth, intrinsics, camera, compared, counts_at_all = other
                of_other = (depth, intrinsics, camera, compared)

                def add(counts):
                    sees, agrees = _sees(points, of_other, pixel_centre, absolute, relative)
                    sees &= mask_of_view
                    return counts[0] + sees, counts[1] + (sees & agrees)

                return jax.lax.cond(counts_at_all, add, lambda counts: counts, counts), None

            zeros = jnp.zeros(depth_of_view.shape, jnp.int32)
            given = (depth, intrinsics, cameras, compared, others)
            (seen, agreeing), _ = jax.lax.scan(compare, (zeros, zeros), given)
            share = agreeing / jnp.maximum(seen, 1).astype(jnp.float32)
            return jnp.where(others.any(), share, 1.0)

        numbers = jnp.arange(len(depth), dtype=jnp.int32)
        return jax.lax.map(of_view, (numbers, depth, intrinsics, cameras, mask, meets))

    arrays = (depth, intrinsics, camera_from_world, mask, compared)
    if depth.ndim == 3:
        return of_scene(arrays)
    flat = [x.reshape(-1, *x.shape[depth.ndim - 3 :]) for x in arrays]
    return jax.lax.map(of_scene, tuple(flat)).reshape(depth.shape)


def pyramids_meet(
    depth: Float[Array, "s h w"],
    intrinsics: Float[Array, "s 3 3"],
    camera_from_world: Float[Array, "s 3 4"],
) -> Bool[Array, "s s"]:
    """Whether what two views see can have a point in common.

    The pyramid of a view is cut off at its nearest and its farthest depth, and is symmetric: the
    principal point is taken for the middle of the image. Two convex bodies meet unless an axis
    separates them: a normal of a face, or one to an edge of each.
    """
    has_depth, none = depth > 0, _DEPTHS_OF_NOTHING
    near = jnp.min(jnp.where(has_depth, depth, jnp.inf), axis=(1, 2))
    far = jnp.max(jnp.where(has_depth, depth, 0.0), axis=(1, 2))
    near, far = (
        jnp.where(has_depth.any((1, 2)), x, otherwise)
        for x, otherwise in zip((near, far), none, strict=True)
    )
    tangents = jnp.stack(
        [intrinsics[:, i, 2] / intrinsics[:, i, i] for i in range(2)], axis=-1
    )  # [s 2]
    signs = np.array([[1, 1], [-1, 1], [-1, -1], [1, -1]], np.float32)
    rays = jnp.concatenate(
        [signs * tangents[:, None], jnp.ones((len(depth), 4, 1), jnp.float32)], axis=-1
    )
    corners = jnp.concatenate([rays * near[:, None, None], rays * far[:, None, None]], axis=1)
    world_from_camera = geometry.invert_rigid(camera_from_world)
    turned = lambda x: _turned(world_from_camera[:, None, :3, :3], x)
    edges = jnp.concatenate([jnp.broadcast_to(np.eye(3, dtype=np.float32)[:2], (len(depth), 2, 3)),
                             _unit(rays)], axis=1)  # fmt: skip
    normals = jnp.concatenate(
        [
            jnp.broadcast_to(np.array([[0, 0, 1]], np.float32), (len(depth), 1, 3)),
            _unit(jnp.cross(rays, jnp.roll(rays, 1, axis=1))),
        ],
        axis=1,
    )
    corners, edges, normals = turned(corners), turned(edges), turned(normals)
    corners = corners + world_from_camera[:, None, :3, 3]

    def with_all(view):
        corners_of_view, edges_of_view, normals_of_view = view
        between = jnp.cross(edges_of_view[None, :, None], edges[:, None])
        of_view = jnp.broadcast_to(normals_of_view, (len(depth), *normals_of_view.shape))
        axes = jnp.concatenate([of_view, normals, between.reshape(len(depth), -1, 3)], axis=1)
        middle = jnp.mean(corners_of_view, axis=0)  # Far from the origin little would be left.
        first, second = corners_of_view - middle, corners - middle
        extent = jnp.max(jnp.abs(first)) + jnp.max(jnp.abs(second), axis=(1, 2))
        along = lambda points: jnp.sum(axes[:, :, None] * points, axis=-1)  # [s axis corner]
        first, second = along(first[None, None]), along(second[:, None])
        gap = jnp.maximum(
            jnp.min(first, -1) - jnp.max(second, -1), jnp.min(second, -1) - jnp.max(first, -1)
        )
        return ~jnp.any(gap > _TOUCHING * extent[:, None], axis=1)

    return jax.lax.map(with_all, (corners, edges, normals))


def _sees(points, view, pixel_centre, absolute, relative):
    """Which points [h w 3] a view sees, and of which its depth [h w] agrees."""
    depth, intrinsics, camera, compared = view
    height, width = depth.shape
    flat = points.reshape(-1, 3)
    in_camera = geometry.camera_points_from_world(flat, camera)
    z = in_camera[:, 2]
    on_image = _turned(intrinsics, in_camera)[:, :2] / jnp.maximum(z, 1e-6)[:, None]
    x, y = (on_image[:, i] - pixel_centre for i in range(2))
    # The official bounds: from the centre of the first pixel to beyond that of the last.
    sees = (x >= 0) & (x < width) & (y >= 0) & (y < height) & (z > _SMALLEST_DEPTH)
    column, row = (
        jnp.round(jnp.clip(at, 0, size - 1)).astype(jnp.int32)
        for at, size in ((x, width), (y, height))
    )
    sees &= compared[row, column]
    agrees = jnp.abs(z - depth[row, column]) < absolute + relative * z
    return sees.reshape(points.shape[:2]), agrees.reshape(points.shape[:2])


def _of_masked(depth, intrinsics, cameras, mask, compared, *, pixel_centre):
    options = {"mask": mask, "compared": compared, "pixel_centre": pixel_centre}
    return multiview_confidence(depth, intrinsics, cameras, **options)


def _turned(matrices, vectors):
    """Products of matrices [.. 3 3] and vectors [.. 3], in full precision everywhere."""
    return jnp.sum(matrices * vectors[..., None, :], axis=-1)


def _unit(vectors):
    return vectors / jnp.linalg.norm(vectors, axis=-1, keepdims=True)
