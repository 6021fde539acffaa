"""What is known of a scene, in the form in which MapAnything was trained to take it."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Array, Bool, Float

from vggt_jax import geometry
from vggt_jax.errors import InputError
from vggt_jax.layers.shards import FrameShards, of_all, of_own
from vggt_jax.scene.priors import Priors

_SMALL = 1e-8  # official file: mapanything/utils/geometry.py, in every mean below


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class GeometricInputs:
    """Rays, depth and cameras of some frames; what nothing is known of at all is None.

    Attributes:
        rays: in which direction each pixel looks from its own camera, of length 1.
        depth: along the rays, 0 where unknown, in any unit.
        rotation: of each camera, to the coordinates of the first frame's: quaternions (x, y, z, w).
        translation: of each camera, in the coordinates of the first frame's, in any unit; that of
            the first frame is 0.
        rays_known, depth_known, poses_known: of which frames.
        depth_is_metric, poses_are_metric: of which scenes the unit is a metre and shall be told.
    """

    rays: Float[Array, "b s height width 3"] | None = None
    depth: Float[Array, "b s height width"] | None = None
    rotation: Float[Array, "b s 4"] | None = None
    translation: Float[Array, "b s 3"] | None = None
    rays_known: Bool[Array, "b s"] | None = None
    depth_known: Bool[Array, "b s"] | None = None
    poses_known: Bool[Array, "b s"] | None = None
    depth_is_metric: Bool[Array, " b"] | None = None
    poses_are_metric: Bool[Array, " b"] | None = None

    @classmethod
    def of(
        cls, priors: Priors, images: Array, shards: FrameShards | None = None
    ) -> "GeometricInputs":
        """What priors of these frames, in their own conventions, come to; of several devices, those
        of this one.

        Depth counts where rays are known, which say how far along them it lies; poses count where
        that of the first frame is known, to which they are relative.

        Raises:
            ValueError: shapes of the priors do not fit the images.
        """
        given: Any = priors.for_images(images)  # arrays with masks, where there are any
        size = (images.shape[2], images.shape[3])
        fields: dict[str, Any] = {}
        if given.intrinsics is not None or given.rays is not None:
            rays, known = _rays(given, size)
            fields |= {"rays": rays, "rays_known": known}
            if given.depth is not None:
                fields |= {
                    "depth": depth_along_rays(given.depth, rays),
                    "depth_known": given.depth_known & known,
                    "depth_is_metric": given.metric,
                }
        if given.camera_from_world is not None:
            s = images.shape[1]
            # Each device has the cameras of all frames, because all are relative to the first.
            cameras, known = (
                of_all(shards, x) for x in (given.camera_from_world, given.poses_known)
            )
            world_from_camera = geometry.invert_rigid(cameras)
            rotation, translation = relative_to_the_first(
                geometry.quaternion_from_matrix(world_from_camera[..., :3, :3]),
                world_from_camera[..., :3, 3],
            )
            fields |= {
                "rotation": of_own(shards, rotation, s),
                "translation": of_own(shards, translation, s),
                "poses_known": of_own(shards, known & known[:, :1], s),
                "poses_are_metric": given.metric,
            }
        return cls(**fields)


def check_known(priors: Priors, *, first: int) -> None:
    """See `SceneModel.check_known`; like the official `validate_input_views_for_inference`."""
    if priors.camera_from_world is not None and not priors.known("poses")[first]:
        raise InputError(
            f"priors: the pose of frame {first} is not known, to whose camera MapAnything takes "
            "the others; choose a frame of known pose by reference, or leave poses out"
        )
    if priors.depth is None:
        return
    has_rays = np.zeros(len(priors.depth), bool)
    for kind in ("intrinsics", "rays"):
        if priors.values(kind) is not None:
            has_rays |= np.asarray(priors.known(kind))
    if without := np.flatnonzero(np.asarray(priors.known("depth")) & ~has_rays).tolist():
        raise InputError(
            f"priors: depth of frame {without[0]} is known, but neither its intrinsics nor its "
            "rays, by which MapAnything takes it; give them, or leave its depth out"
        )


def _rays(priors: Any, size: tuple[int, int]):
    """Unit rays and of which frames they are known; given rays count before intrinsics."""
    rays: Any = None
    known: Any = None
    if priors.intrinsics is not None:
        rays, known = rays_of_pixels(priors.intrinsics, size), priors.intrinsics_known
    if priors.rays is not None:
        given = priors.rays_known
        length = jnp.sqrt(jnp.sum(priors.rays * priors.rays, axis=-1, keepdims=True))
        of_given = priors.rays / (length + _SMALL)
        if rays is None:
            return of_given, given
        rays = jnp.where(given[..., None, None, None], of_given, rays)
        known = known | given
    return rays, known


def rays_of_pixels(
    intrinsics: Float[Array, "*b 3 3"], size: tuple[int, int]
) -> Float[Array, "*b height width 3"]:
    """In which direction the centres of pixels lie, of length 1.

    The official code counts intrinsics from the centre of the first pixel
    (mapanything/utils/geometry.py, get_rays_in_camera_frame), so that it adds no half pixel.
    """
    ones = jnp.ones((*intrinsics.shape[:-2], *size), jnp.float32)
    rays = geometry.camera_points_from_depth(ones, intrinsics, pixel_centre=0.5)
    return rays / jnp.sqrt(jnp.sum(rays * rays, axis=-1, keepdims=True))


def depth_along_rays(depth: Float[Array, "*b"], rays: Float[Array, "*b 3"]) -> Float[Array, "*b"]:
    """Distances from the camera, of depth along its axis; what is 0 stays so."""
    forward = rays[..., 2]
    is_forward = forward > 0
    return jnp.where(is_forward, depth / jnp.where(is_forward, forward, 1.0), 0.0)


def relative_to_the_first(
    rotation: Float[Array, "b s 4"], translation: Float[Array, "b s 3"]
) -> tuple[Float[Array, "b s 4"], Float[Array, "b s 3"]]:
    """Cameras in the coordinates of the first frame's.

    The sign of a quaternion is what the product gives, and the model sees it. The first translation
    is exactly 0, since the difference is taken before it is turned.

    Args:
        rotation, translation: of the cameras in the world; quaternions (x, y, z, w).
    """
    first = rotation[:, :1]
    squared = jnp.sum(first * first, axis=-1, keepdims=True)
    inverse = first * np.array([-1, -1, -1, 1], np.float32)[None, None] / squared
    turned_back = geometry.matrix_from_quaternion(inverse)
    difference = translation - translation[:, :1]
    turned = jnp.sum(turned_back * difference[..., None, :], axis=-1)
    return _product(jnp.broadcast_to(inverse, rotation.shape), rotation), turned


def _product(first, second):
    """Of quaternions (x, y, z, w)."""
    x1, y1, z1, w1 = jnp.moveaxis(first, -1, 0)
    x2, y2, z2, w2 = jnp.moveaxis(second, -1, 0)
    return jnp.stack(
        [
            w1 * x2 + x1 * w2 + y1 * z2 - z1 * y2,
            w1 * y2 - x1 * z2 + y1 * w2 + z1 * x2,
            w1 * z2 + x1 * y2 - y1 * x2 + z1 * w2,
            w1 * w2 - x1 * x2 - y1 * y2 - z1 * z2,
        ],
        axis=-1,
    )


def lengths(vectors: Float[Array, "*b d"]) -> Float[Array, "*b"]:
    """Exactly 0 where a vector is, with a finite gradient there."""
    squared = jnp.sum(vectors * vectors, axis=-1)
    return jnp.where(squared > 0, jnp.sqrt(jnp.where(squared > 0, squared, 1.0)), 0.0)


def without_scale(values: Float[Array, "*b n"], counts: Bool[Array, "*b n"]) -> Float[Array, "*b"]:
    """The mean of those that count: the scale that the model is told apart; never 0."""
    total = jnp.sum(jnp.where(counts, values, 0.0), axis=-1)
    number = jnp.sum(counts, axis=-1, dtype=jnp.float32)
    return jnp.maximum(total / (number + _SMALL), _SMALL)


def scale_of_depth(depth: Float[Array, "*b height width"]) -> Float[Array, "*b"]:
    """The mean of the depths of every frame that are known."""
    flat = depth.reshape(*depth.shape[:-2], -1)
    return without_scale(flat, flat > 0)


def log_of_depth(depth: Float[Array, "*b height width"]) -> Float[Array, "*b height width"]:
    """Depth as the model takes it: without its scale, and flattened by a logarithm."""
    return jnp.log1p(depth / scale_of_depth(depth)[..., None, None])


def log_scale(scale: Float[Array, "*b"]) -> Float[Array, "*b 1"]:
    """As the model takes a scale."""
    return jnp.log(scale + _SMALL)[..., None]
