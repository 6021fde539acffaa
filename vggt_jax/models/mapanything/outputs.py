"""What MapAnything returns."""

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Array, Bool, Float

from vggt_jax import geometry
from vggt_jax.layers.scene_attention import AttentionStats
from vggt_jax.scene import surfaces


@jax.tree_util.register_dataclass
@dataclasses.dataclass(frozen=True, kw_only=True, eq=False)
class MapAnythingOutput:
    """Predictions of MapAnything under their official names, channels last, in metres.

    Attributes:
        ray_directions: in which direction each pixel looks from its own camera, of length 1.
        depth_along_ray: distance from the camera.
        pts3d: where each pixel's point lies in the world, about that of the first camera.
        pts3d_cam: where it lies in the coordinates of its own camera.
        cam_trans, cam_quats: world_from_camera: position, and rotation as quaternion (x, y, z, w).
        metric_scaling_factor: by which depth and positions, which the other heads predict up to
            scale, were multiplied.
        conf: confidence in the points, `1 + exp(x)`, above 1 and not bounded.
        non_ambiguous_mask: whether a pixel has a point at all, unlike sky.
        non_ambiguous_mask_logits: of which it is the sign.
        attention_stats: what attention did in each layer; None where it was dense.
    """

    ray_directions: Float[Array, "b s height width 3"]
    depth_along_ray: Float[Array, "b s height width 1"]
    pts3d: Float[Array, "b s height width 3"]
    pts3d_cam: Float[Array, "b s height width 3"]
    cam_trans: Float[Array, "b s 3"]
    cam_quats: Float[Array, "b s 4"]
    metric_scaling_factor: Float[Array, "b 1"]
    conf: Float[Array, "b s height width"]
    non_ambiguous_mask: Bool[Array, "b s height width"]
    non_ambiguous_mask_logits: Float[Array, "b s height width"]
    attention_stats: AttentionStats | None = None

    @property
    def camera_poses(self) -> Float[Array, "b s 4 4"]:
        """World_from_camera (official file: mapanything/utils/inference.py)."""
        return pose_matrices(self.cam_quats, self.cam_trans)

    @property
    def mask(self) -> Bool[Array, "b s height width"]:
        """Pixels whose points the official code keeps: neither ambiguous nor at an edge.

        An edge is a jump of depth of more than 3 % where the surface bends by more than 5 degrees
        (official file: mapanything/utils/inference.py, with its default thresholds).
        """
        return kept_pixels(self.pts3d_cam, self.non_ambiguous_mask)


def pose_matrices(
    quaternions: Float[Array, "*b 4"], positions: Float[Array, "*b 3"]
) -> Float[Array, "*b 4 4"]:
    """World_from_camera of rotations (x, y, z, w) and positions."""
    rotation = geometry.matrix_from_quaternion(quaternions)
    pose = jnp.concatenate([rotation, positions[..., None]], axis=-1)
    last = jnp.broadcast_to(jnp.array([0, 0, 0, 1], jnp.float32), (*pose.shape[:-2], 1, 4))
    return jnp.concatenate([pose, last], axis=-2)


def kept_pixels(
    points: Float[Array, "*b height width 3"], is_clear: Bool[Array, "*b height width"]
) -> Bool[Array, "*b height width"]:
    """See `MapAnythingOutput.mask`.

    Args:
        points: in camera coordinates.
        is_clear: False on ambiguous pixels, which count for nothing.
    """
    jumps = geometry.depth_edges(points[..., 2], mask=is_clear)
    normals = surfaces.normals_of_points(points, is_clear)
    bends = surfaces.normal_edges(*normals, transposed_mask=True)
    return is_clear & ~(jumps & bends)


def scene_of_frames(outputs: dict[str, Any]) -> dict[str, Any]:
    """The fields of a `Reconstruction` that come of every frame by itself."""
    points, confidence = outputs["pts3d_cam"], outputs["conf"]
    poses = pose_matrices(outputs["cam_quats"], outputs["cam_trans"])
    return dict(
        camera_from_world=geometry.invert_rigid(poses)[..., :3, :],
        intrinsics=surfaces.intrinsics_from_rays(outputs["ray_directions"]),
        depth=points[..., 2],
        depth_confidence=confidence,
        depth_edges=~kept_pixels(points, outputs["non_ambiguous_mask"]),
        world_points=outputs["pts3d"],
        world_points_confidence=confidence,
    )
