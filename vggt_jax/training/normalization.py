"""What the model shall predict: the truth of a scene in the first camera's frame, at unit scale."""

import dataclasses
from typing import Protocol

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float, Int

from vggt_jax import geometry

PIXEL_CENTRE = 0.5
"""Where models trained here have the centre of the first pixel; see `VGGTConfig.pixel_centre`."""
_MIN_SCALE = 1e-6  # of a scene whose points all lie at the first camera


class SceneTruth(Protocol):
    """What training asks of scenes; `vggt_jax.synthetic.Scenes` has it."""

    @property
    def images(self) -> Float[Array, "b s height width 3"]: ...
    @property
    def depth(self) -> Float[Array, "b s height width"]: ...
    @property
    def valid(self) -> Bool[Array, "b s height width"]: ...
    @property
    def camera_from_world(self) -> Float[Array, "b s 3 4"]: ...
    @property
    def intrinsics(self) -> Float[Array, "b s 3 3"]: ...


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True)
class Targets:
    """The truth in the model's terms.

    Attributes:
        pose_enc: as `VGGTOutput.pose_enc`, with a unit quaternion whose scalar is not negative.
        depth: along the viewing axis; 0 where there is none.
        world_points: in the first camera's frame; 0 where there is no depth.
        valid: pixels with a depth.
        has_points: whether a scene has valid pixels at all; without, its scale means nothing.
        scale: length of the scene's unit in the units that it came in.
    """

    pose_enc: Float[Array, "b s 9"]
    depth: Float[Array, "b s height width"]
    world_points: Float[Array, "b s height width 3"]
    valid: Bool[Array, "b s height width"]
    has_points: Bool[Array, " b"]
    scale: Float[Array, " b"]

    def with_maps_of(self, frames: Int[Array, " f"] | None) -> "Targets":
        """The same cameras, with depth and points of these frames only; None for all."""
        if frames is None:
            return self
        maps = ("depth", "world_points", "valid")
        return dataclasses.replace(self, **{name: getattr(self, name)[:, frames] for name in maps})


def normalize_scenes(scenes: SceneTruth) -> Targets:
    """Puts the world into the first camera and divides lengths by the scene's scale.

    The scale is the mean distance of all valid points of all frames to the first camera
    (arXiv:2503.11651, section 3.4); a scene without valid points keeps its own. Pixels whose depth
    is not finite and positive do not count as valid.
    """
    valid = scenes.valid & jnp.isfinite(scenes.depth) & (scenes.depth > 0)
    depth = jnp.where(valid, scenes.depth, 0.0)
    camera_from_first = _relative_to_first(scenes.camera_from_world)
    points = geometry.unproject_depth(
        depth, camera_from_first, scenes.intrinsics, pixel_centre=PIXEL_CENTRE
    )
    points = jnp.where(valid[..., None], points, 0.0)
    count = jnp.sum(valid, axis=(1, 2, 3), dtype=jnp.int32)
    distances = jnp.sum(jnp.linalg.norm(points, axis=-1), axis=(1, 2, 3))
    mean = distances / jnp.maximum(count, 1).astype(jnp.float32)
    scale = jnp.where(count > 0, jnp.maximum(mean, _MIN_SCALE), 1.0)
    over_scale = lambda x: x / scale.reshape(-1, *[1] * (x.ndim - 1))
    translation = over_scale(camera_from_first[..., 3])
    cameras = jnp.concatenate([camera_from_first[..., :3], translation[..., None]], axis=-1)
    height, width = scenes.depth.shape[-2:]
    return Targets(
        pose_enc=geometry.pose_encoding_from_camera(cameras, scenes.intrinsics, (height, width)),
        depth=over_scale(depth),
        world_points=over_scale(points),
        valid=valid,
        has_points=count > 0,
        scale=scale,
    )


def _relative_to_first(camera_from_world: Float[Array, "b s 3 4"]) -> Float[Array, "b s 3 4"]:
    world_from_first = geometry.invert_rigid(camera_from_world[:, :1])
    einsum = lambda *factors: jnp.einsum(
        "...ij,...jk->...ik", *factors, precision=jax.lax.Precision.HIGHEST
    )
    rotation, translation = camera_from_world[..., :3], camera_from_world[..., 3:]
    turned = einsum(rotation, world_from_first[..., :3])
    moved = einsum(rotation, world_from_first[..., 3:]) + translation
    return jnp.concatenate([turned, moved], axis=-1)
